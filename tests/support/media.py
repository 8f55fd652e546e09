"""Recordings for tests of sources: the samples, small synthetic videos, and reading to the end."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from support.paths import TESTS

from streamseg.config import SourceConfig
from streamseg.errors import SourceError
from streamseg.sources import open_source

MEDIA = TESTS / "media"


@dataclass(frozen=True)
class ReadResult:
    """Frames, report and final error (or None) of a source that was read to its end."""

    frames: list
    report: object
    error: Exception | None

    @property
    def times(self):
        return [frame.pts for frame in self.frames]


def read_source(url, **options):
    """Read a source to its end."""
    source = open_source(SourceConfig(url=str(url), **options))
    frames, error = [], None
    try:
        for frame in source.frames():  # list() would lose the frames before an error
            frames.append(frame)  # noqa: PERF402
    except SourceError as caught:
        error = caught
    return ReadResult(frames, source.report, error)


def sample_config(sample, **options):
    return SourceConfig(url=str(MEDIA / sample), **options)


FAST_H264 = {"crf": "5", "preset": "ultrafast"}
FAST_HEVC = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:open-gop=1"}


def write_video(
    path,
    images,
    *,
    rate=25,
    pixel_format="yuv420p",
    gop=12,
    times=None,
    codec="libx264",
    options=FAST_H264,
    container_format=None,
    tag=None,
):
    """Write a small recording; ``times`` are in ticks of 1 / rate, one per image."""
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.options = options
        stream.codec_context.gop_size = gop
        if tag is not None:
            stream.codec_context.codec_tag = tag
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def moving_images(count, size=(48, 64)):
    """Return images without any symmetry, with a bar that moves to the right."""
    height, width = size
    background = np.full((height, width, 3), 60, np.uint8)
    background[: height // 3, : width // 3] = (220, 30, 30)
    background[: height // 3, -width // 3 :] = (30, 200, 30)
    background[-height // 3 :, : width // 3] = (30, 30, 220)
    images = []
    for number in range(count):
        image = background.copy()
        x = 3 * number % (width - 8)
        image[height // 3 : -height // 3, x : x + 8] = 255
        images.append(image)
    return images


def frames_equal(a, b):
    return (a.index, a.epoch, a.pts, a.item) == (b.index, b.epoch, b.pts, b.item) and (
        np.array_equal(a.image, b.image)
    )


def count_open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
