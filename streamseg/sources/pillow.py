"""Strict image decoding with Pillow: truncated and damaged files are refused.

Each format is opened by its own Pillow class, so that no other format is tried and Pillow's
process-wide pixel limit stays as the user set it; the caller checks the size first.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np

from streamseg.sources.base import BadImageError
from streamseg.structures.results import Image

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    PillowImage: TypeAlias = ImageFile

_CLASSES: Final = {
    "ICO": ("PIL.IcoImagePlugin", "IcoImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
}
_RGB_MODES: Final = frozenset(
    ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")
)
_STRAIGHT_ALPHA_MODES: Final = {"RGBa": "RGBA", "La": "LA"}
"""Modes to which those with premultiplied alpha are converted first."""


def to_rgb(image: PillowImage) -> Image:
    """Convert to uint8 (H, W, 3) RGB; alpha is dropped.

    Raises:
        BadImageError: the image mode has no defined conversion to 8-bit RGB.
    """
    if image.mode not in _RGB_MODES:
        raise BadImageError(f"its image mode, {image.mode}, is not supported")
    if image.mode in _STRAIGHT_ALPHA_MODES:
        straight = image.convert(_STRAIGHT_ALPHA_MODES[image.mode])
        return cast(Image, np.array(straight.convert("RGB")))
    return cast(Image, np.array(image.convert("RGB")))


def decode_with_pillow(
    name: str, data: bytes, convert: Callable[[PillowImage], Image] = to_rgb
) -> Image:
    """Decode the first image of a file.

    Args:
        name: format: ICO, TIFF or WEBP.
        data: content of the file.
        convert: conversion of the decoded image to uint8 (H, W, 3) RGB.

    Raises:
        BadImageError: the file can't be decoded.
    """
    module, class_name = _CLASSES[name]
    try:
        with getattr(import_module(module), class_name)(BytesIO(data)) as image:
            image.load()
            return convert(image)
    except BadImageError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file raises errors of any class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"can't be decoded: {reason}") from None
