"""Common base of SOLO and SOLOv2 as a :class:`~streamseg.models.base.Segmenter`.

Cells with a high class probability become candidates, their scores are multiplied by the mask
confidence, Matrix NMS lowers the scores of duplicates, and the masks are resized in two steps,
first to the input of the network and then to the image, as the authors do.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from streamseg.errors import WeightsError
from streamseg.models.base import ClassCounts, ClassRows, Segmenter, State, count_rows
from streamseg.models.categories import COCO_THINGS, Categories
from streamseg.models.detections import Batch, Detections
from streamseg.models.layers.matrix_nms import matrix_nms
from streamseg.models.layers.resampling import bilinear_twice, resize_and_threshold
from streamseg.models.selection import Selection
from streamseg.models.solo.loss import SOLOCriterion
from streamseg.models.solo.network import STRIDES, Outputs, SOLONetwork, match_offsets, resize
from streamseg.structures.masks import Masks, Size
from streamseg.structures.results import Image

MASK_STRIDE = 4
"""Stride of the masks, in pixels of the prepared image."""

_RENAMED: tuple[tuple[str, str], ...] = (
    # names of WXinlong/SOLO to those of mmdetection
    (r"^bbox_head\.", "mask_head."),
    (r"^mask_feat_head\.", "mask_head.mask_feature_head."),
    (r"\.cate_convs\.", ".cls_convs."),
    (r"\.ins_convs\.", ".mask_convs."),
    (r"\.d?solo_cate\.", ".conv_cls."),
    (r"\.solo_kernel\.", ".conv_kernel."),
    (r"\.d?solo_ins_list", ".conv_mask_list"),
    (r"\.conv_pred\.0\.", ".conv_pred."),
    # names of mmdetection to those of this implementation
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"fpn.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"fpn.layer_blocks.\1.0."),
    (r"^mask_head\.mask_feature_head\.convs_all_levels\.(\d)\.conv", r"features.levels.\1."),
    (r"^mask_head\.mask_feature_head\.conv_pred\.", "features.out."),
    (r"^mask_head\.cls_convs\.", "category_tower."),
    (r"^mask_head\.kernel_convs\.", "kernel_tower."),
    (r"^mask_head\.mask_convs\.", "mask_tower."),
    (r"^mask_head\.conv_cls\.", "category."),
    (r"^mask_head\.conv_kernel\.", "kernel."),
    (r"^mask_head\.conv_mask_list\.", "maps."),
    (r"^mask_head\.conv_mask_list_x\.", "columns."),
    (r"^mask_head\.conv_mask_list_y\.", "rows."),
    (r"\.gn\.", ".norm."),
    (r"\.conv_offset\.", ".offset."),
)


@dataclass(frozen=True, slots=True)
class Scales:
    """Image size, and object sizes of the levels.

    Attributes:
        long_to_short: maximum length of the long side, relative to ``input_size``.
        ranges: minimum and maximum object size of each level: square root of width times height, in
            pixels of the prepared image.
    """

    long_to_short: float
    ranges: tuple[tuple[float, float], ...]


LARGE = Scales(1333 / 800, ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)))
SMALL = Scales(768 / 448, ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896)))
SMALL_DEFORMABLE = Scales(852 / 512, ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)))


@dataclass(frozen=True, slots=True, eq=False)
class SoftMasks:
    """Raw mask predictions of SOLO: one map of the whole padded image per object.

    Attributes:
        probabilities: float32 (N, h, w), at stride 4 of the padded image.
        shape: (height, width) of the prepared image without padding.
    """

    probabilities: Tensor
    shape: Size

    def masks(self, size: Size, threshold: float) -> Masks:
        """Resize the maps in two steps and threshold them.

        They are resized to the padded image, cropped to ``shape`` and resized to ``size``.
        """
        height, width = self.probabilities.shape[1:]
        rows = bilinear_twice(height, MASK_STRIDE * height, self.shape[0], size[0])
        columns = bilinear_twice(width, MASK_STRIDE * width, self.shape[1], size[1])
        resized_masks = [
            resize_and_threshold(
                values, rows, columns, threshold, partial(self.full_map, values, size)
            )
            for values in self.probabilities.float().cpu()
        ]
        return Masks.from_crops(
            [crop for crop, _ in resized_masks],
            np.array([corner for _, corner in resized_masks], np.int64),
            size,
        )

    def full_map(self, values: Tensor, size: Size) -> Tensor:
        """Resize a whole map (h, w) to float32 (H, W)."""
        height, width = values.shape
        padded = resize(values[None, None], (MASK_STRIDE * height, MASK_STRIDE * width))
        cropped = padded[:, :, : self.shape[0], : self.shape[1]]
        return resize(cropped, size)[0, 0]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Candidate cells of one image.

    Attributes:
        scores: (N,), class probability times mask confidence.
        classes: int64 (N,), class indices.
        masks: float32 (N, h, w), probabilities at stride 4.
    """

    scores: Tensor
    classes: Tensor
    masks: Tensor

    @classmethod
    def empty(cls, size: Size, device: torch.device) -> Candidates:
        """Return no candidates."""
        labels = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(labels.float(), labels, torch.zeros(0, *size, device=device))

    @classmethod
    def concatenate(cls, parts: Sequence[Candidates]) -> Candidates:
        """Concatenate candidates in order."""
        columns = ("scores", "classes", "masks")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in columns))

    def __getitem__(self, rows: Tensor) -> Candidates:
        return Candidates(self.scores[rows], self.classes[rows], self.masks[rows])


class SOLOSegmenter(Segmenter):
    """Base of SOLO and SOLOv2. ``input_size`` is the length of the resized short side."""

    trained_on = COCO_THINGS
    mean: ClassVar[tuple[float, ...]] = (123.675, 116.28, 103.53)
    std: ClassVar[tuple[float, ...]] = (58.395, 57.12, 57.375)
    min_probability: ClassVar[float] = 0.1
    mask_threshold: ClassVar[float] = 0.5
    """Mask threshold in Matrix NMS; returned masks use the threshold of the frame."""
    max_candidates: ClassVar[int] = 500
    sigma: ClassVar[float] = 2.0
    min_score: ClassVar[float] = 0.05
    max_detections: ClassVar[int] = 100

    network: SOLONetwork

    @classmethod
    @abstractmethod
    def scales(cls, name: str) -> Scales:
        """Return the scales of a model."""

    @classmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        del network  # the rows are the same for all variants
        rows = {name: (row,) for row, name in enumerate(categories.things.values())}
        return {"category.weight": rows, "category.bias": rows}

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        things = count_rows(state, "category.bias")
        return ClassCounts(things) if things else None

    def criterion(self, weights: Mapping[str, float]) -> SOLOCriterion:
        return SOLOCriterion(self.network, weights, self.scales(self.name).ranges)

    @classmethod
    def convert_state_dict(cls, network: nn.Module, state: State) -> State:
        """Convert state dicts of mmdetection and of WXinlong/SOLO.

        Raises:
            WeightsError: the file is from AdelaiDet, whose backbone differs.
        """
        if any(key.startswith("ins_head.") for key in state):
            raise WeightsError(
                "the weights are from AdelaiDet, whose ResNet has its strides in other layers: use "
                "the weights of mmdetection"
            )
        return match_offsets(network, {_renamed(key): tensor for key, tensor in state.items()})

    @classmethod
    def license_notice(cls, state: Mapping[str, Tensor]) -> str | None:
        if any(key.startswith("bbox_head.") for key in state):
            return "these weights are from WXinlong/SOLO; their license permits academic use only"
        return None

    def resized_shape(self, size: Size) -> Size:
        max_long_side = round(self.input_size * self.scales(self.name).long_to_short)
        scale = min(max_long_side / max(size), self.input_size / min(size))
        return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)

    def preprocess(self, image: Image, into: Tensor) -> None:
        height, width = into.shape[1:]
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        mean = torch.tensor(self.mean)[:, None, None]
        std = torch.tensor(self.std)[:, None, None]
        torch.sub(torch.from_numpy(resized).permute(2, 0, 1), mean, out=into).div_(std)

    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        outputs: Outputs = self.network(batch.tensor)
        padded = batch.tensor.shape[2:]
        maps = padded[0] // MASK_STRIDE, padded[1] // MASK_STRIDE
        # Matrix NMS counts pixels by a matrix product, which would be inexact in bf16.
        with torch.autocast(self.device.type, enabled=False):
            probabilities = [_local_maxima(each.float().sigmoid()) for each in outputs.categories]
            return [
                self._detections(
                    self._candidates(outputs, probabilities, image, maps, selection),
                    shape,
                    size,
                    selection,
                )
                for image, (shape, size, selection) in enumerate(
                    zip(batch.shapes, batch.sizes, selections, strict=True)
                )
            ]

    def _candidates(
        self,
        outputs: Outputs,
        probabilities: Sequence[Tensor],
        image: int,
        size: Size,
        selection: Selection,
    ) -> Candidates:
        """Return the cells whose class probability and mask area are large enough."""
        # Scores only decrease from here on, and a candidate does not affect better ones.
        min_probability = max(self.min_probability, selection.min_score - 1e-6)
        candidates = [Candidates.empty(size, outputs.categories[0].device)]
        for level, (of_level, stride) in enumerate(zip(probabilities, STRIDES, strict=True)):
            by_cell = of_level[image].flatten(1).T  # (S * S, C)
            cells, classes = (by_cell > min_probability).nonzero().T
            if len(cells) == 0:
                continue
            unique_cells, rows = torch.unique(cells, return_inverse=True)
            masks = self.network.masks(outputs, image, level, unique_cells, size).float()
            inside = masks > self.mask_threshold
            areas = inside.sum(dim=(1, 2))
            confidence = (masks * inside).sum(dim=(1, 2)) / areas.clamp(min=1)
            scores = by_cell[cells, classes] * confidence[rows]
            level_candidates = Candidates(scores, classes, masks[rows])
            candidates.append(level_candidates[areas[rows] > stride])
        return Candidates.concatenate(candidates)

    def _detections(
        self, candidates: Candidates, shape: Size, size: Size, selection: Selection
    ) -> Detections:
        """Apply Matrix NMS and the thresholds to the candidates."""
        best = candidates[candidates.scores.argsort(descending=True)[: self.max_candidates]]
        scores = best.scores
        if len(scores):
            inside = best.masks > self.mask_threshold
            scores = matrix_nms(inside, scores, best.classes, self.sigma)
        order = scores.argsort(descending=True)
        order = order[scores[order] >= self.min_score][: self.max_detections]
        labels = torch.tensor(list(self.categories), device=scores.device)[best.classes[order]]
        selected = selection.select_rows(None, scores[order].cpu().numpy(), labels.cpu().numpy())
        rows = torch.from_numpy(selected).to(order.device)
        return Detections(
            size,
            None,
            scores[order][rows],
            labels[rows],
            SoftMasks(best.masks[order][rows], shape),
            selection,
        )


def _local_maxima(probabilities: Tensor) -> Tensor:
    """Set probabilities (B, C, S, S) to zero unless they are the maximum of a 2 x 2 window.

    The window of a cell contains the cells to the left, above, and above left.
    """
    highest = max_pool2d(probabilities, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return probabilities * (highest == probabilities)


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    return key
