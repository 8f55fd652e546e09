"""Processes that load batches while the network trains, and what happens when one of them dies.

Each worker has a pipe of its own and no shared memory, no semaphores and no threads: nothing that a
container limits to a few megabytes, and nothing that is left locked when a process is killed. A
worker that dies closes its pipe, which the training sees at once; a training that dies closes all
of them, which ends the workers.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

import torch

from streamseg.errors import StreamsegError, TrainingError

Load: TypeAlias = Callable[[Any], Any]

QUEUED = 2
"""Batches that a worker is asked for at once: it never waits for the next request."""
END_SECONDS = 2.0
"""Grace period of a worker whose pipe is closed, in seconds; then it is killed."""
REMEDY = "set workers to 0, or lower (--set workers=0), and go on with --resume"

_context = multiprocessing.get_context("fork")


def load_ahead(load: Load, keys: Sequence[Any], workers: int) -> Generator[Any, None, None]:
    """``load(key)`` of each key, in order, computed ahead in processes; without any, in this one.

    Args:
        load: computes one batch; its errors are raised here.
        keys: what it is called with.
        workers: how many processes compute.

    Raises:
        TrainingError: a worker can't be started, or died; the message says what to set.
    """
    if workers == 0 or not keys:
        yield from map(load, keys)
        return
    pool = _Pool(load, min(workers, len(keys)))
    try:
        yield from pool.run(keys)
    finally:
        pool.close()


class _Pool:
    """Worker processes, each with the pipe to it."""

    def __init__(self, load: Load, count: int) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        try:
            for _ in range(count):
                self._start(load)
        except (OSError, RuntimeError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise TrainingError(
                f"can't start a process that loads images: {reason}: {REMEDY}"
            ) from None

    def run(self, keys: Sequence[Any]) -> Iterator[Any]:
        """The batch of each key; key n is worker n's, modulo their number."""
        count = len(self._pipes)
        ahead = min(QUEUED * count, len(keys))
        try:
            for number in range(ahead):
                self._pipes[number % count].send(keys[number])
            for number in range(len(keys)):
                pipe = self._pipes[number % count]
                answer = pipe.recv_bytes()
                if number + ahead < len(keys):
                    pipe.send(keys[number + ahead])
                yield _opened(answer)
        except (EOFError, OSError):
            process = self._processes[number % count]
            process.join(END_SECONDS)
            raise TrainingError(f"{_death(process.exitcode)}: {REMEDY}") from None

    def close(self) -> None:
        """End the workers; those that don't end by themselves are killed."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(END_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()

    def _start(self, load: Load) -> None:
        ours, theirs = _context.Pipe()
        self._pipes.append(ours)
        with theirs:
            process = _context.Process(
                target=_work, args=(load, theirs, tuple(self._pipes)), daemon=True
            )
            process.start()
        self._processes.append(process)


def _work(load: Load, pipe: Connection, inherited: Sequence[Connection]) -> None:
    """What a worker does: answer requests until the training closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the training, which ends us
        signal.signal(number, signal.SIG_IGN)
    for each in inherited:  # the training's own ends: as long as we had them, none would close
        each.close()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_answer(load, pipe.recv()))


def _answer(load: Load, key: Any) -> bytes:
    """A batch, or the error instead, as bytes: tensors would go through shared memory otherwise."""
    try:
        return pickle.dumps((load(key), None), protocol=pickle.HIGHEST_PROTOCOL)
    except StreamsegError as error:
        return pickle.dumps((None, error))
    except MemoryError:
        return pickle.dumps((None, TrainingError(f"{_death(-signal.SIGKILL)}: {REMEDY}")))
    except Exception:  # noqa: BLE001 - a fault of ours, raised again with where it was
        return pickle.dumps((None, RuntimeError(f"in a worker: {traceback.format_exc()}")))


def _opened(answer: bytes) -> Any:
    batch, error = pickle.loads(answer)  # noqa: S301 - our own process wrote it
    if error is not None:
        raise error
    return batch


def _death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "a process that loads images was killed, probably for lack of memory"
    if code is not None and code < 0:
        return f"a process that loads images was ended by {signal.Signals(-code).name}"
    return "a process that loads images ended unexpectedly"
