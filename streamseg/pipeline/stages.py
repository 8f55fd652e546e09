"""What happens to a frame on its way, as generators: read, fresh, infer, track.

Chained as they are, they are the synchronous mode; spawned in a
:class:`~streamseg.pipeline.runner.Pipeline` with mailboxes between them, the services.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from streamseg.config import Config, Thresholds, TrackerConfig
from streamseg.models.base import Segmenter
from streamseg.models.selection import Selection
from streamseg.pipeline.metrics import Account, Metrics
from streamseg.sources import Source
from streamseg.structures.results import Frame, Instances, Result
from streamseg.tracking.label_vote import LabelVote
from streamseg.tracking.tracker import Tracker

CORRUPT = "corrupt"


class SourceThresholds:
    """The thresholds of each source; may be changed from any thread while frames are processed.

    Args:
        default: of sources that have none of their own.
        model: knows the classes.

    Raises:
        UsageError: they name a class that the model doesn't know.
    """

    def __init__(self, default: Thresholds, model: Segmenter) -> None:
        self._model = model
        self._own: dict[str, Thresholds] = {}
        self.default = self._checked(default)

    @classmethod
    def of(cls, config: Config, model: Segmenter) -> SourceThresholds:
        """Those of a config.

        Raises:
            UsageError: as the constructor.
        """
        book = cls(config.thresholds, model)
        for source in config.sources:
            book.set(source.name, source.thresholds)
        return book

    def __getitem__(self, source: str) -> Thresholds:
        return self._own.get(source, self.default)

    def set_default(self, thresholds: Thresholds) -> None:
        """Replace those of the sources that have none of their own.

        Raises:
            UsageError: as the constructor.
        """
        self.default = self._checked(thresholds)

    def set(self, source: str, thresholds: Thresholds | None) -> None:
        """Replace those of one source; None gives it the default.

        Raises:
            UsageError: as the constructor.
        """
        if thresholds is None:
            self._own.pop(source, None)
        else:
            self._own[source] = self._checked(thresholds)

    def _checked(self, thresholds: Thresholds) -> Thresholds:
        """Return the thresholds with what ``auto`` is for the model."""
        Selection.of(thresholds, self._model.categories)
        if thresholds.class_agnostic_iou != "auto":
            return thresholds
        own = self._model.class_agnostic_iou
        return msgspec.structs.replace(thresholds, class_agnostic_iou=own)


def read(source: Source, account: Account) -> Iterator[Frame]:
    """A source's frames, entered into its account; those that can't be decoded as failed."""
    known_bad = 0
    try:
        for frame in source.frames():
            account.decode()
            known_bad = _enter_bad(source, account, known_bad)
            yield frame
    finally:
        _enter_bad(source, account, known_bad)


def fresh(
    batches: Iterable[Sequence[Frame]],
    max_age: float,
    is_live: Callable[[str], bool],
    dropped: Callable[[Frame], None],
) -> Iterator[list[Frame]]:
    """Drop what is too old before it costs a forward.

    Args:
        batches: lists of frames.
        max_age: seconds since a frame was captured.
        is_live: whether a source is one whose frames can be too old.
        dropped: told what was.
    """
    for frames in batches:
        now = time.monotonic()
        taken = []
        for frame in frames:
            if now - frame.monotonic > max_age and is_live(frame.source):
                dropped(frame)
            else:
                taken.append(frame)
        if taken:
            yield taken


def infer(
    batches: Iterable[Sequence[Frame]],
    model: Segmenter,
    thresholds: SourceThresholds,
    metrics: Metrics,
) -> Iterator[Result]:
    """Find the instances in each frame of each batch, and the panoptic parts if the model has any.

    Args:
        batches: lists of frames, of one source or of many.
        model: finds them.
        thresholds: by source.
        metrics: takes the seconds spent on a frame, by stage.
    """
    for frames in batches:
        taken = time.monotonic()
        prepared = model.prepare([frame.image for frame in frames])
        ready = time.monotonic()
        own = [thresholds[frame.source] for frame in frames]
        detections = model.forward(prepared, own)
        found = time.monotonic()
        predictions = model.postprocess(detections)
        done = time.monotonic()
        spent = {
            "prepare": (ready - taken) / len(frames),
            "forward": (found - ready) / len(frames),
            "postprocess": (done - found) / len(frames),
        }
        for stage, seconds in spent.items():
            metrics.stage_seconds.labels(stage).observe(seconds)
        for frame, prediction in zip(frames, predictions, strict=True):
            timing = {"queue": (taken - frame.monotonic) * 1000}
            timing |= {stage: seconds * 1000 for stage, seconds in spent.items()}
            yield Result(frame, prediction.instances, model.name, timing, prediction.segments)


@dataclass(frozen=True, slots=True)
class _Identities:
    """What gives the instances of one source's epoch their identities, and these their labels."""

    epoch: int
    tracker: Tracker
    vote: LabelVote | None

    @classmethod
    def begin(cls, epoch: int, settings: TrackerConfig) -> _Identities:
        tracker = Tracker(
            settings.lost_track_seconds,
            min_hits=settings.min_hits,
            high_score_threshold=settings.high_score_threshold,
            new_track_threshold=settings.new_track_threshold,
            across_classes=settings.class_vote > 0,
        )
        return cls(epoch, tracker, LabelVote(settings.class_vote) if settings.class_vote else None)

    def update(self, instances: Instances, pts: float) -> Instances:
        tracked = self.tracker.update(instances, pts)
        return self.vote.update(tracked, self.tracker.known_ids) if self.vote else tracked


def track(results: Iterable[Result], settings: TrackerConfig, metrics: Metrics) -> Iterator[Result]:
    """Give instances their identities and voted labels, afresh when a source's epoch changes."""
    sources: dict[str, _Identities] = {}
    for result in results:
        if not settings.enabled:
            yield result
            continue
        started = time.monotonic()
        epoch = result.frame.epoch
        identities = sources.get(result.source)
        if identities is None or identities.epoch != epoch:
            identities = sources[result.source] = _Identities.begin(epoch, settings)
        instances = identities.update(result.instances, result.frame.pts)
        seconds = time.monotonic() - started
        metrics.stage_seconds.labels("track").observe(seconds)
        timing = {**result.timing, "track": seconds * 1000}
        yield replace(result, instances=instances, timing=timing)


def _enter_bad(source: Source, account: Account, known: int) -> int:
    """Enter the frames that failed to decode since ``known`` were; how many there are now."""
    bad = source.report.bad
    for _ in range(bad - known):
        account.decode()
        account.fail(CORRUPT)
    return bad
