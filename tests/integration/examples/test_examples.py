"""The programs in ``examples``, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from support.commands import command, environment
from support.paths import CLIP, ROOT
from support.ports import free_port

EXAMPLES = ROOT / "examples"
CLIP_FRAMES = 300
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def run_example(name: str, *arguments: object) -> str:
    """Run an example to its end; returns its output."""
    ended = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@contextmanager
def served_pattern(name: str) -> Iterator[str]:
    """Run a service with a test pattern of 20 frames; yields its address."""
    address = f"tcp://127.0.0.1:{free_port()}"
    arguments = ("--source", "test:?frames=20&size=320x240", "--wait-subscribers", 1)
    service = subprocess.Popen(
        command("serve", *arguments, "--bind", address),
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield address
        assert service.wait(60) == 0, name
    finally:
        service.kill()
        service.wait()


def test_every_example_has_a_test() -> None:
    tested = Path(__file__).read_text()
    names = [path.name for path in EXAMPLES.glob("*.py")]
    assert len(names) >= 5
    assert [name for name in names if f'"{name}"' not in tested] == []


def test_predict_image_lists_objects_and_saves_the_annotated_image(tmp_path: Path) -> None:
    output = run_example("predict_image.py", ROOT / "docs" / "street.jpg", tmp_path / "out.png")
    assert "person" in output
    with (
        Image.open(tmp_path / "out.png") as annotated,
        Image.open(ROOT / "docs/street.jpg") as image,
    ):
        assert annotated.size == image.size
        assert annotated.convert("RGB").tobytes() != image.convert("RGB").tobytes()


def test_track_video_prints_when_each_object_was_visible() -> None:
    lines = run_example("track_video.py", CLIP).splitlines()
    assert len(lines) >= 3
    assert all(" s to " in line for line in lines)


def test_subscribe_prints_each_frame_until_the_service_ends() -> None:
    with served_pattern("subscribe") as address:
        lines = run_example("subscribe.py", address).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "lost messages: 0"


def test_subscribe_async_reads_two_services() -> None:
    with served_pattern("first") as first, served_pattern("second") as second:
        lines = run_example("subscribe_async.py", first, second).splitlines()
    assert len(lines) == 40
    assert {line.split()[0] for line in lines} == {first, second}


def test_embed_service_removes_its_source() -> None:
    lines = run_example("embed_service.py", CLIP).splitlines()
    assert lines[50].startswith("frame 50: ")
    assert len(lines) < CLIP_FRAMES
