"""The live composition: sources → batched inference → identities → publisher, until it is stopped.

    source ─┐                                     ┌→ mqtt.results → broker
    source ─┼→ inbox → worker → tracked → tracker ┼→ publisher.results → network thread
    source ─┘                                     └→ painter → publisher.images ↗

Sinks drop their oldest here, so nothing that is late can hold the masks back. Of a live source
only the newest frame waits for the worker. Sources can be added and taken away while it runs.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch

from streamseg.config import Config, SourceConfig, Thresholds, source_names
from streamseg.errors import ConfigError, NoSuchSourceError, StreamsegError, redact
from streamseg.models import load_model
from streamseg.models.base import Segmenter
from streamseg.pipeline.allocator import share_heap
from streamseg.pipeline.mailbox import Mailbox
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.rendering import encode_images
from streamseg.pipeline.runner import Pipeline
from streamseg.pipeline.stages import SourceThresholds, fresh, infer, track
from streamseg.pipeline.summary import RunStatistics, Summary
from streamseg.protocol.messages import FINAL, State
from streamseg.service.capacity import check_capacity
from streamseg.service.source_drain import SourceDrain
from streamseg.service.source_session import Opened, SourceSession
from streamseg.sinks.zmq.publisher import Publisher
from streamseg.sources import open_source
from streamseg.structures.results import Frame, Result

if TYPE_CHECKING:
    from streamseg.sinks.mqtt.sink import MqttSink

log = logging.getLogger(__name__)

STOP_WITHIN = 10.0
"""Seconds that a stopped service gives to what it has taken."""
PAINTER_CAPACITY = 4
"""Results a source may have waiting for the painter; the newest win."""
STUCK_AFTER = 60.0
"""Seconds on one batch after which something is wrong with the model, or its device."""
FIXED = ("model", "worker", "tracker", "publish", "control", "mqtt")
"""Sections that hold from one start of the service to the next."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a new config changed in a running service.

    Attributes:
        added: names of sources.
        removed: names of sources.
        restarted: names of sources whose options are other ones now.
        waits: sections that are other ones now, and will hold when the service is started again.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    restarted: tuple[str, ...]
    waits: tuple[str, ...]


class Service:
    """One service: everything that can be wrong with its config is said by the constructor.

    Args:
        config: validated; its sources have names.
        model: the model to serve; None loads the config's.

    Raises:
        StreamsegError: a source can't be opened, an address can't be bound, weights can't be
            loaded; nothing was started.
    """

    def __init__(self, config: Config, model: Segmenter | None = None) -> None:
        share_heap()
        self.metrics = Metrics()
        self._config = config
        opened = [open_source(source) for source in config.sources]
        check_capacity(config.publish, (), opened)
        self._model = model or _warmed_up(load_configured(config))
        self._thresholds = SourceThresholds.of(config, self._model)
        self._tally = RunStatistics(self._model.name, self.metrics)
        self._pipeline = Pipeline()
        self._mqtt = self._open_mqtt()
        self._publisher = Publisher(config.publish, self.metrics)
        self._drain = SourceDrain(self.metrics, self._over)
        self._changing = threading.RLock()
        self._feeds: dict[str, SourceSession] = {}
        self._problems: dict[str, str] = {}
        self._next_epochs: dict[str, int] = {}
        self._inbox: Mailbox[Frame] = Mailbox(config.worker.max_batch)
        self._newest = self._inbox.newest(self._overtaken)
        self._started = self._kept_open = False
        self._busy_since = math.inf
        for source, chosen in zip(opened, config.sources, strict=True):
            self._feeds[source.name] = self._feed(Opened(source, chosen))

    @property
    def endpoints(self) -> dict[str, str]:
        """Where it publishes: ``masks``, ``frames`` and what else the publisher has."""
        return dict(self._publisher.endpoints)

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def default_thresholds(self) -> Thresholds:
        """Those of the sources that have none of their own."""
        return self._thresholds.default

    def start(self) -> None:
        """Start every stage; returns at once."""
        config, pipeline, publisher = self._config, self._pipeline, self._publisher
        found: Mailbox[Result] = Mailbox(config.worker.max_batch)
        to_paint: Mailbox[Result] = Mailbox(
            PAINTER_CAPACITY, "drop_oldest", on_drop=self._picture_dropped
        )
        pipeline.spawn(publisher.name, self._drain.published(publisher.drain()))
        pipeline.spawn(
            "painter",
            encode_images(
                self._drain.painted(to_paint),
                publisher.has_image_subscribers,
                config.publish.jpeg_quality,
                self.metrics,
            ),
            into=[publisher.images],
        )
        into: list[Mailbox[Result]] = [publisher.results, to_paint]
        if self._mqtt is not None:
            pipeline.spawn(f"{self._mqtt.name}:broker", self._mqtt.deliver())
            pipeline.spawn(self._mqtt.name, self._mqtt.drain())
            into.insert(0, self._mqtt.results)  # has it before its source can be said to be over
        tracked = track(found, config.tracker, self.metrics)
        pipeline.spawn("tracker", self._drain.to_paint(self._tally.count(tracked)), into=into)
        pipeline.spawn(
            "worker",
            infer(self._watched(self._batches()), self._model, self._thresholds, self.metrics),
            into=[found],
        )
        with self._changing:
            self._started = self._kept_open = True
            self._inbox.add_writer()  # sources come and go; see _let_end
            for feed in list(self._feeds.values()):
                self._start_feed(feed)

    def stop(self) -> None:
        """Let the sources end and finish what was taken."""
        self._publisher.begin_fast_shutdown()
        self._pipeline.stop()
        with self._changing:
            for feed in self._feeds.values():
                feed.stop()
            self._let_end()

    def abort(self) -> None:
        """End now; what is on its way is dropped, and counted so."""
        self.stop()
        self._pipeline.abort()

    def wait(self) -> Summary:
        """Wait for the end: of all its sources, unless one was taken away, or by ``stop``.

        Returns:
            What it came to. ``problems`` then says which sources failed.

        Raises:
            StageError: a stage failed; its cause is chained.
        """
        try:
            self._pipeline.wait(STOP_WITHIN)
        finally:
            self._settle()
        return self._tally.summary()

    def summary(self) -> Summary:
        """What it came to so far."""
        return self._tally.summary()

    def close(self) -> None:
        """Give the addresses back; only needed where the process goes on."""
        self._publisher.close()

    # How it is

    @property
    def ready(self) -> bool:
        """Whether it takes frames and publishes results."""
        return self._kept_open and not self._pipeline.stopping.is_set()

    @property
    def problems(self) -> list[str]:
        """Why sources that it has, or had when it ended, have failed."""
        with self._changing:
            return list(self._problems.values())

    @property
    def health_problem(self) -> str:
        """What is wrong with the service itself, not with a source; empty if it is well."""
        now = time.monotonic()
        if now - self._busy_since > STUCK_AFTER:
            return f"the model has worked on one batch for {now - self._busy_since:.0f} s"
        if self._started and now - self._publisher.last_poll_at > STUCK_AFTER:
            return f"the publisher has done nothing for {now - self._publisher.last_poll_at:.0f} s"
        return ""

    def sessions(self) -> list[SourceSession]:
        """The sources that it has now."""
        with self._changing:
            return list(self._feeds.values())

    def thresholds_of(self, name: str) -> Thresholds:
        """A source's thresholds as they are now."""
        return self._thresholds[name]

    # What may be changed while it runs

    def add(self, source: SourceConfig) -> str:
        """Take a source more; its name.

        Raises:
            ConfigError: there is one of that name, or its options can't be.
            SourceError: it can't be opened; live sources are opened later, and again and again.
        """
        known = [(feed.name, feed.name) for feed in self.sessions()]
        name = source_names([*known, (source.name, source.url)])[-1]
        named = msgspec.structs.replace(source, name=name)
        opened = Opened(open_source(named), named)  # may take long, and nobody shall wait for it
        with self._changing:
            self._check_running()
            running = [feed.source for feed in self.sessions()]
            check_capacity(self._config.publish, running, [opened.source])
            self._begin(opened)
        return name

    def remove(self, name: str) -> None:
        """Take a source away, for good; what was taken of it is still published.

        Raises:
            NoSuchSourceError: there is none of that name.
        """
        with self._changing:
            self._take_away(self._named(name), None)

    def pause(self, name: str) -> None:
        """Take no more frames of a source until ``resume``.

        Raises:
            NoSuchSourceError: there is none of that name.
        """
        with self._changing:
            self._named(name).pause()

    def resume(self, name: str) -> None:
        """Go on with a source.

        Raises:
            NoSuchSourceError: there is none of that name.
        """
        with self._changing:
            self._named(name).resume()

    def set_thresholds(self, thresholds: Thresholds | None, name: str | None = None) -> None:
        """Change what comes out, from the next batch on.

        Args:
            thresholds: the new ones; None gives a source the service's.
            name: of a source; None is the service's, for sources without their own.

        Raises:
            NoSuchSourceError: there is none of that name.
            UsageError: they name a class that the model doesn't know.
        """
        if name is not None:
            self._named(name)
            self._thresholds.set(name, thresholds)
        elif thresholds is not None:
            self._thresholds.set_default(thresholds)

    def reload(self, config: Config) -> Reloaded:
        """Have the sources and thresholds of a config; everything in it is looked at first.

        Raises:
            StreamsegError: a source or a threshold can't be; then nothing was changed.
        """
        SourceThresholds.of(config, self._model)
        new = {source.name: source for source in config.sources}
        # May take long, and nobody shall wait for it.
        opened = {name: Opened(open_source(new[name]), new[name]) for name in self._unlike(new)}
        kept = [
            feed.source for feed in self.sessions() if feed.name in new and feed.name not in opened
        ]
        check_capacity(self._config.publish, kept, [each.source for each in opened.values()])
        with self._changing:
            self._check_running()
            now = dict(self._feeds)
            if any(name not in now and name not in opened for name in new):
                raise ConfigError("a source was taken away meanwhile: read the config once more")
            gone = [name for name in now if name not in new]
            changed = [name for name in now if name in opened]
            added = [name for name in opened if name not in now]
            for name in (*gone, *changed):
                self._take_away(now[name], opened.get(name))
            for name in added:
                self._begin(opened[name])
            self.set_thresholds(config.thresholds)
            for source in config.sources:
                self.set_thresholds(source.thresholds, source.name)
        waits = [s for s in FIXED if getattr(config, s) != getattr(self._config, s)]
        return Reloaded(tuple(added), tuple(gone), tuple(changed), tuple(waits))

    # Its parts

    def _check_running(self) -> None:
        if not self.ready:
            raise ConfigError("the service isn't running: nothing can be added to it")

    def _named(self, name: str) -> SourceSession:
        with self._changing:
            if name not in self._feeds:
                known = ", ".join(self._feeds) or "none"
                raise NoSuchSourceError(f"there is no source called {name!r}; there are: {known}")
            return self._feeds[name]

    def _unlike(self, new: Mapping[str, SourceConfig]) -> list[str]:
        """The names of those that aren't there, or not like that."""
        now = {feed.name: feed for feed in self.sessions()}
        return [name for name in new if name not in now or now[name].must_reopen(new[name])]

    def _begin(self, opened: Opened) -> None:
        """Have a source, which may have been running before under its name."""
        name = opened.source.name
        if name in self._feeds:
            raise ConfigError(f"there is a source called {name!r} already")
        self._thresholds.set(name, opened.config.thresholds)
        self._feeds[name] = self._feed(opened)
        self._start_feed(self._feeds[name])

    def _take_away(self, feed: SourceSession, successor: Opened | None) -> None:
        """End a source; its successor begins when all of it has gone out, paused if it is."""
        going_on = feed.source if feed.successor is None else feed.successor.source
        if successor is not None and going_on.control.paused:
            successor.source.control.pause()
        feed.removed = True
        feed.successor = successor
        feed.stop()
        if feed.condition.state in FINAL:
            self._let_go(feed)

    def _feed(self, opened: Opened) -> SourceSession:
        first_epoch = self._next_epochs.get(opened.source.name, 0)
        return SourceSession(opened, first_epoch, self.metrics, self._say_state)

    def _open_mqtt(self) -> MqttSink | None:
        config = self._config.mqtt
        if config is None:
            return None
        try:
            from streamseg.sinks.mqtt.sink import MqttSink
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"mqtt: {error.name} isn't installed: pip install 'streamseg[mqtt]'"
            ) from None
        names = self._model.categories.values()
        return MqttSink(
            config, self._model.name, names, lambda s: self._thresholds[s].classes, self.metrics
        )

    def _say_state(self, source: str, state: State, reason: str, epoch: int) -> None:
        self._publisher.set_state(source, state, reason, epoch)
        if self._mqtt is not None:
            self._mqtt.set_state(source, state, reason, epoch)

    def _start_feed(self, feed: SourceSession) -> None:
        def failed(error: Exception) -> None:
            if not isinstance(error, StreamsegError):
                log.error("source %s", feed.name, exc_info=error)
            reason = redact(str(error))
            with self._changing:
                self._problems[feed.name] = reason
            self._drain.source_ended(feed.name, reason, failed=True)

        self._pipeline.spawn(
            f"source:{feed.name}",
            self._announced(feed),
            [self._newest if feed.source.live else self._inbox],
            on_error=failed,
        )

    def _announced(self, feed: SourceSession) -> Iterator[Frame]:
        """A source's frames; the first waits for the subscribers, the last is said."""
        wanted = self._config.publish.wait_subscribers
        if wanted:
            feed.set("waiting", f"for {wanted} subscribers")
            if not self._publisher.wait_for_subscribers(wanted, lambda: feed.stopped):
                self._drain.source_ended(feed.name, self._why_ended(feed))
                return
        yield from feed.frames()
        self._drain.source_ended(feed.name, self._why_ended(feed))

    def _why_ended(self, feed: SourceSession) -> str:
        if feed.removed:
            return "it was taken away"
        return "the service was stopped" if self._pipeline.stopping.is_set() else "end of stream"

    def _over(self, name: str, reason: str, *, failed: bool) -> None:
        """The last of a source has gone out."""
        with self._changing:
            feed = self._feeds[name]
            if feed.successor is None or not self.ready:  # else there is more to come of that name
                feed.set("failed" if failed else "ended", reason)
            if feed.removed:
                self._let_go(feed)
            elif all(other.condition.state in FINAL for other in self._feeds.values()):
                self._let_end()

    def _let_go(self, feed: SourceSession) -> None:
        """Of a source that was taken away, nothing is on its way any more."""
        self._next_epochs[feed.name] = feed.next_epoch
        self._problems.pop(feed.name, None)
        del self._feeds[feed.name]
        if feed.successor is not None and self.ready:
            self._begin(feed.successor)
            return
        self._thresholds.set(feed.name, None)
        self._publisher.forget(feed.name)
        if self._mqtt is not None:
            self._mqtt.forget(feed.name)
        self.metrics.forget_state(feed.name)

    def _let_end(self) -> None:
        """Nobody will add a source: the end of the sources is the end of the service."""
        if self._kept_open:
            self._kept_open = False
            self._inbox.close()

    def _batches(self) -> Iterator[list[Frame]]:
        worker = self._config.worker
        batches = self._inbox.batches(worker.max_batch, worker.max_wait_ms / 1000)
        if worker.max_age_ms is None:
            return batches
        return fresh(batches, worker.max_age_ms / 1000, self._is_live, self._too_old)

    def _watched(self, batches: Iterable[list[Frame]]) -> Iterator[list[Frame]]:
        """Batches, with a note of since when the worker has had one."""
        for batch in batches:
            self._busy_since = time.monotonic()
            yield batch
            self._busy_since = math.inf

    def _is_live(self, name: str) -> bool:
        feed = self._feeds.get(name)
        return feed is None or feed.source.live

    def _overtaken(self, frame: Frame) -> None:
        self.metrics.account(frame.source).drop("overtaken")  # by a newer one, before it was taken

    def _too_old(self, frame: Frame) -> None:
        self.metrics.account(frame.source).drop("too_old")
        self._drain.look(frame.source)

    def _picture_dropped(self, result: Result) -> None:
        self.metrics.pictures_dropped.labels(result.source).inc()
        self._drain.painting_done(result.source)

    def _settle(self) -> None:
        """After an abort, say what became of the frames that were on their way."""
        for snapshot in self.metrics.snapshots():
            if snapshot.in_flight and self._pipeline.aborted:
                self.metrics.account(snapshot.source).abandon("stopped")
            elif snapshot.in_flight:
                raise StreamsegError(f"{snapshot.source}: lost {snapshot.in_flight} frames")


def load_configured(config: Config) -> Segmenter:
    """The model that a config names; the threads of its forward are this process's from now on."""
    model = config.model
    if config.worker.threads is not None:
        torch.set_num_threads(config.worker.threads)
    return load_model(
        model.name,
        weights=model.weights,
        device=model.device,
        input_size=model.input_size,
        precision=model.precision,
        class_names=model.class_names,
        **msgspec.structs.asdict(config.thresholds),
    )


def _warmed_up(model: Segmenter) -> Segmenter:
    """A model's first forward takes several times as long as the others: no frame shall wait."""
    model.predict([np.zeros((720, 1280, 3), np.uint8)])
    return model
