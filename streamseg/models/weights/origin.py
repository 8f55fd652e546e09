"""Origin of a loaded model, by which it is pickled and loaded again in another process."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from torch import nn

from streamseg.config import Thresholds
from streamseg.config.class_names import ClassNames
from streamseg.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from streamseg.models.base import Segmenter

_ADVICE = "save its weights, and load the model in the process that uses it"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Size and modification time of a file, to detect changes.

    Attributes:
        size: size in bytes.
        modified: modification time in nanoseconds.
    """

    size: int
    modified: int

    @classmethod
    def of(cls, path: str) -> Stamp:
        """Return the stamp of a file; raises OSError if it doesn't exist."""
        status = os.stat(path)  # noqa: PTH116 - the path is text
        return cls(status.st_size, status.st_mtime_ns)

    @classmethod
    def of_weights(cls, weights: str | os.PathLike[str]) -> Stamp | None:
        """Return the stamp of a weights file; None if it is missing or ``weights`` is no path."""
        try:
            return None if weights in ("default", "none") else cls.of(os.fspath(weights))
        except (OSError, ValueError):
            return None  # reported when the file is read


@dataclass(frozen=True, slots=True)
class Origin:
    """Arguments of ``load_model``, and the state of the loaded network.

    Attributes:
        weights: ``default``, ``none`` or an absolute path.
        device: the argument ``device``.
        class_names: the argument ``class_names``.
        stamp: stamp of the weights file; None for ``default`` and ``none``.
        network: ``network_state`` of the loaded network.
    """

    weights: str
    device: str
    class_names: ClassNames | None
    stamp: Stamp | None
    network: tuple[int, int]


def network_state(network: nn.Module) -> tuple[int, int]:
    """Return values that change when a network is replaced or its weights are modified."""
    tensors = (*network.parameters(), *network.buffers())
    return id(network), sum(tensor._version for tensor in tensors)  # noqa: SLF001 - torch's own


def reload_arguments(model: Segmenter) -> tuple[Any, ...]:
    """Return the arguments with which :func:`reload` loads ``model`` again.

    Raises:
        UsageError: the model or its weights file was changed after loading.
    """
    origin = model.origin
    if origin is None or origin.network != network_state(model.network):
        raise UsageError(
            f"{model.name} can't be pickled: it was changed in this process; {_ADVICE}"
        )
    try:
        if origin.stamp is not None and origin.stamp != Stamp.of(origin.weights):
            raise UsageError(
                f"{model.name} can't be pickled: {origin.weights} was changed after it was loaded; "
                f"{_ADVICE}"
            )
        digest = None if origin.stamp is None else _digest(origin.weights, origin.stamp)
    except OSError as error:
        raise UsageError(
            f"{model.name} can't be pickled: {origin.weights}: {error.strerror}; {_ADVICE}"
        ) from None
    options = {
        "weights": origin.weights,
        "device": origin.device,
        "input_size": model.input_size,
        "precision": model.precision,
        "class_names": origin.class_names,
    }
    return model.name, options, model.thresholds, digest


def reload(
    name: str, options: dict[str, Any], thresholds: Thresholds, digest: str | None
) -> Segmenter:
    """Load a model again.

    Raises:
        WeightsError: the weights file is missing or has other content.
        StreamsegError: see :func:`streamseg.load_model`.
    """
    from streamseg.models.loading import load_model

    path = options["weights"]
    try:
        if digest is not None and _digest(path, Stamp.of(path)) != digest:
            raise WeightsError(
                f"{path}: isn't the file that {name} was loaded from: load the model in the "
                "process that uses it"
            )
    except OSError as error:
        raise WeightsError(
            f"{path}: {error.strerror}: {name} was loaded from it in another process"
        ) from None
    return load_model(name, **options, **msgspec.structs.asdict(thresholds))


@lru_cache(maxsize=8)
def _digest(path: str, _stamp: Stamp) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
