"""From a stream's raw timestamps to times that can be relied on: none missing, none going back.

Timestamps jump when a recording was pasted together, a counter wrapped or a camera restarted.
What belongs together is an *epoch*; within one, times never go back. Containers that store an order
and no times are the business of ``DisplayOrder``.
"""

from __future__ import annotations

import heapq
from collections import deque
from statistics import median

_JUMP_SECONDS = 10.0
_JUMP_GAPS = 50
_JITTER_SECONDS = 0.5
_JITTER_GAPS = 3
_LEAST_GAP = 1e-6  # seconds: no stream's clock is that fine


class Timeline:
    """Epochs and times of frames that come in display order.

    A step back, or forward by more than 10 s and more than 50 median gaps, begins a new epoch. A
    step back by at most three median gaps and half a second is a writer's sloppiness: the frame
    is given the time of the one before it. A missing time is one gap after the one before.

    Args:
        gap: seconds between two frames where nothing is known yet.
    """

    def __init__(self, gap: float) -> None:
        self._fallback = gap
        self._gaps: deque[float] = deque(maxlen=101)
        self._last: float | None = None
        self._known = 0.0
        self._untimed = 0
        self._epoch = 0
        self._is_cut = False
        self._regular = 0
        self._irregular = 0
        self._lost = 0

    @property
    def gap(self) -> float:
        """The median of the latest gaps, in seconds."""
        return median(self._gaps) if self._gaps else self._fallback

    @property
    def now(self) -> float:
        """The latest time; 0 before the first."""
        return self._last or 0.0

    @property
    def lost(self) -> int:
        """Frames that are missing by the look of the times: 0 unless the frame rate is constant."""
        return self._lost if self._regular >= 9 * self._irregular else 0

    def place(self, time: float | None) -> tuple[int, float]:
        """The epoch and time of the next frame.

        Args:
            time: seconds as the stream says, None if it doesn't.
        """
        if self._is_cut:
            self._is_cut = False
            self._epoch += 1
            self._last = None
        if time is None and self._last is None:
            time = self._known
        if time is None:
            self._untimed += 1
            self._last = self._known + self._untimed * self.gap
            return self._epoch, self._last
        self._last = time if self._last is None else self._step(self._last, time)
        self._known, self._untimed = self._last, 0
        return self._epoch, self._last

    def cut(self) -> None:
        """The next frame begins a new epoch, whatever its time."""
        self._is_cut = self._last is not None

    def _step(self, last: float, time: float) -> float:
        gap = time - last
        typical = self.gap
        if -min(_JITTER_SECONDS, _JITTER_GAPS * typical) <= gap <= 0:
            return last
        if gap < 0 or (self._gaps and gap > max(_JUMP_SECONDS, _JUMP_GAPS * typical)):
            self._epoch += 1
            return time
        if self._gaps:
            self._judge(gap / max(typical, _LEAST_GAP))
        self._gaps.append(gap)
        return time

    def _judge(self, gaps: float) -> None:
        """Count a gap, given in median gaps, as regular, as a hole of whole gaps, or as neither."""
        whole = round(gaps)
        if abs(gaps - whole) > 0.1 * max(whole, 1):
            self._irregular += 1
        elif whole <= 1:
            self._regular += 1
        else:
            self._lost += whole - 1
            self._irregular += 1


class DisplayOrder:
    """Times of frames in a container that stores packets in decoding order and no times.

    FFmpeg numbers the packets of an AVI in decoding order, which is not the order in which their
    frames are shown. Frames come out of a decoder in display order, so each takes the smallest
    number that is left.

    Args:
        depth: how many packets the decoder may hold before it gives a frame.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._pending: list[tuple[int, int]] = []

    def add(self, number: int, pts: int) -> None:
        """Note a packet that is about to be decoded.

        Args:
            number: its decoding time, which counts packets.
            pts: what FFmpeg takes for its time, and hands on to its frame.
        """
        heapq.heappush(self._pending, (number, pts))

    def drop_last(self) -> None:
        """Forget the latest packet, which could not be decoded."""
        self._pending.remove(max(self._pending))
        heapq.heapify(self._pending)

    def drop_silent(self) -> None:
        """Forget the latest packet, which gave no frame, if the decoder can't be holding it."""
        if len(self._pending) > self._depth:
            self.drop_last()

    def take(self, pts: int | None, *, is_key: bool) -> int | None:
        """Return the time of the next frame.

        Args:
            pts: what FFmpeg takes for its time.
            is_key: nothing that was decoded before the frame is shown after it.
        """
        if is_key and pts is not None and self._depth > 1:
            # Packets that gave no frame may be among those that the decoder could have held.
            self._pending = [entry for entry in self._pending if entry[1] >= pts]
            heapq.heapify(self._pending)
        if not self._pending:
            return pts
        return heapq.heappop(self._pending)[0]
