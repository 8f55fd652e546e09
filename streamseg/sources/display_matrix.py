"""Display matrices: how a decoded frame is mirrored and turned before it is shown.

Containers (track headers, Matroska's projection), streams (SEI display orientation) and EXIF in
MJPEG all reach FFmpeg's frames as one 3 x 3 matrix (libavutil/display.h): a pixel at (x, y) is
shown at (a x + c y, b x + d y).
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
"""Degrees by which a writer's matrix may miss a quarter turn."""
_UNNAMED_TYPES = range(len(SideDataType), len(SideDataType) + 8)
"""Frame side data types of FFmpeg that PyAV has no name for, and raises ValueError for."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight ways to show a frame: transposed first, then flipped.

    Attributes:
        is_transposed: rows become columns.
        flips_rows: upside down.
        flips_columns: left becomes right.
    """

    is_transposed: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    def apply(self, image: Image) -> Image:
        """Return the image as it is shown, contiguous.

        Args:
            image: uint8 (H, W, 3).
        """
        if self.is_transposed:
            image = image.transpose(1, 0, 2)
        if self.flips_rows:
            image = image[::-1]
        if self.flips_columns:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)


UPRIGHT = Orientation()


class TiltError(ValueError):
    """A display matrix that is none of the eight orientations."""


def orientation_of(frame: VideoFrame) -> Orientation | None:
    """Return how a decoded frame is shown; None if nothing says so.

    Raises:
        TiltError: its matrix turns by no multiple of 90 degrees, or flattens the frame.
    """
    matrix = _display_matrix(frame)
    return None if matrix is None else parse_matrix(matrix)


def parse_matrix(matrix: tuple[int, ...]) -> Orientation:
    """Return the orientation that a display matrix stands for, whatever its scale.

    Args:
        matrix: FFmpeg's nine numbers, row by row.

    Raises:
        TiltError: it turns by no multiple of 90 degrees, or flattens the frame.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    is_transposed = abs(b) > abs(a)
    if not (a or b) or not (c or d) or is_transposed != (abs(c) > abs(d)):
        raise TiltError("a display matrix that flattens the frame is ignored")
    if max(_tilt(a, b), _tilt(c, d)) > _MAX_TILT:
        raise TiltError(f"a rotation of {_rotation(a, b, c, d)} degrees is ignored")
    if is_transposed:
        return Orientation(True, flips_rows=b < 0, flips_columns=c < 0)
    return Orientation(False, flips_rows=d < 0, flips_columns=a < 0)


def _tilt(x: int, y: int) -> float:
    """Return the angle between (x, y) and the nearer axis, in degrees."""
    return math.degrees(math.atan2(min(abs(x), abs(y)), max(abs(x), abs(y))))


def _rotation(a: int, b: int, c: int, d: int) -> int:
    """Return the anticlockwise rotation in degrees, as av_display_rotation_get computes it."""
    return round(-math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))))


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    try:
        side_data = _list_side_data(frame)
    except ValueError:  # EXIF, for one: PyAV lists none if it can't name all
        side_data = _list_side_data(_without_unnamed(frame))
    data = side_data.get("DISPLAYMATRIX")
    return None if data is None else struct.unpack("=9i", bytes(data))


def _list_side_data(frame: VideoFrame) -> SideDataContainer:
    """Return what frame.side_data does; that keeps the frame until a garbage collection."""
    return SideDataContainer(frame)  # type: ignore[call-arg]  # not in PyAV's stub


def _without_unnamed(frame: VideoFrame) -> VideoFrame:
    """Return a reference to the frame without the side data that PyAV can't list."""
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1),
    )
    for number in _UNNAMED_TYPES:
        node = graph.add("sidedata", f"mode=delete:type={number}")
        last.link_to(node)
        last = node
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return cast(VideoFrame, graph.pull())
