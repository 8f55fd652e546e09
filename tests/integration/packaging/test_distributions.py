"""The wheel, the source distribution and the example plug-in, installed into new environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*arguments: object, cwd: Path | None = None) -> str:
    """Run a program without this repository on its path; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        list(map(str, arguments)),
        env=environment | {"COLUMNS": "200", "TERM": "dumb"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the wheel and the source distribution, built as ``make dist`` does."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.fixture
def new_environment(tmp_path: Path) -> Path:
    """Return the folder of the programs of an empty virtual environment."""
    run(sys.executable, "-m", "venv", tmp_path / "environment")
    return tmp_path / "environment" / "bin"


def test_the_wheel_has_the_bundled_files_and_no_tests(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = wheel.namelist()
    assert {"streamseg/py.typed", "streamseg/assets/nanomask.safetensors"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"streamseg"}


def test_the_wheel_is_a_subscriber_in_an_empty_environment(
    distributions: tuple[Path, Path], new_environment: Path, tmp_path: Path
) -> None:
    run(new_environment / "python", "-m", "pip", "install", "--quiet", distributions[0])
    assert "serve" in run(new_environment / "streamseg", "--help")
    program = "import streamseg; print(streamseg.connect('tcp://127.0.0.1:5555').rejected)"
    assert run(new_environment / "python", "-c", program, cwd=tmp_path) == "0\n"
    installed = json.loads(run(new_environment / "python", "-m", "pip", "list", "--format", "json"))
    assert "torch" not in {package["name"] for package in installed}


def test_tests_run_from_the_source_distribution(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    with tarfile.open(distributions[1]) as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.glob("streamseg-*")
    tests = ("tests/unit/protocol", "tests/unit/structures/test_coco.py")
    output = run(sys.executable, "-m", "pytest", "-q", "-x", *tests, cwd=folder)
    assert " passed" in output
    assert " failed" not in output


def test_the_example_plugin_serves_in_a_new_environment(
    distributions: tuple[Path, Path], new_environment: Path, tmp_path: Path
) -> None:
    # The dependencies, torch among them, are those of this environment.
    site_packages = new_environment.parent / sysconfig.get_path("purelib", "venv", {"base": "."})
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    packages = (distributions[0], ROOT / "examples" / "plugin")
    pip = (new_environment / "python", "-m", "pip", "install", "--quiet", "--no-deps")
    run(*pip, *packages)
    listed = run(new_environment / "streamseg", "models")
    assert "streamseg-example-plugin 0.1" in listed
    config = tmp_path / "service.yaml"
    config.write_text(
        "sources: [{url: 'numbers://40', name: numbers}]\n"
        "model: {name: moving}\n"
        "tracker: {type: nearest}\n"
        f"sinks: [{{type: lines, path: {tmp_path / 'lines.txt'}}}]\n"
        "publish: {bind: 'tcp://127.0.0.1:*'}\n"
    )
    run(new_environment / "streamseg", "serve", config)
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"numbers {index}" for index in range(40)]
    assert any(line.split(": ")[1] for line in lines), "no object was tracked"
