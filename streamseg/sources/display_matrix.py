"""Display matrices: rotation and mirroring of decoded video frames.

FFmpeg converts the orientation in containers (track header, Matroska projection), streams (SEI
display orientation) and MJPEG's EXIF into one 3 x 3 matrix per frame (libavutil/display.h): a pixel
at (x, y) is displayed at (a x + c y, b x + d y).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

from streamseg.structures.results import Image

_MAX_TILT = 2.0
"""Maximum angle between a matrix's rotation and a multiple of 90 degrees, in degrees."""
_UNNAMED_TYPES = range(len(SideDataType), len(SideDataType) + 8)
"""Frame side data types of FFmpeg that PyAV has no name for; listing them raises ValueError."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight image orientations: a transposition, followed by flips.

    Attributes:
        is_transposed: whether rows become columns.
        flips_rows: whether top and bottom are exchanged.
        flips_columns: whether left and right are exchanged.
    """

    is_transposed: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    def apply(self, image: Image) -> Image:
        """Return the upright image, uint8 (H, W, 3) or (W, H, 3), contiguous.

        Args:
            image: as decoded, uint8 (H, W, 3).
        """
        if self.is_transposed:
            image = image.transpose(1, 0, 2)
        if self.flips_rows:
            image = image[::-1]
        if self.flips_columns:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)


UPRIGHT = Orientation()


class DisplayMatrixError(ValueError):
    """A display matrix is not one of the eight orientations."""


def read_display_orientation(frame: VideoFrame) -> Orientation | None:
    """Return the orientation of a decoded frame; None if it has no display matrix.

    Raises:
        DisplayMatrixError: the matrix rotates by no multiple of 90 degrees, or is degenerate.
    """
    try:
        side_data = _list_side_data(frame)
    except ValueError:  # PyAV lists no side data if it can't name all types (EXIF, for example)
        side_data = _list_side_data(_drop_unnamed_side_data(frame))
    matrix = side_data.get("DISPLAYMATRIX")
    return None if matrix is None else parse_matrix(struct.unpack("=9i", bytes(matrix)))


def parse_matrix(matrix: tuple[int, ...]) -> Orientation:
    """Convert a display matrix of any scale to an orientation.

    Args:
        matrix: FFmpeg's nine numbers, row by row.

    Raises:
        DisplayMatrixError: the matrix rotates by no multiple of 90 degrees, or is degenerate.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    is_transposed = abs(b) > abs(a)
    if not (a or b) or not (c or d) or is_transposed != (abs(c) > abs(d)):
        raise DisplayMatrixError("a degenerate display matrix is ignored")
    if max(_tilt(a, b), _tilt(c, d)) > _MAX_TILT:
        raise DisplayMatrixError(f"a rotation of {_rotation(a, b, c, d)} degrees is ignored")
    if is_transposed:
        return Orientation(True, flips_rows=b < 0, flips_columns=c < 0)
    return Orientation(False, flips_rows=d < 0, flips_columns=a < 0)


def _tilt(x: int, y: int) -> float:
    """Return the angle between the vector (x, y) and the nearer axis, in degrees."""
    return math.degrees(math.atan2(min(abs(x), abs(y)), max(abs(x), abs(y))))


def _rotation(a: int, b: int, c: int, d: int) -> int:
    """Return the counterclockwise rotation in degrees, computed as av_display_rotation_get does."""
    return round(-math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))))


def _list_side_data(frame: VideoFrame) -> SideDataContainer:
    """Return the frame's side data.

    ``frame.side_data`` would keep the frame in memory until a garbage collection.
    """
    return SideDataContainer(frame)  # type: ignore[call-arg]  # not in PyAV's stub


def _drop_unnamed_side_data(frame: VideoFrame) -> VideoFrame:
    """Return a reference to the frame without the side data that PyAV has no name for."""
    graph = av.filter.Graph()
    node = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1),
    )
    for number in _UNNAMED_TYPES:
        following = graph.add("sidedata", f"mode=delete:type={number}")
        node.link_to(following)
        node = following
    node.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return cast(VideoFrame, graph.pull())
