"""Freshness test: the age of results while the model is slower than the cameras.

    python tools/freshness.py --seconds 600

Starts a service (``streamseg serve``) with live test patterns that produce more frames than the
model can process, and one subscriber that records the age of each result, from capture to
publication. Only the newest frame of a source waits, so the age must stay below the time of two
batches plus an allowance, and must not grow.

The speed of a shared machine varies. Therefore each age is compared with the times of the two
batches that determine it: the batch that its frame waited for, and its own.

Prints a line for each part of the run; exits 1 if results are too old or ages grow.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

import yaml

import streamseg

ALLOWANCE_MS = 100.0
"""Time for reading, tracking and encoding, in milliseconds, added to the time of two batches."""
MAY_GROW = 1.25
"""Maximum ratio of the relative ages in the last third of the run to those in the first."""
WARM_UP = 5.0
"""Time after the first result that is not measured, in seconds."""


@dataclass(frozen=True)
class ReceivedResult:
    """Received result.

    Attributes:
        at: seconds since the start of the measurement.
        age: age in milliseconds.
        batch: timings of its batch, which are the same for all its frames and identify it.
    """

    at: float
    age: float
    batch: tuple[float, float, float]


@dataclass(frozen=True)
class TimedResult:
    """Result with the times of its batches in milliseconds.

    Attributes:
        seen: received result.
        before: time of the previous batch.
        own: time of its own batch.
    """

    seen: ReceivedResult
    before: float
    own: float

    @property
    def to_bound(self) -> float:
        """Age divided by its limit: the time of two batches plus the allowance."""
        return self.seen.age / (self.before + self.own + ALLOWANCE_MS)

    @property
    def to_batches(self) -> float:
        """Age divided by the time of two batches."""
        return self.seen.age / (self.before + self.own)


@dataclass(frozen=True)
class Part:
    """Statistics of a part of the run.

    Attributes:
        results: number of results.
        age_median: median age in milliseconds.
        age_p99: 99th percentile of the age in milliseconds.
        batch_median: median time of a batch in milliseconds.
        to_bound: 99th percentile of the age divided by its limit.
        to_batches: 99th percentile of the age divided by the time of two batches.
    """

    results: int
    age_median: float
    age_p99: float
    batch_median: float
    to_bound: float
    to_batches: float

    def __str__(self) -> str:
        return (
            f"{self.results:6d} results, age {self.age_median:5.0f} ms, p99 {self.age_p99:5.0f} ms"
            f"; a batch {self.batch_median:5.0f} ms; p99 of age to bound {self.to_bound:.2f}"
            f", to two batches {self.to_batches:.2f}"
        )


@contextlib.contextmanager
def run_service(options: argparse.Namespace) -> Iterator[str]:
    """Run a service with live test patterns; yield its address."""
    camera = f"test:?live=1&size=640x360&fps={options.fps:g}"
    config = {
        "sources": [
            {"url": f"{camera}&seed={n}", "name": f"camera-{n}"} for n in range(options.cameras)
        ],
        "model": {"name": options.model, "input_size": options.input_size},
        "worker": {"max_batch": options.cameras},
        "control": {"enabled": False},
    }
    if options.weights:
        config["model"] |= {"weights": options.weights}
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{folder}/masks"
        config["publish"] = {"bind": address}
        file = Path(folder) / "freshness.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "streamseg", "serve", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - ourselves
        try:
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def receive_results(address: str, seconds: float) -> list[ReceivedResult]:
    """Return all results of ``seconds`` seconds after the warm-up."""
    seen: list[ReceivedResult] = []
    with streamseg.connect(address, timeout=60) as results:
        results.receive()
        began = time.monotonic() + WARM_UP
        for result in results:
            at = time.monotonic() - began
            if at >= seconds:
                break
            if at >= 0:
                spent = result.timing
                batch = (spent["prepare"], spent["forward"], spent["postprocess"])
                seen.append(ReceivedResult(at, result.age_ms, batch))
    return seen


def add_batch_times(seen: list[ReceivedResult]) -> list[TimedResult]:
    """Return results with the times of their own batch and of the previous one.

    The first batch counts as its own predecessor. The timings of a result are those of its batch
    divided by the number of frames.
    """
    batches = [list(batch) for _, batch in groupby(seen, lambda result: result.batch)]
    took = [sum(batch[0].batch) * len(batch) for batch in batches]
    return [
        TimedResult(result, took[max(0, number - 1)], took[number])
        for number, batch in enumerate(batches)
        for result in batch
    ]


def p99(values: Iterable[float]) -> float:
    """Return the 99th percentile."""
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def summarize(results: list[TimedResult]) -> Part:
    """Return the statistics of results."""
    ages = [result.seen.age for result in results]
    took = {result.seen.batch: result.own for result in results}
    return Part(
        len(results),
        median(ages),
        p99(ages),
        median(took.values()),
        p99(result.to_bound for result in results),
        p99(result.to_batches for result in results),
    )


def split_run(results: list[TimedResult], seconds: float, parts: int) -> list[Part]:
    """Return the statistics of parts of equal duration."""
    lengths = [
        [r for r in results if n <= r.seen.at / seconds * parts < n + 1] for n in range(parts)
    ]
    return [summarize(part) for part in lengths if part]


def measure_growth(parts: list[Part]) -> float:
    """Return the median relative age in the last third of the run divided by that in the first."""
    third = max(1, len(parts) // 3)
    first, last = parts[:third], parts[-third:]
    return median(p.to_batches for p in last) / median(p.to_batches for p in first)


def main() -> None:
    """Measure, print the results, set the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--fps", type=float, default=10, help="of each camera")
    parser.add_argument("--model", default="nanomask")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--input-size", type=int, default=448)
    parser.add_argument("--parts", type=int, default=10)
    options = parser.parse_args()
    with run_service(options) as address:
        results = add_batch_times(receive_results(address, options.seconds))
    parts = split_run(results, options.seconds, options.parts)
    for part in parts:
        print(part)
    whole = summarize(results)
    print(f"{whole}, over all {options.seconds:g} s")
    wanted = options.cameras * options.fps
    print(f"{len(results) / options.seconds:.1f} results/s of {wanted:g} frames/s")
    problems = []
    if len(results) / options.seconds > 0.9 * wanted:
        problems.append("the model is as fast as the cameras: nothing was shown; ask for more fps")
    if whole.to_bound > 1:
        problems.append("results are older than they may be")
    if measure_growth(parts) > MAY_GROW:
        problems.append("ages grow")
    for problem in problems:
        print(problem)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
