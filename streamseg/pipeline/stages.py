"""Stages of a frame as generators: read, drop stale frames, infer, track.

Chained directly, they run synchronously in one thread. Services and recorded runs spawn them in a
:class:`~streamseg.pipeline.runner.Pipeline` with mailboxes between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from streamseg.config import Config, Thresholds, TrackerConfig
from streamseg.config.plugins import find_plugins
from streamseg.errors import ConfigError, PluginError
from streamseg.models.model import Model
from streamseg.models.selection import Selection
from streamseg.pipeline.metrics import Account, Metrics
from streamseg.sources import Source
from streamseg.structures.results import Frame, Instances, Result
from streamseg.tracking.label_vote import LabelVote
from streamseg.tracking.tracker import Tracker

CORRUPT = "corrupt"
"""Reason of frames that failed because they couldn't be decoded."""


class SourceThresholds:
    """Thresholds of each source; safe to change from any thread while frames are processed.

    Args:
        default: thresholds of sources that have none of their own.
        model: model whose classes the thresholds name.

    Attributes:
        default: thresholds of sources that have none of their own.
        model: the model.

    Raises:
        UsageError: the model has no class of a name in the thresholds.
    """

    def __init__(self, default: Thresholds, model: Model) -> None:
        self.model = model
        self._by_source: dict[str, Thresholds] = {}
        self.default = self._resolve(default)

    @classmethod
    def from_config(cls, config: Config, model: Model) -> SourceThresholds:
        """Return the thresholds of a config.

        Raises:
            UsageError: the model has no class of a name in them.
        """
        thresholds = cls(config.thresholds, model)
        for source in config.sources:
            thresholds.set(source.name, source.thresholds)
        return thresholds

    def __getitem__(self, source: str) -> Thresholds:
        return self._by_source.get(source, self.default)

    def set_default(self, thresholds: Thresholds) -> None:
        """Replace the thresholds of sources that have none of their own.

        Raises:
            UsageError: the model has no class of a name in them.
        """
        self.default = self._resolve(thresholds)

    def set(self, source: str, thresholds: Thresholds | None) -> None:
        """Replace the thresholds of one source; None gives it the default.

        Raises:
            UsageError: the model has no class of a name in them.
        """
        if thresholds is None:
            self._by_source.pop(source, None)
        else:
            self._by_source[source] = self._resolve(thresholds)

    def _resolve(self, thresholds: Thresholds) -> Thresholds:
        """Check the thresholds, and replace ``auto`` by the model's value."""
        Selection.from_thresholds(thresholds, self.model.categories)
        if thresholds.class_agnostic_iou != "auto":
            return thresholds
        iou = self.model.class_agnostic_iou
        return msgspec.structs.replace(thresholds, class_agnostic_iou=iou)


def read_frames(source: Source, account: Account) -> Iterator[Frame]:
    """Yield a source's frames, and enter them into its account, undecodable ones as failed."""
    bad_entered = 0

    def enter_bad() -> None:
        nonlocal bad_entered
        while bad_entered < source.report.bad:
            account.decode()
            account.fail(CORRUPT)
            bad_entered += 1

    try:
        for frame in source.frames():
            account.decode()
            enter_bad()
            yield frame
    finally:
        enter_bad()


def drop_stale(
    batches: Iterable[Sequence[Frame]],
    max_age: float,
    is_live: Callable[[str], bool],
    on_drop: Callable[[Frame], None],
) -> Iterator[list[Frame]]:
    """Drop frames of live sources that are too old, before they cost a forward.

    Args:
        batches: lists of frames.
        max_age: seconds since a frame was captured.
        is_live: returns whether the source of a name is live.
        on_drop: called with each frame that is dropped.
    """
    for frames in batches:
        now = time.monotonic()
        kept = []
        for frame in frames:
            if now - frame.monotonic > max_age and is_live(frame.source):
                on_drop(frame)
            else:
                kept.append(frame)
        if kept:
            yield kept


def infer(
    batches: Iterable[Sequence[Frame]],
    model: Model,
    thresholds: SourceThresholds,
    metrics: Metrics,
) -> Iterator[Result]:
    """Predict the instances, and with a panoptic model the segments, of each frame.

    Args:
        batches: lists of frames, of one source or of many.
        model: model to run.
        thresholds: thresholds of each source.
        metrics: gets the seconds per frame of each stage.
    """
    for frames in batches:
        started = time.monotonic()
        inference = model.infer(frames, [thresholds[frame.source] for frame in frames])
        per_frame = {stage: total / len(frames) for stage, total in inference.seconds.items()}
        for stage, seconds in per_frame.items():
            metrics.stage_seconds.labels(stage).observe(seconds)
        for frame, prediction in zip(frames, inference.predictions, strict=True):
            timing = {"queue": (started - frame.monotonic) * 1000}
            timing |= {stage: seconds * 1000 for stage, seconds in per_frame.items()}
            yield Result(frame, prediction.instances, model.name, timing, prediction.segments)


class TrackerPlugin(Protocol):
    """Interface of a plug-in tracker, which tracks one source.

    Entry points of the group ``streamseg.trackers`` name a class, or another callable, that is
    called without arguments for each source, and again when the source's epoch changes.
    """

    def update(self, instances: Instances, pts: float) -> Instances:
        """Return the same rows in the same order, with ``track_ids`` filled in.

        Args:
            instances: instances of the next frame.
            pts: presentation time of the frame, in seconds.
        """


def find_tracker(settings: TrackerConfig) -> Callable[[], TrackerPlugin]:
    """Return a factory of trackers, each for one source: the plug-in's, or the built-in one's.

    Raises:
        ConfigError: the plug-in isn't installed or can't be imported, or an option is set that
            only the built-in tracker has.
    """
    if settings.type is None:
        return lambda: _BuiltinTracker.make(settings)
    plugins = find_plugins("streamseg.trackers")
    if settings.type not in plugins:
        known = ", ".join(plugins) or "none"
        raise ConfigError(
            f"tracker.type: {settings.type!r} isn't installed; installed tracker plug-ins: {known}"
        )
    defaults = TrackerConfig()
    for option in TrackerConfig.__struct_fields__:
        if option not in ("enabled", "type") and (
            getattr(settings, option) != getattr(defaults, option)
        ):
            raise ConfigError(
                f"tracker.{option}: {settings.type} is a plug-in, which has no options"
            )
    plugin = plugins[settings.type]
    factory: Callable[[], TrackerPlugin] = plugin.load()
    return lambda: _CheckedTracker(factory, f"tracker {plugin.name!r} of {plugin.origin}")


class _CheckedTracker:
    """Plug-in tracker whose exceptions and invalid results become a ``PluginError``."""

    def __init__(self, factory: Callable[[], TrackerPlugin], origin: str) -> None:
        self._origin = origin
        try:
            self._tracker = factory()
        except Exception as error:
            raise self._error(error) from error

    def update(self, instances: Instances, pts: float) -> Instances:
        try:
            tracked: Any = self._tracker.update(instances, pts)
        except Exception as error:
            raise self._error(error) from error
        if not isinstance(tracked, Instances):
            kind = type(tracked).__name__
            raise PluginError(f"{self._origin}: returned {kind} instead of Instances")
        if len(tracked) != len(instances):
            raise PluginError(
                f"{self._origin}: returned {len(tracked)} rows instead of {len(instances)}"
            )
        return tracked

    def _error(self, error: Exception) -> PluginError:
        return PluginError(f"{self._origin} failed: {type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class _BuiltinTracker:
    """Tracker and label vote of one source."""

    tracker: Tracker
    vote: LabelVote | None

    @classmethod
    def make(cls, settings: TrackerConfig) -> _BuiltinTracker:
        tracker = Tracker(
            settings.lost_track_seconds,
            min_hits=settings.min_hits,
            high_score_threshold=settings.high_score_threshold,
            new_track_threshold=settings.new_track_threshold,
            across_classes=settings.class_vote > 0,
        )
        return cls(tracker, LabelVote(settings.class_vote) if settings.class_vote else None)

    def update(self, instances: Instances, pts: float) -> Instances:
        tracked = self.tracker.update(instances, pts)
        return self.vote.update(tracked, self.tracker.known_ids) if self.vote else tracked


def track(results: Iterable[Result], settings: TrackerConfig, metrics: Metrics) -> Iterator[Result]:
    """Assign track ids and voted labels; each epoch of a source starts with a new tracker."""
    make_tracker = find_tracker(settings)
    trackers: dict[str, tuple[int, TrackerPlugin]] = {}
    for result in results:
        if not settings.enabled:
            yield result
            continue
        started = time.monotonic()
        epoch, tracker = trackers.get(result.source, (None, None))
        if tracker is None or epoch != result.frame.epoch:
            tracker = make_tracker()
            trackers[result.source] = (result.frame.epoch, tracker)
        instances = tracker.update(result.instances, result.frame.pts)
        seconds = time.monotonic() - started
        metrics.stage_seconds.labels("track").observe(seconds)
        timing = {**result.timing, "track": seconds * 1000}
        yield replace(result, instances=instances, timing=timing)
