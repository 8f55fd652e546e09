"""Fuzz everything that reads what users, cameras and peers provide.

    python tools/fuzz.py --seconds 600 --out fuzz-out
    python tools/fuzz.py --targets stream,recording
    python tools/fuzz.py --replay fuzz-out/stream/3f2a90c1-live

Mutates seeds from the samples and from the project's own tests. Each trial runs in a child
process with limits on memory and time. A finding is a signal, a traceback, an error that is not
one printable line, a hang, more memory than the target's limit, or a request to an address or
file that is not allowed (``tools/fuzzing/canary.py``). Each kind of finding is kept once, as
``OUT/TARGET/ID-SEED``, and can be replayed. Exits 1 if there is any. What was found and mended is
in ``tests/fuzzed``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzzing import files, network
from fuzzing.canary import Canary
from fuzzing.trial import Seed, Target, Trial

TARGETS = (*files.TARGETS, *network.TARGETS)
POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that does what no input may do.

    Attributes:
        target: name of what read it.
        what: in one line.
        seed: the input.
        output: end of what the child printed.
    """

    target: str
    what: str
    seed: Seed
    output: str

    @property
    def kind(self) -> str:
        """What equal findings have in common: numbers and addresses are left out."""
        return re.sub(r"0x[0-9a-f]+|\d+|'[^']*'", "#", f"{self.target}: {self.what}")

    @property
    def file_name(self) -> str:
        """Under which the input is kept."""
        return f"{hashlib.sha256(self.seed.data).hexdigest()[:8]}-{self.seed.name}"


class Lane:
    """Runs one trial after the other, in a folder and with a canary of its own."""

    def __init__(self, work: Path) -> None:
        self._work = work
        work.mkdir()
        canary = (files.MEDIA / "b.ts").read_bytes()
        self._canary = Canary(work, canary)
        self._trial: Trial | None = None
        self._seed: Seed | None = None

    def start(self, target: Target, seed: Seed) -> None:
        """Start a trial of ``seed``, whose placeholders are filled in."""
        folder = self._work / "trial"
        folder.mkdir()
        self._canary.arm()
        data = self._canary.fill_in(seed.data)
        self._seed = seed
        self._trial = Trial(target, Seed(seed.name, data), folder)
        self._trial.start()

    @property
    def is_free(self) -> bool:
        """Whether a trial can be started."""
        return self._trial is None

    def poll(self) -> Finding | None:
        """Return the finding of the trial that has just ended, if there is one."""
        if self._trial is None or self._seed is None:
            return None
        what = self._trial.poll()
        if what is None:
            return None
        trial, self._trial = self._trial, None
        output = trial.output()
        shutil.rmtree(trial.folder)
        touched = self._canary.touched()
        what = what or (f"makes {touched}" if touched else "")
        return Finding(trial.target.name, what, self._seed, output) if what else None

    def close(self) -> None:
        """End what is running."""
        if self._trial is not None:
            self._trial.kill()
        self._canary.close()


def mutated(targets: Sequence[Target], random: Random) -> Iterator[tuple[Target, Seed]]:
    """Yield mutated inputs of the targets, by their weights, without end."""
    seeds = {target.name: target.seeds() for target in targets}
    weights = [target.weight for target in targets]
    while True:
        target = random.choices(targets, weights)[0]
        seed = random.choice(seeds[target.name])
        others = [other.data for other in seeds[target.name]]
        yield target, Seed(seed.name, target.mutate(random, seed.data, others))


def fuzz(
    inputs: Iterable[tuple[Target, Seed]], seconds: float, lanes: int, out: Path | None = None
) -> tuple[Counter[str], list[Finding]]:
    """Try inputs until there are no more or the time is over.

    Args:
        inputs: what to try.
        seconds: time after which no trial is started.
        lanes: trials at a time.
        out: folder for findings; None keeps none.

    Returns:
        The number of trials of each target, and the first finding of each kind.
    """
    trials: Counter[str] = Counter()
    kinds: dict[str, Finding] = {}
    end = time.monotonic() + seconds
    waiting = iter(inputs)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        running = [Lane(Path(work) / str(number)) for number in range(lanes)]
        try:
            while True:
                for lane in running:
                    finding = lane.poll()
                    if finding is not None and finding.kind not in kinds:
                        kinds[finding.kind] = finding
                        report(finding, out)
                    if lane.is_free and time.monotonic() < end:
                        following = next(waiting, None)
                        if following is not None:
                            lane.start(*following)
                            trials[following[0].name] += 1
                if all(lane.is_free for lane in running):
                    break
                time.sleep(POLL_SECONDS)
        finally:
            for lane in running:
                lane.close()
    return trials, list(kinds.values())


def report(finding: Finding, out: Path | None) -> None:
    """Print a finding and keep its input."""
    print(f"{finding.target}: {finding.what}", flush=True)
    if out is not None:
        folder = out / finding.target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / finding.file_name).write_bytes(finding.seed.data)
        (folder / f"{finding.file_name}.log").write_text(f"{finding.what}\n\n{finding.output}")
        print(f"  kept as {folder / finding.file_name}", flush=True)


def kept(path: Path) -> tuple[Target, Seed]:
    """Return an input that ``report`` has kept, and its target, from ``TARGET/ID-NAME``."""
    target = next((t for t in TARGETS if t.name == path.parent.name), None)
    if target is None:
        raise SystemExit(f"{path}: the folder must have the name of a target")
    return target, Seed(path.name.partition("-")[2], path.read_bytes())


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long new trials start")
    parser.add_argument("--targets", default=",".join(t.name for t in TARGETS))
    parser.add_argument("--jobs", type=int, default=4, help="trials at a time")
    parser.add_argument("--seed", type=int, default=None, help="the same inputs again")
    parser.add_argument("--out", type=Path, default=None, help="folder for findings")
    parser.add_argument("--replay", type=Path, nargs="*", help="inputs that were kept")
    arguments = parser.parse_args()
    if arguments.replay:
        trials, findings = fuzz(map(kept, arguments.replay), 3600, arguments.jobs)
    else:
        names = arguments.targets.split(",")
        unknown = set(names) - {target.name for target in TARGETS}
        if unknown:
            parser.error(f"no such target: {', '.join(sorted(unknown))}")
        seed = time.time_ns() % 10**9 if arguments.seed is None else arguments.seed
        print(f"--seed {seed}", flush=True)
        targets = [target for target in TARGETS if target.name in names]
        inputs = mutated(targets, Random(seed))  # noqa: S311 - reproducible, not secret
        trials, findings = fuzz(inputs, arguments.seconds, arguments.jobs, arguments.out)
    counts = ", ".join(f"{name} {count}" for name, count in trials.items())
    print(f"{trials.total()} trials ({counts}), {len(findings)} kinds of findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
