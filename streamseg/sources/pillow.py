"""Images that Pillow decodes, strictly: truncated and damaged files are refused.

Formats are opened by their own class, so that nothing but the format that was recognised is tried
and Pillow's process-wide pixel limit stays as the user set it: the caller checks the size first.
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
_INDIRECT: Final = {"RGBa": "RGBA", "La": "LA"}


def to_rgb(image: PillowImage) -> Image:
    """Return the pixels as uint8 (H, W, 3) RGB; alpha is dropped.

    Raises:
        BadImageError: the pixels have no defined colour in 8 bits.
    """
    if image.mode not in _RGB_MODES:
        raise BadImageError(f"its pixels are of the mode {image.mode}")
    straight = image.convert(_INDIRECT[image.mode]) if image.mode in _INDIRECT else image
    return cast(Image, np.array(straight.convert("RGB")))


def decode_pillow(
    name: str, data: bytes, convert: Callable[[PillowImage], Image] = to_rgb
) -> Image:
    """Decode the first image of a file in the format ``name``.

    Raises:
        BadImageError: it can't be decoded.
    """
    module, opener = _CLASSES[name]
    try:
        with getattr(import_module(module), opener)(BytesIO(data)) as image:
            image.load()
            return convert(image)
    except BadImageError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file raises errors of any class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"can't be decoded: {reason}") from None
