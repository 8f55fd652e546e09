"""The recorded composition: files in, and for each a folder of results; nothing is dropped.

    source → inbox → worker → found → tracker ┬→ results.jsonl
                                              ├→ annotated.mp4
                                              └→ panoptic.json and panoptic/, if asked for

Every mailbox blocks, so the slowest stage sets the pace. An output that fails costs neither the
others nor the other inputs. ``summary.json`` is written last: a folder that has one was finished,
and it says how.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from streamseg.config import Config, SourceConfig
from streamseg.errors import (
    OutputError,
    SourceError,
    StageError,
    StreamsegError,
    UsageError,
    redact_address,
)
from streamseg.models.base import Segmenter
from streamseg.models.registry import REGISTRY
from streamseg.pipeline.allocator import share_heap
from streamseg.pipeline.mailbox import Mailbox
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.runner import Pipeline
from streamseg.pipeline.stages import SourceThresholds, infer, read, track
from streamseg.pipeline.summary import Progress, RunStatistics, Summary
from streamseg.sinks.files.panoptic import PanopticFiles
from streamseg.sinks.files.part_file import make_folder, make_subfolder, writing
from streamseg.sinks.files.results import (
    IsolatedOutput,
    ResultsFile,
    VideoFile,
    write_json_atomically,
)
from streamseg.sources import Input, Source, open_source
from streamseg.structures.results import Frame, Result

log = logging.getLogger(__name__)

State: TypeAlias = Literal["complete", "incomplete", "interrupted", "failed"]

SINK_CAPACITY = 4
"""Results that may wait for a file."""
STOP_WITHIN = 60.0
"""Seconds that an interrupted run gives to what it has taken."""
UNWRITTEN = "unwritten"
"""Reason of frames whose line of ``results.jsonl`` couldn't be written."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one input.

    Attributes:
        source: the input's config, with its name.
        state: ``complete``; ``incomplete`` if the recording is cut off or was lost in part, or an
            output failed; ``interrupted`` by the user; ``failed`` if nothing can be used.
        reason: why it isn't complete, in one line.
        summary: what it came to, None if it never began.
        notes: remarks on the input, one line each.
    """

    source: SourceConfig
    state: State
    reason: str = ""
    summary: Summary | None = None
    notes: tuple[str, ...] = ()

    def row(self) -> tuple[str, ...]:
        """Input, state, frames, fps, instances and tracks, as a table shows them."""
        if self.summary is None:
            return self.source.name, self.state, "-", "-", "-", "-"
        made, (source,) = self.summary, self.summary.sources
        counts = str(source.instances), str(source.tracks)
        return self.source.name, self.state, str(made.frames), f"{made.fps:.1f}", *counts


class Processor:
    """Processes inputs one after the other with one model.

    Args:
        config: validated; its sources are the inputs.
        model: the model to use.
        out: the folder that takes a folder for each input.
        progress: told how far the current input is.
        panoptic: write the panoptic parts as PNGs, too.
        inputs: where the outputs of sources go and what is remarked on them, by source name; one
            that isn't there goes into a folder of its name.

    Attributes:
        stopped: whether it was told to end before its work was done.

    Raises:
        UsageError: the model has no panoptic parts, or a threshold names a class that it doesn't
            know.
    """

    def __init__(
        self,
        config: Config,
        model: Segmenter,
        out: Path,
        progress: Progress,
        *,
        panoptic: bool = False,
        inputs: Mapping[str, Input] = MappingProxyType({}),
    ) -> None:
        if panoptic and not model.stuff:
            able = [entry.name for entry in REGISTRY if entry.published[0].pq is not None]
            raise UsageError(
                f"--panoptic: {model.name} has no panoptic results; these have: {', '.join(able)}"
            )
        share_heap()
        self._config = config
        self._model = model
        self._thresholds = SourceThresholds.of(config, model)
        self._out = out
        self._progress = progress
        self._panoptic = panoptic
        self._inputs = inputs
        self.stopped = False
        self._pipeline: Pipeline | None = None

    def run(self) -> Iterator[Outcome]:
        """Process each input; one that fails doesn't stop the others.

        Raises:
            OutputError: the output folder can't be made.
        """
        make_folder(self._out)
        for source in self._config.sources:
            if self.stopped:
                return
            try:
                yield self._process(source)
            except (SourceError, OutputError, StageError) as error:
                log.debug("%s", source.name, exc_info=error)
                yield Outcome(source, "failed", str(error))

    def stop(self) -> None:
        """Finish what was taken of the current input, and take no further one."""
        self.stopped = True
        if self._pipeline is not None:
            self._pipeline.stop()

    def abort(self) -> None:
        """End now; what was written stays readable."""
        self.stopped = True
        if self._pipeline is not None:
            self._pipeline.abort()

    def _process(self, config: SourceConfig) -> Outcome:
        source = open_source(config)
        if source.live:
            url = redact_address(config.url)
            return Outcome(config, "failed", f"{url}: is live, never ends: use streamseg serve")
        placed = self._inputs.get(config.name, Input(config.url, PurePath(config.name)))
        folder = self._out / placed.folder
        make_subfolder(self._out, placed.folder)
        with writing(folder / "summary.json"):
            (folder / "summary.json").unlink(missing_ok=True)  # of an earlier run into this folder
        run = _Run(
            config,
            source,
            self._model,
            folder,
            self._progress,
            panoptic=self._panoptic,
            remark=placed.remark,
        )
        run.start(self._config, self._thresholds)
        self._pipeline = run.pipeline
        if self.stopped:
            self._pipeline.stop()
        try:
            return run.finish()
        finally:
            self._pipeline = None


class _Run:
    """One input on its way into its folder."""

    def __init__(
        self,
        source_config: SourceConfig,
        source: Source,
        model: Segmenter,
        folder: Path,
        progress: Progress,
        *,
        panoptic: bool,
        remark: str,
    ) -> None:
        self.pipeline = Pipeline()
        self._metrics = Metrics()
        self._source_config = source_config
        self._source = source
        self._model = model
        self._folder = folder
        self._progress = progress
        self._remark = remark
        self._problem: Exception | None = None
        self._tally = RunStatistics(model.name, self._metrics)
        self._account = self._metrics.account(source.name)
        self._results = IsolatedOutput(lambda: ResultsFile(folder / "results.jsonl"))
        video = IsolatedOutput(lambda: VideoFile(folder / "annotated.mp4"))
        self._others: dict[str, IsolatedOutput[Any]] = {"video": video}
        if panoptic:
            self._others["panoptic"] = IsolatedOutput(
                lambda: PanopticFiles(folder / "panoptic.json", model.categories, model.stuff)
            )

    @property
    def _outputs(self) -> list[IsolatedOutput[Any]]:
        return [self._results, *self._others.values()]

    @property
    def _failures(self) -> list[OutputError]:
        return [output.failure for output in self._outputs if output.failure is not None]

    def start(self, config: Config, thresholds: SourceThresholds) -> None:
        """Start every stage; returns at once."""
        pipeline, worker = self.pipeline, config.worker
        inbox: Mailbox[Frame] = Mailbox(worker.max_batch)
        found: Mailbox[Result] = Mailbox(worker.max_batch)
        to_results: Mailbox[Result] = Mailbox(SINK_CAPACITY)
        pipeline.spawn("results", self._published(self._written(self._results, to_results)))
        into = [to_results]
        for name, output in self._others.items():
            to_file: Mailbox[Result] = Mailbox(SINK_CAPACITY)
            pipeline.spawn(name, self._written(output, to_file))
            into.append(to_file)
        tracked = self._tally.count(track(found, config.tracker, self._metrics))
        pipeline.spawn("tracker", tracked, into=into)
        batches = inbox.batches(worker.max_batch, worker.max_wait_ms / 1000)
        results = infer(batches, self._model, thresholds, self._metrics)
        pipeline.spawn("worker", results, into=[found])
        frames = pipeline.until_stopped(read(self._source, self._account))
        pipeline.spawn(f"source:{self._source.name}", frames, [inbox], on_error=self._source_failed)

    def finish(self) -> Outcome:
        """Wait for the end, close the files, write the summary.

        Raises:
            StageError: a stage failed; the files are left as ``.part``.
        """
        try:
            self._wait()
        except BaseException:
            for output in self._outputs:
                output.abort()
            raise
        for output in self._outputs:
            output.close()
        if self.pipeline.aborted:
            self._account.abandon("stopped")
        summary = self._tally.summary()
        state, reason = self._state(summary)
        notes = (*filter(None, [self._remark]), *self._source.report.notes)
        outcome = Outcome(self._source_config, state, reason, summary, notes)
        try:
            write_json_atomically(self._folder / "summary.json", self._describe(outcome, summary))
        except OutputError as error:
            reason = "; ".join(filter(None, (reason, str(error))))
            return replace(
                outcome, state="failed" if state == "failed" else "incomplete", reason=reason
            )
        return outcome

    def _wait(self) -> None:
        self.pipeline.wait(STOP_WITHIN)
        if self._problem is not None and not isinstance(self._problem, StreamsegError):
            raise StageError(self._source.name, self._problem)

    def _source_failed(self, error: Exception) -> None:
        self._problem = error

    def _written(self, output: IsolatedOutput[Any], results: Iterable[Result]) -> Iterator[Result]:
        """The stage of an output: write each result while that works, and pass all of them on."""
        for result in results:
            output.add(result)
            if len(self._failures) == len(self._outputs):
                self.pipeline.stop()  # nothing is left to work for
            yield result

    def _published(self, results: Iterable[Result]) -> Iterator[Result]:
        for done, result in enumerate(results, start=1):
            if self._results.failure is None:
                self._account.publish()
            else:
                self._account.fail(UNWRITTEN)
            self._progress(self._source.name, done, self._source.report.expected)
            yield result

    def _state(self, summary: Summary) -> tuple[State, str]:
        problems = [*([self._problem] if self._problem else []), *self._failures]
        if problems:
            useless = not summary.frames or len(self._failures) == len(self._outputs)
            reason = "; ".join(str(problem) for problem in problems)
            return ("failed" if useless else "incomplete"), reason
        if self.pipeline.stopping.is_set():
            return "interrupted", "interrupted: the results end where it was"
        return "complete", ""

    def _describe(self, outcome: Outcome, summary: Summary) -> dict[str, Any]:
        return {
            "input": self._source_config.url,
            "state": outcome.state,
            "reason": outcome.reason,
            "failed_outputs": [str(failure) for failure in self._failures],
            "bad_frames": self._source.report.bad,
            "notes": list(outcome.notes),
            **summary.to_dict(),
            "versions": {name: version(name) for name in ("streamseg", "torch", "av")},
            "python": platform.python_version(),
        }
