"""Terminal output: progress bars and tables of results and models."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from streamseg.pipeline.summary import Summary

if TYPE_CHECKING:
    from streamseg.config.plugins import Plugin
    from streamseg.models.registry import Availability, ModelInfo

LINE_INTERVAL = 100
"""Number of frames (or other units) between two progress lines without a terminal."""

_WEIGHTS: dict[Availability, str] = {
    "bundled": "the weights are part of the package",
    "downloaded": "the weights are downloaded at first use",
    "yours": "download the weights yourself and give their path as --weights",
}


class ProgressReport:
    """Progress on stderr: a bar for each name on a terminal, plain lines elsewhere.

    Args:
        unit: counted unit, in the plural.
    """

    def __init__(self, unit: str = "frames") -> None:
        self._unit = unit
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

    def __enter__(self) -> ProgressReport:  # noqa: PYI034 - Self came with Python 3.11
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, name: str, done: int, expected: int | None) -> None:
        """Report that ``done`` of ``expected`` (None if unknown) units are done."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=expected)
        self._bars.update(self._tasks[name], completed=done, total=expected)
        previous = self._done.get(name, 0)
        self._done[name] = done
        if not self._console.is_terminal and done // LINE_INTERVAL > previous // LINE_INTERVAL:
            total = f" of {expected}" if expected else ""
            print(f"{name}: {done}{total} {self._unit}", file=sys.stderr, flush=True)  # noqa: T201


def summary_table(summary: Summary) -> Table:
    """Return the summary table of a live run."""
    table = Table(title=f"{summary.model}: {summary.frames} frames, {summary.fps:.1f} fps")
    for column in ("source", "decoded", "published", "dropped", "failed", "instances", "tracks"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for source in summary.sources:
        account = source.account
        table.add_row(
            source.source,
            str(account.decoded),
            str(account.published),
            _counts_text(account.dropped),
            _counts_text(account.failed),
            str(source.instances),
            str(source.tracks),
        )
    ages = ", ".join(f"{name} {age:.0f} ms" for name, age in summary.age_ms.items())
    stages = ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in summary.timing_ms.items())
    table.caption = (
        f"age of results: {ages or '-'}\n{stages or '-'}\nimages dropped: {summary.images_dropped}"
    )
    return table


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a plain table of strings."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    return table


def model_row(entry: ModelInfo) -> tuple[str, ...]:
    """Return the row of a model in the table of models."""
    default = entry.published[0]
    accuracies = (default.box_ap, default.mask_ap, default.pq)
    return (
        entry.name,
        f"{entry.parameters:.1f}M",
        f"{entry.gflops:.1f}",
        *("-" if value is None else f"{value:.1f}" for value in accuracies),
        entry.weights,
    )


def plugin_row(plugin: Plugin) -> tuple[str, ...]:
    """Return the row of a plug-in in the table of models."""
    return plugin.name, *("-",) * 5, plugin.origin


def model_description(entry: ModelInfo) -> str:
    """Return a description of a model and of its published weights."""
    cost = f"{entry.parameters:.2f} M parameters; {entry.gflops:.1f} GFLOPs for 640 x 480 pixels"
    lines = [
        f"{entry.name}: {entry.family}, classes: {entry.classes}",
        f"input {entry.input_size}; {cost}",
        _WEIGHTS[entry.weights],
    ]
    for file in entry.published:
        accuracies = {"box AP": file.box_ap, "mask AP": file.mask_ap, "PQ": file.pq}
        known = [
            f"{metric} {value:.1f}" for metric, value in accuracies.items() if value is not None
        ]
        lines += ["", f"{file.file}", f"  from {file.url}", f"  license {file.license}"]
        lines += [f"  {', '.join([*known, file.measured_on])}"]
        lines += [f"  sha256 {file.sha256}…"] if file.sha256 else []
    return "\n".join(lines)


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "0"
