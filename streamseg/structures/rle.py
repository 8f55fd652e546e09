"""COCO RLE: parsing of compressed counts, and conversion between runs and crops.

The format is that of the COCO API (Lin et al., "Microsoft COCO", 2014; ``maskApi.c``): the frame is
traversed column by column, runs of 0 and 1 alternate, starting with 0. Compressed counts are
differences to the run before the previous one, in a base-32 code of printable ASCII.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streamseg.errors import MaskError
from streamseg.structures.arrays import BoolArray, IntArray


def parse_counts(text: str) -> IntArray:
    """Parse compressed counts to run lengths, int64; their sum is not checked.

    Raises:
        MaskError: the text has an invalid character, or a truncated or too large number.
    """
    return parse_all_counts([text])[0]


def parse_all_counts(texts: Sequence[str]) -> tuple[IntArray, IntArray]:
    """Parse several compressed counts at once.

    Returns:
        The run lengths of all texts, concatenated, and the start index of each text.

    Raises:
        MaskError: as ``parse_counts``.
    """
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
    last = np.searchsorted(ends, text_ends)  # start of the next text
    first = np.concatenate(([0], last[:-1]))
    position = np.arange(len(values)) - np.repeat(first, last - first)
    # From the fourth number on, a value is the difference to the run before the previous one.
    for parity in (0, 1):
        chained = np.flatnonzero((position % 2 == parity) & (position > 0))
        chain_starts = np.flatnonzero(position[chained] <= 2)
        sums = np.cumsum(values[chained])
        offsets = sums[chain_starts] - values[chained[chain_starts]]
        lengths_of_chains = np.diff(chain_starts, append=len(chained))
        values[chained] = sums - np.repeat(offsets, lengths_of_chains)
    return values, first


def crop_to_runs(crop: BoolArray, x: int, y: int, size: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Return the run lengths of the full frame for a crop at (x, y).

    Args:
        crop: bool (h, w).
        x: column of its left pixels in the frame.
        y: row of its upper pixels in the frame.
        size: (height, width) of the frame.
    """
    frame_height, frame_width = size
    height, width = crop.shape
    # One row per column of the crop, padded with zeros: each change of value starts a run.
    columns = np.zeros((width, height + 2), np.bool_)
    columns[:, 1:-1] = crop.T
    changes = np.flatnonzero(columns[:, 1:] != columns[:, :-1])
    column, row = np.divmod(changes, height + 1)
    positions = (column + x) * frame_height + row + y
    if height == frame_height:
        positions = _join_runs(positions)
    bounds = np.concatenate(([0], positions, [frame_height * frame_width]))
    runs = np.diff(bounds)
    return (runs if runs[-1] else runs[:-1]).astype(np.uint32)


def _join_runs(positions: IntArray) -> IntArray:
    """Join a run that ends at the bottom with one that starts at the top of the next column."""
    ends, starts = positions[1:-1:2], positions[2::2]
    kept = np.flatnonzero(ends != starts)
    return np.concatenate(
        [positions[:1], np.stack([ends[kept], starts[kept]], axis=1).ravel(), positions[-1:]]
    )


def runs_to_crop(runs: IntArray, frame_height: int) -> tuple[BoolArray, tuple[int, int]]:
    """Convert full-frame run lengths to a tight crop and its upper left pixel (x, y)."""
    bounds = np.cumsum(runs)
    starts, ends = bounds[0:-1:2], bounds[1::2]
    has_pixels = ends > starts
    starts, ends = starts[has_pixels], ends[has_pixels]
    if len(starts) == 0:
        return np.zeros((0, 0), np.bool_), (0, 0)
    x1, x2 = int(starts[0] // frame_height), int((ends[-1] - 1) // frame_height) + 1
    first, last = starts % frame_height, (ends - 1) % frame_height
    if (starts // frame_height != (ends - 1) // frame_height).any():
        y1, y2 = 0, frame_height  # a run across columns touches both borders
    else:
        y1, y2 = int(first.min()), int(last.max()) + 1
    height = y2 - y1
    begin = (starts // frame_height - x1) * height + first - y1
    end = ((ends - 1) // frame_height - x1) * height + last - y1 + 1
    positions = np.concatenate(([0], np.stack([begin, end], axis=1).ravel(), [(x2 - x1) * height]))
    bits = np.repeat(np.arange(len(positions) - 1) % 2 == 1, np.diff(positions))
    return bits.reshape(x2 - x1, height).T, (x1, y1)
