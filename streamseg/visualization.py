"""Annotated images: masks, outlines and labels drawn on a frame, and JPEG encoding.

Each object is drawn inside its window; the only full-frame array is the copy of the image. Colors
are RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil, floor
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from streamseg.errors import ArgumentError, StreamsegError
from streamseg.structures.masks import BoolArray, Masks
from streamseg.structures.results import NOT_TRACKED, Image, Instances, Result, Segment

Color: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]

MAX_JPEG_SIDE = 65_500
"""Maximum width and height of a JPEG, in pixels."""
FILL_ALPHA = 0.5
"""Opacity of masks, 0 to 1."""
STUFF_ALPHA = 0.4
"""Opacity of stuff segments, 0 to 1."""

PALETTE: tuple[Color, ...] = (
    (0, 150, 255),
    (240, 0, 0),
    (240, 225, 0),
    (75, 240, 240),
    (135, 75, 135),
    (240, 150, 135),
    (30, 60, 255),
    (240, 90, 180),
    (0, 135, 75),
    (105, 195, 255),
    (180, 240, 165),
    (195, 180, 0),
    (180, 60, 195),
    (195, 105, 120),
    (240, 195, 105),
    (210, 135, 60),
)
"""Colors of tracks. Each color has the largest distance from all previous ones in OKLab (Ottosson,
2020); the distance is the minimum over normal vision, protanopia, deuteranopia and tritanopia
(simulated after Machado, Oliveira and Fernandes, 2009)."""

_FONT = cv2.FONT_HERSHEY_DUPLEX
_DARK: Color = (16, 16, 16)
_WHITE: Color = (255, 255, 255)


def annotate_result(result: Result) -> Image:
    """Annotate the frame of a result, see :func:`annotate`."""
    return annotate(result.frame.image, result.instances, result.segments)


def annotate(
    image: Image, instances: Instances, segments: Iterable[Segment] | None = None
) -> Image:
    """Draw masks, outlines and labels on a copy of an image.

        annotated = streamseg.annotate(image, model.predict([image])[0])

    The color of an instance is that of its track, or of its category if it is not tracked. Line
    width and text size depend on the size of the image.

    Args:
        image: uint8 (H, W, 3) RGB; not changed.
        instances: instances in pixels of ``image``.
        segments: panoptic segments; stuff is drawn below the instances, in muted colors.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ArgumentError: an argument has another type, dtype or shape.
        StreamsegError: ``instances`` have another frame size.
    """
    if not isinstance(image, np.ndarray):
        raise ArgumentError(f"image must be an array (H, W, 3), not {type(image).__name__}")
    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise ArgumentError(f"image must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
    if not isinstance(instances, Instances):
        raise ArgumentError(f"instances must be Instances, not {type(instances).__name__}")
    canvas = image.copy()
    for segment in segments or ():
        if not segment.thing:
            bitmap, window = _to_bitmap(segment.mask.crop), segment.mask.window
            _blend(canvas, bitmap, window, _mute_color(_palette_color(segment.label)), STUFF_ALPHA)
    fill_masks(canvas, instances, FILL_ALPHA)
    _draw_outlines(canvas, instances)
    _draw_labels(canvas, instances)
    return canvas


def fill_masks(canvas: Image, instances: Instances, alpha: float) -> None:
    """Blend the masks into ``canvas`` in place, in order.

    The result equals ``canvas[mask] = cv2.addWeighted(canvas, 1 - alpha, colors, alpha, 0)[mask]``
    with full-frame masks.

    Args:
        canvas: uint8 (H, W, 3) RGB; modified.
        instances: instances in pixels of ``canvas``.
        alpha: opacity, 0 to 1.

    Raises:
        StreamsegError: ``instances`` have another frame size.
    """
    if canvas.shape[:2] != instances.size:
        raise StreamsegError(
            f"instances of a frame of {instances.size} don't fit an image of {canvas.shape[:2]}"
        )
    for (bitmap, window), color in zip(
        _iterate_bitmaps(instances.masks), instance_colors(instances), strict=True
    ):
        _blend(canvas, bitmap, window, color, alpha)


def instance_colors(instances: Instances) -> list[Color]:
    """Return the color of each row: that of its track, or of its category if untracked."""
    keys = np.where(instances.track_ids == NOT_TRACKED, instances.labels, instances.track_ids)
    return [_palette_color(key) for key in keys.tolist()]


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode an image, uint8 (H, W, 3) RGB, as JPEG with ``quality`` 1 to 100.

    Raises:
        StreamsegError: a side of the image exceeds ``MAX_JPEG_SIDE``.
    """
    is_encoded, data = False, np.zeros(0, np.uint8)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if max(image.shape) <= MAX_JPEG_SIDE:
        is_encoded, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not is_encoded:
        raise StreamsegError(f"an image of {image.shape[:2]} can't be encoded as JPEG")
    return data.tobytes()


def _palette_color(key: int) -> Color:
    return PALETTE[key % len(PALETTE)]


def _mute_color(color: Color) -> Color:
    red, green, blue = ((part + 2 * 128) // 3 for part in color)
    return red, green, blue


def _iterate_bitmaps(masks: Masks) -> Iterator[tuple[Image, Rectangle]]:
    """Yield the bitmap, uint8 (h, w) of 0 and 1, and the window of each mask."""
    for crop, (x1, y1, x2, y2) in zip(masks.crops, masks.windows.tolist(), strict=True):
        yield _to_bitmap(crop), (x1, y1, x2, y2)


def _to_bitmap(crop: BoolArray) -> Image:
    """Convert a crop to uint8 in row-major order, as OpenCV expects."""
    if crop.flags.c_contiguous or crop.size == 0:
        return crop.view(np.uint8)
    if crop.T.flags.c_contiguous:  # decoded RLE is in column-major order
        return np.asarray(cv2.transpose(crop.T.view(np.uint8)))
    return np.ascontiguousarray(crop).view(np.uint8)


def _solid_image(color: Color, height: int, width: int) -> Image:
    """Return an image of one color; filling row by row is faster than pixel by pixel."""
    block = np.empty((height, width * 3), np.uint8)
    block[:] = np.tile(np.array(color, np.uint8), width)
    return block.reshape(height, width, 3)


def _blend(canvas: Image, bitmap: Image, window: Rectangle, color: Color, alpha: float) -> None:
    x1, y1, x2, y2 = window
    if bitmap.size == 0:
        return
    background = canvas[y1:y2, x1:x2]
    blended = _solid_image(color, y2 - y1, x2 - x1)
    cv2.addWeighted(background, 1 - alpha, blended, alpha, 0, dst=blended)
    cv2.copyTo(blended, bitmap, background)


def _draw_outlines(canvas: Image, instances: Instances) -> None:
    """Draw a line along the inside of each mask border, above all fills."""
    kernel_size = 2 * _line_width(canvas) + 1
    kernel = np.ones((kernel_size, kernel_size), np.uint8)
    for (bitmap, window), color in zip(
        _iterate_bitmaps(instances.masks), instance_colors(instances), strict=True
    ):
        if bitmap.size == 0:
            continue
        x1, y1, x2, y2 = window
        inside = cv2.erode(bitmap, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        border = cv2.subtract(bitmap, inside)
        cv2.copyTo(_solid_image(color, y2 - y1, x2 - x1), border, canvas[y1:y2, x1:x2])


def _draw_labels(canvas: Image, instances: Instances) -> None:
    """Draw a label with a filled background for each object, inside the frame."""
    scale = _text_scale(canvas)
    # Labels should not cover objects, and even less other labels, which have a weight of 4.
    obstacles = np.concatenate([instances.boxes, np.zeros_like(instances.boxes)])
    weights = np.repeat([1, 4], len(instances))
    labels = zip(_label_texts(instances), instance_colors(instances), strict=True)
    for row, (text, color) in enumerate(labels):
        (width, height), descent = cv2.getTextSize(text, _FONT, scale, 1)
        margin = max(2, round(height / 4))
        extent = (width + 2 * margin, height + descent + 2 * margin)
        positions = _label_positions(instances.boxes[row], extent, canvas)
        covered = _intersection_areas(positions, obstacles) @ weights
        # A small preference for earlier positions keeps labels from jumping in a video.
        preference = 0.05 * extent[0] * extent[1] * np.arange(len(positions))
        position = positions[np.argmin(covered + preference)]
        obstacles[len(instances) + row] = position
        x1, y1, x2, y2 = position.tolist()
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, cv2.FILLED)
        origin = (x1 + margin, y1 + margin + height)
        cv2.putText(canvas, text, origin, _FONT, scale, _text_color(color), 1, cv2.LINE_AA)


def _label_texts(instances: Instances) -> Iterator[str]:
    columns = (instances.names, instances.track_ids.tolist(), instances.scores.tolist())
    for name, track, score in zip(*columns, strict=True):
        title = name if track == NOT_TRACKED else f"{name} {track}"
        yield f"{title}  {score:.0%}"


def _label_positions(
    box: npt.NDArray[np.float32], extent: tuple[int, int], canvas: Image
) -> npt.NDArray[np.int64]:
    """Return candidate positions of a label, best first: above, below, at the sides, inside.

    Args:
        box: float32 (4,), box of the object.
        extent: width and height of the label.
        canvas: image.

    Returns:
        int64 (7, 4) xyxy, inside the frame unless the label is larger than the frame.
    """
    frame_height, frame_width = canvas.shape[:2]
    left, top, right, bottom = box.tolist()
    x1, y1 = floor(max(left, 0)), floor(max(top, 0))
    x2, y2 = ceil(min(right, frame_width)), ceil(min(bottom, frame_height))
    width, height = extent
    above, below = y1 - height, y2
    corners = [(x1, above), (x1, below), (x2 - width, above), (x2 - width, below)]
    corners += [(x2, y1), (x1 - width, y1), (x1, y1)]
    max_x, max_y = max(0, frame_width - width), max(0, frame_height - height)
    origins = [(max(0, min(x, max_x)), max(0, min(y, max_y))) for x, y in corners]
    return np.array([(x, y, x + width, y + height) for x, y in origins])


def _intersection_areas(
    boxes: npt.NDArray[np.int64], others: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Return the intersection areas of boxes (N, 4) and others (M, 4), (N, M)."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    sides = np.maximum(high - low, 0)
    areas: npt.NDArray[np.float64] = sides[..., 0] * sides[..., 1]
    return areas


def _text_color(background: Color) -> Color:
    """Return dark or white, for contrast with the background (luma of ITU-R BT.601)."""
    red, green, blue = background
    return _DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else _WHITE


def _line_width(canvas: Image) -> int:
    short_side: int = min(canvas.shape[:2])
    return max(1, round(short_side / 360))


def _text_scale(canvas: Image) -> float:
    """Return the OpenCV font scale: letters of 8 pixels at 240 lines, 11 at 576, 16 at 1080."""
    short_side: int = min(canvas.shape[:2])
    return max(0.32, 0.2 + short_side / 2600)
