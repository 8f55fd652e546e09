"""What every source of frames is, and the part that all of them share: choosing and counting.

A source yields :class:`LazyFrame`: where a picture stands in the source, and how to get at its
pixels. ``deliver`` chooses among them (stride, frame rate, start and end), loads the chosen ones
only, counts, and turns them into :class:`~streamseg.structures.results.Frame`.
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
"""Seconds: the clock of Matroska and FLV; recordings are converted from those to finer ones."""
_DIGITS = 9
"""Of a difference of times: more than any clock has, fewer than the noise of subtraction."""
_RATE_DIGITS = 0.005
"""Frames per second by which a rate such as 29.97 or 23.98 is rounded."""


class BadImageError(Exception):
    """A single picture that can't be decoded; it is counted and skipped."""


@dataclass(slots=True)
class SourceReport:
    """What became of a source's frames; ``frames()`` keeps it, others only read it.

    ``delivered + skipped + bad`` is all that was met so far.

    Attributes:
        delivered: frames given out.
        skipped: good frames left out by stride, max_fps, start or end.
        bad: packets or images that could not be decoded.
        damaged: delivered or skipped frames that the decoder says it had to patch up.
        size: (height, width) of the upright frames, (0, 0) while unknown; the latest one, where
            it changes.
        fps: frames a second, as the file says; a hint, None if it doesn't.
        expected: how many frames the file says it has; a hint, None if it doesn't.
        duration: seconds, as the file says; a hint, None if it doesn't.
        incomplete: why the recording is not whole; empty as long as nothing says so.
        trouble: what was wrong with the latest bad packet or image.
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
    trouble: str = ""
    notes: list[str] = field(default_factory=list)

    MAX_NOTES = 20

    @property
    def good(self) -> int:
        """Frames that could be decoded."""
        return self.delivered + self.skipped

    def note(self, remark: str) -> None:
        """Add a remark, once."""
        if remark not in self.notes and len(self.notes) < self.MAX_NOTES:
            self.notes.append(remark)

    def count_bad(self, trouble: str) -> None:
        """Count a packet or an image that could not be decoded."""
        self.bad += 1
        self.trouble = trouble


class SourceControl:
    """What others may do to a source while its frames are read, from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stopped = False
        self._paused = False

    @property
    def stopped(self) -> bool:
        """Whether the frames are to end."""
        return self._stopped

    @property
    def paused(self) -> bool:
        """Whether no frame is wanted for now."""
        return self._paused and not self._stopped

    def stop(self) -> None:
        """End the frames, soon and for good."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def pause(self) -> None:
        """No more frames until ``resume``; a live source lets go of its camera."""
        with self._changed:
            self._paused = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Go on."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def hold(self) -> bool:
        """Wait while the source is paused; whether it shall go on then."""
        with self._changed:
            self._changed.wait_for(lambda: not self.paused)
        return not self._stopped

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the source is stopped or paused."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._paused, seconds)


class Source(Protocol):
    """Where frames come from.

    Attributes:
        name: how the source is called on the wire.
        live: whether time doesn't wait: a live source drops frames when it must, a recorded one
            waits for its reader.
        report: what became of its frames so far; a recorded source has a new one at each
            ``frames()``.
        control: to stop and pause it.
    """

    name: str
    live: bool
    report: SourceReport
    control: SourceControl

    def frames(self) -> Generator[Frame, None, None]:
        """The frames in order; what is open is closed when this ends, fails or is closed.

        They end early, without a word on what is missing, once ``control`` have been used to stop.

        Raises:
            IncompleteError: after the last good frame of a recording that isn't whole.
            NoFramesError: there was none, or fewer than one in ten could be decoded.
            TooLargeError: frames beyond ``max_pixels``.
        """


@dataclass(frozen=True, slots=True)
class LazyFrame:
    """A frame that isn't loaded yet.

    Attributes:
        index: which picture of the source it is, from 0, counting those that were lost.
        epoch: as in ``Frame``.
        pts: seconds.
        load: gives its pixels, uint8 (H, W, 3) RGB, upright and contiguous, and the width of a
            pixel over its height; raises :class:`BadImageError`.
        item: the file's name, for folders.
        damaged: the decoder had to patch it up.
    """

    index: int
    epoch: int
    pts: float
    load: Callable[[], tuple[Image, Fraction]]
    item: str | None = None
    damaged: bool = False


def deliver(
    name: str,
    config: SourceConfig,
    pictures: Generator[LazyFrame, None, None],
    report: SourceReport,
    control: SourceControl,
    clock: RecordingClock | None = None,
) -> Generator[Frame, None, None]:
    """The frames of a recording: those that ``selected`` gives, and then what is wrong with it."""
    with closing(selected(name, config, pictures, report, clock)) as frames:
        for frame in frames:
            if not control.hold():
                return
            yield frame
    _judge(config, report)


def selected(
    name: str,
    config: SourceConfig,
    pictures: Generator[LazyFrame, None, None],
    report: SourceReport,
    clock: RecordingClock | None = None,
) -> Generator[Frame, None, None]:
    """Frames of the pictures that ``config`` chooses; closes ``pictures`` in the end."""
    clock = clock or RecordingClock()
    choice = _Choice(config, clock.tick)
    with closing(pictures):
        for picture in pictures:
            seconds = clock.elapsed(picture)
            if config.end is not None and seconds >= config.end:
                report.skipped += 1
                break
            report.damaged += picture.damaged
            if not choice.takes(picture, seconds):
                report.skipped += 1
                continue
            try:
                image, pixel_aspect = picture.load()
            except BadImageError as error:
                report.count_bad(str(error))
                continue
            report.delivered += 1
            report.size = image.shape[0], image.shape[1]
            yield Frame(
                source=name,
                index=picture.index,
                epoch=picture.epoch,
                pts=picture.pts,
                captured_at=time.time(),
                monotonic=time.monotonic(),
                image=image,
                item=picture.item,
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
    """``max_pixels`` for the decoder itself, with a margin: decoders pad sizes to whole blocks."""
    return max_pixels + max_pixels // 50 + 2**16


class RecordingClock:
    """The clock that a recording's pts are read from.

    Args:
        beginning: pts of the recording's beginning, in seconds.
        tick: by how many seconds a pts may be rounded.
    """

    def __init__(self, beginning: float = 0.0, tick: float = MIN_TICK) -> None:
        self.tick = tick
        self._offset = -beginning
        self._epoch = 0
        self._gap = 0.0
        self._last = -math.inf

    def elapsed(self, picture: LazyFrame) -> float:
        """Return the seconds from the beginning to the next picture.

        Where pts go back in a new epoch, the time goes on after the picture before.
        """
        seconds = picture.pts
        if self._offset:
            seconds = round(seconds + self._offset, _DIGITS)
        if picture.epoch != self._epoch and seconds < self._last:
            self._offset += self._last + self._gap - seconds
            seconds = self._last + self._gap
        elif math.isfinite(self._last):
            self._gap = seconds - self._last
        self._epoch, self._last = picture.epoch, seconds
        return seconds


class _Choice:
    """Which pictures are taken: from ``start``, every ``stride``-th, at most ``max_fps``."""

    def __init__(self, config: SourceConfig, tick: float) -> None:
        self._config = config
        self._tick = tick
        self._max_fps = None if config.max_fps is None else _exact_rate(config.max_fps)
        self._started = config.start == 0
        self._seen = 0
        self._epoch = 0
        self._slot = -math.inf
        self._taken_at = -math.inf

    def takes(self, picture: LazyFrame, seconds: float) -> bool:
        """Return whether the next picture is taken.

        Args:
            picture: the picture.
            seconds: from the recording's beginning.
        """
        self._started = self._started or seconds >= self._config.start
        if not self._started:
            return False
        self._seen += 1
        if (self._seen - 1) % self._config.stride:
            return False
        return self._max_fps is None or self._is_due(picture, self._max_fps)

    def _is_due(self, picture: LazyFrame, max_fps: float) -> bool:
        """Take one picture for each slot of 1 / max_fps seconds.

        Rounded times may put two pictures of a steady rate into one slot. The later one is taken
        for the next slot if it is a whole interval after the one before and the slot is that near.
        """
        if picture.epoch != self._epoch:
            self._epoch, self._slot, self._taken_at = picture.epoch, -math.inf, -math.inf
        slot = math.floor(picture.pts * max_fps + 1e-3)
        if slot <= self._slot and picture.pts - self._taken_at > 1 / max_fps - 1.1 * self._tick:
            slot = math.floor((picture.pts + self._tick) * max_fps)
        if slot <= self._slot:
            return False
        self._slot, self._taken_at = slot, picture.pts
        return True


def _exact_rate(rate: float) -> float:
    """Return 30000 / 1001 for 29.97, and likewise for all rates that are named by their digits."""
    whole = round(rate * 1.001)
    exact = whole / 1.001
    return exact if abs(rate - exact) < min(_RATE_DIGITS, abs(rate - whole)) else rate


def _judge(config: SourceConfig, report: SourceReport) -> None:
    """Raise what is wrong with the source as a whole, once everything good has been delivered."""
    url = redact_address(config.url)
    met = report.good + report.bad
    if report.good * 10 < met or not met:
        found = f"{report.good} of {met} frames could be decoded" if met else "there is no frame"
        raise NoFramesError(f"{url}: {found}{_because(report.trouble or report.incomplete)}")
    if not report.delivered and not report.bad:
        raise NoFramesError(f"{url}: no frame lies between start and end")
    if report.incomplete:
        raise IncompleteError(
            f"{url}: incomplete: {report.incomplete}; {report.good} frames were good"
        )


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""
