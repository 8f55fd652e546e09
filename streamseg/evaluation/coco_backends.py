"""The programs that compute COCO's average precision: one result, three speeds.

pycocotools (Lin et al., "Microsoft COCO", 2014) is the reference. hotcoco and faster-coco-eval do
the same in Rust and in C++; the tests hold all three together. Each of them prints as it goes,
which has no place on stdout.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.errors import StreamsegError
from streamseg.evaluation.coco_rows import Comparison, Row

Backend: TypeAlias = Literal["pycocotools", "hotcoco", "faster-coco-eval"]
MODULES: dict[Backend, str] = {
    "hotcoco": "hotcoco",
    "faster-coco-eval": "faster_coco_eval",
    "pycocotools": "pycocotools",
}
"""What is imported for each, the quickest first."""


@dataclass(frozen=True, slots=True, eq=False)
class Accumulated:
    """What all of COCO's numbers are means of; -1 where the truth has nothing of the kind.

    Attributes:
        backend: which computed it.
        precision: float64 (10, 101, C, 4, 3): IoU .5 to .95, recall 0 to 1, category in ascending
            order of ids, area (all, small, medium, large), most detections (1, 10, 100).
        recall: float64 (10, C, 4, 3), the highest that is reached.
    """

    backend: Backend
    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]


def accumulate(comparison: Comparison, backend: Literal["auto"] | Backend) -> Accumulated:
    """Match results to truth and sum up.

    Raises:
        StreamsegError: the backend isn't installed.
    """
    chosen = choose(backend)
    with redirect_stdout(io.StringIO()):
        truth = _load(chosen, comparison, comparison.truth)
        found = _load(chosen, comparison, comparison.found)
        kind = "bbox" if comparison.on == "boxes" else "segm"
        evaluation = _evaluator(chosen)(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return Accumulated(
        chosen,
        np.asarray(evaluation.eval["precision"], np.float64),
        np.asarray(evaluation.eval["recall"], np.float64),
    )


def choose(backend: Literal["auto"] | Backend) -> Backend:
    """The backend itself, or the quickest that is installed.

    Raises:
        StreamsegError: it isn't installed.
    """
    if backend == "auto":
        return next(name for name, module in MODULES.items() if find_spec(module))
    if find_spec(MODULES[backend]) is None:
        raise StreamsegError(f"{backend} isn't installed: pip install {backend}, or say auto")
    return backend


def _evaluator(backend: Backend) -> Any:
    if backend == "pycocotools":
        return import_module("pycocotools.cocoeval").COCOeval
    name = "COCOeval" if backend == "hotcoco" else "COCOeval_faster"
    return getattr(import_module(MODULES[backend]), name)


def _load(backend: Backend, comparison: Comparison, rows: Iterable[Row]) -> Any:
    """The rows as the backend's own ``COCO``.

    Results come in this way too: ``loadRes`` would fail without any, and would take the area of a
    box for that of its mask.
    """
    numbers = _image_numbers(comparison)
    dataset = {
        "images": [
            {"id": numbers[image_id], "height": height, "width": width}
            for image_id, (height, width) in comparison.sizes.items()
        ],
        "categories": [{"id": key, "name": name} for key, name in comparison.names.items()],
        "annotations": [
            _annotation(number, row, numbers[row.image_id])
            for number, row in enumerate(rows, start=1)
        ],
    }
    if backend != "pycocotools":
        return import_module(MODULES[backend]).COCO(dataset)
    coco = import_module("pycocotools.coco").COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _image_numbers(comparison: Comparison) -> dict[int | str, int]:
    """A whole number for each image: its id, or its place where any id is text."""
    numbers: dict[int | str, int] = {
        image_id: image_id for image_id in comparison.sizes if isinstance(image_id, int)
    }
    if len(numbers) == len(comparison.sizes):
        return numbers
    return {image_id: place for place, image_id in enumerate(comparison.sizes)}


def _annotation(number: int, row: Row, image_number: int) -> dict[str, Any]:
    shape = (
        {"segmentation": dict(row.shape)}
        if isinstance(row.shape, dict)
        else {"bbox": list(row.shape)}
    )
    return {
        "id": number,
        "image_id": image_number,
        "category_id": row.category_id,
        "area": row.area,
        "score": row.score,
        "iscrowd": int(row.ignore),
        **shape,
    }
