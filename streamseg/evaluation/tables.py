"""Scores as text tables, fractions in percent as in publications."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamseg.evaluation.coco_ap import CocoScores
from streamseg.evaluation.panoptic_quality import PanopticScores, Quality
from streamseg.evaluation.report import EvaluationReport
from streamseg.evaluation.tracking_metrics import TrackingScores, TrackScore

COCO_COLUMNS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
    "AR1": "ar1",
    "AR10": "ar10",
    "AR100": "ar100",
    "ARs": "ar_small",
    "ARm": "ar_medium",
    "ARl": "ar_large",
}
"""Column heads of COCO's twelve scores, with the attributes of ``CocoScores``."""


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Table of strings.

    Attributes:
        title: the title.
        columns: the column heads.
        rows: cells of each row, as many as ``columns``.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def make_report_tables(report: EvaluationReport) -> Iterator[ScoreTable]:
    """Yield the tables of a report: for each dataset and task the summary, then its classes."""
    for dataset in report.datasets:
        yield _transpose(make_coco_table(dataset.name, dataset.scores))
        for scores in dataset.scores:
            yield make_coco_class_table(dataset.name, scores)
        if dataset.panoptic is not None:
            yield make_panoptic_table(dataset.name, dataset.panoptic)
            yield make_panoptic_class_table(dataset.name, dataset.panoptic)
    for name, panoptic in report.panoptic:
        yield make_panoptic_table(name, panoptic)
        yield make_panoptic_class_table(name, panoptic)
    for tracking in report.tracking:
        yield _transpose(make_tracking_table(tracking))


def make_coco_table(name: str, scores: Sequence[CocoScores]) -> ScoreTable:
    """Return COCO's twelve scores, one row for boxes and one for masks."""
    return ScoreTable(
        f"{name}: {scores[0].images} images, scored by {scores[0].backend}" if scores else name,
        ("on", *COCO_COLUMNS),
        tuple(
            (each.on, *(_format_percent(getattr(each, field)) for field in COCO_COLUMNS.values()))
            for each in scores
        ),
    )


def make_coco_class_table(name: str, scores: CocoScores) -> ScoreTable:
    """Return AP and AP50, one row per class with ground truth."""
    return ScoreTable(
        f"{name}, {scores.on}",
        ("class", "AP", "AP50", "objects"),
        tuple(
            (each.name, _format_percent(each.ap), _format_percent(each.ap50), str(each.truths))
            for each in scores.classes
            if each.ap is not None
        ),
    )


def make_panoptic_table(name: str, scores: PanopticScores) -> ScoreTable:
    """Return panoptic quality, one row each for all classes, things and stuff."""
    groups = (("all", scores.all), ("things", scores.things), ("stuff", scores.stuff))
    return ScoreTable(
        f"{name}: {scores.images} images",
        ("of", "PQ", "SQ", "RQ"),
        tuple((group, *_format_quality(quality)) for group, quality in groups),
    )


def make_panoptic_class_table(name: str, scores: PanopticScores) -> ScoreTable:
    """Return panoptic quality and counts, one row per category that occurs."""
    return ScoreTable(
        name,
        ("category", "kind", "PQ", "SQ", "RQ", "matched", "wrong", "missed"),
        tuple(
            (
                each.name,
                "thing" if each.thing else "stuff",
                *_format_quality(each.quality),
                str(each.tally.matched),
                str(each.tally.wrong),
                str(each.tally.missed),
            )
            for each in scores.classes
            if each.quality is not None
        ),
    )


def make_tracking_table(scores: TrackingScores) -> ScoreTable:
    """Return tracking metrics, one row per class and, of several classes, one for all."""
    on_masks = scores.on == "masks"
    mota = ("MOTSA", "sMOTSA") if on_masks else ("MOTA",)
    rows = dict(scores.classes)
    if len(rows) > 1:
        rows["all classes"] = scores.overall
    return ScoreTable(
        f"{scores.name}: {scores.overall.frames} frames, {scores.on}",
        ("class", "HOTA", "DetA", "AssA", "IDF1", *mota, "switches", "fragments", "tracks"),
        tuple(
            (name, *_format_track_score(score, on_masks=on_masks)) for name, score in rows.items()
        ),
    )


def _transpose(table: ScoreTable) -> ScoreTable:
    """Return a table with rows and columns swapped, which fits the width of a terminal."""
    heads, *rows = zip(table.columns, *table.rows, strict=True)
    return ScoreTable(table.title, ("", *heads[1:]), tuple(rows))


def _format_quality(quality: Quality | None) -> tuple[str, ...]:
    if quality is None:
        return "-", "-", "-"
    return _format_percent(quality.pq), _format_percent(quality.sq), _format_percent(quality.rq)


def _format_track_score(score: TrackScore, *, on_masks: bool) -> tuple[str, ...]:
    fractions = [score.hota, score.deta, score.assa, score.idf1, score.mota]
    numbers = (score.switches, score.fragments, score.tracks)
    smota = [score.smota] if on_masks else []
    return *map(_format_percent, [*fractions, *smota]), *map(str, numbers)


def _format_percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
