"""The live composition: sources → batched inference → identities → publisher, until it is stopped.

    source ─┐                                   ┌→ publisher.results → network thread
    source ─┼→ inbox → worker → tracked → tracker ┤
    source ─┘                                   └→ painter → publisher.pictures ↗

Sinks drop their oldest here, so nothing that is late can hold the masks back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from wsgiref.simple_server import WSGIServer

import msgspec
import torch
from prometheus_client import start_http_server

from streamseg import wire
from streamseg.allocator import share_heap
from streamseg.annotate import pictures
from streamseg.channel import Mailbox
from streamseg.config import Config
from streamseg.errors import BindError, StreamsegError
from streamseg.metrics import Metrics
from streamseg.models import load_model
from streamseg.models.base import Segmenter
from streamseg.pipeline import Pipeline
from streamseg.sinks.publisher import Publisher
from streamseg.sources import Source, open_source
from streamseg.stages import infer, read, source_thresholds, track
from streamseg.summary import Summary, Tally
from streamseg.types import Frame, Result

log = logging.getLogger(__name__)

STOP_WITHIN = 10.0
"""Seconds that a stopped service gives to what it has taken."""
PAINTER_CAPACITY = 4
"""Results a source may have waiting for the painter; the newest win."""


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
        self.problems: list[str] = []
        self._config = config
        self._sources = [open_source(source) for source in config.sources]
        self._model = model or load_configured(config)
        self._thresholds = source_thresholds(config, self._model)
        self._tally = Tally(self._model.name, self.metrics)
        self._pipeline = Pipeline()
        self._exporter = export_metrics(config.publish.metrics, self.metrics)
        self._publisher = self._bound_publisher()
        self._endings = _Endings(self.metrics, self._publisher)

    @property
    def endpoints(self) -> dict[str, str]:
        """Where it publishes: ``masks`` and ``frames``."""
        return dict(self._publisher.endpoints)

    def start(self) -> None:
        """Start every stage; returns at once."""
        config, pipeline, publisher = self._config, self._pipeline, self._publisher
        inbox: Mailbox[Frame] = Mailbox(config.worker.max_batch)
        found: Mailbox[Result] = Mailbox(config.worker.max_batch)
        to_paint: Mailbox[Result] = Mailbox(
            PAINTER_CAPACITY, "drop_oldest", on_drop=self._picture_dropped
        )
        pipeline.spawn(publisher.name, self._endings.published(publisher.drain()))
        pipeline.spawn(
            "painter",
            pictures(
                self._endings.painted(to_paint),
                publisher.wants,
                config.publish.jpeg_quality,
                self.metrics,
            ),
            into=[publisher.pictures],
        )
        tracked = track(found, config.tracker, self.metrics)
        pipeline.spawn(
            "tracker",
            self._endings.to_paint(self._tally.count(tracked)),
            into=[publisher.results, to_paint],
        )
        batches = inbox.batches(config.worker.max_batch, config.worker.max_wait_ms / 1000)
        pipeline.spawn(
            "worker", infer(batches, self._model, self._thresholds, self.metrics), into=[found]
        )
        for source in self._sources:
            self._start_source(source, inbox)

    def stop(self) -> None:
        """Let the sources end and finish what was taken."""
        self._pipeline.stop()

    def abort(self) -> None:
        """End now; what is on its way is dropped, and counted so."""
        self._pipeline.abort()

    def wait(self) -> Summary:
        """Wait for the end.

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
        self._close_exporter()

    def _bound_publisher(self) -> Publisher:
        try:
            return Publisher(self._config.publish, self.metrics)
        except StreamsegError:
            self._close_exporter()
            raise

    def _close_exporter(self) -> None:
        if self._exporter is not None:
            self._exporter.shutdown()
            self._exporter.server_close()

    def _start_source(self, source: Source, inbox: Mailbox[Frame]) -> None:
        account = self.metrics.account(source.name)

        def failed(error: Exception) -> None:
            if not isinstance(error, StreamsegError):
                log.error("source %s", source.name, exc_info=error)
            self.problems.append(str(error))
            self._endings.source_ended(source.name, str(error), failed=True)

        frames = self._pipeline.until_stopped(read(source, account))
        self._pipeline.spawn(
            f"source:{source.name}", self._announced(source.name, frames), [inbox], on_error=failed
        )

    def _announced(self, name: str, frames: Iterable[Frame]) -> Iterator[Frame]:
        """A source's frames, with its states published; the first waits for the subscribers."""
        publish = self._publisher
        wanted = self._config.publish.wait_subscribers
        if wanted:
            publish.set_state(name, "waiting", f"for {wanted} subscribers", epoch=0)
            if not publish.wait_joined(wanted, self._pipeline.stopping):
                self._endings.source_ended(name, "stopped before it began")
                return
        publish.set_state(name, "connecting", "", epoch=0)
        epoch = -1
        for frame in frames:
            if frame.epoch != epoch:
                epoch = frame.epoch
                publish.set_state(name, "live", "", epoch)
            yield frame
        stopped = self._pipeline.stopping.is_set()
        self._endings.source_ended(name, "the service was stopped" if stopped else "end of stream")

    def _picture_dropped(self, result: Result) -> None:
        self.metrics.pictures_dropped.labels(result.source).inc()
        self._endings.painting_done(result.source)

    def _settle(self) -> None:
        """After an abort, say what became of the frames that were on their way."""
        for snapshot in self.metrics.snapshots():
            if snapshot.in_flight and self._pipeline.aborted:
                self.metrics.account(snapshot.source).abandon("stopped")
            elif snapshot.in_flight:
                raise StreamsegError(f"{snapshot.source}: lost {snapshot.in_flight} frames")


class _Endings:
    """Says that a source has ended when the last of its results and pictures has gone out."""

    def __init__(self, metrics: Metrics, publisher: Publisher) -> None:
        self._metrics = metrics
        self._publisher = publisher
        self._lock = threading.Lock()
        self._painting: dict[str, int] = {}
        self._ended: dict[str, tuple[str, bool]] = {}
        self._epochs: dict[str, int] = {}

    def to_paint(self, results: Iterable[Result]) -> Iterator[Result]:
        """Results on their way to the painter."""
        for result in results:
            with self._lock:
                self._painting[result.source] = self._painting.get(result.source, 0) + 1
                self._epochs[result.source] = result.frame.epoch
            yield result

    def painted(self, results: Iterable[Result]) -> Iterator[Result]:
        """Results that the painter takes: when it asks for the next, it is done with the last."""
        for result in results:
            yield result
            self.painting_done(result.source)

    def painting_done(self, source: str) -> None:
        """A result was painted, or dropped before it was."""
        with self._lock:
            self._painting[source] -= 1
        self._check(source)

    def published(self, results: Iterable[Result]) -> Iterator[Result]:
        """Results that went out."""
        for result in results:
            yield result
            self._check(result.source)

    def source_ended(self, source: str, reason: str, *, failed: bool = False) -> None:
        """A source has no more frames."""
        with self._lock:
            self._ended[source] = (reason, failed)
        self._check(source)

    def _check(self, source: str) -> None:
        with self._lock:
            busy = self._painting.get(source) or self._metrics.account(source).snapshot().in_flight
            if busy or source not in self._ended:
                return
            reason, failed = self._ended.pop(source)
        state: wire.State = "failed" if failed else "ended"
        self._publisher.set_state(source, state, reason, self._epochs.get(source, 0))


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
        **msgspec.structs.asdict(config.thresholds),
    )


def export_metrics(address: str | None, metrics: Metrics) -> WSGIServer | None:
    """A Prometheus endpoint at ``host:port``, if there is an address.

    Raises:
        BindError: the address can't be served on.
    """
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    try:
        server, _thread = start_http_server(int(port), host, registry=metrics.registry)
    except (OSError, OverflowError) as error:
        raise BindError(f"metrics: can't serve on {address}: {error}") from None
    return server
