"""How good results are: average precision, panoptic quality, tracking; numbers and pictures."""

from streamseg.evaluation.coco_ap import ClassScores, CocoScores, PrecisionRecall, evaluate_coco
from streamseg.evaluation.confusion import ConfusionMatrix, confusion
from streamseg.evaluation.panoptic import (
    ClassQuality,
    PanopticCount,
    PanopticMap,
    PanopticScores,
    Quality,
    SegmentInfo,
    Tally,
    count_image,
)
from streamseg.evaluation.panoptic_files import panoptic_quality
from streamseg.evaluation.plots import Series, plot_confusion, plot_precision_recall, plot_series
from streamseg.evaluation.report import (
    Listing,
    coco_classes,
    coco_summary,
    panoptic_classes,
    panoptic_summary,
    to_dict,
    tracking_summary,
)
from streamseg.evaluation.tracking import (
    TrackedSequence,
    TrackingScores,
    TrackScore,
    evaluate_tracks,
    score_sequences,
)
from streamseg.evaluation.tracks import TrackedFrame, Tracks, read_tracks

__all__ = [
    "ClassQuality",
    "ClassScores",
    "CocoScores",
    "ConfusionMatrix",
    "Listing",
    "PanopticCount",
    "PanopticMap",
    "PanopticScores",
    "PrecisionRecall",
    "Quality",
    "SegmentInfo",
    "Series",
    "Tally",
    "TrackScore",
    "TrackedFrame",
    "TrackedSequence",
    "TrackingScores",
    "Tracks",
    "coco_classes",
    "coco_summary",
    "confusion",
    "count_image",
    "evaluate_coco",
    "evaluate_tracks",
    "panoptic_classes",
    "panoptic_quality",
    "panoptic_summary",
    "plot_confusion",
    "plot_precision_recall",
    "plot_series",
    "read_tracks",
    "score_sequences",
    "to_dict",
    "tracking_summary",
]
