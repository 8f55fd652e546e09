"""Recorder of received results: writes a subscription to a results file and a video file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streamseg import protocol
from streamseg.client import Received, Subscriber
from streamseg.errors import OutputError, StreamsegError
from streamseg.sinks.files.results import IsolatedOutput, ResultsFile, VideoFile

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)


class Recorder:
    """Files to which received messages are written; a file that fails does not affect the other.

    As a context manager it completes the files on exit, or leaves them as ``.part`` files if there
    was an exception.

    Args:
        jsonl: file of the results, or None.
        save: video file of the images of one source, with their own times, or None. It is the
            source of the first message; for each other source a warning is logged once.

    Raises:
        OutputError: a file can't be opened, or, on exit, couldn't be written.
    """

    def __init__(self, jsonl: Path | None, save: Path | None) -> None:
        self._results = None if jsonl is None else IsolatedOutput(ResultsFile(jsonl))
        self._video = None if save is None else IsolatedOutput(VideoFile(save))
        self._video_source: str | None = None
        self._other_sources: set[str] = set()
        for output in self._outputs:
            output.open()
        self._raise_failure()

    def record(self, messages: Iterable[Received]) -> Iterator[Received]:
        """Write each message, then yield it."""
        for received in messages:
            if self._results is not None:
                self._write_result(self._results, received)
            if self._video is not None:
                self._write_image(self._video, received)
            yield received

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for output in self._outputs:
            output.close() if error is None else output.abort()
        if error is None:
            self._raise_failure()

    @property
    def _outputs(self) -> list[IsolatedOutput[Any]]:
        return [output for output in (self._results, self._video) if output is not None]

    def _raise_failure(self) -> None:
        failures = [output.failure for output in self._outputs if output.failure is not None]
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise OutputError("; ".join(map(str, failures)))

    def _write_result(self, results: IsolatedOutput[ResultsFile], received: Received) -> None:
        results.attempt(lambda file: file.write_message(protocol.to_recorded(received.message)))

    def _write_image(self, video: IsolatedOutput[VideoFile], received: Received) -> None:
        source = received.source
        self._video_source = self._video_source or source
        if source == self._video_source:
            video.attempt(
                lambda file: file.write_image(received.frame, received.pts, received.epoch)
            )
        elif source not in self._other_sources:
            self._other_sources.add(source)
            log.warning(
                "%s is not saved: a video holds one source, here %s; name it with --source",
                source,
                self._video_source,
            )


def raise_service_failure(subscriber: Subscriber) -> None:
    """Raise the failure of a service whose subscription has ended.

    Raises:
        StreamsegError: the service failed, so results are missing.
    """
    status = subscriber.statuses.get("")
    if status is not None and status.state == "failed":
        raise StreamsegError(f"the service failed: {status.reason}")
