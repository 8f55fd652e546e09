"""nanomask as a :class:`~streamseg.models.base.Segmenter`: real time on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import batched_nms, roi_align

from streamseg.models.base import (
    Batch,
    ClassCounts,
    ClassRows,
    Detections,
    Segmenter,
    State,
    rows_of,
)
from streamseg.models.categories import COCO_THINGS, Categories
from streamseg.models.layers.masks import BoxMasks
from streamseg.models.layers.two_stage import Boxes, select_boxes, with_masks
from streamseg.models.nanomask.loss import NanoMaskCriterion
from streamseg.models.nanomask.network import (
    BINS,
    C2_CHANNELS,
    MAP_STRIDE,
    ROI_SIZE,
    Features,
    NanoMaskNet,
    Outputs,
    cell_grid,
    decode_boxes,
    grown,
)
from streamseg.models.selection import Selection
from streamseg.models.weights import files as weights_files
from streamseg.structures.masks import FloatArray, Size
from streamseg.structures.results import Image

_PARTS = ("weight", "bias")


class NanoMask(Segmenter):
    """NanoDet-g with a mask branch. ``input_size`` is the long side that images are resized to."""

    trained_on = COCO_THINGS
    class_agnostic_iou = 0.7
    mean: ClassVar[tuple[float, ...]] = (103.53, 116.28, 123.675)
    deviation: ClassVar[tuple[float, ...]] = (57.375, 57.12, 58.395)
    least_score: ClassVar[float] = 0.05
    nms_iou: ClassVar[float] = 0.6
    most_candidates: ClassVar[int] = 1000
    most_detections: ClassVar[int] = 100

    network: NanoMaskNet

    @classmethod
    def build(cls, name: str, categories: Categories) -> NanoMaskNet:
        del name  # the family has one member
        return NanoMaskNet(len(categories.things))

    @classmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        del network  # all have the same
        rows = {name: (row,) for row, name in enumerate(categories.things.values())}
        return {f"head.{level}.out.{part}": rows for level in range(3) for part in _PARTS}

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        things = rows_of(state, "head.0.out.bias") - 4 * BINS
        return ClassCounts(things) if things > 0 else None

    def criterion(self, weights: Mapping[str, float]) -> NanoMaskCriterion:
        return NanoMaskCriterion(self.network, weights)

    @classmethod
    def published(cls, name: str) -> State:
        with as_file(files("streamseg") / "assets" / f"{name}.safetensors") as path:
            return dict(weights_files.read(path).state)

    def resized_shape(self, size: Size) -> Size:
        scale = self.input_size / max(size)
        return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)

    def preprocess(self, image: Image, into: Tensor) -> None:
        height, width = into.shape[1:]
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        bgr = torch.from_numpy(cv2.cvtColor(resized, cv2.COLOR_RGB2BGR)).permute(2, 0, 1)
        mean = torch.tensor(self.mean)[:, None, None]
        deviation = torch.tensor(self.deviation)[:, None, None]
        torch.sub(bgr, mean, out=into).div_(deviation)

    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        outputs: Outputs = self.network(batch.tensor)
        height, width = batch.tensor.shape[2:]
        grid = cell_grid((height, width))
        found = [
            self._boxes(cells, grid, shape, size, selection)
            for cells, shape, size, selection in zip(
                outputs.cells.float().cpu(), batch.shapes, batch.sizes, selections, strict=True
            )
        ]
        regions = [grown(each.prepared) for each in found]
        covered = [
            resize_boxes(region, list(shape), list(size))
            for region, shape, size in zip(regions, batch.shapes, batch.sizes, strict=True)
        ]
        counts = [len(each.scores) for each in found]
        probabilities, features = (
            torch.split(each, counts) for each in self._masks(outputs.features, regions)
        )
        masks = [BoxMasks(own, box) for own, box in zip(probabilities, covered, strict=True)]
        return with_masks(batch, selections, found, masks, features)

    def _boxes(
        self, cells: Tensor, grid: FloatArray, shape: Size, size: Size, selection: Selection
    ) -> Boxes:
        """The detections of one image that the thresholds let through, on the CPU."""
        classes = len(self.categories)
        values = cells.numpy()  # its reductions of small arrays wait for no other thread
        best = values[:, :classes].max(axis=1)
        # A detection below all thresholds can't come out, and it suppresses none above them.
        least = max(self.least_score, selection.least_score - 1e-6)
        chosen = np.flatnonzero(best > np.log(least / (1 - least)))
        if len(chosen) > self.most_candidates:
            chosen = chosen[np.argsort(-best[chosen], kind="stable")[: self.most_candidates]]
        scores = torch.from_numpy(best[chosen]).sigmoid()
        indices = torch.from_numpy(values[chosen, :classes].argmax(axis=1))
        boxes = decode_boxes(
            torch.from_numpy(values[chosen, classes:]), torch.from_numpy(grid[chosen])
        )
        boxes = torch.minimum(boxes.clamp_(min=0), torch.tensor([*shape[::-1], *shape[::-1]]))
        kept = batched_nms(boxes, scores, indices, self.nms_iou)[: self.most_detections]
        kept = kept[(boxes[kept, 2:] > boxes[kept, :2]).all(dim=1)]  # not wholly in the padding
        labels = torch.tensor(list(self.categories))[indices[kept]]
        return select_boxes(boxes[kept], scores[kept], labels, shape, size, selection)

    def _masks(self, features: Features, regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mask probabilities (N, 28, 28) and appearance (N, 128).

        Args:
            features: of the batch.
            regions: (n, 4) xyxy of each image, on the CPU.
        """
        if not any(len(rows) for rows in regions):
            return torch.zeros(0, 2 * ROI_SIZE, 2 * ROI_SIZE), torch.zeros(0, 2 * C2_CHANNELS)
        branch = self.network.mask
        placed = [region.to(self.device) for region in regions]
        cuts = branch.cut(branch.map_around(features, regions), placed)
        probabilities = branch(cuts)[:, 0].float().sigmoid()
        return probabilities, _appearance(features.c2, placed, probabilities)


def _appearance(c2: Tensor, boxes: Sequence[Tensor], probabilities: Tensor) -> Tensor:
    """What the pixels of each mask look like: (N, 128) of length 1.

    The mean of the backbone's first stage over the mask, its upper half and its lower half apart:
    it tells people apart better than the mask branch's own features, which are made to be alike.
    """
    cuts = roi_align(c2, list(boxes), 8, 1 / MAP_STRIDE, 1, aligned=True)
    weighted = cuts * adaptive_avg_pool2d(probabilities[:, None], 8)
    halves = [half.sum(dim=(2, 3)) for half in weighted.chunk(2, dim=2)]
    return normalize(torch.cat(halves, dim=1), dim=1)
