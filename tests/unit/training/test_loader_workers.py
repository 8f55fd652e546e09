"""Data loading processes: order of the batches, errors and crashes."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from streamseg.errors import DataError, TrainingError
from streamseg.training import loader_workers
from streamseg.training.loader_workers import load_ahead


@pytest.fixture(autouse=True)
def assert_no_child_processes():
    yield
    assert multiprocessing.active_children() == []


def square(key: int) -> tuple[int, torch.Tensor]:
    return os.getpid(), torch.full((300, 300), key * key)


@pytest.mark.parametrize(("count", "keys"), [(0, 5), (1, 0), (1, 5), (3, 20), (4, 3)])
def test_batches_are_in_order_for_any_number_of_workers(count: int, keys: int):
    loaded = list(load_ahead(square, range(keys), count))
    assert [int(tensor[0, 0]) for _, tensor in loaded] == [key * key for key in range(keys)]
    processes = {process for process, _ in loaded}
    assert len(processes) == min(max(count, 1), keys)
    assert (os.getpid() in processes) == (count == 0 and keys > 0)


def test_error_of_a_worker_is_raised_in_the_training():
    def load(key: int) -> int:
        if key == 3:
            raise DataError("a.png: can't be read: No such file or directory")
        return key

    loaded = []
    with pytest.raises(DataError, match=r"^a\.png: can't be read: No such file or directory$"):
        loaded.extend(load_ahead(load, range(9), 2))
    assert loaded == [0, 1, 2]
    with closing(load_ahead(load, range(9), 2)) as loaded:
        assert [next(loaded) for _ in range(3)] == [0, 1, 2]


def test_bug_in_a_worker_is_raised_with_its_traceback():
    def load(_: int) -> None:
        raise KeyError("key")

    with pytest.raises(RuntimeError, match=r"(?s)in a worker: Traceback.*in load\n.*KeyError"):
        list(load_ahead(load, [1], 1))


def kill_self(number: int) -> int:
    faulthandler.disable()  # pytest enables it, and it would print a traceback
    os.kill(os.getpid(), number)
    time.sleep(60)
    return 0


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "was killed, probably out of memory: set workers lower or to 0"),
        (signal.SIGBUS, "was ended by SIGBUS: set workers lower or to 0"),
        (signal.SIGUSR1, "was ended by SIGUSR1: set workers lower or to 0"),
    ],
)
def test_worker_that_dies_is_a_training_error(number: int, message: str):
    with pytest.raises(TrainingError, match=message):
        list(load_ahead(kill_self, [number] * 8, 2))


def test_worker_killed_while_idle_is_a_training_error(tmp_path: Path):
    with closing(load_ahead(square, range(100), 2)) as loaded:
        process, _ = next(loaded)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(TrainingError, match="was killed"):
            list(loaded)


def test_memory_error_of_a_worker_is_a_training_error():
    def load(_: int) -> bytes:
        raise MemoryError

    with pytest.raises(TrainingError, match="out of memory: set workers lower or to 0"):
        list(load_ahead(load, [1], 1))


def test_too_few_file_descriptors_are_a_training_error():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 8, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"can't start .* open files: set workers"):
            list(load_ahead(square, range(40), 40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_process_that_cannot_start_is_a_training_error(monkeypatch: pytest.MonkeyPatch):
    started = []
    start = loader_workers._context.Process.start

    def fail_second_start(process) -> None:
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(process)
        start(process)

    monkeypatch.setattr(loader_workers._context.Process, "start", fail_second_start)
    with pytest.raises(
        TrainingError, match="Resource temporarily unavailable: set workers lower or to 0"
    ):
        list(load_ahead(square, range(4), 2))
    assert not started[0].is_alive()


def test_hanging_worker_is_killed_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(loader_workers, "EXIT_SECONDS", 0.1)

    def load(key: int) -> int:
        time.sleep(60 * key)
        return key

    with closing(load_ahead(load, range(9), 2)) as loaded:
        assert next(loaded) == 0


ORPHANS = """
import os, sys, time
from streamseg.training.loader_workers import load_ahead
def load(key):
    return os.getpid()
loaded = load_ahead(load, range(100), 3)
print(next(loaded), next(loaded), next(loaded), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_workers_exit_after_the_training_is_killed():
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        children = [int(number) for number in run.stdout.readline().split()]
        assert len(set(children)) == 3
        run.kill()
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
