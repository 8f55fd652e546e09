"""Results as pictures: masks, outlines and labels painted onto a frame, and JPEG.

Everything is drawn inside the window of the object it belongs to; nothing here is as large as the
frame but the one copy that is painted on. Colours are RGB throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil, floor
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from streamseg.errors import StreamsegError
from streamseg.structures.masks import BoolArray, Masks
from streamseg.structures.results import NOT_TRACKED, Image, Instances, Result, Segment

Color: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]

MAX_JPEG_SIDE = 65_500
"""Largest width and height of a JPEG, in pixels."""
FILL_ALPHA = 0.5
STUFF_ALPHA = 0.4

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
"""Each colour is the one farthest from all before it in OKLab (Ottosson, 2020), where a distance is
the least of those seen with normal vision and with protanopia, deuteranopia and tritanopia
(simulated after Machado, Oliveira and Fernandes, 2009): neighbouring ids differ for everybody."""

_FONT = cv2.FONT_HERSHEY_DUPLEX
_DARK: Color = (16, 16, 16)
_WHITE: Color = (255, 255, 255)


def annotate_result(result: Result) -> Image:
    """The frame of ``result`` with what was found in it painted on, see :func:`paint`."""
    return annotate(result.frame.image, result.instances, result.segments)


def annotate(
    image: Image, instances: Instances, segments: Iterable[Segment] | None = None
) -> Image:
    """A copy of ``image`` with every instance's mask, outline and label.

    An instance has the colour of its track, or of its category where it isn't tracked. Lines and
    letters grow with the frame. The stuff of a panoptic result lies beneath, in muted colours.

    Args:
        image: uint8 (H, W, 3) RGB; not changed.
        instances: in pixels of ``image``.
        segments: panoptic parts; things are taken from ``instances``, so only stuff is painted.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        StreamsegError: ``instances`` are of another frame size.
    """
    canvas = image.copy()
    for segment in segments or ():
        if not segment.thing:
            bits, window = _bits(segment.mask.crop), segment.mask.window
            _blend(canvas, bits, window, _muted(_pick(segment.label)), STUFF_ALPHA)
    fill(canvas, instances, FILL_ALPHA)
    _draw_outlines(canvas, instances)
    _draw_tags(canvas, instances)
    return canvas


def fill(canvas: Image, instances: Instances, alpha: float) -> None:
    """Blend each instance's mask into ``canvas``, one after the other.

    The pixels are those of ``canvas[mask] = cv2.addWeighted(canvas, 1 - alpha, colours, alpha,
    0)[mask]`` with full-frame masks, in the same order.

    Args:
        canvas: uint8 (H, W, 3) RGB; painted on.
        instances: in pixels of ``canvas``.
        alpha: how much of the colour is seen, 0 to 1.

    Raises:
        StreamsegError: ``instances`` are of another frame size.
    """
    if canvas.shape[:2] != instances.size:
        raise StreamsegError(
            f"instances of a frame of {instances.size} don't fit an image of {canvas.shape[:2]}"
        )
    for (bits, window), colour in zip(
        _placed(instances.masks), instance_colors(instances), strict=True
    ):
        _blend(canvas, bits, window, colour, alpha)


def instance_colors(instances: Instances) -> list[Color]:
    """The colour of each row: its track's, or its category's where it isn't tracked."""
    keys = np.where(instances.track_ids == NOT_TRACKED, instances.labels, instances.track_ids)
    return [_pick(key) for key in keys.tolist()]


def encode_jpeg(image: Image, quality: int) -> bytes:
    """A uint8 (H, W, 3) RGB image as JPEG of ``quality`` 1 to 100.

    Raises:
        StreamsegError: JPEG can't hold an image of that size (a side over 65,500 pixels).
    """
    written, data = False, np.zeros(0, np.uint8)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if max(image.shape) <= MAX_JPEG_SIDE:
        written, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not written:
        raise StreamsegError(f"an image of {image.shape[:2]} can't be written as JPEG")
    return data.tobytes()


def _pick(key: int) -> Color:
    return PALETTE[key % len(PALETTE)]


def _muted(colour: Color) -> Color:
    red, green, blue = ((part + 2 * 128) // 3 for part in colour)
    return red, green, blue


def _placed(masks: Masks) -> Iterator[tuple[Image, Rectangle]]:
    """Each mask's bitmap, uint8 (h, w) of 0 and 1, and its window."""
    for crop, (x1, y1, x2, y2) in zip(masks.crops, masks.windows.tolist(), strict=True):
        yield _bits(crop), (x1, y1, x2, y2)


def _bits(crop: BoolArray) -> Image:
    """``crop`` as OpenCV takes masks: uint8, row by row."""
    if crop.flags.c_contiguous or crop.size == 0:
        return crop.view(np.uint8)
    if crop.T.flags.c_contiguous:  # decoded run lengths go down the columns
        return np.asarray(cv2.transpose(crop.T.view(np.uint8)))
    return np.ascontiguousarray(crop).view(np.uint8)


def _solid(colour: Color, height: int, width: int) -> Image:
    """A block of one colour; filled row by row, which is far quicker than pixel by pixel."""
    block = np.empty((height, width * 3), np.uint8)
    block[:] = np.tile(np.array(colour, np.uint8), width)
    return block.reshape(height, width, 3)


def _blend(canvas: Image, bits: Image, window: Rectangle, colour: Color, alpha: float) -> None:
    x1, y1, x2, y2 = window
    if bits.size == 0:
        return
    under = canvas[y1:y2, x1:x2]
    over = _solid(colour, y2 - y1, x2 - x1)
    cv2.addWeighted(under, 1 - alpha, over, alpha, 0, dst=over)
    cv2.copyTo(over, bits, under)


def _draw_outlines(canvas: Image, instances: Instances) -> None:
    """A line along the inside of each mask's edge, over all fills."""
    reach = 2 * _line_width(canvas) + 1
    kernel = np.ones((reach, reach), np.uint8)
    for (bits, window), colour in zip(
        _placed(instances.masks), instance_colors(instances), strict=True
    ):
        if bits.size == 0:
            continue
        x1, y1, x2, y2 = window
        inside = cv2.erode(bits, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        edge = cv2.subtract(bits, inside)
        cv2.copyTo(_solid(colour, y2 - y1, x2 - x1), edge, canvas[y1:y2, x1:x2])


def _draw_tags(canvas: Image, instances: Instances) -> None:
    """A small filled tag at each object, inside the frame."""
    scale = _text_scale(canvas)
    # What a tag should not hide: objects, and four times as much the other tags, once placed.
    obstacles = np.concatenate([instances.boxes, np.zeros_like(instances.boxes)])
    weights = np.repeat([1, 4], len(instances))
    captioned = zip(_captions(instances), instance_colors(instances), strict=True)
    for row, (caption, colour) in enumerate(captioned):
        (width, height), descent = cv2.getTextSize(caption, _FONT, scale, 1)
        margin = max(2, round(height / 4))
        extent = (width + 2 * margin, height + descent + 2 * margin)
        places = _tag_places(instances.boxes[row], extent, canvas)
        hidden = _shared_areas(places, obstacles) @ weights
        # A little is put up with at the earlier places, so that tags don't jump about in a video.
        tolerance = 0.05 * extent[0] * extent[1] * np.arange(len(places))
        place = places[np.argmin(hidden + tolerance)]
        obstacles[len(instances) + row] = place
        x1, y1, x2, y2 = place.tolist()
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, cv2.FILLED)
        origin = (x1 + margin, y1 + margin + height)
        cv2.putText(canvas, caption, origin, _FONT, scale, _ink(colour), 1, cv2.LINE_AA)


def _captions(instances: Instances) -> Iterator[str]:
    columns = (instances.names, instances.track_ids.tolist(), instances.scores.tolist())
    for name, track, score in zip(*columns, strict=True):
        known = name if track == NOT_TRACKED else f"{name} {track}"
        yield f"{known}  {score:.0%}"


def _tag_places(
    box: npt.NDArray[np.float32], extent: tuple[int, int], canvas: Image
) -> npt.NDArray[np.int64]:
    """Where a tag of ``extent`` (width, height) may be, best first: above, below, beside, inside.

    Returns:
        int64 (7, 4) xyxy, inside the frame unless the tag is larger than that.
    """
    frame_height, frame_width = canvas.shape[:2]
    left, top, right, bottom = box.tolist()
    x1, y1 = floor(max(left, 0)), floor(max(top, 0))
    x2, y2 = ceil(min(right, frame_width)), ceil(min(bottom, frame_height))
    width, height = extent
    above, below = y1 - height, y2
    corners = [(x1, above), (x1, below), (x2 - width, above), (x2 - width, below)]
    corners += [(x2, y1), (x1 - width, y1), (x1, y1)]
    most_x, most_y = max(0, frame_width - width), max(0, frame_height - height)
    lows = [(max(0, min(x, most_x)), max(0, min(y, most_y))) for x, y in corners]
    return np.array([(x, y, x + width, y + height) for x, y in lows])


def _shared_areas(
    places: npt.NDArray[np.int64], others: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Pixels that each of ``places``, (N, 4), shares with each of ``others``, (M, 4)."""
    low = np.maximum(places[:, None, :2], others[:, :2])
    high = np.minimum(places[:, None, 2:], others[:, 2:])
    sides = np.maximum(high - low, 0)
    areas: npt.NDArray[np.float64] = sides[..., 0] * sides[..., 1]
    return areas


def _ink(colour: Color) -> Color:
    """Dark or white, whichever is read better on ``colour`` (luma of ITU-R BT.601)."""
    red, green, blue = colour
    return _DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else _WHITE


def _line_width(canvas: Image) -> int:
    shorter: int = min(canvas.shape[:2])
    return max(1, round(shorter / 360))


def _text_scale(canvas: Image) -> float:
    """Of OpenCV's fonts; letters of about 8 pixels at 240 lines, 11 at 576 and 16 at 1080."""
    shorter: int = min(canvas.shape[:2])
    return max(0.32, 0.2 + shorter / 2600)
