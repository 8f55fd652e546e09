"""A training's state in a file: whole or not at all, and enough to go on as if never stopped."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch

from streamseg.config.training import TrainingConfig
from streamseg.errors import ConfigError, WeightsError
from streamseg.models.categories import Categories
from streamseg.models.weights import files
from streamseg.sinks.files.results import write_bytes_atomically

MAY_DIFFER = ("workers", "evaluate_every", "save_every")
"""What a training that goes on may do otherwise: its result doesn't depend on it."""

STATES = ("network", "optimiser", "scaler", "losses", "lines")
"""What training needs besides the weights that are served and its position."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a training is.

    Attributes:
        epoch: the current one, from 0.
        batch: batches of it that are done.
        step: optimiser steps done.
        best: the best measure so far, None before the first.
        measures: of the latest measurement, by dataset and measure.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    measures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


def save(
    path: Path,
    recipe: TrainingConfig,
    served: files.Weights,
    position: Position,
    states: Mapping[str, Any],
) -> None:
    """Write a checkpoint; one that is there already stays whole until the new one is.

    Args:
        path: the file.
        recipe: of the training.
        served: the weights that are measured and served, with the model's name and categories.
        position: how far the training is.
        states: what training needs besides, ``STATES``: state dicts, the sums of the losses since
            the last line of the log, and how many lines the logs have.

    Raises:
        OutputError: it can't be written.
    """
    training = {
        "recipe": msgspec.json.encode(recipe).decode(),
        "position": json.dumps(asdict(position)),
        "versions": json.dumps({n: version(n) for n in ("streamseg", "torch", "torchvision")}),
        "states": dict(states),
    }
    buffer = io.BytesIO()
    torch.save(files.to_checkpoint(replace(served, training=training)), buffer)
    write_bytes_atomically(path, buffer.getbuffer())


def load(
    path: Path, recipe: TrainingConfig, model: str, categories: Categories
) -> tuple[Position, files.Weights, Mapping[str, Any]]:
    """A checkpoint to go on from.

    Returns:
        How far it was, the weights that are served, and ``STATES``.

    Raises:
        WeightsError: it can't be read, is no checkpoint, or is of another model or classes.
        ConfigError: its recipe differs where the result depends on it.
    """
    weights = _read(path)
    if weights.training is None or weights.categories is None:
        raise WeightsError(f"{path}: holds weights alone; training can't go on from it")
    if wrong := _unlike(weights, model, categories):
        raise WeightsError(f"{path}: is of another training: {wrong}")
    try:
        before = json.loads(weights.training["recipe"])
        position = Position(**json.loads(weights.training["position"]))
        states = {name: weights.training["states"][name] for name in STATES}
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"{path}: its description of the training is damaged") from None
    now = json.loads(msgspec.json.encode(recipe))
    changed = [
        f"{key} was {_short(old)} and is {_short(new)}" for key, old, new in _changes(before, now)
    ]
    if changed:
        raise ConfigError(
            f"{path}: can't go on with another recipe: {'; '.join(changed)}; set it back, or "
            "begin anew in another folder with this checkpoint as model.weights"
        )
    return position, weights, states


def _read(path: Path) -> files.Weights:
    """The file's content; where it is damaged, the message says what may be there instead."""
    try:
        return files.read(path)
    except WeightsError as error:
        best = path.with_name("best.pt")
        if not path.exists() or not best.exists():
            raise
        raise WeightsError(
            f"{error}; to go on from the best weights so far, copy {best} to {path}"
        ) from None


def _unlike(weights: files.Weights, model: str, categories: Categories) -> str:
    """What tells its model from the wanted one, in words; empty if nothing does."""
    parts = [] if weights.model == model else [f"the model is {weights.model}, not {model}"]
    held = weights.categories or Categories({})
    parts += _unlike_names("classes", held.things, categories.things)
    parts += _unlike_names("classes of stuff", held.stuff, categories.stuff)
    return "; ".join(parts)


def _unlike_names(what: str, known: Mapping[int, str], wanted: Mapping[int, str]) -> list[str]:
    """What tells some of its classes from the wanted ones; nothing if they are the same."""
    if list(known.items()) == list(wanted.items()):
        return []
    missing = [name for name in wanted.values() if name not in known.values()]
    extra = [name for name in known.values() if name not in wanted.values()]
    said = [f"it knows {len(known)} {what}, not {len(wanted)}"]
    said += [f"it lacks {', '.join(missing[:5])}"] if missing else []
    said += [f"it has {', '.join(extra[:5])} besides"] if extra else []
    return [", ".join(said)]


def _changes(before: Any, now: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs: path, old value, new value."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            if at or key not in MAY_DIFFER:
                path = f"{at}.{key}" if at else key
                yield from _changes(before.get(key), now.get(key), path)
    elif before != now:
        yield at, before, now


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
