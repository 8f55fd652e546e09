"""COCO's run lengths: read from text, and made from and into crops.

They follow the COCO API (Lin et al., "Microsoft COCO", 2014; ``maskApi.c``): the frame is read
column by column, runs of 0 and 1 alternate beginning with 0, and the counts are written as
differences to the run before the last one in a base-32 code of printable ASCII.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from streamseg.errors import MaskError

BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]


def parse_counts(text: str) -> IntArray:
    """The run lengths that COCO's compressed ``counts`` stand for, int64; not yet checked to fit.

    Raises:
        MaskError: a character outside the code, or a number that is cut off or far too long.
    """
    return parse_all([text])[0]


def parse_all(texts: Sequence[str]) -> tuple[IntArray, IntArray]:
    """The run lengths of all texts behind each other, and where those of each begin."""
    try:
        codes = np.frombuffer("".join(texts).encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise MaskError("run lengths hold a character that isn't ASCII") from None
    if len(codes) == 0:
        return np.zeros(0, np.int64), np.zeros(len(texts), np.int64)
    text_ends = np.cumsum([len(text) for text in texts])
    if codes.min() < 0 or codes.max() > 63 or (codes[text_ends[text_ends > 0] - 1] & 32).any():
        raise MaskError("run lengths hold a character outside COCO's code, or end inside a number")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise MaskError("run lengths hold a number of more than 35 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    last = np.searchsorted(ends, text_ends)  # where the numbers of the next text begin
    first = np.concatenate(([0], last[:-1]))
    position = np.arange(len(values)) - np.repeat(first, last - first)
    # From the fourth on, each number is the difference to the run before the last one.
    for parity in (0, 1):
        chained = np.flatnonzero((position % 2 == parity) & (position > 0))
        begins = np.flatnonzero(position[chained] <= 2)
        sums = np.cumsum(values[chained])
        before = sums[begins] - values[chained[begins]]
        values[chained] = sums - np.repeat(before, np.diff(begins, append=len(chained)))
    return values, first


def run_lengths(crop: BoolArray, x: int, y: int, size: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Run lengths of the full frame, straight from a crop at (x, y)."""
    frame_height, frame_width = size
    height, width = crop.shape
    # A column of the crop is a row here, with a zero before and after it: each change is an edge.
    columns = np.zeros((width, height + 2), np.bool_)
    columns[:, 1:-1] = crop.T
    edges = np.flatnonzero(columns[:, 1:] != columns[:, :-1])
    column, row = np.divmod(edges, height + 1)
    positions = (column + x) * frame_height + row + y
    if height == frame_height:
        positions = _join_runs(positions)
    bounds = np.concatenate(([0], positions, [frame_height * frame_width]))
    runs = np.diff(bounds)
    return (runs if runs[-1] else runs[:-1]).astype(np.uint32)


def _join_runs(positions: IntArray) -> IntArray:
    """Drop the edges between a run that ends at the bottom and one that begins at the next top."""
    ends, starts = positions[1:-1:2], positions[2::2]
    apart = np.flatnonzero(ends != starts)
    return np.concatenate(
        [positions[:1], np.stack([ends[apart], starts[apart]], axis=1).ravel(), positions[-1:]]
    )


def crop_of(runs: IntArray, frame_height: int) -> tuple[BoolArray, tuple[int, int]]:
    """The tight crop that full-frame run lengths stand for, and its upper left pixel (x, y)."""
    bounds = np.cumsum(runs)
    starts, ends = bounds[0:-1:2], bounds[1::2]
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
    if len(starts) == 0:
        return np.zeros((0, 0), np.bool_), (0, 0)
    x1, x2 = int(starts[0] // frame_height), int((ends[-1] - 1) // frame_height) + 1
    first, last = starts % frame_height, (ends - 1) % frame_height
    if (starts // frame_height != (ends - 1) // frame_height).any():
        y1, y2 = 0, frame_height  # a run that goes on in the next column touches both borders
    else:
        y1, y2 = int(first.min()), int(last.max()) + 1
    height = y2 - y1
    begin = (starts // frame_height - x1) * height + first - y1
    end = ((ends - 1) // frame_height - x1) * height + last - y1 + 1
    edges = np.concatenate(([0], np.stack([begin, end], axis=1).ravel(), [(x2 - x1) * height]))
    bits = np.repeat(np.arange(len(edges) - 1) % 2 == 1, np.diff(edges))
    return bits.reshape(x2 - x1, height).T, (x1, y1)
