"""Annotated pictures to learn from and to measure with: reading, checking, varying."""

from streamseg.datasets.augment import Augmentation
from streamseg.datasets.check import check
from streamseg.datasets.content import check_learnable, check_measurable
from streamseg.datasets.dataset import (
    AnnotatedImage,
    Annotation,
    Dataset,
    PatternFrame,
    PngSegment,
    Segmentation,
)
from streamseg.datasets.findings import Id, Problem, skipped_rows_counts, skipped_rows_summary
from streamseg.datasets.inspection import inspect
from streamseg.datasets.loading import coco_truth, load_image, load_sample, load_segment_ids
from streamseg.datasets.opening import open_dataset

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
    "load_image",
    "load_sample",
    "load_segment_ids",
    "open_dataset",
    "skipped_rows_counts",
    "skipped_rows_summary",
]
