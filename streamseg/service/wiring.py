"""Wiring of a service: its stages, and the mailboxes between them.

    source ─┐                                    ┌→ MQTT sink
    source ─┼→ inbox → worker → tracked → tracker ┼→ publisher (masks)
    source ─┘                                    ├→ image encoder → publisher (images)
                                                 └→ plug-in sinks

Every sink drops its oldest results when it is late, so none can delay the masks. Of a live source
only the newest frame waits for the worker; recordings wait until there is room.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from streamseg.config import Config, MqttConfig
from streamseg.errors import ConfigError, StreamsegError
from streamseg.models.model import Model
from streamseg.pipeline.mailbox import Mailbox
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.rendering import encode_images
from streamseg.pipeline.runner import Pipeline
from streamseg.pipeline.stages import SourceThresholds, drop_stale, infer, track
from streamseg.pipeline.summary import RunStatistics
from streamseg.protocol.messages import State
from streamseg.service.source_drain import SourceDrain
from streamseg.service.source_session import SourceSession
from streamseg.sinks.base import Sink, run_sink
from streamseg.sinks.zmq.publisher import Publisher
from streamseg.structures.results import Frame, Result

if TYPE_CHECKING:
    from streamseg.sinks.mqtt.sink import MqttSink

log = logging.getLogger(__name__)

IMAGES_WAITING = 4
"""Results of one source that may wait for the image encoder; the newest win."""


class ServicePipeline:
    """Pipeline of a service; binds its addresses when it is made, and runs from ``start``.

    Args:
        config: config of the service.
        model: model that the worker runs.
        thresholds: thresholds of each source.
        sinks: plug-in sinks.
        metrics: metrics and frame accounts of the service.

    Attributes:
        publisher: the ZeroMQ publisher.
        drain: detects when an ended source has been published completely.
        statistics: counts of results for the summary.
        busy_since: when the worker took its current batch, on the monotonic clock; infinity while
            it has none.
        sink_failures: reason of each plug-in sink that failed, by its name.

    Raises:
        ConfigError: an address or an option of a sink is wrong, or a package is missing.
        KeyFileError: the keys can't be used.
        BindError: an address can't be bound.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        thresholds: SourceThresholds,
        sinks: Sequence[Sink],
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._model = model
        self._thresholds = thresholds
        self._sinks = sinks
        self._metrics = metrics
        self._pipeline = Pipeline()
        self._mqtt: MqttSink | None = None
        if config.mqtt is not None:
            self._mqtt = _open_mqtt(config.mqtt, model, thresholds, metrics)
        self.publisher = Publisher(config.publish, metrics)
        self.drain = SourceDrain(metrics)
        self.statistics = RunStatistics(model.name, metrics)
        self.busy_since = math.inf
        self.sink_failures: dict[str, str] = {}
        self._is_live: dict[str, bool] = {}
        self._inbox: Mailbox[Frame] = Mailbox(config.worker.max_batch)
        self._newest = self._inbox.newest(self._drop_overtaken)

    def start(self) -> None:
        """Start every stage; the inbox stays open until ``close_inbox``."""
        pipeline, publisher, drain = self._pipeline, self.publisher, self.drain
        detected: Mailbox[Result] = Mailbox(self._config.worker.max_batch)
        to_encode: Mailbox[Result] = Mailbox(
            IMAGES_WAITING, "drop_oldest", on_drop=self._drop_image
        )
        # The MQTT sink comes first: it must have a result before the source can be drained.
        outputs = [publisher.results, to_encode, *map(self._start_sink, self._sinks)]
        if self._mqtt is not None:
            pipeline.spawn(f"{self._mqtt.name}:broker", self._mqtt.deliver())
            pipeline.spawn(self._mqtt.name, self._mqtt.drain())
            outputs.insert(0, self._mqtt.results)
        images = encode_images(
            drain.settle_images(to_encode),
            publisher.has_image_subscribers,
            self._config.publish.jpeg_quality,
            self._metrics,
        )
        pipeline.spawn(publisher.name, drain.check_published(publisher.drain()))
        pipeline.spawn("images", images, into=[publisher.images])
        tracked = track(detected, self._config.tracker, self._metrics)
        counted = self.statistics.count_results(tracked)
        pipeline.spawn("tracker", drain.count_images(counted), into=outputs)
        batches = self._time_batches(self._take_batches())
        results = infer(batches, self._model, self._thresholds, self._metrics)
        pipeline.spawn("worker", results, into=[detected])
        self._inbox.add_writer()  # sources come and go; the inbox must outlive each of them

    def start_source(self, session: SourceSession, on_error: Callable[[Exception], None]) -> None:
        """Run a source in a thread of its own; of a live one only the newest frame may wait.

        Args:
            session: session of the source.
            on_error: called with the exception of a source that fails.
        """
        self._is_live[session.name] = session.source.live
        inlet = self._newest if session.source.live else self._inbox
        frames = self._frames_until_end(session)
        self._pipeline.spawn(f"source:{session.name}", frames, [inlet], on_error=on_error)

    def publish_state(self, source: str, state: State, reason: str, epoch: int) -> None:
        """Publish the state of a source, to subscribers and to the MQTT broker."""
        self.publisher.set_state(source, state, reason, epoch)
        if self._mqtt is not None:
            self._mqtt.set_state(source, state, reason, epoch)

    def forget_source(self, name: str) -> None:
        """Forget a removed source: publish nothing more about it."""
        self.publisher.forget(name)
        if self._mqtt is not None:
            self._mqtt.forget(name)
        self._metrics.forget_state(name)

    def close_inbox(self) -> None:
        """Close the inbox: the pipeline ends when the running sources have ended."""
        self._inbox.close()

    @property
    def stopping(self) -> bool:
        """True once the pipeline was stopped, or has failed."""
        return self._pipeline.stopping.is_set()

    def stop(self) -> None:
        """Let the stages end once they have finished the frames in flight."""
        self.publisher.begin_fast_shutdown()
        self._pipeline.stop()

    def abort(self) -> None:
        """End every stage now; frames in flight are dropped."""
        self._pipeline.abort()

    def wait(self, deadline: float) -> None:
        """Wait until every stage has ended, and settle the accounts of frames in flight.

        Args:
            deadline: seconds after ``stop`` at which the pipeline is aborted.

        Raises:
            StageError: a stage failed; its cause is chained.
            StreamsegError: a frame got lost.
        """
        try:
            self._pipeline.wait(deadline)
        finally:
            for account in self._metrics.snapshots():
                if account.in_flight and self._pipeline.aborted:
                    self._metrics.account(account.source).abandon("stopped")
                elif account.in_flight:
                    raise StreamsegError(f"{account.source}: lost {account.in_flight} frames")

    def _frames_until_end(self, session: SourceSession) -> Iterator[Frame]:
        """Yield a source's frames once enough subscribers have joined, then record its end."""
        subscribers = self._config.publish.wait_subscribers
        if subscribers:
            session.set_state("waiting", f"for {subscribers} subscribers")
        if not subscribers or self.publisher.wait_for_subscribers(
            subscribers, lambda: session.stopped
        ):
            yield from session.frames()
        reason = "end of stream"
        if session.removed:
            reason = "the source was removed"
        elif self.stopping:
            reason = "the service was stopped"
        self.drain.end_source(session.name, reason)

    def _take_batches(self) -> Iterator[list[Frame]]:
        worker = self._config.worker
        batches = self._inbox.batches(worker.max_batch, worker.max_wait_ms / 1000)
        if worker.max_age_ms is None:
            return batches
        is_live = self._is_live
        return drop_stale(
            batches, worker.max_age_ms / 1000, lambda name: is_live[name], self._drop_stale
        )

    def _time_batches(self, batches: Iterable[list[Frame]]) -> Iterator[list[Frame]]:
        """Pass on batches, and record when the worker took the current one."""
        for batch in batches:
            self.busy_since = time.monotonic()
            yield batch
            self.busy_since = math.inf

    def _start_sink(self, sink: Sink) -> Mailbox[Result]:
        """Start a plug-in sink, which can fail alone; return its mailbox."""
        dropped = self._metrics.messages_dropped.labels(sink.name)
        mailbox: Mailbox[Result] = Mailbox(
            sink.capacity, "drop_oldest", on_drop=lambda _: dropped.inc()
        )
        self._pipeline.spawn(f"sink:{sink.name}", self._run_sink_alone(sink, mailbox))
        return mailbox

    def _run_sink_alone(self, sink: Sink, results: Iterable[Result]) -> Iterator[Result]:
        """Run a sink; once it fails, count its results as dropped."""
        dropped = self._metrics.messages_dropped.labels(sink.name)
        remaining = iter(results)
        written = taken = 0

        def take_results() -> Iterator[Result]:
            nonlocal taken
            for result in remaining:
                taken += 1
                yield result

        try:
            for result in run_sink(sink, take_results()):
                written += 1
                yield result
        except Exception as error:
            self.sink_failures[sink.name] = str(error)
            log.debug("sink %s", sink.name, exc_info=error)
            log.error("%s: its results are dropped until the service is restarted", error)  # noqa: TRY400 - one line
            dropped.inc(taken - written)
            for _ in remaining:
                dropped.inc()

    def _drop_overtaken(self, frame: Frame) -> None:
        self._metrics.account(frame.source).drop("overtaken")

    def _drop_stale(self, frame: Frame) -> None:
        self._metrics.account(frame.source).drop("too_old")
        self.drain.check(frame.source)

    def _drop_image(self, result: Result) -> None:
        self._metrics.images_dropped.labels(result.source).inc()
        self.drain.settle_image(result.source)


def _open_mqtt(
    config: MqttConfig, model: Model, thresholds: SourceThresholds, metrics: Metrics
) -> MqttSink:
    try:
        from streamseg.sinks.mqtt.sink import MqttSink
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"mqtt: {error.name} isn't installed: pip install 'streamseg[mqtt]'"
        ) from None
    names = model.categories.values()
    return MqttSink(config, model.name, names, lambda name: thresholds[name].classes, metrics)
