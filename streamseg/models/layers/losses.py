"""What a network is trained to do: the interface between a family's losses and the training loop.

An :class:`Criterion` is a module that holds the network, so that wrapping it in
``DistributedDataParallel`` sees every parameter. Its losses are normalised over all processes:
what one of several processes returns, averaged over them, is what one process would have returned
for the whole batch.
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
        network: what is trained.
        weights: of single losses, by name, instead of the family's own.

    Raises:
        ConfigError: there is no loss of that name.
    """

    own_weights: ClassVar[Mapping[str, float]]
    """Every loss of the family by its name, with its usual weight."""
    takes_partial_annotation: ClassVar[bool] = True
    """Whether a picture may have objects of classes that aren't annotated in it."""

    def __init__(self, network: nn.Module, weights: Mapping[str, float]) -> None:
        super().__init__()
        for name in weights:
            if name not in self.own_weights:
                known = ", ".join(self.own_weights)
                raise ConfigError(f"losses.{name}: there is no such loss; known are {known}")
        self.network = network
        self.weights = {**self.own_weights, **weights}

    def forward(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The weighted losses of a batch, by name; their sum is what is minimised.

        Args:
            images: float32 (B, 3, H, W), prepared as for prediction: padded to the right and
                below.
            targets: what is annotated in each image, in pixels of ``images``.
        """
        losses = self.losses(images, targets)
        return {name: loss * self.weights[name] for name, loss in losses.items()}

    @abstractmethod
    def losses(self, images: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The losses before they are weighted; those of weight 0 may be left out."""


def mean_over_processes(count: Tensor) -> Tensor:
    """A normaliser: the mean of ``count`` over all processes, at least 1 over their number."""
    count = count.detach().float()
    processes = process_count()
    if processes > 1:
        count = count.clone()
        distributed.all_reduce(count)
    return count.clamp(min=1) / processes


def process_count() -> int:
    """How many processes train together."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def generator_of(targets: Targets) -> torch.Generator:
    """The random draws that losses make for one picture."""
    return torch.Generator().manual_seed(targets.seed)
