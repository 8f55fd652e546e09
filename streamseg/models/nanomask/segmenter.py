"""nanomask as a :class:`~streamseg.models.base.Segmenter`."""

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

from streamseg.models.base import ClassCounts, ClassRows, Segmenter, State, count_rows
from streamseg.models.categories import COCO_THINGS, Categories
from streamseg.models.detections import Batch, Detections
from streamseg.models.layers.masks import BoxMasks
from streamseg.models.layers.two_stage import Boxes, combine_detections, select_boxes
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
    expand_boxes,
)
from streamseg.models.selection import Selection
from streamseg.models.weights import files as weights_files
from streamseg.structures.masks import FloatArray, Size
from streamseg.structures.results import Image

_PARTS = ("weight", "bias")


class NanoMask(Segmenter):
    """NanoDet-g with a mask branch. ``input_size`` is the length of the resized long side."""

    trained_on = COCO_THINGS
    class_agnostic_iou = 0.7
    mean: ClassVar[tuple[float, ...]] = (103.53, 116.28, 123.675)
    std: ClassVar[tuple[float, ...]] = (57.375, 57.12, 58.395)
    min_score: ClassVar[float] = 0.05
    nms_iou: ClassVar[float] = 0.6
    max_candidates: ClassVar[int] = 1000
    max_detections: ClassVar[int] = 100

    network: NanoMaskNet

    @classmethod
    def build(cls, name: str, categories: Categories) -> NanoMaskNet:
        del name  # the family has one model
        return NanoMaskNet(len(categories.things))

    @classmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        del network  # the rows are the same for all variants
        rows = {name: (row,) for row, name in enumerate(categories.things.values())}
        return {f"head.{level}.out.{part}": rows for level in range(3) for part in _PARTS}

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        things = count_rows(state, "head.0.out.bias") - 4 * BINS
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
        std = torch.tensor(self.std)[:, None, None]
        torch.sub(bgr, mean, out=into).div_(std)

    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        outputs: Outputs = self.network(batch.tensor)
        height, width = batch.tensor.shape[2:]
        grid = cell_grid((height, width))
        detected = [
            self._select_boxes(cells, grid, shape, size, selection)
            for cells, shape, size, selection in zip(
                outputs.cells.float().cpu(), batch.shapes, batch.sizes, selections, strict=True
            )
        ]
        regions = [expand_boxes(each.prepared) for each in detected]
        regions_in_image = [
            resize_boxes(region, list(shape), list(size))
            for region, shape, size in zip(regions, batch.shapes, batch.sizes, strict=True)
        ]
        counts = [len(each.scores) for each in detected]
        probabilities, features = (
            torch.split(each, counts) for each in self._masks(outputs.features, regions)
        )
        masks = [
            BoxMasks(each, region)
            for each, region in zip(probabilities, regions_in_image, strict=True)
        ]
        return combine_detections(batch, selections, detected, masks, features)

    def _select_boxes(
        self, cells: Tensor, grid: FloatArray, shape: Size, size: Size, selection: Selection
    ) -> Boxes:
        """Return the detections of one image that pass the thresholds; computed on the CPU."""
        classes = len(self.categories)
        values = cells.numpy()  # NumPy reduces small arrays without thread synchronization
        best = values[:, :classes].max(axis=1)
        # A detection below all thresholds is not returned and suppresses none above them.
        min_score = max(self.min_score, selection.min_score - 1e-6)
        chosen = np.flatnonzero(best > np.log(min_score / (1 - min_score)))
        if len(chosen) > self.max_candidates:
            chosen = chosen[np.argsort(-best[chosen], kind="stable")[: self.max_candidates]]
        scores = torch.from_numpy(best[chosen]).sigmoid()
        indices = torch.from_numpy(values[chosen, :classes].argmax(axis=1))
        boxes = decode_boxes(
            torch.from_numpy(values[chosen, classes:]), torch.from_numpy(grid[chosen])
        )
        boxes = torch.minimum(boxes.clamp_(min=0), torch.tensor([*shape[::-1], *shape[::-1]]))
        kept = batched_nms(boxes, scores, indices, self.nms_iou)[: self.max_detections]
        kept = kept[
            (boxes[kept, 2:] > boxes[kept, :2]).all(dim=1)
        ]  # a box inside the padding has no area
        labels = torch.tensor(list(self.categories))[indices[kept]]
        return select_boxes(boxes[kept], scores[kept], labels, shape, size, selection)

    def _masks(self, features: Features, regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return mask probabilities (N, 28, 28) and appearance features (N, 128).

        Args:
            features: feature maps of the batch.
            regions: (n, 4) xyxy per image, on the CPU.
        """
        if not any(len(rows) for rows in regions):
            return torch.zeros(0, 2 * ROI_SIZE, 2 * ROI_SIZE), torch.zeros(0, 2 * C2_CHANNELS)
        branch = self.network.mask
        boxes = [region.to(self.device) for region in regions]
        roi_features = branch.roi_features(branch.map_around(features, regions), boxes)
        probabilities = branch(roi_features)[:, 0].float().sigmoid()
        return probabilities, _appearance(features.c2, boxes, probabilities)


def _appearance(c2: Tensor, boxes: Sequence[Tensor], probabilities: Tensor) -> Tensor:
    """Return appearance features (N, 128) of unit length.

    They are the means of the first backbone stage over the upper and the lower half of the mask.
    They distinguish people better than the features of the mask branch.
    """
    roi_features = roi_align(c2, list(boxes), 8, 1 / MAP_STRIDE, 1, aligned=True)
    weighted = roi_features * adaptive_avg_pool2d(probabilities[:, None], 8)
    halves = [half.sum(dim=(2, 3)) for half in weighted.chunk(2, dim=2)]
    return normalize(torch.cat(halves, dim=1), dim=1)
