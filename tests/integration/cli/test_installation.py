"""Installation: extras, bundled assets and the client without server dependencies."""

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


def test_only_headless_opencv_is_installed() -> None:
    assert packages_distributions()["cv2"] == ["opencv-python-headless"]


def test_bundled_assets_are_within_size_limits() -> None:
    assets = files("streamseg") / "assets"
    assert 0 < len((assets / "street.mp4").read_bytes()) <= 2_000_000
    assert 0 < len((assets / "nanomask.safetensors").read_bytes()) <= 15_000_000


def test_client_imports_no_server_modules() -> None:
    code = (
        "import sys, streamseg\n"
        "streamseg.connect('tcp://127.0.0.1:1').close(); streamseg.Instances; streamseg.Masks\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip() == "[]"


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
def test_command_names_missing_extra(tmp_path, missing, commands, extra) -> None:
    program = COMMANDS.format(missing=missing, commands=commands)
    process = subprocess.run(
        [sys.executable, "-c", program],
        check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = process.stderr.splitlines()
    assert lines[1::2] == ["exit 1"] * len(commands)
    assert [line.rpartition(": ")[2] for line in lines[::2]] == (
        [f"pip install 'streamseg[{extra}]'"] * len(commands)
    )
    assert process.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_extras_contain_the_required_modules() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages_by_extra = {
        extra: {re.split(r"[^A-Za-z0-9_-]", need)[0].lower() for need in needs}
        for extra, needs in project["optional-dependencies"].items()
    }
    installed = packages_distributions()
    for module, extra in EXTRAS.items():
        extras = ("server", "view") if extra is None else (extra,)
        candidates = (*installed.get(module, []), module)
        names = {name.lower().replace("_", "-") for name in candidates}
        assert all(names & packages_by_extra[each] for each in extras), module


def test_missing_extra_names_module_without_extra() -> None:
    assert missing_extra(ModuleNotFoundError(name="mine.part")) == "mine isn't installed"
    import_error = ImportError("libGL.so.1: cannot open shared object file", name="cv2")
    assert missing_extra(import_error) == f"cv2 can't be loaded: {import_error}"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_client_works_without_extras(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    install = [scripts / "python", "-m", "pip", "install", "--quiet", str(ROOT)]
    subprocess.run(install, check=True, timeout=240)

    def run_command(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False, timeout=60
        )

    code = f"import importlib.util as u; print([n for n in {HEAVY!r} if u.find_spec(n)])"
    assert run_command(scripts / "python", "-c", code).stdout.strip() == "[]"
    watch_process = run_command(
        scripts / "streamseg", "watch", "tcp://127.0.0.1:1", "--timeout", "0.3"
    )
    assert watch_process.returncode == 1
    assert watch_process.stderr.splitlines() == ["streamseg: no result in 0.3 s"]
    serve_process = run_command(scripts / "streamseg", "serve", "--source", "x.mp4")
    assert serve_process.returncode == 1
    assert "pip install 'streamseg[server]'" in serve_process.stderr
    assert "Traceback" not in serve_process.stderr
