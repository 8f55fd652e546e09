"""What the tests of sources share: the samples, reading one to its end, and making a recording."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from streamseg.config import SourceConfig
from streamseg.errors import SourceError
from streamseg.sources import open_source

MEDIA = Path(__file__).parent / "media"


@dataclass(frozen=True)
class Read:
    """What came of reading a source to its end."""

    frames: list
    report: object
    error: Exception | None

    @property
    def times(self):
        return [frame.pts for frame in self.frames]


def read(url, **options):
    source = open_source(SourceConfig(url=str(url), **options))
    frames, error = [], None
    try:
        for frame in source.frames():  # not list(): what came before an error counts
            frames.append(frame)  # noqa: PERF402
    except SourceError as caught:
        error = caught
    return Read(frames, source.report, error)


def config(sample, **options):
    return SourceConfig(url=str(MEDIA / sample), **options)


def write_video(path, images, *, rate=25, pixel_format="yuv420p", gop=12, times=None):
    """A small H.264 recording, of the sizes and at the times given (in ticks of 1 / rate)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.options = {"crf": "5", "preset": "ultrafast"}
        stream.codec_context.gop_size = gop
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def same(a, b):
    return (a.index, a.epoch, a.pts, a.item) == (b.index, b.epoch, b.pts, b.item) and (
        np.array_equal(a.image, b.image)
    )


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
