"""Panoptic segments, and maps of their ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.errors import StreamsegError
from streamseg.structures.masks import Mask, Size
from streamseg.structures.pickling import PickledByFields

SegmentMap: TypeAlias = npt.NDArray[np.int32]
MAX_SEGMENT_ID = 2**24 - 1
"""Largest segment id: COCO's panoptic PNGs store ids as R + 256 G + 65536 B."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment(PickledByFields):
    """Segment of a panoptic result: a thing or a region of stuff.

    Attributes:
        id: segment id, unique in the frame, from 1.
        label: category id.
        name: category name.
        thing: whether it is a thing; otherwise stuff.
        mask: its pixels; segments do not overlap.
    """

    id: int
    label: int
    name: str
    thing: bool
    mask: Mask


def draw_segment_map(segments: Iterable[Segment], size: Size) -> SegmentMap:
    """Return a map of segment ids.

    Args:
        segments: segments that do not overlap.
        size: (height, width) of the frame.

    Returns:
        int32 (H, W), segment ids; 0 outside of all segments.

    Raises:
        StreamsegError: an id is not between 1 and ``MAX_SEGMENT_ID``.
    """
    ids = np.zeros(size, np.int32)
    for segment in segments:
        if not 0 < segment.id <= MAX_SEGMENT_ID:
            raise StreamsegError(f"segment {segment.id}: ids go from 1 to {MAX_SEGMENT_ID}")
        x1, y1, x2, y2 = segment.mask.window
        ids[y1:y2, x1:x2][segment.mask.crop] = segment.id
    return ids
