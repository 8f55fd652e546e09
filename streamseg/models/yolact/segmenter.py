"""YOLACT and YOLACT++ as a :class:`~streamseg.models.base.Segmenter`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from streamseg.errors import UsageError
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
from streamseg.models.layers.darknet import DarkNet53
from streamseg.models.layers.fast_nms import fast_nms
from streamseg.models.layers.resampling import bilinear, resized_above
from streamseg.models.selection import Selection
from streamseg.models.yolact.loss import YOLACTCriterion
from streamseg.models.yolact.network import Outputs, Variant, YOLACTNet, decode, inside_boxes
from streamseg.structures.masks import Masks, Size
from streamseg.structures.results import Image

_VARIANTS = {
    "yolact_r50": Variant(50),
    "yolact_r101": Variant(101),
    "yolact_darknet53": Variant(0),
    "yolact_im700": Variant(101, most_masks=300),
    "yolact_plus_r50": Variant(50, plus=True),
    "yolact_plus_r101": Variant(101, plus=True, interval=3),
}

_RENAMED: tuple[tuple[str, str], ...] = (
    (r"^backbone\._preconv\.", "backbone.stem."),
    (r"\.conv_offset_mask\.", ".offset."),
    (r"^fpn\.lat_layers\.", "fpn.lateral."),
    (r"^fpn\.pred_layers\.", "fpn.smooth."),
    (r"^fpn\.downsample_layers\.", "fpn.downsample."),
    (r"^proto_net\.", "prototypes."),
    (r"^prediction_layers\.0\.upfeature\.0\.", "head.shared."),
    (r"^prediction_layers\.0\.bbox_layer\.", "head.boxes."),
    (r"^prediction_layers\.0\.conf_layer\.", "head.classes."),
    (r"^prediction_layers\.0\.mask_layer\.", "head.coefficients."),
    (r"^semantic_seg_conv\.", "semantic."),
    (r"^maskiou_net\.maskiou_net\.", "mask_iou.layers."),
)

_LEFT_OVER = re.compile(r"^backbone\.layer(?!s)|^fpn\.downsample_layers\.(?![01]\.)")
"""Tensors of published files that nothing uses."""


@dataclass(frozen=True, slots=True, eq=False)
class PrototypeMasks:
    """Masks as YOLACT makes them: mixtures of prototypes, cut out by boxes.

    Attributes:
        prototypes: float32 (32, h, w), of the whole image.
        coefficients: float32 (N, 32).
        boxes: float32 (N, 4) xyxy, fractions of the image.
    """

    prototypes: Tensor
    coefficients: Tensor
    boxes: Tensor

    def masks(self, size: Size, threshold: float) -> Masks:
        """The pixels above ``threshold`` of maps that are mixed, cut out and resized to ``size``.

        Only what lies in its box is mixed, and only where the result can be above the threshold
        is it resized; the pixels are those of doing both for the whole frame.
        """
        prototypes = self.prototypes.float().cpu()
        rows, columns = (
            bilinear(prototypes.shape[1], size[0]),
            bilinear(prototypes.shape[2], size[1]),
        )
        made = [
            resized_above(values, rows, columns, threshold, partial(whole, values, size))
            for values in self._mixed(prototypes)
        ]
        return Masks.from_crops(
            [crop for crop, _ in made], np.array([at for _, at in made], np.int64), size
        )

    def _mixed(self, prototypes: Tensor) -> list[Tensor]:
        """Probabilities (h, w) of each object, 0 outside its box."""
        cells = inside_boxes(self.boxes.float().cpu(), *prototypes.shape[1:])
        mixed = []
        for own, inside in zip(self.coefficients.float().cpu(), cells, strict=True):
            values = torch.zeros(prototypes.shape[1:])
            y, x = _span(inside.any(dim=1)), _span(inside.any(dim=0))
            values[y, x] = torch.tensordot(own, prototypes[:, y, x], 1).sigmoid()
            mixed.append(values)
        return mixed


class YOLACT(Segmenter):
    """YOLACT and YOLACT++. Images are resized to a square of ``input_size``, whatever their shape.

    A score of YOLACT++ is the box's times what the network thinks of the mask, as the authors show
    it; their COCO evaluation uses the product for masks and the first factor for boxes.
    """

    trained_on = COCO_THINGS
    multiple: ClassVar[int] = 1
    mean: ClassVar[tuple[float, ...]] = (123.68, 116.78, 103.94)
    deviation: ClassVar[tuple[float, ...]] = (58.40, 57.12, 57.38)
    least_score: ClassVar[float] = 0.05
    """Of a box's best class; the box then competes in all of them."""
    nms_iou: ClassVar[float] = 0.5
    most_of_a_class: ClassVar[int] = 200
    most_detections: ClassVar[int] = 100

    least_scored_input: ClassVar[int] = 249
    """Pixels; with less, nothing is left of a mask where YOLACT++ scores it."""

    network: YOLACTNet

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.network.plus and self.input_size < self.least_scored_input:
            raise UsageError(
                f"{self.name}: input_size must be at least {self.least_scored_input}, "
                f"not {self.input_size}"
            )

    @classmethod
    def build(cls, name: str, categories: Categories) -> YOLACTNet:
        return YOLACTNet(_VARIANTS[name], len(categories.things))

    @classmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        assert isinstance(network, YOLACTNet)
        names = list(categories.things.values())
        single = {name: (row,) for row, name in enumerate(names)}
        outputs = len(names) + 1  # of each anchor, background first
        anchors = len(network.head.classes.bias) // outputs  # type: ignore[arg-type]
        by_anchor = {
            name: tuple(anchor * outputs + 1 + row for anchor in range(anchors))
            for row, name in enumerate(names)
        }
        parts: dict[str, ClassRows] = {"semantic": single, "head.classes": by_anchor}
        if network.mask_iou is not None:
            parts["mask_iou.layers.10"] = single
        return {f"{name}.{kind}": parts[name] for name in parts for kind in ("weight", "bias")}

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        things = rows_of(state, "semantic.bias")
        return ClassCounts(things) if things else None

    def criterion(self, weights: Mapping[str, float]) -> YOLACTCriterion:
        return YOLACTCriterion(self.network, weights)

    @classmethod
    def convert_state_dict(cls, network: nn.Module, state: State) -> State:
        """Take the authors' files."""
        assert isinstance(network, YOLACTNet)
        darknet = isinstance(network.backbone, DarkNet53)
        return {
            _renamed(key, darknet=darknet): tensor
            for key, tensor in state.items()
            if not (_published(state) and _LEFT_OVER.match(key))
        }

    def resized_shape(self, size: Size) -> Size:
        del size
        return self.input_size, self.input_size

    def training_shape(self, shape: Size) -> Size:
        return self.resized_shape(shape)

    def preprocess(self, image: Image, into: Tensor) -> None:
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        resized = interpolate(pixels, into.shape[1:], mode="bilinear", align_corners=False)[0]
        if isinstance(self.network.backbone, DarkNet53):
            torch.div(resized, 255, out=into)
            return
        mean = torch.tensor(self.mean)[:, None, None]
        torch.sub(resized, mean, out=into).div_(torch.tensor(self.deviation)[:, None, None])

    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        outputs: Outputs = self.network(batch.tensor)
        return [
            self._detections(outputs, image, size, selection)
            for image, (size, selection) in enumerate(zip(batch.sizes, selections, strict=True))
        ]

    def _detections(
        self, outputs: Outputs, image: int, size: Size, selection: Selection
    ) -> Detections:
        scores = outputs.classes[image].float().softmax(dim=1)[:, 1:]  # (P, C)
        sure = scores.amax(dim=1) > self._least(selection)
        relative = decode(outputs.boxes[image][sure].float(), outputs.anchors[sure])
        which, classes, best = fast_nms(
            relative, scores[sure], self.nms_iou, self.most_of_a_class, self.most_detections
        )
        boxes, coefficients = relative[which], outputs.coefficients[image][sure][which].float()
        prototypes = outputs.prototypes[image].float()
        if self.network.mask_iou is not None:
            best, order = self._rescored(prototypes, coefficients, boxes, classes, best)
            boxes, coefficients, classes = boxes[order], coefficients[order], classes[order]
        labels = torch.tensor(list(self.categories), device=classes.device)[classes]
        pixels = _whole_pixels(boxes, size)
        chosen = selection.rows(pixels.cpu().numpy(), best.cpu().numpy(), labels.cpu().numpy())
        rows = torch.from_numpy(chosen).to(boxes.device)
        masks = PrototypeMasks(prototypes, coefficients[rows], boxes[rows])
        return Detections(size, pixels[rows], best[rows], labels[rows], masks, selection)

    def _least(self, selection: Selection) -> float:
        """What a box's best class must exceed.

        A detection below all thresholds can't come out, and it suppresses none above them. But
        where masks are scored, its score may still rise.
        """
        if self.network.mask_iou is not None:
            return self.least_score
        return max(self.least_score, selection.least_score - 1e-6)

    def _rescored(
        self,
        prototypes: Tensor,
        coefficients: Tensor,
        boxes: Tensor,
        classes: Tensor,
        scores: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Scores times what the network thinks of the masks, descending, and their order."""
        assert self.network.mask_iou is not None
        if len(scores) == 0:
            return scores, classes
        masks = cut_masks(prototypes, coefficients, boxes)
        thought = self.network.mask_iou(masks).float()
        own = thought.gather(1, classes[:, None])[:, 0]
        order = (scores * own).argsort(descending=True)
        return (scores * own)[order], order


def cut_masks(prototypes: Tensor, coefficients: Tensor, boxes: Tensor) -> Tensor:
    """Probabilities (N, h, w) of mixtures, 0 outside the boxes (N, 4), fractions of the image."""
    mixed = torch.einsum("phw,np->nhw", prototypes, coefficients).sigmoid()
    return mixed * inside_boxes(boxes, *prototypes.shape[1:])


def whole(values: Tensor, size: Size) -> Tensor:
    """One map (h, w) resized as a whole, float32 (H, W)."""
    resized = interpolate(values[None, None], size, mode="bilinear", align_corners=False)
    return resized[0, 0]


def _whole_pixels(boxes: Tensor, size: Size) -> Tensor:
    """Boxes in pixels of the image, corners sorted, cut at its border and rounded down."""
    extent = torch.tensor([size[1], size[0]], device=boxes.device)
    corners = boxes.view(-1, 2, 2)
    low, high = corners.amin(dim=1) * extent, corners.amax(dim=1) * extent
    sorted_corners = torch.stack([low.clamp(min=0), torch.minimum(high, extent)], dim=1)
    return sorted_corners.view(-1, 4).floor()


def _span(places: Tensor) -> slice:
    """From the first true place of (n,) to the last."""
    rows = places.nonzero()
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)


def _published(state: State) -> bool:
    return any(key.startswith("prediction_layers.") for key in state)


def _renamed(key: str, *, darknet: bool) -> str:
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    if darknet:
        return re.sub(r"^backbone\.layers\.", "backbone.stages.", key)
    return re.sub(
        r"^backbone\.layers\.(\d)\.", lambda match: f"backbone.layer{int(match[1]) + 1}.", key
    )
