"""What only time shows, in CI's two minutes; `tools/` has the hour and the ten minutes by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]


def measured(*arguments: object) -> None:
    """Run one of the tools, which judges for itself."""
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_soaked_with_kills_and_hostile_subscribers_a_service_stays_flat(tmp_path: Path) -> None:
    measured("tools/soak.py", "--seconds", 120, "--out", tmp_path)


def test_results_stay_fresh_although_the_model_is_slower_than_the_cameras() -> None:
    measured("tools/freshness.py", "--seconds", 120, "--parts", 4)
