"""SOLO and SOLOv2 as a :class:`~streamseg.models.base.Segmenter`: cells in, instances out.

What both have in common after their networks: cells that are sure of a class become candidates,
their masks say how sure they are, Matrix NMS has them compete, and what is left is resized in two
steps, first to the network's input and then to the image, as the authors do.
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
from streamseg.models.layers.matrix_nms import matrix_nms
from streamseg.models.layers.resampling import bilinear_twice, resized_above
from streamseg.models.selection import Selection
from streamseg.models.solo.loss import SOLOCriterion
from streamseg.models.solo.network import STRIDES, Outputs, SOLONetwork, fit_offsets, resized
from streamseg.structures.masks import Masks, Size
from streamseg.structures.results import Image

MASK_STRIDE = 4
"""Pixels of the prepared image for one of a mask."""

_RENAMED: tuple[tuple[str, str], ...] = (
    # WXinlong/SOLO's names as mmdetection's
    (r"^bbox_head\.", "mask_head."),
    (r"^mask_feat_head\.", "mask_head.mask_feature_head."),
    (r"\.cate_convs\.", ".cls_convs."),
    (r"\.ins_convs\.", ".mask_convs."),
    (r"\.d?solo_cate\.", ".conv_cls."),
    (r"\.solo_kernel\.", ".conv_kernel."),
    (r"\.d?solo_ins_list", ".conv_mask_list"),
    (r"\.conv_pred\.0\.", ".conv_pred."),
    # mmdetection's names as ours
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
    """How large images are, and which objects each level learns.

    Attributes:
        long_to_short: the most that an image's long side is of ``input_size``, its short side.
        ranges: least and most of the square root of width times height, pixels of the prepared
            image, by level.
    """

    long_to_short: float
    ranges: tuple[tuple[float, float], ...]


LARGE = Scales(1333 / 800, ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)))
SMALL = Scales(768 / 448, ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896)))
SMALL_DEFORMABLE = Scales(852 / 512, ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)))


@dataclass(frozen=True, slots=True, eq=False)
class SoftMasks:
    """Masks as SOLO makes them: a map of the whole padded image for each object.

    Attributes:
        probabilities: float32 (N, h, w), a pixel for each 4 x 4 of the padded image.
        shape: (height, width) of the prepared image without its padding.
    """

    probabilities: Tensor
    shape: Size

    def masks(self, size: Size, threshold: float) -> Masks:
        """The pixels above ``threshold`` of maps that are resized in two steps.

        First they are as large as the padded image; cut to ``shape``, they are resized to ``size``.
        """
        height, width = self.probabilities.shape[1:]
        rows = bilinear_twice(height, MASK_STRIDE * height, self.shape[0], size[0])
        columns = bilinear_twice(width, MASK_STRIDE * width, self.shape[1], size[1])
        made = [
            resized_above(values, rows, columns, threshold, partial(self.whole, values, size))
            for values in self.probabilities.float().cpu()
        ]
        return Masks.from_crops(
            [crop for crop, _ in made], np.array([at for _, at in made], np.int64), size
        )

    def whole(self, values: Tensor, size: Size) -> Tensor:
        """One map (h, w) resized as a whole, float32 (H, W)."""
        height, width = values.shape
        large = resized(values[None, None], (MASK_STRIDE * height, MASK_STRIDE * width))
        shown = large[:, :, : self.shape[0], : self.shape[1]]
        return resized(shown, size)[0, 0]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Cells that are sure of a class, of one image.

    Attributes:
        scores: (N,), the class's probability.
        classes: int64 (N,), class indices.
        masks: float32 (N, h, w), probabilities at stride 4.
    """

    scores: Tensor
    classes: Tensor
    masks: Tensor

    @classmethod
    def none(cls, size: Size, device: torch.device) -> Candidates:
        """Of an image where no cell is sure."""
        labels = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(labels.float(), labels, torch.zeros(0, *size, device=device))

    @classmethod
    def concatenate(cls, parts: Sequence[Candidates]) -> Candidates:
        """All of them, in order."""
        columns = ("scores", "classes", "masks")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in columns))

    def __getitem__(self, rows: Tensor) -> Candidates:
        return Candidates(self.scores[rows], self.classes[rows], self.masks[rows])


class SOLOSegmenter(Segmenter):
    """What SOLO and SOLOv2 share; the short side is resized to ``input_size``."""

    trained_on = COCO_THINGS
    mean: ClassVar[tuple[float, ...]] = (123.675, 116.28, 103.53)
    deviation: ClassVar[tuple[float, ...]] = (58.395, 57.12, 57.375)
    least_probability: ClassVar[float] = 0.1
    mask_threshold: ClassVar[float] = 0.5
    """Of the masks that compete; the ones that come out have the frame's own."""
    most_candidates: ClassVar[int] = 500
    sigma: ClassVar[float] = 2.0
    least_score: ClassVar[float] = 0.05
    most_detections: ClassVar[int] = 100

    network: SOLONetwork

    @classmethod
    @abstractmethod
    def scales(cls, name: str) -> Scales:
        """Of the model of that name."""

    @classmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        del network  # all have the same
        rows = {name: (row,) for row, name in enumerate(categories.things.values())}
        return {"category.weight": rows, "category.bias": rows}

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        things = rows_of(state, "category.bias")
        return ClassCounts(things) if things else None

    def criterion(self, weights: Mapping[str, float]) -> SOLOCriterion:
        return SOLOCriterion(self.network, weights, self.scales(self.name).ranges)

    @classmethod
    def convert_state_dict(cls, network: nn.Module, state: State) -> State:
        """Take mmdetection's files and WXinlong/SOLO's.

        Raises:
            WeightsError: the file is AdelaiDet's, whose trunk is another one.
        """
        if any(key.startswith("ins_head.") for key in state):
            raise WeightsError(
                "the weights are AdelaiDet's, whose ResNet has its strides elsewhere and can't be "
                "loaded: take mmdetection's"
            )
        return fit_offsets(network, {_renamed(key): tensor for key, tensor in state.items()})

    @classmethod
    def license_notice(cls, state: Mapping[str, Tensor]) -> str | None:
        if any(key.startswith("bbox_head.") for key in state):
            return "these weights are WXinlong/SOLO's, whose licence is for academic use only"
        return None

    def resized_shape(self, size: Size) -> Size:
        longest = round(self.input_size * self.scales(self.name).long_to_short)
        scale = min(longest / max(size), self.input_size / min(size))
        return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)

    def preprocess(self, image: Image, into: Tensor) -> None:
        height, width = into.shape[1:]
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        mean = torch.tensor(self.mean)[:, None, None]
        deviation = torch.tensor(self.deviation)[:, None, None]
        torch.sub(torch.from_numpy(small).permute(2, 0, 1), mean, out=into).div_(deviation)

    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        outputs: Outputs = self.network(batch.tensor)
        padded = batch.tensor.shape[2:]
        maps = padded[0] // MASK_STRIDE, padded[1] // MASK_STRIDE
        # Matrix NMS counts pixels by a product of matrices: in bf16 it would miscount.
        with torch.autocast(self.device.type, enabled=False):
            probabilities = [_peaks(each.float().sigmoid()) for each in outputs.categories]
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
        """Cells that are sure enough and whose masks are large enough; scores are maskness, too."""
        # A score only falls from here on, and a worse candidate doesn't touch a better one.
        least = max(self.least_probability, selection.least_score - 1e-6)
        found = [Candidates.none(size, outputs.categories[0].device)]
        for level, (own, stride) in enumerate(zip(probabilities, STRIDES, strict=True)):
            by_cell = own[image].flatten(1).T  # (S * S, C)
            cells, classes = (by_cell > least).nonzero().T
            if len(cells) == 0:
                continue
            which, rows = torch.unique(cells, return_inverse=True)
            masks = self.network.masks(outputs, image, level, which, size).float()
            inside = masks > self.mask_threshold
            areas = inside.sum(dim=(1, 2))
            sure = (masks * inside).sum(dim=(1, 2)) / areas.clamp(min=1)
            level_found = Candidates(by_cell[cells, classes] * sure[rows], classes, masks[rows])
            found.append(level_found[areas[rows] > stride])
        return Candidates.concatenate(found)

    def _detections(
        self, candidates: Candidates, shape: Size, size: Size, selection: Selection
    ) -> Detections:
        """The candidates that are left after they competed, and that are wanted."""
        best = candidates[candidates.scores.argsort(descending=True)[: self.most_candidates]]
        scores = best.scores
        if len(scores):
            inside = best.masks > self.mask_threshold
            scores = matrix_nms(inside, scores, best.classes, self.sigma)
        order = scores.argsort(descending=True)
        order = order[scores[order] >= self.least_score][: self.most_detections]
        labels = torch.tensor(list(self.categories), device=scores.device)[best.classes[order]]
        chosen = selection.rows(None, scores[order].cpu().numpy(), labels.cpu().numpy())
        rows = torch.from_numpy(chosen).to(order.device)
        return Detections(
            size,
            None,
            scores[order][rows],
            labels[rows],
            SoftMasks(best.masks[order][rows], shape),
            selection,
        )


def _peaks(probabilities: Tensor) -> Tensor:
    """Zero where the cell to the left, above or between these has a higher probability.

    (B, C, S, S); the first row and column have themselves alone beyond the border.
    """
    highest = max_pool2d(probabilities, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return probabilities * (highest == probabilities)


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    return key
