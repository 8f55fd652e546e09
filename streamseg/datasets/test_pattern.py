"""The synthetic test pattern as a dataset: each frame a picture, with the pattern's own truth.

Frames are numbered from 1; an annotation's id is the identity of its object.
"""

from __future__ import annotations

from functools import lru_cache

from streamseg.config import SourceConfig
from streamseg.config.training import PatternData
from streamseg.datasets.dataset import AnnotatedImage, Annotation, Dataset, PatternFrame
from streamseg.errors import ConfigError
from streamseg.sources.pattern import CATEGORIES, SCHEME, TestPattern


def read_pattern(config: PatternData, dataset: str) -> Dataset:
    """The frames of the pattern, and what is visible in them.

    Args:
        config: which pattern.
        dataset: what it is called.

    Raises:
        ConfigError: the url isn't a pattern's, or its options are wrong.
        TooLargeError: its frames have more pixels than the limit.
    """
    if not config.url.startswith(SCHEME):
        raise ConfigError(f"{config.url}: a pattern's url begins with {SCHEME}")
    pattern = open_pattern(config.url)
    return Dataset(
        name=dataset,
        images=tuple(
            AnnotatedImage(
                id=index + 1,
                picture=PatternFrame(config.url, index),
                size=pattern.options.size,
                annotations=_read_frame(pattern, index),
            )
            for index in range(pattern.options.frames)
        ),
        categories=dict(CATEGORIES),
        annotated=frozenset(CATEGORIES),
        repeat=config.repeat,
    )


@lru_cache(maxsize=8)
def open_pattern(url: str) -> TestPattern:
    """The pattern at ``url``; kept, because a new one draws its background first.

    Raises:
        ConfigError: the url's options are wrong.
        TooLargeError: its frames have more pixels than the limit.
    """
    return TestPattern("pattern", SourceConfig(url=url))


def _read_frame(pattern: TestPattern, index: int) -> tuple[Annotation, ...]:
    truth = pattern.truth(index)
    assert truth.track_ids is not None
    rows = zip(truth.track_ids, truth.labels, truth.boxes, truth.masks.areas, strict=True)
    return tuple(
        Annotation(
            id=int(identity),
            category_id=int(label),
            box=(float(x1), float(y1), float(x2), float(y2)),
            segmentation=rle,
            area=float(area),
        )
        for (identity, label, (x1, y1, x2, y2), area), rle in zip(
            rows, truth.masks.to_rle(), strict=True
        )
    )
