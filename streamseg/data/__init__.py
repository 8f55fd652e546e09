"""Annotated pictures to learn from and to measure with: reading, checking, varying."""

from streamseg.data.augment import Augmentation
from streamseg.data.check import check
from streamseg.data.content import check_learnable, check_measurable
from streamseg.data.dataset import (
    AnnotatedImage,
    Annotation,
    Dataset,
    PatternFrame,
    PngSegment,
    Segmentation,
)
from streamseg.data.findings import Id, Problem, skipped_rows_counts, skipped_rows_summary
from streamseg.data.inspection import inspect
from streamseg.data.loading import coco_truth, load_picture, load_sample, load_segment_ids
from streamseg.data.opening import open_dataset

__all__ = [
    "AnnotatedImage",
    "Annotation",
    "Augmentation",
    "Dataset",
    "Id",
    "PatternFrame",
    "PngSegment",
    "Problem",
    "Segmentation",
    "check",
    "check_learnable",
    "check_measurable",
    "coco_truth",
    "inspect",
    "load_picture",
    "load_sample",
    "load_segment_ids",
    "open_dataset",
    "skipped_rows_counts",
    "skipped_rows_summary",
]
