"""Mask R-CNN with a ResNet-50-FPN backbone: torchvision's model without full-frame masks.

He et al., "Mask R-CNN", 2017. Backbone, region proposal network and heads are torchvision's
modules, called one after the other: the mask head only processes boxes that pass the thresholds,
and the 28 x 28 masks are resized inside their boxes. The results equal those of torchvision's
model.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from http.client import HTTPException
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import (
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from streamseg.errors import WeightsError
from streamseg.models.base import ClassCounts, ClassRows, Segmenter, State, count_rows
from streamseg.models.categories import COCO, COCO_THINGS, Categories
from streamseg.models.detections import Batch, Detections
from streamseg.models.layers.grid_paste import SampledMasks
from streamseg.models.layers.masks import BoxMasks
from streamseg.models.layers.two_stage import Boxes, combine_detections, select_boxes
from streamseg.models.mask_rcnn.loss import MaskRCNNCriterion
from streamseg.models.selection import Selection
from streamseg.structures.masks import Size
from streamseg.structures.results import Image

BACKGROUND = -1
"""Label of the background output; datasets may have a category 0."""
COCO_OUTPUTS = 91
"""Class outputs for COCO: background and ids 1 to 90, so that an index is a category id."""

_PUBLISHED = {
    "mask_rcnn_r50_fpn": MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    "mask_rcnn_r50_fpn_v2": MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
}

_RENAMED: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (
        re.compile(r"^(roi_heads\.mask_head)\.mask_fcn([1-4])\.(weight|bias)$"),
        lambda match: f"{match[1]}.{int(match[2]) - 1}.0.{match[3]}",
    ),
)


class MaskRCNN(Segmenter):
    """torchvision's Mask R-CNN. ``input_size`` is the length of the resized short side.

    The long side is limited to 1333 / 800 of it, as published.
    """

    trained_on = COCO_THINGS
    network: Any
    long_to_short: ClassVar[float] = 1333 / 800
    mask_source: ClassVar[type[BoxMasks | SampledMasks]] = BoxMasks
    """Type of the raw masks, made from probabilities (N, M, M) and boxes (N, 4)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ids = torch.tensor(self.ids_of_outputs(self.categories))
        _fix_levels(self.network)
        # torchvision computes boxes in the dtype of its inputs: in bf16 the coordinates at the
        # right side of a wide image would be multiples of eight pixels.
        for module in (self.network.rpn.head, self.network.roi_heads.box_predictor):
            module.register_forward_hook(lambda _module, _inputs, outputs: _to_fp32(outputs))
        self.network.rpn.anchor_generator.register_forward_pre_hook(_maps_to_fp32)

    @classmethod
    def ids_of_outputs(cls, things: Mapping[int, str]) -> list[int]:
        """Return the category id of each output; the first one is the background."""
        return list(range(COCO_OUTPUTS)) if things == COCO else [BACKGROUND, *things]

    @classmethod
    def outputs_of(cls, things: Mapping[int, str]) -> list[int]:
        """Return the index of the class output for each category."""
        ids = cls.ids_of_outputs(things)
        return [ids.index(number) for number in things]

    @classmethod
    def build(cls, name: str, categories: Categories) -> nn.Module:
        outputs = len(cls.ids_of_outputs(categories.things))
        if name == "mask_rcnn_r50_fpn_v2":
            network: nn.Module = maskrcnn_resnet50_fpn_v2(
                weights_backbone=None, num_classes=outputs
            )
        else:
            backbone = resnet_fpn_backbone(
                backbone_name="resnet50",
                weights=None,
                norm_layer=FrozenBatchNorm2d,
                trainable_layers=5,
            )
            network = TorchvisionMaskRCNN(backbone, outputs)
            _set_epsilon(network, 0.0)
        return network

    @classmethod
    def class_rows(cls, network: nn.Module, categories: Categories) -> Mapping[str, ClassRows]:
        del network  # the rows are the same for all variants
        things = categories.things
        outputs = dict(zip(things.values(), cls.outputs_of(things), strict=True))
        single = {name: (row,) for name, row in outputs.items()}
        four = {name: tuple(range(4 * row, 4 * row + 4)) for name, row in outputs.items()}
        parts: dict[str, ClassRows] = {
            "roi_heads.box_predictor.cls_score": single,
            "roi_heads.box_predictor.bbox_pred": four,
            "roi_heads.mask_predictor.mask_fcn_logits": single,
        }
        return {f"{name}.{kind}": parts[name] for name in parts for kind in ("weight", "bias")}

    @classmethod
    def class_counts(cls, categories: Categories) -> ClassCounts:
        outputs = len(cls.ids_of_outputs(categories.things))
        return ClassCounts(outputs - 1, len(categories.stuff))

    @classmethod
    def count_classes(cls, state: Mapping[str, Tensor]) -> ClassCounts | None:
        outputs = count_rows(state, "roi_heads.box_predictor.cls_score.bias")
        return ClassCounts(outputs - 1) if outputs > 1 else None

    def criterion(self, weights: Mapping[str, float]) -> MaskRCNNCriterion:
        return MaskRCNNCriterion(self.network, weights, self.outputs_of(self.categories))

    @classmethod
    def published(cls, name: str) -> State | None:
        weights = _PUBLISHED[name]
        try:
            with redirect_stdout(sys.stderr):  # torch prints the download progress to stdout
                state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except (OSError, HTTPException, RuntimeError) as error:
            raise WeightsError(
                f"{name}: the weights can't be downloaded ({error}): download {weights.url} on a "
                "machine with network access and give its path as weights"
            ) from None
        return dict(state)

    @classmethod
    def convert_state_dict(cls, network: nn.Module, state: State) -> State:
        """Convert state dicts of old and current torchvision versions.

        The published weights of the first Mask R-CNN use frozen batch norms with an epsilon of 0.
        Files with ``num_batches_tracked`` use ordinary batch norms, whose epsilon is 1e-5.
        """
        renamed = {
            _current_name(key): tensor for key, tensor in state.items() if not _is_constant(key)
        }
        _match_mask_predictor(network, renamed)
        if any(isinstance(module, FrozenBatchNorm2d) for module in network.modules()):
            counters = [key for key in renamed if key.endswith(".num_batches_tracked")]
            _set_epsilon(network, 1e-5 if counters else 0.0)
            for key in counters:
                del renamed[key]
        return renamed

    def resized_shape(self, size: Size) -> Size:
        # The order of operations is torchvision's: another one may differ by a pixel.
        max_long_side = round(self.input_size * self.long_to_short)
        scale = min(self.input_size / min(size), max_long_side / max(size))
        return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)

    def preprocess(self, image: Image, into: Tensor) -> None:
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).div_(255)
        normalized = self.network.transform.normalize(pixels)
        shape = tuple(into.shape[1:])
        resized = interpolate(normalized[None], shape, mode="bilinear", align_corners=False)
        into.copy_(resized[0])

    def detect(self, batch: Batch, selections: Sequence[Selection]) -> list[Detections]:
        return self.detect_from_features(self.network.backbone(batch.tensor), batch, selections)

    def detect_from_features(
        self, features: dict[str, Tensor], batch: Batch, selections: Sequence[Selection]
    ) -> list[Detections]:
        """Detect objects from the feature maps of the feature pyramid network."""
        heads = self.network.roi_heads
        shapes = list(batch.shapes)
        proposals, _ = self.network.rpn(ImageList(batch.tensor, shapes), features)
        pooled = heads.box_head(heads.box_roi_pool(features, proposals, shapes))
        boxes, scores, outputs = heads.postprocess_detections(
            *heads.box_predictor(pooled), proposals, shapes
        )
        labels = [self._ids.to(each.device)[each] for each in outputs]
        selected = [
            select_boxes(*each)
            for each in zip(boxes, scores, labels, shapes, batch.sizes, selections, strict=True)
        ]
        counts = [len(boxes.scores) for boxes in selected]
        probabilities = torch.split(self._masks(features, selected, shapes), counts)
        masks = [
            self.mask_source(own, boxes.source)
            for own, boxes in zip(probabilities, selected, strict=True)
        ]
        return combine_detections(batch, selections, selected, masks)

    def _masks(
        self, features: dict[str, Tensor], found: Sequence[Boxes], shapes: list[Size]
    ) -> Tensor:
        """Mask probabilities (N, 28, 28) for the boxes of all images."""
        heads = self.network.roi_heads
        roi_features = heads.mask_roi_pool(features, [boxes.prepared for boxes in found], shapes)
        logits = heads.mask_predictor(heads.mask_head(roi_features))
        labels = torch.cat([boxes.labels for boxes in found])
        outputs = (labels[:, None] == self._ids.to(labels.device)).int().argmax(dim=1)
        of_label: Tensor = logits[torch.arange(len(labels), device=labels.device), outputs]
        return of_label.float().sigmoid()


def _to_fp32(outputs: Any) -> Any:
    """Convert nested tuples and lists of tensors to float32."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    return type(outputs)(_to_fp32(each) for each in outputs)


def _maps_to_fp32(_anchors: nn.Module, inputs: tuple[Any, list[Tensor]]) -> Any:
    """Convert the maps for the anchor generator, which uses their dtype, device and size."""
    images, maps = inputs
    return images, [each[:, :1].float() for each in maps]


def _current_name(key: str) -> str:
    """Convert a parameter name of old torchvision versions to the current name."""
    for pattern, replacement in _RENAMED:
        key = pattern.sub(replacement, key)
    return key


def _is_constant(key: str) -> bool:
    """Return whether a tensor of a file is a constant in this implementation."""
    return key.startswith("rpn.anchor_generator.")


def _match_mask_predictor(network: Any, state: State) -> None:
    """Rebuild the mask predictor with the number of hidden channels in the state dict."""
    trained = state.get("roi_heads.mask_predictor.conv5_mask.weight")
    if trained is None or trained.ndim != 4:
        return
    inputs, hidden = trained.shape[:2]
    current = network.roi_heads.mask_predictor
    if inputs == current.conv5_mask.in_channels and 0 < hidden != current.conv5_mask.out_channels:
        outputs = current.mask_fcn_logits.out_channels
        network.roi_heads.mask_predictor = MaskRCNNPredictor(inputs, hidden, outputs)


def _set_epsilon(network: nn.Module, epsilon: float) -> None:
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = epsilon


def _fix_levels(network: Any) -> None:
    """Let torchvision's RoI poolers infer the strides of their levels from a square image now.

    Otherwise they infer the strides permanently from the first image, and a very thin image gives
    wrong ones: the results would depend on the order of the images.
    """
    side = 256
    levels = {
        str(level): torch.zeros(
            1, network.backbone.out_channels, side >> n, side >> n, device="cpu"
        )
        for level, n in enumerate((2, 3, 4, 5))
    }
    for pooler in (network.roi_heads.box_roi_pool, network.roi_heads.mask_roi_pool):
        if isinstance(pooler, MultiScaleRoIAlign):
            pooler(levels, [torch.zeros(0, 4)], [(side, side)])
