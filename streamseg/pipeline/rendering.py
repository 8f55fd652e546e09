"""Rendering stage: annotates frames and encodes them as JPEG, if somebody subscribes to images."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from streamseg.pipeline.metrics import Metrics
from streamseg.structures.results import Result
from streamseg.visualization import MAX_JPEG_SIDE, annotate_result, encode_jpeg

ImageKind: TypeAlias = Literal["frames", "video"]
Wants: TypeAlias = Callable[[ImageKind, str], bool]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages:
    """A result and its pictures, as JPEG; None where nobody wants one.

    Attributes:
        result: what is known of the frame.
        annotated: the frame with its instances painted on.
        plain: the frame as it came.
    """

    result: Result
    annotated: bytes | None
    plain: bytes | None

    @property
    def source(self) -> str:
        """The name of the source."""
        return self.result.source


def encode_images(
    results: Iterable[Result], wants: Wants, quality: int, metrics: Metrics
) -> Iterator[EncodedImages]:
    """The painter's stage: paint and compress each frame once, and only what is wanted.

    Args:
        results: frames with what was found in them.
        wants: whether somebody wants annotated ``frames`` or the plain ``video`` of a source.
        quality: of the JPEGs, 1 to 100.
        metrics: counts the pictures and times the painting.

    Yields:
        A picture for each frame that somebody wants; nothing for the others.
    """
    too_large: set[str] = set()
    for result in results:
        annotated, plain = wants("frames", result.source), wants("video", result.source)
        if not annotated and not plain:
            continue
        if max(result.frame.size) > MAX_JPEG_SIDE:
            metrics.pictures_dropped.labels(result.source).inc()
            if result.source not in too_large:
                too_large.add(result.source)
                log.warning(
                    "%s: frames of %d x %d pixels have no pictures: JPEG takes sides of %d",
                    result.source, *result.frame.size[::-1], MAX_JPEG_SIDE,
                )  # fmt: skip
            continue
        begun = time.perf_counter()
        picture = EncodedImages(
            result,
            encode_jpeg(annotate_result(result), quality) if annotated else None,
            encode_jpeg(result.frame.image, quality) if plain else None,
        )
        metrics.stage_seconds.labels("paint").observe(time.perf_counter() - begun)
        metrics.pictures.labels(result.source).inc()
        yield picture
