"""Rendering stage: annotates frames and encodes them as JPEG for the subscribers of images."""

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
    """Result with its images, encoded as JPEG.

    Attributes:
        result: the result.
        annotated: frame with its instances drawn; None without subscribers.
        plain: frame as captured; None without subscribers.
    """

    result: Result
    annotated: bytes | None
    plain: bytes | None

    @property
    def source(self) -> str:
        """Name of the source."""
        return self.result.source


def encode_images(
    results: Iterable[Result], wants: Wants, quality: int, metrics: Metrics
) -> Iterator[EncodedImages]:
    """Annotate and encode the frames that have subscribers, each once.

    Args:
        results: results to encode.
        wants: returns whether ``frames`` (annotated) or ``video`` (plain) of a source has
            subscribers.
        quality: JPEG quality, 1 to 100.
        metrics: metrics of images and of the time spent.

    Yields:
        Images of each frame that has subscribers.
    """
    too_large: set[str] = set()
    for result in results:
        annotated, plain = wants("frames", result.source), wants("video", result.source)
        if not annotated and not plain:
            continue
        if max(result.frame.size) > MAX_JPEG_SIDE:
            metrics.images_dropped.labels(result.source).inc()
            if result.source not in too_large:
                too_large.add(result.source)
                log.warning(
                    "%s: frames of %d x %d pixels have no images: JPEG sides are at most %d",
                    result.source, *result.frame.size[::-1], MAX_JPEG_SIDE,
                )  # fmt: skip
            continue
        started = time.perf_counter()
        images = EncodedImages(
            result,
            encode_jpeg(annotate_result(result), quality) if annotated else None,
            encode_jpeg(result.frame.image, quality) if plain else None,
        )
        metrics.stage_seconds.labels("paint").observe(time.perf_counter() - started)
        metrics.images.labels(result.source).inc()
        yield images
