"""detectron2's Mask R-CNN with a ResNet-50-FPN, built from torchvision's modules where possible.

He et al., "Mask R-CNN", 2017. Differences from torchvision's model: the strides of the backbone are
in the first convolution of a block (as in the original ResNet), images are BGR, anchors are not
rounded, RoIAlign has no half-pixel shift and one sample per pixel, proposals are ranked by logits
and not filtered by size, and masks are pasted by grid sampling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FrozenBatchNorm2d, batched_nms, clip_boxes_to_image, roi_align

from streamseg.models.base import State
from streamseg.models.categories import Categories
from streamseg.models.layers.grid_paste import SampledMasks
from streamseg.models.mask_rcnn.segmenter import BACKGROUND, MaskRCNN
from streamseg.models.mask_rcnn_d2.loss import MaskRCNND2Criterion
from streamseg.structures.masks import Size
from streamseg.structures.results import Image

CHANNELS = 256
STRIDES = (4, 8, 16, 32, 64)
SIZES = ((32,), (64,), (128,), (256,), (512,))
"""Anchor size of each pyramid level, in pixels."""
ASPECT_RATIOS = ((0.5, 1.0, 2.0),) * 5
RESIDUAL, STEM = 0.25, 1 / 58
"""Initial scales of the last norm of each block and of the first norm, for random weights.

The norms are frozen, so the initial scales must keep activations bounded: the residual blocks must
not add up, and the input pixels have a standard deviation of about 58.
"""

_RENAMED: tuple[tuple[str, str], ...] = (
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"^backbone\.bottom_up\.stem\.conv1\.", "backbone.body.conv1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^(backbone\.bottom_up\..*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"^roi_heads\.box_head\.fc1\.", "roi_heads.box_head.fc6."),
    (r"^roi_heads\.box_head\.fc2\.", "roi_heads.box_head.fc7."),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits."),
)

_NUMBERED: tuple[tuple[re.Pattern[str], str, int], ...] = (
    (re.compile(r"^backbone\.bottom_up\.res(\d)\."), "backbone.body.layer{}.", -1),
    (re.compile(r"^backbone\.fpn_lateral(\d)\."), "backbone.fpn.inner_blocks.{}.0.", -2),
    (re.compile(r"^backbone\.fpn_output(\d)\."), "backbone.fpn.layer_blocks.{}.0.", -2),
    (re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d)\."), "roi_heads.mask_head.{}.0.", -1),
)
"""Parameter names whose level index has another offset in this implementation."""


class MaskRCNND2(MaskRCNN):
    """detectron2's Mask R-CNN. ``input_size`` is the length of the resized short side."""

    mean: ClassVar[tuple[float, ...]] = (103.53, 116.28, 123.675)
    mask_source = SampledMasks

    @classmethod
    def ids_of_outputs(cls, things: Mapping[int, str]) -> list[int]:
        return [BACKGROUND, *things]

    @classmethod
    def build(cls, name: str, categories: Categories) -> nn.Module:
        del name  # the family has one model
        return MaskRCNND2Net(len(categories.things))

    def criterion(self, weights: Mapping[str, float]) -> MaskRCNND2Criterion:
        return MaskRCNND2Criterion(self.network, weights, self.outputs_of(self.categories))

    @classmethod
    def published(cls, name: str) -> State | None:
        del name
        return None

    @classmethod
    def convert_state_dict(cls, network: nn.Module, state: State) -> State:
        """Convert state dicts of detectron2.

        The background is the last class in detectron2 and the first one in torchvision, where it
        has box and mask outputs as well.
        """
        del network
        if not any(key.startswith("proposal_generator.") for key in state):
            return state
        renamed = {_renamed(key): tensor for key, tensor in state.items() if not _is_constant(key)}
        for part in ("weight", "bias"):
            for layer, rearrange in _REARRANGED.items():
                key = f"roi_heads.{layer}.{part}"
                if key in renamed:
                    renamed[key] = rearrange(renamed[key])
        return renamed

    def resized_shape(self, size: Size) -> Size:
        max_long_side = round(self.input_size * self.long_to_short)
        scale = self.input_size / min(size)
        height, width = (
            (self.input_size, scale * size[1])
            if size[0] < size[1]
            else (scale * size[0], self.input_size)
        )
        if max(height, width) > max_long_side:
            scale = max_long_side / max(height, width)
            height, width = height * scale, width * scale
        return max(int(height + 0.5), 1), max(int(width + 0.5), 1)

    def preprocess(self, image: Image, into: Tensor) -> None:
        height, width = into.shape[1:]
        resized = Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BILINEAR)
        bgr = torch.from_numpy(np.array(resized)[:, :, ::-1].copy()).permute(2, 0, 1)
        torch.sub(bgr, torch.tensor(self.mean)[:, None, None], out=into)


class MaskRCNND2Net(nn.Module):
    """Network: backbone with feature pyramid, region proposal network and heads.

    Args:
        classes: number of classes without background.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = resnet_fpn_backbone(
            backbone_name="resnet50",
            weights=None,
            norm_layer=FrozenBatchNorm2d,
            trainable_layers=5,
        )
        _move_strides(self.backbone.body)
        _scale_norms(self.backbone.body)
        self.rpn = _Proposals(
            _Anchors(SIZES, ASPECT_RATIOS),
            RPNHead(CHANNELS, len(ASPECT_RATIOS[0])),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 1000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.roi_heads = _Heads(
            _RoIPool(7),
            TwoMLPHead(CHANNELS * 7 * 7, 1024),
            FastRCNNPredictor(1024, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            mask_roi_pool=_RoIPool(14),
            mask_head=MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, classes + 1),
        )


class _Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchor generator without rounding, with fixed strides."""

    def generate_anchors(
        self,
        scales: Sequence[int],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - torchvision's signature
    ) -> Tensor:
        (scale,) = scales
        widths = [(scale**2 / ratio) ** 0.5 for ratio in aspect_ratios]
        width = torch.tensor(widths, dtype=dtype, device=device)
        height = width * torch.tensor(aspect_ratios, dtype=dtype, device=device)
        return torch.stack([-width, -height, width, height], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        strides = [[torch.tensor(n, device=first.device)] * 2 for n in STRIDES]
        grids = [list(each.shape[-2:]) for each in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


class _Proposals(RegionProposalNetwork):  # type: ignore[misc]
    """Region proposal network that ranks by logits: rounding makes probabilities near 1 equal."""

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[Size],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Select the best proposals: boxes (N, 4) and logits (N,) per image."""
        logits = objectness.detach().reshape(len(proposals), -1)
        filtered = [
            self._filter_image(boxes, of_image, shape, num_anchors_per_level)
            for boxes, of_image, shape in zip(proposals.detach(), logits, image_shapes, strict=True)
        ]
        return [boxes for boxes, _ in filtered], [scores for _, scores in filtered]

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the objectness loss and the L1 box loss of sampled anchors."""
        count = self.fg_bg_sampler.batch_size_per_image * len(labels)
        positive, negative = (
            torch.cat(each).nonzero()[:, 0] for each in self.fg_bg_sampler(labels)
        )
        sampled = torch.cat([positive, negative])
        targets = torch.cat(labels)[sampled]
        objectness_loss = binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], targets, reduction="sum"
        )
        box_loss = l1_loss(
            pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum"
        )
        return objectness_loss / count, box_loss / count

    def _filter_image(
        self, boxes: Tensor, logits: Tensor, shape: Size, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        rows, levels, start = [], [], 0
        for level, count in enumerate(counts):
            of_level = logits[start : start + count]
            best = of_level.topk(min(self.pre_nms_top_n(), count)).indices + start
            rows.append(best)
            levels.append(torch.full_like(best, level))
            start += count
        row, level_of = torch.cat(rows), torch.cat(levels)
        clipped = clip_boxes_to_image(boxes[row], shape)
        has_area = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
        clipped, row, level_of = clipped[has_area], row[has_area], level_of[has_area]
        kept = batched_nms(clipped, logits[row], level_of, self.nms_thresh)
        kept = kept[: self.post_nms_top_n()]
        return clipped[kept], logits[row[kept]]


class _Heads(RoIHeads):  # type: ignore[misc]
    """RoI heads that do not filter detections by size."""

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[Size],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return boxes (N, 4), scores (N,) and outputs int64 (N,) per image, best first."""
        counts = [len(each) for each in proposals]
        decoded = torch.split(self.box_coder.decode(box_regression, proposals), counts)
        probabilities = torch.split(class_logits.softmax(dim=1), counts)
        detected = [
            self._select(*each) for each in zip(decoded, probabilities, image_shapes, strict=True)
        ]
        boxes, scores, outputs = zip(*detected, strict=True)
        return list(boxes), list(scores), list(outputs)

    def _select(
        self, boxes: Tensor, probabilities: Tensor, shape: Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, outputs = (probabilities[:, 1:] > self.score_thresh).nonzero().T
        outputs = outputs + 1  # output 0 is the background
        scores = probabilities[rows, outputs]
        clipped = clip_boxes_to_image(boxes[rows, outputs], shape)
        kept = batched_nms(clipped, scores, outputs, self.nms_thresh)[: self.detections_per_img]
        kept = kept[(clipped[kept, 2:] > clipped[kept, :2]).all(dim=1)]
        return clipped[kept], scores[kept], outputs[kept]


class _RoIPool(nn.Module):
    """RoIAlign without a half-pixel shift; the size of a box determines its pyramid level.

    Args:
        cells: height and width of the output.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[Size]
    ) -> Tensor:
        """Return features (N, 256, cells, cells) of the boxes of all images, concatenated."""
        del image_shapes  # the strides are fixed
        image = torch.cat([torch.full_like(each[:, :1], n) for n, each in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(list(boxes))], dim=1)
        areas = (rois[:, 3:] - rois[:, 1:3]).prod(dim=1)
        levels = torch.floor(4 + torch.log2(areas.sqrt() / 224 + 1e-8)).clamp(2, 5)
        first = features["0"]
        pooled = first.new_zeros(len(rois), first.shape[1], self.cells, self.cells)
        for level, stride in enumerate(STRIDES[:4]):
            rows = (levels == level + 2).nonzero()[:, 0]
            aligned = roi_align(
                features[str(level)], rois[rows], self.cells, 1 / stride, 0, aligned=True
            )
            pooled[rows] = aligned.to(pooled.dtype)
        return pooled


def _move_strides(body: Any) -> None:
    """Move the stride of each stage from its second convolution to its first."""
    for stage in (body.layer2, body.layer3, body.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)


def _scale_norms(body: Any) -> None:
    """Set the scales of the norms for random weights, see ``RESIDUAL``."""
    body.bn1.weight.fill_(STEM)
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        for block in stage:
            block.bn3.weight.fill_(RESIDUAL)


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    for numbered, template, shift in _NUMBERED:
        if found := numbered.match(key):
            return template.format(int(found[1]) + shift) + key[found.end() :]
    return key


def _is_constant(key: str) -> bool:
    """Return whether a tensor of a file is a constant in this implementation."""
    return key in ("pixel_mean", "pixel_std") or ".anchor_generator." in key


def _move_background_first(rows: Tensor) -> Tensor:
    return torch.cat([rows[-1:], rows[:-1]])


def _prepend_four_rows(rows: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(rows[:4]), rows])


def _prepend_row(rows: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(rows[:1]), rows])


_REARRANGED = {
    "box_predictor.cls_score": _move_background_first,
    "box_predictor.bbox_pred": _prepend_four_rows,
    "mask_predictor.mask_fcn_logits": _prepend_row,
}
