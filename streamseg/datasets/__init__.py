"""Annotated image datasets: reading, validation, samples with targets, augmentation."""

from streamseg.datasets.augmentation import Augmentation
from streamseg.datasets.dataset import (
    AnnotatedImage,
    Annotation,
    Dataset,
    PatternFrame,
    PngSegment,
    Segmentation,
)
from streamseg.datasets.formats import open_dataset
from streamseg.datasets.problems import Id, Problem, skipped_rows_counts, skipped_rows_summary
from streamseg.datasets.samples import coco_truth, load_image, load_sample, load_segment_ids
from streamseg.datasets.validation import check, check_learnable, check_measurable, inspect

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
