"""Object presence: debounces tracks into objects that appear and disappear. No I/O.

Detections flicker: an object is missed in one frame, or detected once by mistake. An object counts
as present when its track has been observed for a minimum time, and as gone when its track has not
been observed for a minimum time.

All times are times of the stream, so that a recording gives the same counts at any speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from streamseg.structures.results import NOT_TRACKED, Result

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Observation:
    """One instance of a result.

    Attributes:
        track: track id, unique within a source and epoch; untracked instances are ignored.
        label: category id.
        name: category name.
        score: 0 to 1.
        box: x1, y1, x2, y2 in pixels.
    """

    track: int
    label: int
    name: str
    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class FrameTime:
    """Time of a frame.

    Attributes:
        epoch: epoch of the source; track ids are not comparable across epochs.
        pts: time of the stream, in seconds.
        captured_at: Unix time, in seconds.
    """

    epoch: int
    pts: float
    captured_at: float


@dataclass(frozen=True, slots=True)
class Event:
    """Appearance or disappearance of an object.

    Attributes:
        type: ``appeared`` or ``gone``.
        epoch: epoch of the source.
        track: track id within the epoch.
        label: category id at the time of the appearance.
        name: category name at the time of the appearance.
        score: score of the latest observation.
        at: Unix time of the latest observation, in seconds.
        since: Unix time of the first observation, in seconds.
        box: box of the latest observation: x1, y1, x2, y2 in pixels.
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
class _ObservedObject:
    """Object that was observed recently; ``is_present`` once it has appeared."""

    first: FrameTime
    last: FrameTime
    observation: Observation
    is_present: bool

    def event(self, kind: Literal["appeared", "gone"]) -> Event:
        latest = self.observation
        return Event(
            kind,
            self.last.epoch,
            latest.track,
            latest.label,
            latest.name,
            latest.score,
            self.last.captured_at,
            self.first.captured_at,
            latest.box,
        )


class ObjectPresence:
    """Objects of one source.

    Each ``appeared`` event is followed by exactly one ``gone`` event of the same track, if
    ``clear`` is called at the end. A track that returns after its ``gone`` event appears again.

    Args:
        appear_after: time for which an object must be observed before it appears, in seconds.
        gone_after: time without an observation after which an object is gone, in seconds.
    """

    def __init__(self, appear_after: float, gone_after: float) -> None:
        self._appear_after = appear_after
        self._gone_after = gone_after
        self._objects: dict[int, _ObservedObject] = {}
        self._epoch = -1
        self._now = 0.0

    def update(self, time: FrameTime, observations: Iterable[Observation]) -> list[Event]:
        """Add the observations of a frame and return the resulting events.

        Args:
            time: time of the frame; pts that go back within an epoch count as the latest pts.
            observations: all instances of the frame.
        """
        events: list[Event] = []
        if time.epoch != self._epoch:
            events += self.clear()
            self._epoch, self._now = time.epoch, time.pts
        self._now = max(self._now, time.pts)
        now = replace(time, pts=self._now)
        observed = {each.track: each for each in observations if each.track != NOT_TRACKED}
        events += self._remove_gone(observed)
        for observation in observed.values():
            events += self._observe(now, observation)
        return events

    def clear(self) -> list[Event]:
        """Remove all objects and return the ``gone`` events of those that were present."""
        events = [each.event("gone") for each in self._objects.values() if each.is_present]
        self._objects.clear()
        return events

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of present objects by category name, without zeros."""
        present = (each for each in self._objects.values() if each.is_present)
        return Counter(each.observation.name for each in present)

    def _remove_gone(self, observed: Mapping[int, Observation]) -> Iterator[Event]:
        for track, known in list(self._objects.items()):
            if track not in observed and self._now - known.last.pts >= self._gone_after:
                del self._objects[track]
                if known.is_present:
                    yield known.event("gone")

    def _observe(self, now: FrameTime, observation: Observation) -> list[Event]:
        known = self._objects.get(observation.track)
        was_present = known is not None and known.is_present
        if known is not None and was_present:  # the category of the appearance stays until gone
            category = known.observation
            observation = replace(observation, label=category.label, name=category.name)
        first = known.first if known else now
        is_present = now.pts - first.pts >= self._appear_after
        current = _ObservedObject(first, now, observation, is_present)
        self._objects[observation.track] = current
        return [current.event("appeared")] if is_present and not was_present else []


def to_observations(result: Result) -> list[Observation]:
    """Return the instances of a result as observations."""
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
        Observation(track, label, name, score, (x1, y1, x2, y2))
        for track, label, name, score, (x1, y1, x2, y2) in rows
    ]
