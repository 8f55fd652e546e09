"""Video streams read with PyAV: selection, packets, frame rate, pixel shape and RGB conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import cast

import av.error
import av.logging
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from streamseg.config import SourceConfig
from streamseg.errors import NoFramesError, SourceError, redact_address
from streamseg.sources.base import check_pixels, decoder_limit
from streamseg.structures.results import Image

# FFmpeg's log stays off: its lines hold URLs with their passwords, and a decoder thread that waits
# for the interpreter lock to log can deadlock with the thread that closes the decoder.
av.logging.set_level(None)

MAX_FRAME_RATE = 1000
"""Highest frame rate that is believed, in frames per second."""
_DEFAULT_FRAME_RATE = Fraction(25)
_MAX_PIXEL_ASPECT = 8
"""Most elongated pixel that is believed, as the ratio of its sides."""


def choose_stream(container: InputContainer, config: SourceConfig) -> VideoStream:
    """Return the configured video stream, with its decoder's pixel limit set.

    Raises:
        NoFramesError: there is no video, or its codec is unknown.
        SourceError: there is no video stream with the configured index.
        TooLargeError: the frames have more than ``max_pixels``.
    """
    stream = find_stream(container, config)
    context = stream.codec_context
    if context is None:
        raise NoFramesError(f"{redact_address(config.url)}: its video codec is unknown")
    check_pixels(config.url, context.width, context.height, config.max_pixels)
    context.options = {"max_pixels": str(decoder_limit(config.max_pixels))}
    return stream


def find_stream(container: InputContainer, config: SourceConfig) -> VideoStream:
    """Return the configured video stream, decodable or not.

    Cover art counts as a video stream only if there is no other.

    Raises:
        NoFramesError: there is no video.
        SourceError: there is no video stream with the configured index.
    """
    url = redact_address(config.url)
    videos = container.streams.video
    moving = [s for s in videos if Disposition.attached_pic not in s.disposition]
    choices = moving or list(videos)
    if not choices:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise NoFramesError(f"{url}: has no video, only {kinds}")
    if config.stream >= len(choices):
        raise SourceError(
            f"{url}: has no video stream {config.stream}: there are {len(choices)}, counted from 0"
        )
    return choices[config.stream]


def read_packets(
    container: InputContainer,
    stream: VideoStream,
    on_error: Callable[[str], None] = lambda _: None,
    on_empty_packet: Callable[[], None] = lambda: None,
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of a stream that are not empty.

    Args:
        container: open container.
        stream: one of its video streams.
        on_error: called with the reason if the container can't be read any further; the packets
            end there.
        on_empty_packet: called for each empty packet, which stands for a repeated frame.
    """
    try:
        for packet in container.demux(stream):
            # An empty packet would flush the decoder. PyAV adds one without a time at the end.
            if packet.size:
                yield packet
            elif packet.dts is not None:
                on_empty_packet()
    except av.error.FFmpegError as error:
        on_error(ffmpeg_error_message(error))
    except IndexError:
        # After the last packet, PyAV indexes streams that have appeared only since it opened.
        return


def ffmpeg_error_message(error: Exception) -> str:
    """Return FFmpeg's error message without the address that it may contain."""
    return str(getattr(error, "strerror", None) or error)


def nominal_frame_rate(stream: VideoStream) -> Fraction:
    """Return the frame rate that the codec or the container states, 25 if neither does."""
    for rate in (stream.codec_context.framerate, stream.guessed_rate):
        if rate and 0 < rate <= MAX_FRAME_RATE:
            return rate
    return _DEFAULT_FRAME_RATE


def pixel_aspect_ratio(stream: VideoStream) -> Fraction:
    """Return the width of a pixel over its height; 1 if it is not stated or implausible."""
    ratio = stream.sample_aspect_ratio
    if not ratio or not Fraction(1, _MAX_PIXEL_ASPECT) <= ratio <= _MAX_PIXEL_ASPECT:
        return Fraction(1)
    return ratio


def frame_to_rgb(frame: VideoFrame, reformatter: VideoReformatter | None = None) -> Image:
    """Convert a decoded frame to uint8 (H, W, 3) RGB.

    Args:
        frame: decoded frame.
        reformatter: reused for frames of the same format; None for a new one.
    """
    rgb = (reformatter or VideoReformatter()).reformat(frame, format="rgb24")
    return cast(Image, rgb.to_ndarray())
