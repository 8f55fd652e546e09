"""Scores as tables to look at and as plain values for JSON.

In tables, fractions are in percent, as publications have them; in JSON they are fractions of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np

from streamseg.evaluation.coco_ap import CocoScores
from streamseg.evaluation.confusion import ConfusionMatrix
from streamseg.evaluation.panoptic import PanopticScores, Quality
from streamseg.evaluation.tracking import TrackingScores, TrackScore

Scores: TypeAlias = CocoScores | ConfusionMatrix | PanopticScores | TrackingScores


@dataclass(frozen=True, slots=True)
class Listing:
    """A table of strings, as :func:`streamseg.cli.terminal.listing` takes it.

    Attributes:
        title: above it.
        columns: their heads.
        rows: each as long as ``columns``.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def coco_summary(name: str, scores: Sequence[CocoScores]) -> Listing:
    """COCO's twelve numbers, a row for boxes and one for masks."""
    heads = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    return Listing(
        f"{name}: {scores[0].images} images, scored by {scores[0].backend}" if scores else name,
        ("on", *heads),
        tuple((each.on, *map(_percent, _twelve(each))) for each in scores),
    )


def coco_classes(name: str, scores: CocoScores) -> Listing:
    """A row for each class that is in the truth."""
    return Listing(
        f"{name}, {scores.on}",
        ("class", "AP", "AP50", "in the truth"),
        tuple(
            (each.name, _percent(each.ap), _percent(each.ap50), str(each.truths))
            for each in scores.classes
            if each.ap is not None
        ),
    )


def panoptic_summary(name: str, scores: PanopticScores) -> Listing:
    """A row each for all, things and stuff."""
    groups = (("all", scores.all), ("things", scores.things), ("stuff", scores.stuff))
    return Listing(
        f"{name}: {scores.images} images",
        ("of", "PQ", "SQ", "RQ"),
        tuple((group, *_qualities(quality)) for group, quality in groups),
    )


def panoptic_classes(name: str, scores: PanopticScores) -> Listing:
    """A row for each category that occurs."""
    return Listing(
        name,
        ("category", "kind", "PQ", "SQ", "RQ", "matched", "wrong", "missed"),
        tuple(
            (
                each.name,
                "thing" if each.thing else "stuff",
                *_qualities(each.quality),
                str(each.tally.matched),
                str(each.tally.wrong),
                str(each.tally.missed),
            )
            for each in scores.classes
            if each.quality is not None
        ),
    )


def tracking_summary(scores: TrackingScores) -> Listing:
    """A row for each class, and one for all together where there are several."""
    on_masks = scores.on == "masks"
    mota = ("MOTSA", "sMOTSA") if on_masks else ("MOTA",)
    rows = dict(scores.classes)
    if len(rows) > 1:
        rows["together"] = scores.overall
    return Listing(
        f"{scores.name}: {scores.overall.frames} frames, {scores.on}",
        ("class", "HOTA", "DetA", "AssA", "IDF1", *mota, "switches", "fragments", "tracks"),
        tuple((name, *_tracking_row(score, on_masks=on_masks)) for name, score in rows.items()),
    )


def to_dict(scores: Scores) -> dict[str, Any]:
    """All of it as plain values: what there is nothing for is None."""
    values: dict[str, Any] = _plain(scores)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(member) for member in value]
    return msgspec.to_builtins(value)


def _twelve(scores: CocoScores) -> tuple[float | None, ...]:
    return (
        scores.ap,
        scores.ap50,
        scores.ap75,
        scores.ap_small,
        scores.ap_medium,
        scores.ap_large,
        scores.ar1,
        scores.ar10,
        scores.ar100,
        scores.ar_small,
        scores.ar_medium,
        scores.ar_large,
    )


def _qualities(quality: Quality | None) -> tuple[str, ...]:
    if quality is None:
        return "-", "-", "-"
    return _percent(quality.pq), _percent(quality.sq), _percent(quality.rq)


def _tracking_row(score: TrackScore, *, on_masks: bool) -> tuple[str, ...]:
    fractions = [score.hota, score.deta, score.assa, score.idf1, score.mota]
    numbers = (score.switches, score.fragments, score.tracks)
    smota = [score.smota] if on_masks else []
    return *map(_percent, [*fractions, *smota]), *map(str, numbers)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
