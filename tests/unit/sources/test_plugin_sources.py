"""Plug-in sources: frames, selection, reports and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.plugins import install_plugin

from streamseg import open_source
from streamseg.config import SourceConfig
from streamseg.errors import ConfigError, NoFramesError, SourceError, TooLargeError

MODULE = """
import numpy as np
from streamseg.errors import ConfigError

class Gray:
    live = False
    closed = 0

    def __init__(self, url):
        self.mode = url.partition("://")[2]
        if self.mode == "wrong":
            raise ConfigError(f"{url}: there is no such mode")
        if self.mode == "broken":
            raise RuntimeError("no device")

    def frames(self):
        image = np.zeros((6, 8, 3), np.uint8)
        try:
            for index in range(10):
                image[:] = index
                if self.mode == "raises" and index == 3:
                    raise OSError("unplugged")
                if self.mode == "type" and index == 3:
                    yield index / 10, image.astype(float)
                if self.mode == "time" and index == 3:
                    yield None, image
                if self.mode == "empty":
                    return
                yield index / 10, image
        finally:
            Gray.closed += 1
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points = {"streamseg.sources": {"gray": "demo_sources:Gray"}}
    install_plugin(tmp_path, monkeypatch, entry_points, demo_sources=MODULE)


def test_frames_have_index_time_and_a_copy_of_the_image() -> None:
    source = open_source("gray://plain")
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(10))
    assert [frame.pts for frame in frames] == pytest.approx([index / 10 for index in range(10)])
    assert [int(frame.image[0, 0, 0]) for frame in frames] == list(range(10))
    assert (source.report.delivered, source.report.size) == (10, (6, 8))
    assert not source.live


def test_selection_applies_and_frames_can_be_read_again() -> None:
    source = open_source("GRAY://plain", stride=3, start=0.2)
    assert [frame.index for frame in source.frames()] == [2, 5, 8]
    assert [frame.index for frame in source.frames()] == [2, 5, 8]
    assert source.report.skipped == 7


def test_stop_ends_the_frames_and_closes_the_generator() -> None:
    import demo_sources

    source = open_source("gray://plain")
    for frame in source.frames():
        if frame.index == 4:
            source.control.stop()
    assert demo_sources.Gray.closed == 1


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        ("raises", SourceError, "failed: OSError: unplugged"),
        ("type", SourceError, "frame 3 is no uint8 (H, W, 3) array"),
        ("time", SourceError, "the time of frame 3 is None"),
        ("empty", NoFramesError, "there is no frame"),
    ],
)
def test_failures_while_reading_are_one_line(mode: str, error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        list(open_source(f"gray://{mode}").frames())
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"gray://{mode}: ")


def test_failures_while_opening() -> None:
    with pytest.raises(ConfigError, match="gray://wrong: there is no such mode"):
        open_source("gray://wrong")
    with pytest.raises(SourceError, match=r"demo-plugin 1\.0 failed: RuntimeError: no device"):
        open_source("gray://broken")
    with pytest.raises(SourceError, match=r"known are rtsp, .*, gray"):
        open_source("grey://plain")


def test_limits_and_options_of_live_sources() -> None:
    with pytest.raises(TooLargeError, match="8 x 6 is over the limit of 10 pixels"):
        list(open_source("gray://plain", max_pixels=10).frames())
    with pytest.raises(ConfigError, match="stall_after is for live sources only"):
        open_source(SourceConfig(url="gray://plain", stall_after=2.0))
