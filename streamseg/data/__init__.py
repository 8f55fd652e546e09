"""Annotated pictures to learn from and to measure with: reading, checking, varying."""

from streamseg.data.augment import Augmentation
from streamseg.data.check import check
from streamseg.data.dataset import (
    AnnotatedImage,
    Annotation,
    Dataset,
    PatternFrame,
    PngSegment,
    Segmentation,
)
from streamseg.data.findings import Problem
from streamseg.data.loading import coco_truth, load_picture, load_sample, load_segment_ids
from streamseg.data.opening import open_dataset

__all__ = [
    "AnnotatedImage",
    "Annotation",
    "Augmentation",
    "Dataset",
    "PatternFrame",
    "PngSegment",
    "Problem",
    "Segmentation",
    "check",
    "coco_truth",
    "load_picture",
    "load_sample",
    "load_segment_ids",
    "open_dataset",
]
