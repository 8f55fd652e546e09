"""Trial: one input in a child process of its own, with limits on memory and time.

The child is forked from a process that has imported everything already, so that a trial takes
milliseconds. It ends with code 0 if the input was read or was refused by one of the project's
errors; everything else is a finding.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType

from streamseg.errors import StreamsegError

MAX_REPORTED = 4000
"""Characters of a child's output that a finding keeps."""
_ADDRESS_SPACE = 6 << 30
"""Bytes a child may map beyond what its parent has: protects the machine, not a judgement."""
_UNHANDLED, _RAGGED, _TOO_LARGE = 70, 71, 72


@dataclass(frozen=True, slots=True)
class Seed:
    """An input to begin with.

    Attributes:
        name: file name; its suffix is that of the mutated file.
        data: content.
    """

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """A part of the program that is fuzzed.

    Attributes:
        name: as in ``--targets``.
        seeds: inputs to begin with.
        mutate: changes one input; gets the generator, the input and all inputs.
        run: reads an input; gets a folder of its own, the file name and the content.
        memory_mib: largest growth of resident memory, in MiB.
        seconds: longest time of the processor; the wall clock may show four times that.
        weight: share of the trials; quick targets get more.
    """

    name: str
    seeds: Callable[[], Sequence[Seed]]
    mutate: Callable[[Random, bytes, Sequence[bytes]], bytes]
    run: Callable[[Path, str, bytes], None]
    memory_mib: int = 512
    seconds: float = 15
    weight: int = 10


@dataclass(slots=True)
class Trial:
    """A child process that is running, or has ended.

    Attributes:
        target: what it runs.
        seed: the input, after mutation.
        folder: of this trial alone; holds ``output``.
    """

    target: Target
    seed: Seed
    folder: Path
    _pid: int = 0
    _deadline: float = 0

    def start(self) -> None:
        """Fork the child."""
        self._deadline = time.monotonic() + 4 * self.target.seconds
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if not self._pid:
            _run_child(self.target, self.seed, self.folder)

    def poll(self) -> str | None:
        """Return the finding in one line, empty if there is none, or None while it runs."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid:
            if time.monotonic() < self._deadline:
                return None
            self.kill()
            return f"hangs: no end after {4 * self.target.seconds:g} s"
        return self._judge(status)

    def kill(self) -> None:
        """End the child and its children at once."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def output(self) -> str:
        """Return the end of what the child printed."""
        text = (self.folder / "output").read_bytes()[-MAX_REPORTED:]
        return text.decode(errors="replace")

    def _judge(self, status: int) -> str:
        output = self.output()
        last = (output.strip().splitlines() or [""])[-1][:160]
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            if name == "SIGXCPU":
                return f"hangs: {self.target.seconds:g} s of the processor"
            return f"dies by {name}: {_where_it_died(output)}"
        if os.WEXITSTATUS(status):
            return last
        if "Traceback (most recent call last)" in output:
            return f"prints a traceback: {last}"
        return ""


def _where_it_died(output: str) -> str:
    """Return the failed assertion if there is one, else the innermost Python frame."""
    lines = [line.strip() for line in output.splitlines()]
    told = [line for line in lines if "Assertion" in line or line.startswith("File ")]
    return (told or lines or [""])[0][:160]


def _run_child(target: Target, seed: Seed, folder: Path) -> None:
    code = _UNHANDLED
    try:
        os.setpgid(0, 0)
        _limit(target)
        with (folder / "output").open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        faulthandler.enable(2)
        threading.excepthook = _print_thread_error
        sys.unraisablehook = _print_unraisable
        before = _memory_mib("VmRSS")
        code = _attempt(target, seed, folder)
        growth = _memory_mib("VmHWM") - before
        if growth > target.memory_mib and not code:
            _print(f"grew by {growth} MiB\ntakes over {target.memory_mib} MiB")
            code = _TOO_LARGE
    finally:
        os._exit(code)


def _attempt(target: Target, seed: Seed, folder: Path) -> int:
    try:
        target.run(folder, seed.name, seed.data)
    except StreamsegError as error:
        if not str(error).isprintable() or not str(error).strip():
            _print(f"{error!r}\nan error that is not one printable line")
            return _RAGGED
    except BaseException as error:  # noqa: BLE001 - any that comes out is a finding
        _print(traceback.format_exc())
        where = traceback.extract_tb(error.__traceback__)[-1]
        _print(f"{type(error).__name__} in {Path(where.filename).name}, {where.name}")
        return _UNHANDLED
    return 0


def _limit(target: Target) -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _ADDRESS_SPACE,) * 2)
    seconds = int(target.seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _print_thread_error(details: threading.ExceptHookArgs) -> None:
    _print_error(details.exc_type, details.exc_value, details.exc_traceback)


def _print_unraisable(details: sys.UnraisableHookArgs) -> None:
    _print_error(details.exc_type, details.exc_value, details.exc_traceback)


def _print_error(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    _print("".join(traceback.format_exception(kind, error, trace)))


def _print(text: str) -> None:
    os.write(2, text.encode(errors="replace") + b"\n")


def _memory_mib(line: str) -> int:
    """Return a line of this process's status: ``VmRSS``, or its peak, ``VmHWM``."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{line}:")[2].split()[0]) // 1024
