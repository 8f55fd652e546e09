"""The main job with nothing to configure: the bundled clip through the bundled model.

A real service on loopback, and two real subscribers: one to the masks, which writes
``results.jsonl``, and one to the pictures, which writes ``annotated.mp4``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path

from streamseg.assets import CLIP
from streamseg.cli.watch import Recording, check_service, recorded
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
    """What the demo came to.

    Attributes:
        summary: the service's own account.
        results: lines of ``results.jsonl`` received.
        pictures: frames of ``annotated.mp4`` received.
        lost: messages that were published and not received.
        interrupted: whether it was stopped before the clip's end.
    """

    summary: Summary
    results: int
    pictures: int
    lost: int
    interrupted: bool


class Demo:
    """A service, its subscribers and their files.

    Args:
        out: the folder for ``annotated.mp4`` and ``results.jsonl``.
        progress: told (source, frames received, None) now and then.
    """

    def __init__(self, out: Path, progress: Progress) -> None:
        self._out = out
        self._progress = progress
        self._service: Service | None = None
        self._failures: list[Exception] = []
        self._stopped = self._aborted = False

    def run(self) -> DemoReport:
        """Run it to the end.

        Raises:
            OutputError: a file can't be written; what is received goes on to the end all the same.
            StageError: a stage failed.
        """
        make_folder(self._out)
        to_results = Recording(self._out / "results.jsonl", None)
        to_video = Recording(None, self._out / "annotated.mp4")
        with ExitStack() as stack:
            clip = stack.enter_context(as_file(CLIP))
            config = Config(
                sources=(SourceConfig(url=str(clip), name="street"),),
                publish=PublishConfig(bind="tcp://127.0.0.1:*", wait_subscribers=SUBSCRIBERS),
            )
            self._service = service = Service(config)
            if self._stopped:  # while the model was loaded
                service.stop()
            address = service.endpoints["masks"]
            service.start()
            masks = stack.enter_context(connect(address, sources=["street"]))
            pictures = stack.enter_context(connect(address, sources=["street"], frames="annotated"))
            subscribers = Pipeline()
            results = recorded(self._all_of(masks), to_results)
            video = recorded(self._all_of(pictures), to_video)
            counts = [0, 0]
            for name, messages in (
                ("subscriber:masks", _count(self._shown(results), counts, 0)),
                ("subscriber:pictures", _count(video, counts, 1)),
            ):
                subscribers.spawn(name, messages, on_error=self._failures.append)
            summary = self._wait(service, subscribers)
            lost = sum(masks.gaps.values()) + sum(pictures.gaps.values())
            return DemoReport(summary, counts[0], counts[1], lost, self._stopped)

    def stop(self) -> None:
        """End early; what was received is kept, and playable."""
        self._stopped = True
        if self._service is not None:
            self._service.stop()

    def abort(self) -> None:
        """End now."""
        self._stopped = self._aborted = True
        if self._service is not None:
            self._service.abort()

    def _wait(self, service: Service, subscribers: Pipeline) -> Summary:
        """Return the service's summary, or raise its failure, or that of a subscriber.

        A subscriber that fails costs neither the service nor the other subscriber.
        """
        failure = None
        try:
            service.wait()
        except StageError as error:  # the cause of what its subscribers fail with
            failure = error
        subscribers.wait()
        failures = [*([failure] if failure else []), *self._failures]
        if failures and not self._aborted:
            raise failures[0]
        return service.summary()

    def _all_of(self, subscriber: Subscriber) -> Iterator[Received]:
        """What a subscriber receives, to the end of a service that didn't fail."""
        yield from subscriber
        check_service(subscriber)

    def _shown(self, messages: Iterable[Received]) -> Iterator[Received]:
        for done, received in enumerate(messages, start=1):
            self._progress("street", done, None)
            yield received


def _count(messages: Iterable[Received], counts: list[int], row: int) -> Iterator[Received]:
    for received in messages:
        counts[row] += 1
        yield received
