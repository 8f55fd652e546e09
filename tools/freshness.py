"""Measure how old results are when the model is slower than the cameras.

    python tools/freshness.py --seconds 600

A service of its own (``streamseg serve``) with live test patterns that want more of the model than
it can give, and one subscriber that notes each result's age: from capture to publication. Newest
frame wins, so no age should pass twice the time of a batch and a little, and none should grow.

A machine that does other things, too, is fast now and slow then. So an age is held against the two
batches that it is made of: the one that its frame waited for, and its own.

Prints a line for each part of the run; exits 1 if either isn't so.
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
"""Beyond twice the time of a batch: reading, identities, encoding."""
MAY_GROW = 1.25
"""The last third's ages to the first's, both in their batches' times: those of a third vary so."""
WARM_UP = 5.0
"""Seconds, beside the model's first forward, until everybody has joined."""


@dataclass(frozen=True)
class Seen:
    """One result.

    Attributes:
        at: seconds since the beginning.
        age: milliseconds.
        batch: what tells its batch from others: all its frames carry the same timings.
    """

    at: float
    age: float
    batch: tuple[float, float, float]


@dataclass(frozen=True)
class Timed:
    """One result, and its batches; milliseconds.

    Attributes:
        seen: the result.
        before: what the batch before its own took.
        own: what its own took.
    """

    seen: Seen
    before: float
    own: float

    @property
    def to_bound(self) -> float:
        """Its age to what that may be: the time of two batches, and a little."""
        return self.seen.age / (self.before + self.own + ALLOWANCE_MS)

    @property
    def to_batches(self) -> float:
        """Its age to the time of two batches."""
        return self.seen.age / (self.before + self.own)


@dataclass(frozen=True)
class Part:
    """What a part of the run came to.

    Attributes:
        results: how many.
        age_median: milliseconds.
        age_p99: milliseconds.
        batch_median: milliseconds.
        to_bound: the 99th percentile of ages to what each may be.
        to_batches: the same to the time of two batches alone.
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
def service(options: argparse.Namespace) -> Iterator[str]:
    """A service of live test patterns, and its address."""
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


def watch(address: str, seconds: float) -> list[Seen]:
    """Every result of so many seconds, after the warm-up."""
    seen: list[Seen] = []
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
                seen.append(Seen(at, result.age_ms, batch))
    return seen


def timed(seen: list[Seen]) -> list[Timed]:
    """Each result with the times of its batch and of the one before; the first has its own twice.

    What a result says of its batch is its own share of it.
    """
    batches = [list(batch) for _, batch in groupby(seen, lambda result: result.batch)]
    took = [sum(batch[0].batch) * len(batch) for batch in batches]
    return [
        Timed(result, took[max(0, number - 1)], took[number])
        for number, batch in enumerate(batches)
        for result in batch
    ]


def p99(values: Iterable[float]) -> float:
    """What a hundredth of them passes, at most."""
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def summed_up(results: list[Timed]) -> Part:
    """Percentiles of ages, and the median time of a batch."""
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


def parted(results: list[Timed], seconds: float, parts: int) -> list[Part]:
    """The run in parts of equal length."""
    lengths = [
        [r for r in results if n <= r.seen.at / seconds * parts < n + 1] for n in range(parts)
    ]
    return [summed_up(part) for part in lengths if part]


def expand_boxes(parts: list[Part]) -> float:
    """The last third's ages to the first's; one part that is bad is no growth."""
    third = max(1, len(parts) // 3)
    first, last = parts[:third], parts[-third:]
    return median(p.to_batches for p in last) / median(p.to_batches for p in first)


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--fps", type=float, default=10, help="of each camera")
    parser.add_argument("--model", default="nanomask")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--input-size", type=int, default=448)
    parser.add_argument("--parts", type=int, default=10)
    options = parser.parse_args()
    with service(options) as address:
        results = timed(watch(address, options.seconds))
    parts = parted(results, options.seconds, options.parts)
    for part in parts:
        print(part)
    whole = summed_up(results)
    print(f"{whole}, over all {options.seconds:g} s")
    wanted = options.cameras * options.fps
    print(f"{len(results) / options.seconds:.1f} results/s of {wanted:g} frames/s")
    problems = []
    if len(results) / options.seconds > 0.9 * wanted:
        problems.append("the model is as fast as the cameras: nothing was shown; ask for more fps")
    if whole.to_bound > 1:
        problems.append("results are older than they may be")
    if expand_boxes(parts) > MAY_GROW:
        problems.append("ages grow")
    for problem in problems:
        print(problem)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
