"""Conversion of images of many types to the uint8 (H, W, 3) RGB arrays that models take.

Ambiguous images are refused: integers of more than eight bits, floats outside 0 to 1, arrays with
channels first. BGR can't be distinguished from RGB.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch import Tensor

from streamseg.errors import ArgumentError, SourceError, TooLargeError, escape_unprintable, redact
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_image
from streamseg.structures.masks import MAX_PIXELS
from streamseg.structures.results import Frame, Image

if TYPE_CHECKING:
    from typing_extensions import TypeIs

AnyImage: TypeAlias = npt.NDArray[Any] | Tensor | Pillow.Image | Frame | str | os.PathLike[str]
"""An image of a type that :func:`read_images` accepts."""

_CHANNELS = (1, 3, 4)
_RAW_MODES = ("I", "F")
"""Prefixes of Pillow's modes of numbers without a known range, such as ``I;16``."""

_STEPS_TO_RGB = {"La": ("LA",), "RGBa": ("RGBA",), "P": ("RGBA",)}
"""Modes that can't be converted directly, or (``P`` with transparency) only with a warning."""


def is_single(images: Any) -> TypeIs[AnyImage]:
    """Return whether ``images`` is a single image."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, Pillow.Image | Frame | str | os.PathLike)


def read_images(images: Any) -> list[Image]:
    """Convert several images to uint8 (H, W, 3) RGB; the originals are not modified.

    Args:
        images: iterable of images, or an array or tensor with one more dimension. An image is an
            array (H, W, 3) RGB, (H, W, 4), whose alpha is dropped, (H, W, 1) or (H, W); a tensor
            (3, H, W), (4, H, W), (1, H, W) or (H, W); both uint8 or floats from 0 to 1; a Pillow
            image of any 8-bit mode (EXIF orientation is not applied: see
            ``PIL.ImageOps.exif_transpose``); a ``Frame``; or the path of an image file, to which
            EXIF orientation is applied.

    Raises:
        ArgumentError: an image is none of these.
        SourceError: a file can't be read.
    """
    if isinstance(images, str | bytes | Mapping | AbstractSet) or not isinstance(images, Iterable):
        raise ArgumentError(f"images must be an image or a list of them, not {_type_name(images)}")
    return [read_image_of_any_type(image, f"image {number}") for number, image in enumerate(images)]


def read_image_of_any_type(image: Any, what: str) -> Image:
    """Convert one image to uint8 (H, W, 3) RGB; see :func:`read_images`.

    Args:
        image: the image.
        what: subject of error messages, such as ``image 3``.

    Raises:
        ArgumentError, SourceError: see :func:`read_images`.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, what)
    if isinstance(image, Tensor):
        return _from_tensor(image, what)
    if isinstance(image, Pillow.Image):
        return _from_pillow(image, what)
    if isinstance(image, Frame):
        return image.image
    if isinstance(image, str | os.PathLike):
        return _from_file(image, what)
    raise ArgumentError(
        f"{what} must be an array, a tensor, a Pillow image or a path, not {_type_name(image)}"
    )


def _from_array(image: npt.NDArray[Any], what: str) -> Image:
    if image.ndim not in (2, 3) or image.size == 0:
        raise ArgumentError(f"{what} must be (H, W, 3) or (H, W), not {image.shape}")
    if image.ndim == 3 and image.shape[2] not in _CHANNELS:
        hint = ": its channels come first, transpose it" if image.shape[0] in _CHANNELS else ""
        raise ArgumentError(f"{what} must be (H, W, 3) or (H, W), not {image.shape}{hint}")
    return _to_rgb(_to_uint8(image, what))


def _from_tensor(image: Tensor, what: str) -> Image:
    if image.layout != torch.strided or image.is_quantized or image.device.type == "meta":
        raise ArgumentError(f"{what} must be a dense tensor of numbers")
    shape = tuple(image.shape)
    if image.ndim not in (2, 3) or image.numel() == 0:
        raise ArgumentError(f"{what} must be a tensor (3, H, W) or (H, W), not {shape}")
    if image.ndim == 3 and image.shape[0] not in _CHANNELS:
        hint = ": its channels come last, permute it" if shape[2] in _CHANNELS else ""
        raise ArgumentError(f"{what} must be a tensor (3, H, W) or (H, W), not {shape}{hint}")
    dense = image.detach().resolve_conj().resolve_neg().cpu()
    dense = dense.float() if dense.dtype == torch.bfloat16 else dense
    values = dense.numpy()
    return _to_rgb(_to_uint8(values if image.ndim == 2 else values.transpose(1, 2, 0), what))


def _from_pillow(image: Pillow.Image, what: str) -> Image:
    if image.width * image.height > MAX_PIXELS or not (image.width and image.height):
        raise ArgumentError(f"{what} has {image.height} x {image.width} pixels")
    if image.mode.startswith(_RAW_MODES):
        raise ArgumentError(f"{what} is of Pillow's mode {image.mode}: scale it to 8 bits first")
    try:
        for mode in _STEPS_TO_RGB.get(image.mode, ()):
            image = image.convert(mode)
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes files lazily
        raise SourceError(f"{what} can't be decoded by Pillow: {error}") from None


def _from_file(path: str | os.PathLike[str], what: str) -> Image:
    name = escape_unprintable(redact(os.fsdecode(path)))
    if not name or "://" in name:
        raise ArgumentError(f"{what} must be the path of an image file, not {name!r}")
    try:
        return read_image(Path(path), MAX_PIXELS)
    except TooLargeError:
        raise  # its message has the file name
    except (BadImageError, ValueError) as error:
        raise SourceError(f"{name}: {error}") from None


def _to_uint8(values: npt.NDArray[Any], what: str) -> npt.NDArray[np.uint8]:
    """Convert to uint8; floats from 0 to 1 are multiplied by 255 and rounded."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise ArgumentError(
            f"{what} must be uint8 or floats from 0 to 1, not {values.dtype}: scale it to 8 bits"
        )
    if not ((values >= 0) & (values <= 1)).all():  # also excludes NaN
        raise ArgumentError(
            f"{what} has floats that aren't from 0 to 1: divide by the largest value, or give uint8"
        )
    return np.rint(values.astype(np.float32, copy=False) * 255).astype(np.uint8)


def _to_rgb(image: npt.NDArray[np.uint8]) -> Image:
    """Convert an image (H, W) or (H, W, 1 | 3 | 4) to a contiguous array (H, W, 3)."""
    if image.ndim == 2 or image.shape[2] == 1:
        gray = image.reshape(image.shape[0], image.shape[1], 1)
        return np.repeat(gray, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def _type_name(value: object) -> str:
    return "None" if value is None else type(value).__name__
