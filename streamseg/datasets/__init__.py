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
from streamseg.datasets.problems import Id, Problem, count_skipped_rows, format_skipped_rows
from streamseg.datasets.samples import dataset_to_coco, load_image, load_sample, load_segment_ids
from streamseg.datasets.validation import (
    check_evaluable,
    check_trainable,
    find_file_problems,
    find_problems,
)

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
    "check_evaluable",
    "check_trainable",
    "count_skipped_rows",
    "dataset_to_coco",
    "find_file_problems",
    "find_problems",
    "format_skipped_rows",
    "load_image",
    "load_sample",
    "load_segment_ids",
    "open_dataset",
]
