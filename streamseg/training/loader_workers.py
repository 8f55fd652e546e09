"""Worker processes that load training batches.

Each worker has its own pipe. There is no shared memory, no semaphore and no thread: a container
may limit these to a few megabytes, and a killed process leaves them locked. When a worker dies,
its pipe closes and the training notices at once; when the training dies, all pipes close and the
workers exit.
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

LoadFunction: TypeAlias = Callable[[Any], Any]

REQUESTS_PER_WORKER = 2
"""Batches requested from a worker at once, so that it never waits for the next request."""
EXIT_SECONDS = 2.0
"""Grace period of a worker after its pipe is closed, in seconds; then it is killed."""
REMEDY = "set workers lower or to 0 (--set workers=0) and continue with --resume"

_context = multiprocessing.get_context("fork")


def load_ahead(load: LoadFunction, keys: Sequence[Any], workers: int) -> Generator[Any, None, None]:
    """Yield ``load(key)`` for each key, in order, computed ahead in worker processes.

    Args:
        load: loads one batch; its errors are raised here.
        keys: arguments of ``load``, one per batch.
        workers: number of worker processes; 0 loads in this process.

    Raises:
        TrainingError: a worker can't be started, or died.
    """
    if workers == 0 or not keys:
        yield from map(load, keys)
        return
    pool = _WorkerPool(load, min(workers, len(keys)))
    try:
        yield from pool.load_all(keys)
    finally:
        pool.close()


class _WorkerPool:
    """Worker processes, each with its own pipe."""

    def __init__(self, load: LoadFunction, count: int) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        try:
            for _ in range(count):
                self._start_worker(load)
        except (OSError, RuntimeError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise TrainingError(f"can't start a data loading process: {reason}: {REMEDY}") from None

    def load_all(self, keys: Sequence[Any]) -> Iterator[Any]:
        """Yield the batch of each key; key n is loaded by worker n modulo the number of workers."""
        count = len(self._pipes)
        ahead = min(REQUESTS_PER_WORKER * count, len(keys))
        try:
            for number in range(ahead):
                self._pipes[number % count].send(keys[number])
            for number in range(len(keys)):
                pipe = self._pipes[number % count]
                reply = pipe.recv_bytes()
                if number + ahead < len(keys):
                    pipe.send(keys[number + ahead])
                batch, error = pickle.loads(reply)  # noqa: S301 - written by our own process
                if error is not None:
                    raise error
                yield batch
        except (EOFError, OSError):
            process = self._processes[number % count]
            process.join(EXIT_SECONDS)
            raise TrainingError(f"{_describe_exit(process.exitcode)}: {REMEDY}") from None

    def close(self) -> None:
        """Close the pipes, which ends the workers; kill workers that don't exit in time."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(EXIT_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()

    def _start_worker(self, load: LoadFunction) -> None:
        parent_end, worker_end = _context.Pipe()
        self._pipes.append(parent_end)
        with worker_end:
            process = _context.Process(
                target=_run_worker, args=(load, worker_end, tuple(self._pipes)), daemon=True
            )
            process.start()
        self._processes.append(process)


def _run_worker(load: LoadFunction, pipe: Connection, inherited: Sequence[Connection]) -> None:
    """Serve requests in a worker process until the training closes the pipe.

    Args:
        load: loads one batch.
        pipe: the worker's end of its pipe.
        inherited: the training's ends of all pipes, which the fork copied.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the training handles these and ends workers
        signal.signal(number, signal.SIG_IGN)
    for connection in inherited:  # a pipe closes only when no process holds its other end
        connection.close()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_encode_reply(load, pipe.recv()))


def _encode_reply(load: LoadFunction, key: Any) -> bytes:
    """Return (batch, error) as bytes: multiprocessing would put tensors in shared memory."""
    try:
        return pickle.dumps((load(key), None), protocol=pickle.HIGHEST_PROTOCOL)
    except StreamsegError as error:
        return pickle.dumps((None, error))
    except MemoryError:
        return pickle.dumps((None, TrainingError(f"{_describe_exit(-signal.SIGKILL)}: {REMEDY}")))
    except Exception:  # noqa: BLE001 - a bug, raised again in the training with its traceback
        return pickle.dumps((None, RuntimeError(f"in a worker: {traceback.format_exc()}")))


def _describe_exit(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "a data loading process was killed, probably out of memory"
    if code is not None and code < 0:
        return f"a data loading process was ended by {signal.Signals(-code).name}"
    return "a data loading process exited unexpectedly"
