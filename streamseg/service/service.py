"""Live service: from sources to subscribers, until its sources end or it is stopped.

``wiring`` builds the pipeline, ``source_set`` holds the sources at run time, ``supervisor`` adds
what an operator needs: the HTTP API, systemd and reloading.
"""

from __future__ import annotations

import time

import msgspec
import torch

from streamseg.config import Config
from streamseg.models import load_model
from streamseg.models.model import Model, find_model_plugin
from streamseg.pipeline.allocator import share_heap
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.stages import SourceThresholds, find_tracker
from streamseg.pipeline.summary import Summary
from streamseg.service.capacity import check_capacity
from streamseg.service.source_session import OpenedSource
from streamseg.service.source_set import SourceSet
from streamseg.service.wiring import ServicePipeline
from streamseg.sinks.plugin import load_sinks
from streamseg.sources import open_source

STOP_WITHIN = 10.0
"""Time that a stopped service gets to finish the frames in flight, in seconds."""
STUCK_AFTER = 60.0
"""Time after which the model or the publisher counts as stuck, in seconds."""


class Service:
    """Service made of a config; ``start`` runs it, ``wait`` waits for its end.

    Args:
        config: validated; its sources have names.
        model: model to serve; None loads the one that the config names.

    Attributes:
        metrics: its Prometheus metrics and frame accounts.
        sources: its sources, which can be changed while it runs.

    Raises:
        StreamsegError: a source can't be opened, an address can't be bound, or the model or a
            plug-in can't be loaded; nothing was started.
    """

    def __init__(self, config: Config, model: Model | None = None) -> None:
        share_heap()
        self.metrics = Metrics()
        self._config = config
        find_tracker(config.tracker)
        sinks = load_sinks(config.sinks, "drop_oldest")
        opened = [OpenedSource(open_source(source), source) for source in config.sources]
        check_capacity(config.publish, (), [each.source for each in opened])
        self._model = model or warm_up_model(load_configured_model(config))
        thresholds = SourceThresholds.from_config(config, self._model)
        self._pipeline = ServicePipeline(config, self._model, thresholds, sinks, self.metrics)
        self.sources = SourceSet(config, opened, thresholds, self._pipeline, self.metrics)
        self._started = False

    def start(self) -> None:
        """Start every stage and source; returns at once."""
        self._pipeline.start()
        self._started = True
        self.sources.start()

    def stop(self) -> None:
        """Stop the sources; frames in flight are still published."""
        self._pipeline.stop()
        self.sources.stop()

    def abort(self) -> None:
        """Stop now; frames in flight are dropped, and counted as ``stopped``."""
        self.stop()
        self._pipeline.abort()

    def wait(self) -> Summary:
        """Wait until the service ends: by ``stop``, or when its last source has ended.

        A service whose last source was removed runs on.

        Returns:
            Summary of the run. ``problems`` has the reasons of what failed.

        Raises:
            StageError: a stage failed; its cause is chained.
        """
        self._pipeline.wait(STOP_WITHIN)
        return self.summary()

    def close(self) -> None:
        """Release the addresses of a service that was never started."""
        self._pipeline.publisher.close()

    def summary(self) -> Summary:
        """Return the summary of the run so far."""
        return self._pipeline.statistics.summary()

    @property
    def endpoints(self) -> dict[str, str]:
        """Addresses bound: ``masks``, ``frames`` and, where it is on, ``replay``."""
        return dict(self._pipeline.publisher.endpoints)

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self._model.name

    @property
    def ready(self) -> bool:
        """True while it takes frames and publishes results."""
        return self.sources.is_running

    @property
    def problems(self) -> list[str]:
        """Reasons of the sources and plug-in sinks that have failed."""
        return [*self.sources.problems, *self._pipeline.sink_failures.values()]

    @property
    def health_problem(self) -> str:
        """Reason why the service itself, apart from its sources, isn't healthy; else empty."""
        now, pipeline = time.monotonic(), self._pipeline
        if now - pipeline.busy_since > STUCK_AFTER:
            return f"the model has worked on one batch for {now - pipeline.busy_since:.0f} s"
        idle = now - pipeline.publisher.last_poll_at
        if self._started and idle > STUCK_AFTER:
            return f"the publisher has done nothing for {idle:.0f} s"
        return ""


def load_configured_model(config: Config) -> Model:
    """Return the model that a config names, and set the number of threads of its forward.

    Raises:
        ConfigError: a plug-in can't be loaded, or an option is set that it doesn't have.
        UnknownModelError, UsageError, WeightsError: see :func:`streamseg.load_model`.
    """
    model = config.model
    if config.worker.threads is not None:
        torch.set_num_threads(config.worker.threads)
    plugin = find_model_plugin(model)
    if plugin is not None:
        return plugin
    return load_model(
        model.name,
        weights=model.weights,
        device=model.device,
        input_size=model.input_size,
        precision=model.precision,
        class_names=model.class_names,
        **msgspec.structs.asdict(config.thresholds),
    )


def warm_up_model(model: Model) -> Model:
    """Return the model after its first inference."""
    model.warm_up()
    return model
