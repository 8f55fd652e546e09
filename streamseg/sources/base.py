"""Interface of a source, and the selection and counting of frames that all sources share.

A source yields :class:`LazyFrame`: index and time of a frame, and a function that loads its image.
``deliver_frames`` selects frames (stride, frame rate, start and end), loads only those, counts
them, and converts them to :class:`~streamseg.structures.results.Frame`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from streamseg.config import SourceConfig
from streamseg.errors import IncompleteError, NoFramesError, TooLargeError, redact_address
from streamseg.structures.results import Frame, Image, Size

MIN_TICK = 1e-3
"""Clock of Matroska and FLV in seconds; recordings are often converted from these formats."""
_DIGITS = 9
"""Digits of a time difference: more than any clock has, fewer than rounding errors affect."""
_RATE_DIGITS = 0.005
"""Rounding of a rate such as 29.97 or 23.98, in frames per second."""


class BadImageError(Exception):
    """A single image can't be decoded; it is counted and skipped."""


@dataclass(slots=True)
class SourceReport:
    """Counts and properties of a source's frames; written by ``frames()``, read by others.

    ``delivered + skipped + bad`` is the number of frames read so far.

    Attributes:
        delivered: frames that were yielded.
        skipped: decoded frames that were excluded by stride, max_fps, start or end.
        bad: packets or images that could not be decoded.
        damaged: delivered or skipped frames in which the decoder concealed errors.
        size: (height, width) of the latest upright frame; (0, 0) while unknown.
        fps: frame rate in the file's metadata, or None.
        expected: number of frames in the file's metadata, or None.
        duration: duration in seconds in the file's metadata, or None.
        incomplete: why the recording is incomplete; empty if it seems complete.
        last_error: error of the latest bad packet or image.
        notes: remarks for the summary, one line each, at most ``MAX_NOTES``.
    """

    delivered: int = 0
    skipped: int = 0
    bad: int = 0
    damaged: int = 0
    size: Size = (0, 0)
    fps: float | None = None
    expected: int | None = None
    duration: float | None = None
    incomplete: str = ""
    last_error: str = ""
    notes: list[str] = field(default_factory=list)

    MAX_NOTES = 20

    @property
    def decoded(self) -> int:
        """Number of frames that were decoded."""
        return self.delivered + self.skipped

    def add_note(self, note: str) -> None:
        """Add a note, once."""
        if note not in self.notes and len(self.notes) < self.MAX_NOTES:
            self.notes.append(note)

    def count_bad(self, error: str) -> None:
        """Count a packet or an image that could not be decoded."""
        self.bad += 1
        self.last_error = error


class SourceControl:
    """Switch that stops or pauses a source while its frames are read; thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stopped = False
        self._paused = False

    @property
    def stopped(self) -> bool:
        """Whether the source was stopped."""
        return self._stopped

    @property
    def paused(self) -> bool:
        """Whether the source is paused."""
        return self._paused and not self._stopped

    def stop(self) -> None:
        """Stop the source; ``frames()`` ends soon."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def pause(self) -> None:
        """Pause until ``resume``; a live source disconnects."""
        with self._changed:
            self._paused = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Continue after ``pause``."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def wait_until_resumed(self) -> bool:
        """Wait while the source is paused; returns False if it was stopped."""
        with self._changed:
            self._changed.wait_for(lambda: not self.paused)
        return not self._stopped

    def sleep(self, seconds: float) -> None:
        """Wait until the time has passed or the source is stopped or paused."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._paused, seconds)


class Source(Protocol):
    """Interface of a source of frames.

    Attributes:
        name: name of the source in messages.
        live: whether frames are dropped if they can't be processed in time; otherwise the source
            waits.
        report: counts of the frames; a recorded source has a new one for each ``frames()``.
        control: stops and pauses the source.
    """

    name: str
    live: bool
    report: SourceReport
    control: SourceControl

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames in order; files and connections are closed at the end.

        Ends early, without an error, after ``control.stop()``.

        Raises:
            IncompleteError: after the last good frame of an incomplete recording.
            NoFramesError: there was no frame, or fewer than one in ten could be decoded.
            TooLargeError: a frame has more than ``max_pixels``.
        """


@dataclass(frozen=True, slots=True)
class LazyFrame:
    """A frame whose image isn't loaded yet.

    Attributes:
        index: index of the frame in the source, from 0; lost frames are counted.
        epoch: see ``Frame``.
        pts: presentation time in seconds.
        load: returns the image, uint8 (H, W, 3) RGB, upright and contiguous, and the width of a
            pixel divided by its height; raises :class:`BadImageError`.
        item: file name, for folders of images.
        damaged: whether the decoder concealed errors.
    """

    index: int
    epoch: int
    pts: float
    load: Callable[[], tuple[Image, Fraction]]
    item: str | None = None
    damaged: bool = False


def deliver_frames(
    name: str,
    config: SourceConfig,
    lazy_frames: Generator[LazyFrame, None, None],
    report: SourceReport,
    control: SourceControl,
    clock: RecordingClock | None = None,
) -> Generator[Frame, None, None]:
    """Yield the selected frames of a recording, then raise if something is wrong with it."""
    with closing(select_frames(name, config, lazy_frames, report, clock)) as frames:
        for frame in frames:
            if not control.wait_until_resumed():
                return
            yield frame
    _raise_problems(config, report)


def select_frames(
    name: str,
    config: SourceConfig,
    lazy_frames: Generator[LazyFrame, None, None],
    report: SourceReport,
    clock: RecordingClock | None = None,
) -> Generator[Frame, None, None]:
    """Yield the frames selected by ``config``; closes ``lazy_frames`` at the end."""
    clock = clock or RecordingClock()
    selector = _FrameSelector(config, clock.tick)
    with closing(lazy_frames):
        for lazy_frame in lazy_frames:
            seconds = clock.elapsed(lazy_frame)
            if config.end is not None and seconds >= config.end:
                report.skipped += 1
                break
            report.damaged += lazy_frame.damaged
            if not selector.selects(lazy_frame, seconds):
                report.skipped += 1
                continue
            try:
                image, pixel_aspect = lazy_frame.load()
            except BadImageError as error:
                report.count_bad(str(error))
                continue
            report.delivered += 1
            report.size = image.shape[0], image.shape[1]
            yield Frame(
                source=name,
                index=lazy_frame.index,
                epoch=lazy_frame.epoch,
                pts=lazy_frame.pts,
                captured_at=time.time(),
                monotonic=time.monotonic(),
                image=image,
                item=lazy_frame.item,
                pixel_aspect=pixel_aspect,
            )


def check_pixels(url: str, width: int, height: int, max_pixels: int) -> None:
    """Refuse a frame size before anything is allocated for it.

    Raises:
        TooLargeError: the frame has more than ``max_pixels``.
    """
    if width * height > max_pixels:
        raise TooLargeError(
            f"{redact_address(url)}: {width} x {height} is over the limit of {max_pixels} pixels: "
            f"raise max_pixels if you trust it"
        )


def decoder_limit(max_pixels: int) -> int:
    """Return the limit for the decoder, with a margin: decoders pad sizes to whole blocks."""
    return max_pixels + max_pixels // 50 + 2**16


class RecordingClock:
    """Clock of a recording: converts pts to the time since its beginning.

    Args:
        beginning: pts of the beginning of the recording, in seconds.
        tick: rounding of the pts, in seconds.
    """

    def __init__(self, beginning: float = 0.0, tick: float = MIN_TICK) -> None:
        self.tick = tick
        self._offset = -beginning
        self._epoch = 0
        self._gap = 0.0
        self._last = -math.inf

    def elapsed(self, lazy_frame: LazyFrame) -> float:
        """Return the time of the next frame since the beginning, in seconds.

        If pts go back in a new epoch, the time continues after the previous frame.
        """
        seconds = lazy_frame.pts
        if self._offset:
            seconds = round(seconds + self._offset, _DIGITS)
        if lazy_frame.epoch != self._epoch and seconds < self._last:
            self._offset += self._last + self._gap - seconds
            seconds = self._last + self._gap
        elif math.isfinite(self._last):
            self._gap = seconds - self._last
        self._epoch, self._last = lazy_frame.epoch, seconds
        return seconds


class _FrameSelector:
    """Selection of frames: from ``start``, every ``stride``-th one, at most ``max_fps``."""

    def __init__(self, config: SourceConfig, tick: float) -> None:
        self._config = config
        self._tick = tick
        self._max_fps = None if config.max_fps is None else _exact_rate(config.max_fps)
        self._started = config.start == 0
        self._seen = 0
        self._epoch = 0
        self._slot = -math.inf
        self._taken_at = -math.inf

    def selects(self, lazy_frame: LazyFrame, seconds: float) -> bool:
        """Return whether the next frame is selected.

        Args:
            lazy_frame: the frame.
            seconds: its time since the beginning of the recording.
        """
        self._started = self._started or seconds >= self._config.start
        if not self._started:
            return False
        self._seen += 1
        if (self._seen - 1) % self._config.stride:
            return False
        return self._max_fps is None or self._is_due(lazy_frame, self._max_fps)

    def _is_due(self, lazy_frame: LazyFrame, max_fps: float) -> bool:
        """Select one frame for each slot of 1 / max_fps seconds.

        Rounding may put two frames of a constant rate into one slot. Then the later one is used for
        the next slot, if it follows after a whole interval and is close to that slot.
        """
        if lazy_frame.epoch != self._epoch:
            self._epoch, self._slot, self._taken_at = lazy_frame.epoch, -math.inf, -math.inf
        slot = math.floor(lazy_frame.pts * max_fps + 1e-3)
        if slot <= self._slot and lazy_frame.pts - self._taken_at > 1 / max_fps - 1.1 * self._tick:
            slot = math.floor((lazy_frame.pts + self._tick) * max_fps)
        if slot <= self._slot:
            return False
        self._slot, self._taken_at = slot, lazy_frame.pts
        return True


def _exact_rate(rate: float) -> float:
    """Return 30000 / 1001 for 29.97, and the exact value of similar rounded rates."""
    whole = round(rate * 1.001)
    exact = whole / 1.001
    return exact if abs(rate - exact) < min(_RATE_DIGITS, abs(rate - whole)) else rate


def _raise_problems(config: SourceConfig, report: SourceReport) -> None:
    """Raise an error for an unreadable or incomplete source, after its last good frame."""
    url = redact_address(config.url)
    total = report.decoded + report.bad
    if report.decoded * 10 < total or not total:
        problem = (
            f"{report.decoded} of {total} frames could be decoded" if total else "there is no frame"
        )
        raise NoFramesError(f"{url}: {problem}{_because(report.last_error or report.incomplete)}")
    if not report.delivered and not report.bad:
        raise NoFramesError(f"{url}: no frame lies between start and end")
    if report.incomplete:
        raise IncompleteError(
            f"{url}: incomplete: {report.incomplete}; {report.decoded} frames were decoded"
        )


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""
