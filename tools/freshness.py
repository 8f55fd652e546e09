"""Measure how old results are when the model is slower than the cameras.

    python tools/freshness.py --seconds 600

A service of its own (``streamseg serve``) with live test patterns that want more of the model than
it can give, and one subscriber that notes each result's age: from capture to publication. Newest
frame wins, so no age should pass twice the time of a batch and a little, and none should grow.

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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

import streamseg

ALLOWANCE_MS = 100.0
"""Beyond twice the time of a batch: reading, identities, encoding."""
MAY_GROW = 1.25
"""The last part's 99th percentile to the first's: batches themselves differ that much here."""
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
class Part:
    """What a part of the run came to; milliseconds."""

    results: int
    age_median: float
    age_p99: float
    batch_median: float

    @property
    def bound(self) -> float:
        """What the 99th percentile must stay under."""
        return 2 * self.batch_median + ALLOWANCE_MS

    def __str__(self) -> str:
        return (
            f"{self.results:6d} results, age {self.age_median:5.0f} ms, p99 {self.age_p99:5.0f} ms"
            f"; a batch {self.batch_median:5.0f} ms, so at most {self.bound:5.0f} ms"
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


def summed_up(seen: list[Seen]) -> Part:
    """Percentiles of ages, and the median time of a batch."""
    sizes = Counter(result.batch for result in seen)
    ages = sorted(result.age for result in seen)
    return Part(
        len(seen),
        median(ages),
        ages[math.ceil(0.99 * len(ages)) - 1],
        median(sum(batch) * size for batch, size in sizes.items()),
    )


def parted(seen: list[Seen], seconds: float, parts: int) -> list[Part]:
    """The run in parts of equal length."""
    lengths = [[s for s in seen if n <= s.at / seconds * parts < n + 1] for n in range(parts)]
    return [summed_up(part) for part in lengths if part]


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
        seen = watch(address, options.seconds)
    parts = parted(seen, options.seconds, options.parts)
    for part in parts:
        print(part)
    whole = summed_up(seen)
    print(f"{whole}, over all {options.seconds:g} s")
    wanted = options.cameras * options.fps
    print(f"{len(seen) / options.seconds:.1f} results/s of {wanted:g} frames/s")
    problems = []
    if len(seen) / options.seconds > 0.9 * wanted:
        problems.append("the model is as fast as the cameras: nothing was shown; ask for more fps")
    if whole.age_p99 > whole.bound:
        problems.append("results are older than they may be")
    if parts[-1].age_p99 > parts[0].age_p99 * MAY_GROW:
        problems.append("ages grow")
    for problem in problems:
        print(problem)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
