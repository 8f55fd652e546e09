"""Processing of recordings: for each input a folder with results, annotated video and a summary.

    source → inbox → worker → detected → tracker ┬→ results.jsonl
                                                 ├→ annotated.mp4
                                                 ├→ panoptic.json and panoptic/, if asked for
                                                 └→ plug-in sinks

Every mailbox blocks, so the slowest stage sets the pace and nothing is dropped. An output that
fails ends neither the other outputs nor the other inputs. ``summary.json`` is written last: a
folder that has one was finished, and its ``state`` has the outcome.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from streamseg.models.model import Model
from streamseg.models.registry import REGISTRY
from streamseg.pipeline.allocator import share_heap
from streamseg.pipeline.mailbox import Mailbox
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.runner import Pipeline
from streamseg.pipeline.stages import SourceThresholds, find_tracker, infer, read_frames, track
from streamseg.pipeline.summary import Progress, RunStatistics, Summary
from streamseg.sinks.base import Sink, run_sink
from streamseg.sinks.files.panoptic import PanopticFiles
from streamseg.sinks.files.part_file import make_folder, make_subfolder, output_errors
from streamseg.sinks.files.results import (
    IsolatedOutput,
    OutputFile,
    ResultsFile,
    VideoFile,
    write_json_atomically,
)
from streamseg.sinks.plugin import PluginSink, load_sinks
from streamseg.sources import Input, Source, open_source
from streamseg.structures.results import Frame, Result

log = logging.getLogger(__name__)

State: TypeAlias = Literal["complete", "incomplete", "interrupted", "failed"]

STOP_WITHIN = 60.0
"""Time that an interrupted run gets to finish the frames in flight, in seconds."""
UNWRITTEN = "unwritten"
"""Reason of failed frames whose line of ``results.jsonl`` couldn't be written."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of one input.

    Attributes:
        source: config of the input, with its name.
        state: ``complete``; ``incomplete`` if the recording is cut off or partly lost, or an output
            failed; ``interrupted`` by the user; ``failed`` if no output can be used.
        reason: reason why it isn't complete, in one line.
        summary: summary of the run, None if it never began.
        notes: remarks on the input, one line each.
    """

    source: SourceConfig
    state: State
    reason: str = ""
    summary: Summary | None = None
    notes: tuple[str, ...] = ()

    def row(self) -> tuple[str, ...]:
        """Return input, state, frames, fps, instances and tracks as the cells of a table."""
        if self.summary is None:
            return self.source.name, self.state, "-", "-", "-", "-"
        summary, (source,) = self.summary, self.summary.sources
        counts = str(source.instances), str(source.tracks)
        return self.source.name, self.state, str(summary.frames), f"{summary.fps:.1f}", *counts


class Processor:
    """Processes inputs one after the other with one model.

    Args:
        config: validated; its sources are the inputs.
        model: model to run.
        out: folder in which each input gets a folder.
        progress: called with the progress of the current input.
        panoptic: whether to write panoptic results, too.
        inputs: output folder of each source and remarks on it, by source name; a source that isn't
            in it gets a folder of its name.

    Attributes:
        stopped: whether it was stopped before its work was done.

    Raises:
        UsageError: the model has no panoptic results, or no class of a name in a threshold.
        ConfigError: a plug-in can't be loaded, or its options are wrong.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
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
        find_tracker(config.tracker)
        self._sinks = load_sinks(config.sinks, "block")
        self._config = config
        self._model = model
        self._thresholds = SourceThresholds.from_config(config, model)
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
        """Finish the frames in flight of the current input, and process no further one."""
        self.stopped = True
        if self._pipeline is not None:
            self._pipeline.stop()

    def abort(self) -> None:
        """End now; the results written so far stay readable."""
        self.stopped = True
        if self._pipeline is not None:
            self._pipeline.abort()

    def _process(self, config: SourceConfig) -> Outcome:
        source = open_source(config)
        if source.live:
            url = redact_address(config.url)
            return Outcome(config, "failed", f"{url}: is live, never ends: use streamseg serve")
        output = self._inputs.get(config.name, Input(config.url, PurePath(config.name)))
        folder = self._out / output.folder
        make_subfolder(self._out, output.folder)
        with output_errors(folder / "summary.json"):
            (folder / "summary.json").unlink(missing_ok=True)  # of an earlier run into this folder
        files: list[OutputFile] = [VideoFile(folder / "annotated.mp4")]
        if self._panoptic:
            model = self._model
            files.append(PanopticFiles(folder / "panoptic.json", model.categories, model.stuff))
        run = _Run(config, source, self._model, folder, files, self._sinks, self._progress)
        run.start(self._config, self._thresholds)
        self._pipeline = run.pipeline
        if self.stopped:
            self._pipeline.stop()
        try:
            return run.finish(output.remark)
        finally:
            self._pipeline = None


class _Run:
    """Run of one input, whose outputs go into one folder.

    Args:
        config: config of the input.
        source: the input, opened.
        model: model to run.
        folder: folder of the outputs.
        files: file sinks other than ``results.jsonl``.
        sinks: plug-in sinks.
        progress: called after each frame.
    """

    def __init__(
        self,
        config: SourceConfig,
        source: Source,
        model: Model,
        folder: Path,
        files: Sequence[OutputFile],
        sinks: Sequence[PluginSink],
        progress: Progress,
    ) -> None:
        self.pipeline = Pipeline()
        self._metrics = Metrics()
        self._config = config
        self._source = source
        self._model = model
        self._folder = folder
        self._progress = progress
        self._source_problem: Exception | None = None
        self._statistics = RunStatistics(model.name, self._metrics)
        self._account = self._metrics.account(source.name)
        self._results = IsolatedOutput(ResultsFile(folder / "results.jsonl"))
        self._files = [self._results, *map(IsolatedOutput[Any], files)]
        self._plugins = [IsolatedOutput[Any](sink) for sink in sinks]
        for file in self._files:
            file.open()

    @property
    def _outputs(self) -> list[IsolatedOutput[Any]]:
        return [*self._files, *self._plugins]

    @property
    def _failures(self) -> list[OutputError]:
        return [output.failure for output in self._outputs if output.failure is not None]

    def start(self, config: Config, thresholds: SourceThresholds) -> None:
        """Start every stage; returns at once."""
        pipeline, worker = self.pipeline, config.worker
        inbox: Mailbox[Frame] = Mailbox(worker.max_batch)
        detected: Mailbox[Result] = Mailbox(worker.max_batch)
        outputs = [self._start_output(output) for output in self._outputs]
        tracked = self._statistics.count_results(track(detected, config.tracker, self._metrics))
        pipeline.spawn("tracker", tracked, into=outputs)
        batches = inbox.batches(worker.max_batch, worker.max_wait_ms / 1000)
        results = infer(batches, self._model, thresholds, self._metrics)
        pipeline.spawn("worker", results, into=[detected])
        frames = pipeline.until_stopped(read_frames(self._source, self._account))
        pipeline.spawn(f"source:{self._source.name}", frames, [inbox], on_error=self._fail_source)

    def finish(self, remark: str) -> Outcome:
        """Wait for the end, complete the files, and write the summary.

        Args:
            remark: remark on the input, or empty.

        Raises:
            StageError: a stage failed; the files are left as ``.part``.
        """
        try:
            self._wait()
        except BaseException:
            for file in self._files:
                file.abort()
            raise
        for file in self._files:
            file.close()
        if self.pipeline.aborted:
            self._account.abandon("stopped")
        summary = self._statistics.summary()
        state, reason = self._state(summary)
        notes = (*filter(None, [remark]), *self._source.report.notes)
        outcome = Outcome(self._config, state, reason, summary, notes)
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
        problem = self._source_problem
        if problem is not None and not isinstance(problem, StreamsegError):
            raise StageError(self._source.name, problem)

    def _start_output(self, output: IsolatedOutput[Any]) -> Mailbox[Result]:
        """Start the stage of an output; return its mailbox."""
        mailbox: Mailbox[Result] = Mailbox(output.capacity, output.policy)
        if output in self._plugins:
            results = run_sink(output, mailbox)
        else:
            # Not closed here: a file is completed only if the whole run ends without a failure.
            results = _write_results(output, mailbox)
        results = self._stop_without_outputs(results)
        if output is self._results:
            results = self._settle(results)
        self.pipeline.spawn(output.name, results)
        return mailbox

    def _stop_without_outputs(self, results: Iterable[Result]) -> Iterator[Result]:
        """Pass on the results of an output; stop the run once every output has failed."""
        for result in results:
            if len(self._failures) == len(self._outputs):
                self.pipeline.stop()
            yield result

    def _settle(self, results: Iterable[Result]) -> Iterator[Result]:
        """Pass on the results of ``results.jsonl``, and enter their frames into the account."""
        for done, result in enumerate(results, start=1):
            if self._results.failure is None:
                self._account.publish()
            else:
                self._account.fail(UNWRITTEN)
            self._progress(self._source.name, done, self._source.report.expected)
            yield result

    def _fail_source(self, error: Exception) -> None:
        self._source_problem = error

    def _state(self, summary: Summary) -> tuple[State, str]:
        problems = [*([self._source_problem] if self._source_problem else []), *self._failures]
        if problems:
            is_useless = not summary.frames or len(self._failures) == len(self._outputs)
            reason = "; ".join(str(problem) for problem in problems)
            return ("failed" if is_useless else "incomplete"), reason
        if self.pipeline.stopping.is_set():
            return "interrupted", "interrupted: the results end where it was"
        return "complete", ""

    def _describe(self, outcome: Outcome, summary: Summary) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return {
            "input": self._config.url,
            "state": outcome.state,
            "reason": outcome.reason,
            "failed_outputs": [str(failure) for failure in self._failures],
            "bad_frames": self._source.report.bad,
            "notes": list(outcome.notes),
            **summary.to_dict(),
            "versions": {name: version(name) for name in ("streamseg", "torch", "av")},
            "python": platform.python_version(),
        }


def _write_results(sink: Sink, results: Iterable[Result]) -> Iterator[Result]:
    for result in results:
        sink.write(result)
        yield result
