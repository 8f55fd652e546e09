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
from streamseg.models.base import ClassCounts, ClassRows, Segmenter, State, count_rows
from streamseg.models.categories import COCO_THINGS, Categories
from streamseg.models.detections import Batch, Detections
from streamseg.models.layers.darknet import DarkNet53
from streamseg.models.layers.fast_nms import fast_nms
from streamseg.models.layers.resampling import bilinear, resize_and_threshold
from streamseg.models.selection import Selection
from streamseg.models.yolact.loss import YOLACTCriterion
from streamseg.models.yolact.network import Outputs, Variant, YOLACTNet, decode, inside_boxes
from streamseg.structures.masks import Masks, Size
from streamseg.structures.results import Image

_VARIANTS = {
    "yolact_r50": Variant(50),
    "yolact_r101": Variant(101),
    "yolact_darknet53": Variant(0),
    "yolact_im700": Variant(101, max_masks=300),
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

_UNUSED = re.compile(r"^backbone\.layer(?!s)|^fpn\.downsample_layers\.(?![01]\.)")
"""Unused tensors of published files."""


@dataclass(frozen=True, slots=True, eq=False)
class PrototypeMasks:
    """Raw mask predictions of YOLACT: linear combinations of prototypes, cropped by boxes.

    Attributes:
        prototypes: float32 (32, h, w), maps of the whole image.
        coefficients: float32 (N, 32).
        boxes: float32 (N, 4) xyxy, fractions of the image.
    """

    prototypes: Tensor
    coefficients: Tensor
    boxes: Tensor

    def masks(self, size: Size, threshold: float) -> Masks:
        """Combine, crop, resize to ``size`` and threshold the masks.

        Only pixels inside the box are combined, and only pixels that can exceed the threshold are
        resized; the result equals that of doing both for the whole frame.
        """
        prototypes = self.prototypes.float().cpu()
        rows, columns = (
            bilinear(prototypes.shape[1], size[0]),
            bilinear(prototypes.shape[2], size[1]),
        )
        resized_masks = [
            resize_and_threshold(
                values, rows, columns, threshold, partial(resize_map, values, size)
            )
            for values in self._combine(prototypes)
        ]
        return Masks.from_crops(
            [crop for crop, _ in resized_masks],
            np.array([corner for _, corner in resized_masks], np.int64),
            size,
        )

    def _combine(self, prototypes: Tensor) -> list[Tensor]:
        """Return the probabilities (h, w) of each object, 0 outside its box."""
        cells = inside_boxes(self.boxes.float().cpu(), *prototypes.shape[1:])
        masks = []
        for own, inside in zip(self.coefficients.float().cpu(), cells, strict=True):
            values = torch.zeros(prototypes.shape[1:])
            y, x = _span(inside.any(dim=1)), _span(inside.any(dim=0))
            values[y, x] = torch.tensordot(own, prototypes[:, y, x], 1).sigmoid()
            masks.append(values)
        return masks


class YOLACT(Segmenter):
    """YOLACT and YOLACT++. Images are resized to a square of ``input_size``.

    The score of YOLACT++ is the class score times the predicted mask IoU, as in the authors' demo;
    their COCO evaluation uses the product for masks and the class score for boxes.
    """

    trained_on = COCO_THINGS
    multiple: ClassVar[int] = 1
    mean: ClassVar[tuple[float, ...]] = (123.68, 116.78, 103.94)
    std: ClassVar[tuple[float, ...]] = (58.40, 57.12, 57.38)
    min_score: ClassVar[float] = 0.05
    """Minimum score of the best class of a box; Fast NMS then uses the box for all classes."""
    nms_iou: ClassVar[float] = 0.5
    max_per_class: ClassVar[int] = 200
    max_detections: ClassVar[int] = 100

    min_rescoring_input: ClassVar[int] = 249
    """Minimum ``input_size`` of YOLACT++: smaller masks vanish in the mask IoU network."""

    network: YOLACTNet

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.network.plus and self.input_size < self.min_rescoring_input:
            raise UsageError(
                f"{self.name}: input_size must be at least {self.min_rescoring_input}, "
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
        outputs = len(names) + 1  # per anchor, background first
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
        things = count_rows(state, "semantic.bias")
        return ClassCounts(things) if things else None

    def criterion(self, weights: Mapping[str, float]) -> YOLACTCriterion:
        return YOLACTCriterion(self.network, weights)

    @classmethod
    def convert_state_dict(cls, network: nn.Module, state: State) -> State:
        """Convert state dicts of the authors."""
        assert isinstance(network, YOLACTNet)
        darknet = isinstance(network.backbone, DarkNet53)
        return {
            _renamed(key, darknet=darknet): tensor
            for key, tensor in state.items()
            if not (_is_published(state) and _UNUSED.match(key))
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
        torch.sub(resized, mean, out=into).div_(torch.tensor(self.std)[:, None, None])

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
        passed = scores.amax(dim=1) > self._min_score(selection)
        relative = decode(outputs.boxes[image][passed].float(), outputs.anchors[passed])
        kept, classes, best = fast_nms(
            relative, scores[passed], self.nms_iou, self.max_per_class, self.max_detections
        )
        boxes, coefficients = relative[kept], outputs.coefficients[image][passed][kept].float()
        prototypes = outputs.prototypes[image].float()
        if self.network.mask_iou is not None:
            best, order = self._rescore(prototypes, coefficients, boxes, classes, best)
            boxes, coefficients, classes = boxes[order], coefficients[order], classes[order]
        labels = torch.tensor(list(self.categories), device=classes.device)[classes]
        pixels = _to_pixels(boxes, size)
        selected = selection.select_rows(
            pixels.cpu().numpy(), best.cpu().numpy(), labels.cpu().numpy()
        )
        rows = torch.from_numpy(selected).to(boxes.device)
        masks = PrototypeMasks(prototypes, coefficients[rows], boxes[rows])
        return Detections(size, pixels[rows], best[rows], labels[rows], masks, selection)

    def _min_score(self, selection: Selection) -> float:
        """Return the minimum score of the best class of a box.

        A detection below all thresholds is not returned and suppresses none above them; but mask
        rescoring may increase its score.
        """
        if self.network.mask_iou is not None:
            return self.min_score
        return max(self.min_score, selection.min_score - 1e-6)

    def _rescore(
        self,
        prototypes: Tensor,
        coefficients: Tensor,
        boxes: Tensor,
        classes: Tensor,
        scores: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the scores times the predicted mask IoUs, descending, and their order."""
        assert self.network.mask_iou is not None
        if len(scores) == 0:
            return scores, classes
        masks = crop_masks(prototypes, coefficients, boxes)
        ious = self.network.mask_iou(masks).float().gather(1, classes[:, None])[:, 0]
        rescored = scores * ious
        order = rescored.argsort(descending=True)
        return rescored[order], order


def crop_masks(prototypes: Tensor, coefficients: Tensor, boxes: Tensor) -> Tensor:
    """Combine prototypes to probabilities (N, h, w), 0 outside relative boxes (N, 4)."""
    masks = torch.einsum("phw,np->nhw", prototypes, coefficients).sigmoid()
    return masks * inside_boxes(boxes, *prototypes.shape[1:])


def resize_map(values: Tensor, size: Size) -> Tensor:
    """Resize a whole map (h, w) to float32 (H, W)."""
    resized = interpolate(values[None, None], size, mode="bilinear", align_corners=False)
    return resized[0, 0]


def _to_pixels(boxes: Tensor, size: Size) -> Tensor:
    """Convert boxes to pixels: corners sorted, clipped to the image and rounded down."""
    extent = torch.tensor([size[1], size[0]], device=boxes.device)
    corners = boxes.view(-1, 2, 2)
    low, high = corners.amin(dim=1) * extent, corners.amax(dim=1) * extent
    sorted_corners = torch.stack([low.clamp(min=0), torch.minimum(high, extent)], dim=1)
    return sorted_corners.view(-1, 4).floor()


def _span(flags: Tensor) -> slice:
    """Return the range from the first to the last true element of (n,)."""
    rows = flags.nonzero()
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)


def _is_published(state: State) -> bool:
    return any(key.startswith("prediction_layers.") for key in state)


def _renamed(key: str, *, darknet: bool) -> str:
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    if darknet:
        return re.sub(r"^backbone\.layers\.", "backbone.stages.", key)
    return re.sub(
        r"^backbone\.layers\.(\d)\.", lambda match: f"backbone.layer{int(match[1]) + 1}.", key
    )
