"""Process group of distributed training, started by ``torchrun``, or a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from streamseg.errors import TrainingError

T = TypeVar("T")


class LostProcessError(TrainingError):
    """Another process of the training has exited."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """Rank of this process and the collective operations that training needs.

    Attributes:
        world_size: number of processes.
        rank: index of this process.
    """

    world_size: int = 1
    rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, rank 0: it alone evaluates, writes and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's share of ``items``."""
        return items[self.rank :: self.world_size]

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.world_size > 1:
            with self.lost_peer_raised():
                distributed.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.world_size == 1:
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.world_size

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is true in any process."""
        if self.world_size == 1:
            return flag
        total = torch.tensor(float(flag))
        if distributed.get_backend() == "nccl":
            total = total.cuda()
        with self.lost_peer_raised():
            distributed.all_reduce(total)
        return bool(total > 0)

    def broadcast(self, value: T) -> T:
        """Return the main process's ``value`` in every process."""
        if self.world_size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    @contextmanager
    def lost_peer_raised(self) -> Iterator[None]:
        """Translate the error of a lost connection to another process.

        Raises:
            LostProcessError: another process has exited.
        """
        try:
            yield
        except RuntimeError as error:
            is_lost = isinstance(error, distributed.DistBackendError) or "by peer" in str(error)
            if self.world_size == 1 or not is_lost:
                raise
            raise LostProcessError(
                "another process of this training exited; see its own error message, then "
                "continue with --resume"
            ) from error


@contextmanager
def join_process_group() -> Iterator[ProcessGroup]:
    """Join the process group that ``torchrun`` started, and leave it at the end."""
    if "RANK" not in os.environ:
        yield ProcessGroup()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield ProcessGroup(distributed.get_world_size(), distributed.get_rank())
    finally:
        distributed.destroy_process_group()
