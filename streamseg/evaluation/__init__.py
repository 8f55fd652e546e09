"""Evaluation: COCO average precision, panoptic quality, tracking metrics, confusion matrices."""

from streamseg.evaluation.coco_ap import ClassScores, CocoScores, PrecisionRecall, evaluate_coco
from streamseg.evaluation.confusion_matrix import ConfusionMatrix, compute_confusion_matrix
from streamseg.evaluation.panoptic_files import evaluate_panoptic
from streamseg.evaluation.panoptic_quality import (
    ClassQuality,
    PanopticEvaluator,
    PanopticMap,
    PanopticScores,
    Quality,
    SegmentCounts,
    SegmentInfo,
)
from streamseg.evaluation.plots import Series, plot_confusion, plot_precision_recall, plot_series
from streamseg.evaluation.track_files import TrackedFrame, Tracks, read_tracks
from streamseg.evaluation.tracking_metrics import (
    TrackedSequence,
    TrackingScores,
    TrackScore,
    evaluate_tracks,
    score_sequences,
)

__all__ = [
    "ClassQuality",
    "ClassScores",
    "CocoScores",
    "ConfusionMatrix",
    "PanopticEvaluator",
    "PanopticMap",
    "PanopticScores",
    "PrecisionRecall",
    "Quality",
    "SegmentCounts",
    "SegmentInfo",
    "Series",
    "TrackScore",
    "TrackedFrame",
    "TrackedSequence",
    "TrackingScores",
    "Tracks",
    "compute_confusion_matrix",
    "evaluate_coco",
    "evaluate_panoptic",
    "evaluate_tracks",
    "plot_confusion",
    "plot_precision_recall",
    "plot_series",
    "read_tracks",
    "score_sequences",
]
