"""Optimizer, learning rate schedule, frozen parameters and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer

from streamseg.config.training import OptimizerConfig, ScheduleConfig
from streamseg.errors import ConfigError


def freeze_parameters(network: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Exclude parameters from training, by prefixes of their names.

    Raises:
        ConfigError: no parameter has one of the prefixes, or no trainable parameter is left.
    """
    for prefix in prefixes:
        parameters = [p for name, p in network.named_parameters() if name.startswith(prefix)]
        if not parameters:
            raise ConfigError(f"optimiser.frozen: no parameter begins with {prefix!r}")
        for parameter in parameters:
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("optimiser.frozen: nothing is left to be trained")


def set_train_mode(network: nn.Module) -> None:
    """Put the network in training mode, except frozen batch norms: they keep their statistics."""
    network.train()
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Return an optimizer with one parameter group per learning rate and weight decay.

    Raises:
        ConfigError: no trained parameter has a prefix that ``rates`` names.
    """
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    for prefix in config.rates:
        if not any(name.startswith(prefix) for name in names):
            raise ConfigError(f"optimiser.rates: no trained parameter begins with {prefix!r}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            matching = [prefix for prefix in config.rates if name.startswith(prefix)]
            factor = config.rates[max(matching, key=len)] if matching else 1.0
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    options = [
        {"params": group, "lr": config.rate * factor, "weight_decay": decay, "factor": factor}
        for (factor, decay), group in groups.items()
    ]
    if config.name == "sgd":
        return SGD(options, momentum=config.momentum)
    return AdamW(options, betas=(config.momentum, 0.999))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of each parameter group to ``rate`` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def make_schedule(config: ScheduleConfig, rate: float, steps: int) -> Callable[[int], float]:
    """Return a function that maps an optimizer step, from 0, to its learning rate.

    Args:
        config: the schedule.
        rate: the base learning rate.
        steps: optimizer steps of the whole training.
    """

    def learning_rate(step: int) -> float:
        warmup = min((step + 1) / config.warmup, 1.0) if config.warmup else 1.0
        progress = step / max(steps, 1)
        if config.name == "steps":
            return rate * warmup * config.gamma ** sum(progress >= m for m in config.milestones)
        cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return rate * warmup * (config.last + (1 - config.last) * cosine)

    return learning_rate


class AveragedWeights:
    """Exponential moving average of a network's weights (Polyak averaging).

    Args:
        network: the network that is trained.
        averaged: a copy of it that receives the averages.
        decay: weight of the previous average in each update.
    """

    def __init__(self, network: nn.Module, averaged: nn.Module, decay: float) -> None:
        self._network = network
        self._averaged = averaged.requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step ``step``, from 1; early steps decay faster."""
        decay = min(self._decay, step / (step + 10))
        averages = self._averaged.state_dict()
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                averages[name].lerp_(value, 1 - decay)
            else:
                averages[name].copy_(value)
