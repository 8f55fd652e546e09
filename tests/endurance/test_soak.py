"""Endurance tests of two minutes; the tools in ``tools/`` run longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]


def run_tool(*arguments: object) -> None:
    """Run a tool, which exits with an error if its check fails."""
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def test_service_memory_is_constant_under_kills_and_hostile_subscribers(tmp_path: Path) -> None:
    run_tool("tools/soak.py", "--seconds", 120, "--out", tmp_path)


def test_result_age_is_bounded_with_model_slower_than_cameras() -> None:
    run_tool("tools/freshness.py", "--seconds", 120, "--parts", 4)
