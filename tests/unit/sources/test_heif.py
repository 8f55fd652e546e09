"""HEIF and AVIF images: the primary image is assembled from tiles and upright."""

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.still_images import (
    Item,
    build_box,
    build_full_box,
    build_grid_item,
    build_heif,
    encode_av1_item,
    encode_hevc_item,
    encode_image,
    smooth_image,
)

from streamseg.errors import TooLargeError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_image, read_image_file

pytestmark = pytest.mark.timeout(60)
TILE = 64
PIXELS = smooth_image(100, 150)
SHAPE = PIXELS.shape


def save_file(tmp_path, data, name="a.avif"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def split_tiles(pixels, rows, columns):
    """Split an image into tiles in row-major order; those at the edges are padded with zeros."""
    padded = np.zeros((rows * TILE, columns * TILE, 3), np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return [
        padded[y : y + TILE, x : x + TILE]
        for y in range(0, rows * TILE, TILE)
        for x in range(0, columns * TILE, TILE)
    ]


def encode_grid(encode_item, *properties, **more):
    """Return the items of a grid of 2 x 3 tiles that is larger than the image."""
    tiles = [
        encode_item(number, tile, hidden=True)
        for number, tile in enumerate(split_tiles(PIXELS, 2, 3), 1)
    ]
    return [*tiles, build_grid_item(9, SHAPE, 2, 3, range(1, 7), *properties, **more)]


def mean_difference(path, expected):
    image = read_image(path, 10**6).astype(int)
    assert image.shape == expected.shape
    return np.abs(image - expected).mean()


def test_grid_equals_the_one_that_pillow_assembles(tmp_path):
    path = save_file(tmp_path, build_heif(encode_grid(encode_av1_item), 9))
    assert mean_difference(path, np.asarray(Image.open(path))) < 0.5
    assert mean_difference(path, PIXELS) < 3
    assert read_image_file(path, 10**6).header.images == 1


@pytest.mark.parametrize("quarter_turns", range(4))
@pytest.mark.parametrize("mirror", [None, 0, 1])
def test_rotation_and_mirroring_are_applied_and_exif_is_ignored(tmp_path, quarter_turns, mirror):
    properties = [build_box(b"irot", bytes([quarter_turns]))] if quarter_turns else []
    properties += [] if mirror is None else [build_box(b"imir", bytes([mirror]))]
    for items, primary in (
        ([encode_av1_item(1, PIXELS, *properties)], 1),
        (encode_grid(encode_av1_item, *properties), 9),
    ):
        path = save_file(tmp_path, build_heif(items, primary))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        assert mean_difference(path, expected) < 0.5
    exif = Image.Exif()
    exif[0x0112] = 6  # Pillow writes it as a rotation
    path = save_file(
        tmp_path, encode_image(PIXELS, "AVIF", quality=90, subsampling="4:4:4", exif=exif)
    )
    assert mean_difference(path, np.rot90(PIXELS, 3)) < 3


@pytest.mark.parametrize(("subsampling", "limit"), [("4:4:4", 0.5), ("4:2:2", 3), ("4:2:0", 4)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_single_image_equals_the_one_that_pillow_reads(tmp_path, mode, subsampling, limit):
    path = tmp_path / "a.avif"
    Image.fromarray(PIXELS).convert(mode).save(path, quality=90, subsampling=subsampling)
    assert mean_difference(path, np.asarray(Image.open(path).convert("RGB"))) < limit
    assert read_image_file(path, 10**6).header.images == 1


def test_lossless_hevc_is_exact_with_and_without_a_grid(tmp_path):
    path = save_file(tmp_path, build_heif(encode_grid(encode_hevc_item), 9, b"heic"), "a.heic")
    assert mean_difference(path, PIXELS) == 0
    path = save_file(tmp_path, build_heif([encode_hevc_item(1, PIXELS)], 1, b"heic"), "a.heic")
    assert mean_difference(path, PIXELS) == 0


def test_primary_image_is_read_and_other_images_are_counted(tmp_path):
    first, second = smooth_image(64, 80, 1), smooth_image(64, 80, 2)
    items = [encode_av1_item(1, first), encode_av1_item(2, second)]
    thumbnail = encode_av1_item(3, smooth_image(16, 20, 3), references=((b"thmb", (2,)),))
    alpha = encode_av1_item(4, smooth_image(64, 80, 4), references=((b"auxl", (2,)),))
    path = save_file(tmp_path, build_heif([*items, thumbnail, alpha], 2))
    assert mean_difference(path, second) < 3
    assert read_image_file(path, 10**6).header.images == 2
    path = save_file(tmp_path, build_heif([thumbnail, alpha, items[1]], 2))
    assert mean_difference(path, second) < 3
    assert read_image_file(path, 10**6).header.images == 1


def test_clean_aperture_is_applied_before_rotation(tmp_path):
    def clap(width, height, right, down):
        return build_box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 2, down, 2))

    properties = clap(100, 40, -30, 20), build_box(b"irot", b"\1")  # shifted by -15 and 10 pixels
    path = save_file(tmp_path, build_heif([encode_av1_item(1, PIXELS, *properties)], 1))
    assert read_image_file(path, 10**6).header.size == (100, 40)
    assert mean_difference(path, np.rot90(PIXELS[40:80, 10:110])) < 3
    path = save_file(tmp_path, build_heif([encode_av1_item(1, PIXELS, clap(100, 40, 90, 0))], 1))
    with pytest.raises(BadImageError, match="clean aperture"):
        read_image(path, 10**6)


def test_inconsistent_grid_is_refused(tmp_path):
    tiles = encode_grid(encode_av1_item)[:6]
    small_tile = encode_av1_item(6, smooth_image(32, 32))
    shape = build_full_box(b"ispe", struct.pack(">II", 150, 100))
    overlay = Item(9, b"iovl", bytes(12), (shape,), ((b"dimg", (1, 2)),))
    for items, primary in (
        ([*tiles, overlay], 9),
        ([*tiles, build_grid_item(9, SHAPE, 2, 3, range(1, 6))], 9),
        ([*tiles, build_grid_item(9, (300, 400), 2, 3, range(1, 7))], 9),
        ([*tiles[:5], small_tile, build_grid_item(9, SHAPE, 2, 3, range(1, 7))], 9),
        ([*tiles, build_grid_item(9, SHAPE, 2, 3, ())], 9),
        (tiles, 8),
    ):
        with pytest.raises(BadImageError):
            read_image(save_file(tmp_path, build_heif(items, primary)), 10**6)
    with pytest.raises(TooLargeError):
        read_image(save_file(tmp_path, build_heif(encode_grid(encode_av1_item), 9)), 100 * 150 - 1)


GRID_FILE = build_heif(encode_grid(encode_av1_item, build_box(b"irot", b"\1")), 9)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_grid_is_refused(tmp_path, share):
    with pytest.raises(BadImageError):
        read_image(save_file(tmp_path, GRID_FILE[: int(len(GRID_FILE) * share)]), 10**6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1499), st.integers(1, 255)), min_size=1, max_size=6))
def test_damaged_boxes_give_an_image_or_are_refused(tmp_path, flips):
    data = bytearray(GRID_FILE)
    for position, bits in flips:
        data[position % len(data)] ^= bits
    try:
        image = read_image(save_file(tmp_path, bytes(data)), 40_000)
    except (BadImageError, TooLargeError):
        return
    assert image.shape[0] * image.shape[1] <= 40_000
