"""Training checkpoints: written atomically, with everything needed to resume bit for bit."""

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

CHANGEABLE_KEYS = ("workers", "evaluate_every", "save_every")
"""Config keys that may change when a training run resumes: the result doesn't depend on them."""

STATE_KEYS = ("network", "optimiser", "scaler", "losses", "lines")
"""Keys of the training state that is stored in addition to the served weights and the position."""


@dataclass(frozen=True, slots=True)
class Position:
    """Progress of a training run: position in the schedule, and scores so far.

    Attributes:
        epoch: current epoch, from 0.
        batch: finished batches of this epoch.
        step: finished optimizer steps.
        best: best score so far, None before the first evaluation.
        measures: metrics of the latest evaluation, by dataset and metric.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    measures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    config: TrainingConfig,
    served: files.Weights,
    position: Position,
    states: Mapping[str, Any],
) -> None:
    """Write a checkpoint; an existing file stays intact until the new one is complete.

    Args:
        path: the file.
        config: the training config.
        served: the weights that are evaluated and served, with model name and categories.
        position: progress of the training run.
        states: the training state, by ``STATE_KEYS``: state dicts, the sums of the losses since
            the last line of the log, and the number of lines of each log.

    Raises:
        OutputError: the file can't be written.
    """
    training = {
        "recipe": msgspec.json.encode(config).decode(),
        "position": json.dumps(asdict(position)),
        "versions": json.dumps({n: version(n) for n in ("streamseg", "torch", "torchvision")}),
        "states": dict(states),
    }
    buffer = io.BytesIO()
    torch.save(files.to_checkpoint(replace(served, training=training)), buffer)
    write_bytes_atomically(path, buffer.getbuffer())


def load_checkpoint(
    path: Path, config: TrainingConfig, model: str, categories: Categories
) -> tuple[Position, files.Weights, Mapping[str, Any]]:
    """Read a checkpoint to resume from.

    Args:
        path: the file.
        config: the config of the training that resumes.
        model: its model's name.
        categories: its model's categories.

    Returns:
        Position, served weights and training state (by ``STATE_KEYS``).

    Raises:
        WeightsError: the file can't be read, is no training checkpoint, or belongs to another
            model or other classes.
        ConfigError: its config differs in a key that the result depends on.
    """
    weights = _read_weights(path)
    if weights.training is None or weights.categories is None:
        raise WeightsError(f"{path}: holds only weights, training can't resume from it")
    if mismatch := _describe_mismatch(weights, model, categories):
        raise WeightsError(f"{path}: belongs to another training: {mismatch}")
    try:
        old_config = json.loads(weights.training["recipe"])
        position = Position(**json.loads(weights.training["position"]))
        states = {name: weights.training["states"][name] for name in STATE_KEYS}
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"{path}: the training state in it is damaged") from None
    new_config = json.loads(msgspec.json.encode(config))
    changed = [
        f"{key} was {_shorten(old)} and is {_shorten(new)}"
        for key, old, new in _find_changes(old_config, new_config)
    ]
    if changed:
        raise ConfigError(
            f"{path}: can't resume with another config: {'; '.join(changed)}; set it back, or "
            "start a new training in another folder with this checkpoint as model.weights"
        )
    return position, weights, states


def _read_weights(path: Path) -> files.Weights:
    """Read a checkpoint; if it is damaged and ``best.pt`` exists, the error names that file."""
    try:
        return files.read(path)
    except WeightsError as error:
        best = path.with_name("best.pt")
        if not path.exists() or not best.exists():
            raise
        raise WeightsError(
            f"{error}; to resume from the best weights so far, copy {best} to {path}"
        ) from None


def _describe_mismatch(weights: files.Weights, model: str, categories: Categories) -> str:
    """Return how model and classes differ from the expected ones; empty if they don't."""
    parts = [] if weights.model == model else [f"the model is {weights.model}, not {model}"]
    stored = weights.categories or Categories({})
    for kind, names, expected in (
        ("classes", stored.things, categories.things),
        ("stuff classes", stored.stuff, categories.stuff),
    ):
        if list(names.items()) == list(expected.items()):
            continue
        missing = [name for name in expected.values() if name not in names.values()]
        extra = [name for name in names.values() if name not in expected.values()]
        part = f"it has {len(names)} {kind}, not {len(expected)}"
        part += f", without {', '.join(missing[:5])}" if missing else ""
        part += f", and also {', '.join(extra[:5])}" if extra else ""
        parts.append(part)
    return "; ".join(parts)


def _find_changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the key path, old value and new value of each difference between two configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if path or key not in CHANGEABLE_KEYS:
                key_path = f"{path}.{key}" if path else key
                yield from _find_changes(old.get(key), new.get(key), key_path)
    elif old != new:
        yield path, old, new


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
