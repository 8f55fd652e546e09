"""How gradients become steps: optimiser, learning rate, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer

from streamseg.config.training import OptimiserConfig, ScheduleConfig
from streamseg.errors import ConfigError

_NONE = ""


def freeze(network: nn.Module, parts: tuple[str, ...]) -> None:
    """Keep the parts whose parameters' names begin so as they are.

    Raises:
        ConfigError: no parameter's name begins so, or none is left to be trained.
    """
    for part in parts:
        chosen = [p for name, p in network.named_parameters() if name.startswith(part)]
        if not chosen:
            raise ConfigError(f"optimiser.frozen: no parameter begins with {part!r}")
        for parameter in chosen:
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("optimiser.frozen: nothing is left to be trained")


def train_mode(network: nn.Module) -> None:
    """Set the network to train; batch norms that are frozen keep their statistics, too."""
    network.train()
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def make_optimiser(network: nn.Module, config: OptimiserConfig) -> Optimizer:
    """An optimiser with a group of parameters for each rate and decay.

    Raises:
        ConfigError: a part in ``rates`` isn't there.
    """
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    for part in config.rates:
        if not any(name.startswith(part) for name in names):
            raise ConfigError(f"optimiser.rates: no trained parameter begins with {part!r}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((_factor(name, config.rates), decay), []).append(parameter)
    options = [
        {"params": group, "lr": config.rate * factor, "weight_decay": decay, "factor": factor}
        for (factor, decay), group in groups.items()
    ]
    if config.name == "sgd":
        return SGD(options, momentum=config.momentum)
    return AdamW(options, betas=(config.momentum, 0.999))


def set_rate(optimiser: Optimizer, rate: float) -> None:
    """Set the learning rate; parts of the network have theirs in proportion."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


def schedule(config: ScheduleConfig, rate: float, steps: int) -> Callable[[int], float]:
    """The learning rate of each of ``steps`` optimiser steps, counted from 0."""

    def at(step: int) -> float:
        warm = min((step + 1) / config.warmup, 1.0) if config.warmup else 1.0
        done = step / max(steps, 1)
        if config.name == "steps":
            return rate * warm * config.gamma ** sum(done >= m for m in config.milestones)
        falling = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return rate * warm * (config.last + (1 - config.last) * falling)

    return at


class AveragedWeights:
    """An exponential moving average of a network's weights (Polyak averaging).

    Attributes:
        network: has the averages.
    """

    def __init__(self, network: nn.Module, average: nn.Module, decay: float) -> None:
        self._source = network
        self._decay = decay
        self.network = average.requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number ``step``, counted from 1; the first ones count more."""
        decay = min(self._decay, step / (step + 10))
        averages = self.network.state_dict()
        for name, value in self._source.state_dict().items():
            if value.is_floating_point():
                averages[name].lerp_(value, 1 - decay)
            else:
                averages[name].copy_(value)


def _factor(name: str, rates: dict[str, float]) -> float:
    longest = max((part for part in rates if name.startswith(part)), key=len, default=_NONE)
    return rates.get(longest, 1.0)
