"""What is installed: one cv2 beside the server, and next to nothing beside a consumer."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path

import pytest
from support.paths import ROOT

from streamseg.cli.app import EXTRAS, missing_extra

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


COMMANDS = """
import sys
for module in {missing!r}:
    sys.modules[module] = None
from streamseg.cli import main
for command in {commands!r}:
    try:
        main(command.split())
    except SystemExit as ended:
        print("exit", ended.code, file=sys.stderr)
"""
SERVER = (
    "serve --source test:",
    "process x.mp4 --out o",
    "demo --out o",
    "train x.yaml",
    "eval x.yaml",
    "bench clip --out o",
    "models",
    "ctl list",
)
VIEW = ("view tcp://127.0.0.1:1 --port 0",)


@pytest.mark.parametrize(
    ("missing", "commands", "extra"),
    [
        ((*HEAVY, "PIL", "starlette", "uvicorn"), SERVER, "server"),
        (("torch",), ("bench clip --out o",), "server"),
        (("starlette",), VIEW, "view"),
        (("uvicorn",), VIEW, "view"),
        (("websockets",), VIEW, "view"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_a_command_says_its_extra_before_anything_else(tmp_path, missing, commands, extra) -> None:
    program = COMMANDS.format(missing=missing, commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["exit 1"] * len(commands)
    assert [line.rpartition(": ")[2] for line in lines[::2]] == (
        [f"pip install 'streamseg[{extra}]'"] * len(commands)
    )
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_extras_that_are_named_bring_the_modules() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {
        extra: {re.split(r"[^A-Za-z0-9_-]", need)[0].lower() for need in needs}
        for extra, needs in project["optional-dependencies"].items()
    }
    installed = packages_distributions()
    for module, extra in EXTRAS.items():
        extras = ("server", "view") if extra is None else (extra,)
        found = (*installed.get(module, []), module)
        names = {name.lower().replace("_", "-") for name in found}
        assert all(names & brought[each] for each in extras), module


def test_a_module_that_no_extra_brings_is_named_alone() -> None:
    assert missing_extra(ModuleNotFoundError(name="mine.part")) == "mine isn't installed"
    broken = ImportError("libGL.so.1: cannot open shared object file", name="cv2")
    assert missing_extra(broken) == f"cv2 can't be loaded: {broken}"


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
