"""Libraries that compute COCO average precision: pycocotools, hotcoco and faster-coco-eval.

pycocotools (Lin et al., "Microsoft COCO", 2014) is the reference. hotcoco (Rust) and
faster-coco-eval (C++) compute the same scores faster; tests compare all three. Each of them prints
to stdout, which is suppressed here.
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
from streamseg.evaluation.coco_rows import CocoInputs, CocoRow

Backend: TypeAlias = Literal["pycocotools", "hotcoco", "faster-coco-eval"]
MODULES: dict[Backend, str] = {
    "hotcoco": "hotcoco",
    "faster-coco-eval": "faster_coco_eval",
    "pycocotools": "pycocotools",
}
"""The module of each backend, the fastest first."""


@dataclass(frozen=True, slots=True, eq=False)
class AccumulatedScores:
    """Precision and recall that COCO's scores are means of; -1 without ground truth.

    Attributes:
        backend: the library that computed them.
        precision: float64 (10, 101, C, 4, 3): IoU .50 to .95, recall 0 to 1, category in ascending
            order of ids, area (all, small, medium, large), detections per image (1, 10, 100).
        recall: float64 (10, C, 4, 3), the highest recall.
    """

    backend: Backend
    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]


def accumulate_scores(inputs: CocoInputs, backend: Literal["auto"] | Backend) -> AccumulatedScores:
    """Match predictions to ground truth and accumulate precision and recall.

    Raises:
        StreamsegError: the backend isn't installed.
    """
    chosen = choose_backend(backend)
    with redirect_stdout(io.StringIO()):
        ground_truth = _make_coco(chosen, inputs, inputs.ground_truth)
        predictions = _make_coco(chosen, inputs, inputs.predictions)
        iou_type = "bbox" if inputs.iou_type == "boxes" else "segm"
        evaluation = _evaluator_class(chosen)(ground_truth, predictions, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    return AccumulatedScores(
        chosen,
        np.asarray(evaluation.eval["precision"], np.float64),
        np.asarray(evaluation.eval["recall"], np.float64),
    )


def choose_backend(backend: Literal["auto"] | Backend) -> Backend:
    """Return the backend itself, or for ``auto`` the fastest that is installed.

    Raises:
        StreamsegError: the backend isn't installed.
    """
    if backend == "auto":
        return next(name for name, module in MODULES.items() if find_spec(module))
    if find_spec(MODULES[backend]) is None:
        raise StreamsegError(f"{backend} isn't installed: pip install {backend}, or use auto")
    return backend


def _evaluator_class(backend: Backend) -> Any:
    if backend == "pycocotools":
        return import_module("pycocotools.cocoeval").COCOeval
    name = "COCOeval" if backend == "hotcoco" else "COCOeval_faster"
    return getattr(import_module(MODULES[backend]), name)


def _make_coco(backend: Backend, inputs: CocoInputs, rows: Iterable[CocoRow]) -> Any:
    """Return rows as the backend's ``COCO`` object.

    This replaces ``loadRes`` for predictions, which fails without any and uses the area of the box
    instead of the mask's.
    """
    image_numbers = _number_images(inputs)
    dataset = {
        "images": [
            {"id": image_numbers[image_id], "height": height, "width": width}
            for image_id, (height, width) in inputs.sizes.items()
        ],
        "categories": [{"id": key, "name": name} for key, name in inputs.names.items()],
        # Ids begin with 1: pycocotools treats a match with id 0 as none.
        "annotations": [
            {
                "id": number,
                "image_id": image_numbers[row.image_id],
                "category_id": row.category_id,
                "area": row.area,
                "score": row.score,
                "iscrowd": int(row.ignore),
                **(
                    {"segmentation": dict(row.shape)}
                    if isinstance(row.shape, dict)
                    else {"bbox": list(row.shape)}
                ),
            }
            for number, row in enumerate(rows, start=1)
        ],
    }
    if backend != "pycocotools":
        return import_module(MODULES[backend]).COCO(dataset)
    coco = import_module("pycocotools.coco").COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _number_images(inputs: CocoInputs) -> dict[int | str, int]:
    """Return an integer for each image id: the id itself, or its index if any id is text."""
    numbers: dict[int | str, int] = {
        image_id: image_id for image_id in inputs.sizes if isinstance(image_id, int)
    }
    if len(numbers) == len(inputs.sizes):
        return numbers
    return {image_id: index for index, image_id in enumerate(inputs.sizes)}
