"""Annotated pictures to learn from and to measure with: reading, checking, varying."""

from streamseg.data.dataset import (
    AnnotatedImage,
    Annotation,
    Dataset,
    PatternFrame,
    PngSegment,
    Segmentation,
)

__all__ = [
    "AnnotatedImage",
    "Annotation",
    "Dataset",
    "PatternFrame",
    "PngSegment",
    "Segmentation",
]
