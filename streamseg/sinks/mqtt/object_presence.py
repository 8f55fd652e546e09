"""Who is there: what a stream of results says about objects that come and go. No I/O.

A result says what was found in one frame, and frames flicker: an object is missed once, or seen
once by mistake. For a count in a kitchen's display that is noise. So an object is there once its
identity has been seen for a while, and gone once it hasn't been for a while.

Time is the stream's own, so recordings count the same however fast they are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from streamseg.structures.results import NOT_TRACKED, Result

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Sighting:
    """An object in a frame.

    Attributes:
        track: its identity in the source and epoch; those without one aren't counted.
        label: category id.
        name: the category's.
        score: 0 to 1.
        box: x1, y1, x2, y2 in pixels.
    """

    track: int
    label: int
    name: str
    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class Moment:
    """When a frame was taken.

    Attributes:
        epoch: identities don't cross it.
        pts: seconds, of the stream.
        at: Unix seconds.
    """

    epoch: int
    pts: float
    at: float


@dataclass(frozen=True, slots=True)
class Event:
    """An object came, or went.

    Attributes:
        type: what it did.
        epoch: the source's; ``track`` is an identity within it.
        track: the object's identity.
        label: its category id when it appeared.
        name: its category's name.
        score: when it was seen last.
        at: Unix seconds: of the frame in which it was taken for there, or was seen last.
        since: Unix seconds when it was seen first.
        box: where it was seen last: x1, y1, x2, y2 in pixels.
    """

    type: Literal["appeared", "gone"]
    epoch: int
    track: int
    label: int
    name: str
    score: float
    at: float
    since: float
    box: Box


@dataclass(frozen=True, slots=True)
class _Known:
    """An object that was seen lately; ``there`` once that was said."""

    first: Moment
    last: Moment
    seen: Sighting
    there: bool


class Presence:
    """The objects of one source.

    Each ``appeared`` is followed by exactly one ``gone`` of the same identity, once ``end`` is
    called at the end; an identity that comes back appears anew.

    Args:
        appear_after: seconds that an object must have been seen for.
        gone_after: seconds after it was seen last.
    """

    def __init__(self, appear_after: float, gone_after: float) -> None:
        self._appear_after = appear_after
        self._gone_after = gone_after
        self._known: dict[int, _Known] = {}
        self._epoch = -1
        self._now = 0.0

    def see(self, moment: Moment, sightings: Iterable[Sighting]) -> list[Event]:
        """What a frame changes.

        Args:
            moment: the frame's; of an earlier one than the latest, the latest's time is taken.
            sightings: all that was found in it.
        """
        events = self.end() if moment.epoch != self._epoch else []
        if moment.epoch != self._epoch:
            self._epoch, self._now = moment.epoch, moment.pts
        self._now = max(self._now, moment.pts)
        now = Moment(moment.epoch, self._now, moment.at)
        seen = {s.track: s for s in sightings if s.track != NOT_TRACKED}
        events += self._miss(seen)
        events += [event for sighting in seen.values() for event in self._meet(now, sighting)]
        return events

    def end(self) -> list[Event]:
        """Nothing is seen any more: everything that was there is gone."""
        events = [_gone(known) for known in self._known.values() if known.there]
        self._known.clear()
        return events

    @property
    def counts(self) -> Mapping[str, int]:
        """How many of each name are there; names without any are left out."""
        return Counter(known.seen.name for known in self._known.values() if known.there)

    def _miss(self, seen: Mapping[int, Sighting]) -> Iterator[Event]:
        """Forget those who weren't seen for too long."""
        for track, known in list(self._known.items()):
            if track not in seen and self._now - known.last.pts >= self._gone_after:
                del self._known[track]
                if known.there:
                    yield _gone(known)

    def _meet(self, now: Moment, sighting: Sighting) -> Iterator[Event]:
        """One who was seen, and may have been there for long enough now."""
        known = self._known.get(sighting.track)
        first = known.first if known else now
        if known is not None and known.there:
            # It is counted as what it was called when it appeared, until it is gone.
            sighting = Sighting(
                sighting.track, known.seen.label, known.seen.name, sighting.score, sighting.box
            )
        there = now.pts - first.pts >= self._appear_after
        self._known[sighting.track] = _Known(first, now, sighting, there)
        if there and not (known is not None and known.there):
            yield _event("appeared", self._known[sighting.track])


def sightings_in(result: Result) -> list[Sighting]:
    """What was found in a frame."""
    instances = result.instances
    rows = zip(
        instances.track_ids.tolist(),
        instances.labels.tolist(),
        instances.names,
        instances.scores.tolist(),
        instances.boxes.tolist(),
        strict=True,
    )
    return [
        Sighting(track, label, name, score, (x1, y1, x2, y2))
        for track, label, name, score, (x1, y1, x2, y2) in rows
    ]


def _gone(known: _Known) -> Event:
    return _event("gone", known)


def _event(kind: Literal["appeared", "gone"], known: _Known) -> Event:
    seen = known.seen
    return Event(
        kind,
        known.last.epoch,
        seen.track,
        seen.label,
        seen.name,
        seen.score,
        known.last.at,
        known.first.at,
        seen.box,
    )
