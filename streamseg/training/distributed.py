"""The processes that train together, as ``torchrun`` starts them; one, if it didn't."""

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
    """Another process that trains too is gone."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together.

    Attributes:
        count: how many there are.
        rank: which one this is; 0 measures, writes and prints.
    """

    count: int = 1
    rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the one that measures, writes and prints."""
        return self.rank == 0

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """This process's part of ``things``."""
        return things[self.rank :: self.count]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            with self.losses_of_peers_reported():
                distributed.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.count == 1:
            return value
        shared = value.clone()
        distributed.all_reduce(shared)
        return shared / self.count

    def broadcast(self, value: T) -> T:
        """What the leading process has as ``value``."""
        if self.count == 1:
            return value
        shared = [value]
        distributed.broadcast_object_list(shared)
        return shared[0]

    @contextmanager
    def losses_of_peers_reported(self) -> Iterator[None]:
        """Turn a lost connection to another process into one line.

        Raises:
            LostProcessError: another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_lost_peer(error):
                raise
            raise LostProcessError(
                "another process of this training ended; its own message says why: go on with "
                "--resume"
            ) from error

    def any(self, flag: bool) -> bool:
        """Whether it is true of any process."""
        if self.count == 1:
            return flag
        shared = torch.tensor(float(flag))
        if distributed.get_backend() == "nccl":
            shared = shared.cuda()
        with self.losses_of_peers_reported():
            distributed.all_reduce(shared)
        return bool(shared > 0)


def _is_lost_peer(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistBackendError) or "by peer" in str(error)


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, and leave them at the end."""
    if "RANK" not in os.environ:
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(distributed.get_world_size(), distributed.get_rank())
    finally:
        distributed.destroy_process_group()
