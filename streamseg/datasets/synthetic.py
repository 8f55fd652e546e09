"""Synthetic dataset: frames of the test pattern, with the pattern's own ground truth.

Images are numbered from 1; the id of an annotation is the track id of its object.
"""

from __future__ import annotations

from functools import lru_cache

from streamseg.config import SourceConfig
from streamseg.config.training import PatternData
from streamseg.datasets.dataset import AnnotatedImage, Annotation, Dataset, PatternFrame
from streamseg.errors import ConfigError
from streamseg.sources.pattern import CATEGORIES, TEST_SCHEME, TestPattern


def read_pattern(config: PatternData, name: str) -> Dataset:
    """Return the frames of a test pattern with the visible objects as annotations.

    Args:
        config: section of the config with the pattern's url.
        name: name of the dataset.

    Raises:
        ConfigError: the url is not a test pattern's, or its options are wrong.
        TooLargeError: the frames have more pixels than the limit.
    """
    if not config.url.startswith(TEST_SCHEME):
        raise ConfigError(f"{config.url}: a pattern's url begins with {TEST_SCHEME}")
    pattern = open_pattern(config.url)
    return Dataset(
        name=name,
        images=tuple(
            AnnotatedImage(
                id=index + 1,
                file=PatternFrame(config.url, index),
                size=pattern.options.size,
                annotations=_read_annotations(pattern, index),
            )
            for index in range(pattern.options.frames)
        ),
        categories=dict(CATEGORIES),
        annotated=frozenset(CATEGORIES),
        repeat=config.repeat,
    )


@lru_cache(maxsize=8)
def open_pattern(url: str) -> TestPattern:
    """Return the test pattern at ``url``, cached because a new one has to draw its background.

    Raises:
        ConfigError: the options in the url are wrong.
        TooLargeError: the frames have more pixels than the limit.
    """
    return TestPattern("pattern", SourceConfig(url=url))


def _read_annotations(pattern: TestPattern, index: int) -> tuple[Annotation, ...]:
    """Return the ground truth of frame ``index`` as annotations."""
    truth = pattern.ground_truth(index)
    assert truth.track_ids is not None
    rows = zip(
        truth.track_ids,
        truth.labels,
        truth.boxes,
        truth.masks.areas,
        truth.masks.to_rle(),
        strict=True,
    )
    return tuple(
        Annotation(
            id=int(track_id),
            category_id=int(label),
            box=(float(x1), float(y1), float(x2), float(y2)),
            segmentation=rle,
            area=float(area),
        )
        for track_id, label, (x1, y1, x2, y2), area, rle in rows
    )
