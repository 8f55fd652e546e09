"""Interface between the losses of a model family and the training loop.

A :class:`Criterion` is a module that contains the network, so that ``DistributedDataParallel``
finds all parameters. Losses are normalized over all processes: their mean over the processes
equals the loss of one process with the whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, distributed, nn

from streamseg.errors import ConfigError
from streamseg.structures.targets import Targets


class Criterion(nn.Module, ABC):
    """A network and its losses.

    Args:
        network: network to train.
        weights: weights of losses by name; others keep the default of the family.

    Raises:
        ConfigError: the family has no loss of that name.
    """

    own_weights: ClassVar[Mapping[str, float]]
    """Default weights of all losses of the family, by name."""
    takes_partial_annotation: ClassVar[bool] = True
    """Whether an image may contain objects of classes that are not annotated in it."""

    def __init__(self, network: nn.Module, weights: Mapping[str, float]) -> None:
        super().__init__()
        for name in weights:
            if name not in self.own_weights:
                known = ", ".join(self.own_weights)
                raise ConfigError(f"losses.{name}: no such loss; known are {known}")
        self.network = network
        self.weights = {**self.own_weights, **weights}

    def forward(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return the weighted losses of a batch by name; training minimizes their sum.

        Args:
            images: float32 (B, 3, H, W), prepared as for prediction: padded on the right and at
                the bottom.
            targets: annotations of each image, in pixels of ``images``.
        """
        losses = self.losses(images, targets)
        return {name: loss * self.weights[name] for name, loss in losses.items()}

    @abstractmethod
    def losses(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return the unweighted losses; those with weight 0 may be omitted."""


def mean_over_processes(count: Tensor) -> Tensor:
    """Return the mean of ``count`` over all processes, at least 1 / processes, as a divisor."""
    count = count.detach().float()
    processes = process_count()
    if processes > 1:
        count = count.clone()
        distributed.all_reduce(count)
    return count.clamp(min=1) / processes


def process_count() -> int:
    """Return the number of processes of this training."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def generator_of(targets: Targets) -> torch.Generator:
    """Return the random generator of the losses for one image."""
    return torch.Generator().manual_seed(targets.seed)
