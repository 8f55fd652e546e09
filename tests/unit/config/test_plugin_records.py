"""Records of installed plug-ins."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from importlib.metadata import EntryPoint

import pytest

from streamseg.config.plugins import Plugin


def test_record_is_immutable_and_loads_its_object() -> None:
    plugin = Plugin("join", "package 1.0", EntryPoint("join", "os.path:join", "streamseg.sinks"))
    assert plugin.load()("a", "b") == "a/b"
    with pytest.raises(FrozenInstanceError):
        plugin.name = "other"  # type: ignore[misc]
