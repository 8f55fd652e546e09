"""What is installed: one cv2 beside the server, and next to nothing beside a consumer."""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "av", "cv2", "scipy", "yaml", "prometheus_client", "safetensors")


def test_the_server_has_one_cv2() -> None:
    assert packages_distributions()["cv2"] == ["opencv-python-headless"]


def test_the_clip_and_the_weights_are_small_enough_to_ship() -> None:
    assets = files("streamseg") / "assets"
    assert 0 < len((assets / "street.mp4").read_bytes()) <= 2_000_000
    assert 0 < len((assets / "nanomask.safetensors").read_bytes()) <= 15_000_000


def test_the_client_loads_nothing_that_a_consumer_lacks() -> None:
    code = (
        "import sys, streamseg\n"
        "streamseg.connect('tcp://127.0.0.1:1').close(); streamseg.Instances; streamseg.Masks\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert loaded.strip() == "[]"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_consumer_installs_streamseg_alone(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    install = [scripts / "python", "-m", "pip", "install", "--quiet", str(ROOT)]
    subprocess.run(install, check=True, timeout=240)

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False, timeout=60
        )

    there = f"import importlib.util as u; print([n for n in {HEAVY!r} if u.find_spec(n)])"
    assert run(scripts / "python", "-c", there).stdout.strip() == "[]"
    watched = run(scripts / "streamseg", "watch", "tcp://127.0.0.1:1", "--timeout", "0.3")
    assert watched.returncode == 1
    assert watched.stderr.splitlines() == ["streamseg: no result in 0.3 s"]
    served = run(scripts / "streamseg", "serve", "--source", "x.mp4")
    assert served.returncode == 1
    assert "pip install 'streamseg[server]'" in served.stderr
    assert "Traceback" not in served.stderr
