"""Distributions with entry points, for tests of plug-ins."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def install_plugin(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    entry_points: Mapping[str, Mapping[str, str]],
    **modules: str,
) -> None:
    """Put a distribution ``demo-plugin 1.0`` on ``sys.path``, as pip would install it.

    Args:
        folder: folder to write it to.
        monkeypatch: undoes it at the end of the test.
        entry_points: ``module:attribute`` by name, by group.
        modules: source text of each module.
    """
    metadata = folder / "demo_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: demo-plugin\nVersion: 1.0\n")
    lines = []
    for group, names in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in names.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(folder))
