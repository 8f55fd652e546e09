"""Presentation times: repair of a stream's timestamps, epochs, and display order in AVI.

Timestamps jump where recordings were concatenated, a counter wrapped or a camera restarted.
:class:`Timeline` starts a new *epoch* there; within an epoch, times never go back.
:class:`DisplayOrder` gives times to frames of containers that store none.
"""

from __future__ import annotations

import heapq
from collections import deque
from statistics import median

_MAX_STEP_SECONDS = 10.0
_MAX_STEP_INTERVALS = 50
_JITTER_SECONDS = 0.5
_JITTER_INTERVALS = 3
_MIN_INTERVAL = 1e-6
"""Lower limit of a frame interval, in seconds: below the tick of any stream's clock."""


class Timeline:
    """Epochs and presentation times of frames that arrive in display order.

    A step back, or a step forward by more than 10 s and more than 50 median frame intervals,
    starts a new epoch. A step back by at most three median intervals and half a second is taken
    for jitter: the frame gets the time of the frame before it. A missing time is one interval
    after the time before it.

    Args:
        interval: seconds between two frames, used until intervals are known.
    """

    def __init__(self, interval: float) -> None:
        self._default_interval = interval
        self._intervals: deque[float] = deque(maxlen=101)
        self._last: float | None = None
        self._last_stated = 0.0
        self._untimed = 0
        self._epoch = 0
        self._is_epoch_due = False
        self._regular = 0
        self._irregular = 0
        self._lost = 0

    @property
    def median_interval(self) -> float:
        """Median of the latest frame intervals, in seconds."""
        return median(self._intervals) if self._intervals else self._default_interval

    @property
    def latest_time(self) -> float:
        """Time of the latest frame, in seconds; 0 before the first."""
        return self._last or 0.0

    @property
    def lost_frames(self) -> int:
        """Number of frames missing according to the times; 0 unless the frame rate is constant."""
        return self._lost if self._regular >= 9 * self._irregular else 0

    def add_frame(self, time: float | None) -> tuple[int, float]:
        """Add the next frame and return its epoch and time.

        Args:
            time: the frame's time in the stream, in seconds; None if it has none.
        """
        if self._is_epoch_due:
            self._is_epoch_due = False
            self._epoch += 1
            self._last = None
        if time is None and self._last is None:
            time = self._last_stated
        if time is None:
            self._untimed += 1
            self._last = self._last_stated + self._untimed * self.median_interval
            return self._epoch, self._last
        self._last = time if self._last is None else self._advance(self._last, time)
        self._last_stated, self._untimed = self._last, 0
        return self._epoch, self._last

    def start_epoch(self) -> None:
        """Start a new epoch with the next frame, independent of its time."""
        self._is_epoch_due = self._last is not None

    def _advance(self, last: float, time: float) -> float:
        """Return the repaired time of the next frame; start a new epoch after a jump."""
        step = time - last
        interval = self.median_interval
        if -min(_JITTER_SECONDS, _JITTER_INTERVALS * interval) <= step <= 0:
            return last
        max_step = max(_MAX_STEP_SECONDS, _MAX_STEP_INTERVALS * interval)
        if step < 0 or (self._intervals and step > max_step):
            self._epoch += 1
            return time
        if self._intervals:
            self._count_step(step / max(interval, _MIN_INTERVAL))
        self._intervals.append(step)
        return time

    def _count_step(self, intervals: float) -> None:
        """Count a step as regular, as a gap of lost frames, or as irregular.

        Args:
            intervals: the step in median frame intervals.
        """
        whole = round(intervals)
        if abs(intervals - whole) > 0.1 * max(whole, 1):
            self._irregular += 1
        elif whole <= 1:
            self._regular += 1
        else:
            self._lost += whole - 1
            self._irregular += 1


class DisplayOrder:
    """Times of frames in a container that stores packets in decoding order and no times.

    FFmpeg numbers the packets of an AVI in decoding order, which differs from display order if
    there are B-frames. Decoders output frames in display order, so each frame gets the smallest
    number that is left.

    Args:
        depth: number of packets that the decoder may hold before it outputs a frame.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._pending: list[tuple[int, int]] = []

    def add_packet(self, number: int, pts: int) -> None:
        """Add a packet that is about to be decoded.

        Args:
            number: its decoding time, which counts packets.
            pts: the time that FFmpeg assigns to it, and to the frame that is decoded from it.
        """
        heapq.heappush(self._pending, (number, pts))

    def drop_failed_packet(self) -> None:
        """Remove the latest packet, which could not be decoded."""
        self._pending.remove(max(self._pending))
        heapq.heapify(self._pending)

    def drop_packet_without_frame(self) -> None:
        """Remove the latest packet, after which no frame came, if the decoder can't hold it."""
        if len(self._pending) > self._depth:
            self.drop_failed_packet()

    def next_time(self, pts: int | None, *, is_key: bool) -> int | None:
        """Remove and return the time of the next frame.

        Args:
            pts: the time that FFmpeg assigns to the frame.
            is_key: whether it is a key frame: frames decoded before it are shown before it.
        """
        if is_key and pts is not None and self._depth > 1:
            # Packets without a frame may remain here, as the decoder could have held them.
            self._pending = [entry for entry in self._pending if entry[1] >= pts]
            heapq.heapify(self._pending)
        if not self._pending:
            return pts
        return heapq.heappop(self._pending)[0]
