"""Demo run: a service for the bundled clip on loopback, and two subscribers that record it.

One subscriber receives the masks and writes ``results.jsonl``, the other one receives the annotated
images and writes ``annotated.mp4``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path

from streamseg.assets import CLIP
from streamseg.cli.recorder import Recorder, raise_service_failure
from streamseg.client import Received, Subscriber, connect
from streamseg.config import Config, PublishConfig, SourceConfig
from streamseg.errors import StageError
from streamseg.pipeline.runner import Pipeline
from streamseg.pipeline.summary import Progress, Summary
from streamseg.service.service import Service
from streamseg.sinks.files.part_file import make_folder

SUBSCRIBERS = 2


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Result of a demo run.

    Attributes:
        summary: summary of the service.
        results: number of results received and written to ``results.jsonl``.
        images: number of images received and written to ``annotated.mp4``.
        lost: number of messages that were published but not received.
        interrupted: whether the run was stopped before the end of the clip.
    """

    summary: Summary
    results: int
    images: int
    lost: int
    interrupted: bool


class Demo:
    """Service with two subscribers that record its results.

    Args:
        out: folder for ``annotated.mp4`` and ``results.jsonl``.
        progress: called with (source, frames received, None) for each result.
    """

    def __init__(self, out: Path, progress: Progress) -> None:
        self._out = out
        self._progress = progress
        self._service: Service | None = None
        self._failures: list[Exception] = []
        self._is_stopped = self._is_aborted = False

    def run(self) -> DemoReport:
        """Run the clip to its end.

        Raises:
            OutputError: a file can't be written; the other file is completed first.
            StageError: a stage of the service failed.
        """
        make_folder(self._out)
        to_results = Recorder(self._out / "results.jsonl", None)
        to_video = Recorder(None, self._out / "annotated.mp4")
        with ExitStack() as stack:
            clip = stack.enter_context(as_file(CLIP))
            config = Config(
                sources=(SourceConfig(url=str(clip), name="street"),),
                publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=SUBSCRIBERS),
            )
            self._service = service = Service(config)
            if self._is_stopped:  # while the model was loaded
                service.stop()
            address = service.endpoints["masks"]
            service.start()
            masks = stack.enter_context(connect(address, sources=["street"]))
            images = stack.enter_context(connect(address, sources=["street"], frames="annotated"))
            received = {"results": 0, "images": 0}

            def count_result() -> None:
                received["results"] += 1
                self._progress("street", received["results"], None)

            def count_image() -> None:
                received["images"] += 1

            subscribers = Pipeline()
            for name, subscriber, recorder, count in (
                ("subscriber:masks", masks, to_results, count_result),
                ("subscriber:images", images, to_video, count_image),
            ):
                stage = _record_all(subscriber, recorder, count)
                subscribers.spawn(name, stage, on_error=self._failures.append)
            summary = self._wait(service, subscribers)
            lost = sum(masks.gaps.values()) + sum(images.gaps.values())
            return DemoReport(summary, **received, lost=lost, interrupted=self._is_stopped)

    def stop(self) -> None:
        """Stop early; the files are completed with what was received."""
        self._is_stopped = True
        if self._service is not None:
            self._service.stop()

    def abort(self) -> None:
        """Stop immediately."""
        self._is_stopped = self._is_aborted = True
        if self._service is not None:
            self._service.abort()

    def _wait(self, service: Service, subscribers: Pipeline) -> Summary:
        """Return the summary of the service, or raise the first failure.

        A failed subscriber stops neither the service nor the other subscriber. A failure of the
        service is raised first: it is the cause of the failures of its subscribers.
        """
        failures: list[Exception] = []
        try:
            service.wait()
        except StageError as error:
            failures.append(error)
        subscribers.wait()
        failures += self._failures
        if failures and not self._is_aborted:
            raise failures[0]
        return service.summary()


def _record_all(
    subscriber: Subscriber, recorder: Recorder, count: Callable[[], None]
) -> Iterator[Received]:
    """Record and count everything until the service ends; raise if the service failed."""
    with recorder:
        for received in recorder.record(subscriber):
            count()
            yield received
        raise_service_failure(subscriber)
