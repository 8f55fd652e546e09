"""Fault injection: the effect of a failing camera on a service and on its other cameras.

    python tools/faults.py [FAULT…] [--seconds 20]

Starts a service (``streamseg serve``) with three healthy cameras (RTSP servers at 10 fps) and one
with a fault, which is healthy, faulty and healthy again for some seconds each. Runs the named
faults, or all, one after the other. Firewall faults need root, nft and ip, and run in a separate
network namespace.

Prints a row for each fault. Exits 1 if the mean rate of the other cameras fell by more than the
tolerance, if the fault was reported too late or not at all, if the camera reconnected too late, or
if the frame counts of a camera do not balance.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.camera_faults import DEFAULT_OPTIONS, FAULTS, FPS, STALL_AFTER, Fault
from support.cameras import rtsp_camera
from support.ports import free_port
from support.recording_subscriber import RecordingSubscriber, is_balanced

from streamseg.service.http_client import HttpApiClient

OTHERS = 3
NOTICED_WITHIN = STALL_AFTER + 1.0
BACK_WITHIN = 5.0
PATIENCE = 20.0
"""Timeout for the connection of a camera, in seconds."""
READY_WITHIN = 90.0
"""Timeout for loading the model, in seconds."""
LIVE_WITHIN = 60.0
"""Timeout until all healthy cameras are live, in seconds."""
HEADS = (
    *("fault", "before", "during", "ratio", "mean", "own", "noticed", "back", "CPU", "service"),
    "what was said",
)
COLUMNS = "{:20} {:>6} {:>6} {:>6} {:>6} {:>5} {:>7} {:>7} {:>4} {:>7}  {}"


@dataclass(frozen=True)
class Cpu:
    """CPU time used until a point in time, in clock ticks.

    Attributes:
        busy: busy time of the machine.
        total: total time of the machine.
        service: CPU time of the service.
    """

    busy: int
    total: int
    service: int


@dataclass(frozen=True)
class Running:
    """Running service with the healthy cameras.

    Attributes:
        pid: process id.
        control: client of its HTTP API.
        observer: subscriber that records its results and status messages.
        others: names of the healthy cameras.
    """

    pid: int
    control: HttpApiClient
    observer: RecordingSubscriber
    others: tuple[str, ...]


@dataclass
class Outcome:
    """Outcome of one fault.

    Attributes:
        name: name of the fault.
        before: median results per second before the fault, of the most affected other camera.
        during: median results per second of that camera during the fault.
        ratio: ``during`` divided by ``before``.
        mean_ratio: minimum ratio of the result counts of the other cameras.
        own: results per second of the faulty camera during the fault.
        noticed: seconds from the last result to the state that reports the fault, or None.
        back: seconds from the end of the fault to the first result, or None if not expected.
        cpu: CPU share of the whole machine and of the service.
        reasons: reported states and reasons.
        problems: deviations from the expected behavior.
    """

    name: str
    before: float = 0.0
    during: float = 0.0
    ratio: float = 0.0
    mean_ratio: float = 0.0
    own: float = 0.0
    noticed: float | None = None
    back: float | None = None
    cpu: tuple[float, float] = (0.0, 0.0)
    reasons: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def row(self) -> str:
        """Return the row of the table."""
        return COLUMNS.format(
            self.name,
            f"{self.before:.1f}",
            f"{self.during:.1f}",
            f"{self.ratio:.3f}",
            f"{self.mean_ratio:.3f}",
            f"{self.own:.1f}",
            "-" if self.noticed is None else f"{self.noticed:.2f} s",
            "-" if self.back is None else f"{self.back:.2f} s",
            f"{self.cpu[0]:.0%}",
            f"{self.cpu[1]:.0%}",
            "; ".join(self.reasons) or "-",
        )


@contextlib.contextmanager
def service() -> Iterator[Running]:
    """Run a service with the healthy cameras, and wait until all are live."""
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        cameras = [held.enter_context(rtsp_camera(*DEFAULT_OPTIONS)) for _ in range(OTHERS)]
        names = tuple(f"other-{number}" for number in range(OTHERS))
        port = free_port()
        config = {
            "sources": [{"url": c.url, "name": n} for c, n in zip(cameras, names, strict=True)],
            "model": {"input_size": 96},
            "worker": {"max_batch": 4, "threads": 1},
            "publish": {"bind": f"tcp://127.0.0.1:{port}"},
        }
        file = folder / "faults.yaml"
        file.write_text(yaml.safe_dump(config))
        process = held.enter_context(_process(file, folder / "service.log"))
        address = f"http://127.0.0.1:{port + 3}"
        _wait_ready(address, process, folder / "service.log")
        observer = RecordingSubscriber(f"tcp://127.0.0.1:{port}")
        held.callback(observer.close)
        observer.wait_until(
            lambda: all(observer.is_live(n) for n in names), LIVE_WITHIN, "all are live"
        )
        yield Running(process.pid, HttpApiClient(address), observer, names)


@contextlib.contextmanager
def _process(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "streamseg", "serve", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("wb") as into:
        process = subprocess.Popen(command, stdout=into, stderr=into, env=environment)  # noqa: S603 - ourselves
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{address}/readyz", timeout=5),  # noqa: S310 - ours
        ):
            return
        time.sleep(0.2)
    sys.exit(f"the service isn't ready: {log.read_text().strip()}")


def measure(fault: Fault, running: Running, seconds: int, tolerance: float) -> Outcome:
    """Measure the time before, during and after a fault, each of ``seconds`` seconds."""
    observer, name = running.observer, fault.name
    running.control.add({"url": fault.url, "name": name, **fault.options})
    observer.wait_until(lambda: observer.is_live(name), PATIENCE, f"{name} is live")
    time.sleep(1.0)
    outcome = Outcome(name)
    cpu, well = read_cpu(running.pid), time.monotonic()
    time.sleep(seconds)
    wrong = time.monotonic()
    fault.begin()
    time.sleep(max(0.0, wrong + seconds - time.monotonic()))
    epoch = observer.latest[name].epoch
    outcome.cpu = cpu_shares(cpu, read_cpu(running.pid))
    fault.end()
    right = time.monotonic()
    if fault.reconnects:
        outcome.back = _back(observer, name, epoch, right)
    time.sleep(max(0.0, right + seconds - time.monotonic()))
    _compare(outcome, running, well, wrong, seconds)
    outcome.own = sum(observer.results_per_second(name, wrong, seconds)) / seconds
    _collect_states(outcome, observer, wrong, right)
    _find_problems(outcome, fault, observer, tolerance)
    running.control.remove(name)
    return outcome


def _back(observer: RecordingSubscriber, name: str, epoch: int, right: float) -> float | None:
    """Return the seconds from the end of the fault to the first result in a new epoch."""
    with contextlib.suppress(TimeoutError):
        observer.wait_until(lambda: observer.first_result(name, epoch + 1), PATIENCE, "it is back")
    first = observer.first_result(name, epoch + 1)
    return None if first is None else first.at - right


def _compare(outcome: Outcome, running: Running, well: float, wrong: float, seconds: int) -> None:
    """Compare the rates of the other cameras; the most affected one counts."""
    rows = []
    for name in running.others:
        before = running.observer.results_per_second(name, well, seconds)
        during = running.observer.results_per_second(name, wrong, seconds)
        rows.append((median(before), median(during), sum(during) / max(1, sum(before))))
    outcome.before, outcome.during, _ = min(rows, key=lambda row: row[1] / max(1.0, row[0]))
    outcome.ratio = outcome.during / max(1.0, outcome.before)
    outcome.mean_ratio = min(row[2] for row in rows)


def _collect_states(
    outcome: Outcome, observer: RecordingSubscriber, wrong: float, right: float
) -> None:
    """Collect the reported states, and the delay of the first one that reports the fault."""
    said = observer.states_between(outcome.name, wrong, right)
    for state in said:
        reason = f"{state.state}: {state.reason.partition(';')[0]}" if state.reason else ""
        if reason and reason not in outcome.reasons:
            outcome.reasons.append(reason)
    first = next((s for s in said if s.state in ("stalled", "waiting")), None)
    if first is not None:
        last = max(came.at for came in observer.results[outcome.name] if came.at <= first.at)
        outcome.noticed = first.at - last


def _find_problems(
    outcome: Outcome, fault: Fault, observer: RecordingSubscriber, tolerance: float
) -> None:
    problems = outcome.problems
    if outcome.mean_ratio < 1 - tolerance:
        problems.append(f"the others' rate became {outcome.mean_ratio:.3f} of what it was")
    if fault.reason and not re.search(fault.reason, "\n".join(outcome.reasons)):
        problems.append(f"nothing was said that matches {fault.reason!r}")
    if outcome.noticed is not None and outcome.noticed > NOTICED_WITHIN:
        problems.append(f"noticed after {outcome.noticed:.2f} s")
    if fault.reconnects and (outcome.back is None or outcome.back > BACK_WITHIN):
        problems.append("it came back too late" if outcome.back else "it didn't come back")
    for name in (*FAULTS.keys() & observer.latest.keys(), outcome.name):
        if not is_balanced(observer.latest[name]):
            problems.append(f"the account of {name} doesn't balance")


def read_cpu(pid: int) -> Cpu:
    """Read the CPU time used so far."""
    machine = [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    process = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    idle = machine[3] + machine[4]
    return Cpu(sum(machine) - idle, sum(machine), int(process[11]) + int(process[12]))


def cpu_shares(before: Cpu, after: Cpu) -> tuple[float, float]:
    """Return the CPU shares of the whole machine and of the service."""
    total = max(1, after.total - before.total)
    return (after.busy - before.busy) / total, (after.service - before.service) / total


def run(names: list[str], seconds: int, tolerance: float) -> bool:
    """Measure the faults, print a row for each, and return whether there are no problems."""
    well = True
    with service() as running:
        for name in names:
            fault = FAULTS[name]()
            try:
                outcome = measure(fault, running, seconds, tolerance)
            finally:
                fault.close()
            print(outcome.row(), flush=True)
            for problem in outcome.problems:
                print(f"  {name}: {problem}", flush=True)
            well = well and not outcome.problems
    return well


def run_in_namespace(names: list[str], seconds: int, tolerance: float) -> bool:
    """Do the same as ``run`` in a new network namespace."""
    programs = [shutil.which(program) for program in ("unshare", "nft", "ip")]
    unshare, nft, _ = programs
    if unshare is None or nft is None or None in programs:
        print(f"{', '.join(names)}: can't be measured: unshare, nft and ip aren't all installed")
        return False
    tried = [unshare, "--net", nft, "list", "ruleset"]
    if subprocess.run(tried, check=False, capture_output=True).returncode:  # noqa: S603 - ours
        print(f"{', '.join(names)}: can't be measured: this user may make no network namespace")
        return False
    command = [unshare, "--net", sys.executable, __file__, "--inside", *names]
    command += ["--seconds", str(seconds), "--tolerance", str(tolerance)]
    return not subprocess.run(command, check=False).returncode  # noqa: S603 - ourselves


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--seconds", type=int, default=20, help="duration of each phase")
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="relative decrease of the other rates"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.faults if name not in FAULTS]
    if unknown:
        parser.error(f"{unknown[0]}: there is no such fault: {', '.join(FAULTS)}")
    names = options.faults or list(FAULTS)
    if options.inside:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607 - in the PATH
        sys.exit(not run(names, options.seconds, options.tolerance))
    print(f"{OTHERS} cameras that are well, {FPS} fps each; {options.seconds} s each part")
    print(COLUMNS.format(*HEADS), flush=True)
    plain = [name for name in names if not FAULTS[name].privileged]
    apart = [name for name in names if FAULTS[name].privileged]
    well = run(plain, options.seconds, options.tolerance) if plain else True
    if apart:
        well = run_in_namespace(apart, options.seconds, options.tolerance) and well
    sys.exit(not well)


if __name__ == "__main__":
    main()
