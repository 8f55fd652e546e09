"""HEIF and AVIF stills: the whole primary image, upright, whatever else is in the file."""

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.still_images import (
    Item,
    av1_item,
    box,
    encoded,
    full_box,
    grid_item,
    heif,
    hevc_item,
    scene,
)

from streamseg.errors import TooLargeError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_image, read_still

pytestmark = pytest.mark.timeout(60)
TILE = 64
PIXELS = scene(100, 150)
SHAPE = PIXELS.shape


def saved(tmp_path, data, name="a.avif"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def cut(pixels, rows, columns):
    padded = np.zeros((rows * TILE, columns * TILE, 3), np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return [
        padded[y : y + TILE, x : x + TILE]
        for y in range(0, rows * TILE, TILE)
        for x in range(0, columns * TILE, TILE)
    ]


def grid(item, *properties, **more):
    """The items of a grid of 2 x 3 tiles, of which those at the edges stick out."""
    tiles = [item(n, each, hidden=True) for n, each in enumerate(cut(PIXELS, 2, 3), 1)]
    return [*tiles, grid_item(9, SHAPE, 2, 3, range(1, 7), *properties, **more)]


def mean_difference(path, expected):
    image = read_image(path, 10**6).astype(int)
    assert image.shape == expected.shape
    return np.abs(image - expected).mean()


def test_a_grid_is_put_together_as_pillow_does(tmp_path):
    path = saved(tmp_path, heif(grid(av1_item), 9))
    assert mean_difference(path, np.asarray(Image.open(path))) < 0.5
    assert mean_difference(path, PIXELS) < 3
    assert read_still(path, 10**6).header.images == 1


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirror", [None, 0, 1])
def test_rotation_and_mirroring_are_applied_once_and_exif_never(tmp_path, turns, mirror):
    properties = [box(b"irot", bytes([turns]))] if turns else []
    properties += [] if mirror is None else [box(b"imir", bytes([mirror]))]
    for items, primary in (
        ([av1_item(1, PIXELS, *properties)], 1),
        (grid(av1_item, *properties), 9),
    ):
        path = saved(tmp_path, heif(items, primary))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        assert mean_difference(path, expected) < 0.5
    exif = Image.Exif()
    exif[0x0112] = 6  # Pillow writes it as a rotation
    path = saved(tmp_path, encoded(PIXELS, "AVIF", quality=90, subsampling="4:4:4", exif=exif))
    assert mean_difference(path, np.rot90(PIXELS, 3)) < 3


@pytest.mark.parametrize(("subsampling", "limit"), [("4:4:4", 0.5), ("4:2:2", 3), ("4:2:0", 4)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_single_image_is_as_pillow_reads_it(tmp_path, mode, subsampling, limit):
    path = tmp_path / "a.avif"
    Image.fromarray(PIXELS).convert(mode).save(path, quality=90, subsampling=subsampling)
    assert mean_difference(path, np.asarray(Image.open(path).convert("RGB"))) < limit
    assert read_still(path, 10**6).header.images == 1


def test_hevc_tiles_and_images_are_exact(tmp_path):
    path = saved(tmp_path, heif(grid(hevc_item), 9, b"heic"), "a.heic")
    assert mean_difference(path, PIXELS) == 0
    path = saved(tmp_path, heif([hevc_item(1, PIXELS)], 1, b"heic"), "a.heic")
    assert mean_difference(path, PIXELS) == 0


def test_the_primary_image_is_read_and_others_are_counted(tmp_path):
    first, second = scene(64, 80, 1), scene(64, 80, 2)
    items = [av1_item(1, first), av1_item(2, second)]
    thumbnail = av1_item(3, scene(16, 20, 3), references=((b"thmb", (2,)),))
    alpha = av1_item(4, scene(64, 80, 4), references=((b"auxl", (2,)),))
    path = saved(tmp_path, heif([*items, thumbnail, alpha], 2))
    assert mean_difference(path, second) < 3
    assert read_still(path, 10**6).header.images == 2
    path = saved(tmp_path, heif([thumbnail, alpha, items[1]], 2))
    assert mean_difference(path, second) < 3
    assert read_still(path, 10**6).header.images == 1


def test_a_clean_aperture_crops_before_it_is_turned(tmp_path):
    def clap(width, height, right, down):
        return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 2, down, 2))

    properties = clap(100, 40, -30, 20), box(b"irot", b"\1")  # moved by -15 and 10 pixels
    path = saved(tmp_path, heif([av1_item(1, PIXELS, *properties)], 1))
    assert read_still(path, 10**6).header.size == (100, 40)
    assert mean_difference(path, np.rot90(PIXELS[40:80, 10:110])) < 3
    path = saved(tmp_path, heif([av1_item(1, PIXELS, clap(100, 40, 90, 0))], 1))
    with pytest.raises(BadImageError, match="clean aperture"):
        read_image(path, 10**6)


def test_what_cannot_be_put_together_is_refused(tmp_path):
    tiles = grid(av1_item)[:6]
    shape = full_box(b"ispe", struct.pack(">II", 150, 100))
    overlay = Item(9, b"iovl", bytes(12), (shape,), ((b"dimg", (1, 2)),))
    for items, primary in (
        ([*tiles, overlay], 9),
        ([*tiles, grid_item(9, SHAPE, 2, 3, range(1, 6))], 9),
        ([*tiles, grid_item(9, (300, 400), 2, 3, range(1, 7))], 9),
        ([*tiles[:5], av1_item(6, scene(32, 32)), grid_item(9, SHAPE, 2, 3, range(1, 7))], 9),
        ([*tiles, grid_item(9, SHAPE, 2, 3, ())], 9),
        (tiles, 8),
    ):
        with pytest.raises(BadImageError):
            read_image(saved(tmp_path, heif(items, primary)), 10**6)
    with pytest.raises(TooLargeError):
        read_image(saved(tmp_path, heif(grid(av1_item), 9)), 100 * 150 - 1)


DATA = heif(grid(av1_item, box(b"irot", b"\1")), 9)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_a_grid_that_was_cut_off_is_refused(tmp_path, share):
    with pytest.raises(BadImageError):
        read_image(saved(tmp_path, DATA[: int(len(DATA) * share)]), 10**6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1499), st.integers(1, 255)), min_size=1, max_size=6))
def test_any_damage_to_the_boxes_ends_in_an_image_or_a_refusal(tmp_path, flips):
    data = bytearray(DATA)
    for place, bits in flips:
        data[place % len(data)] ^= bits
    try:
        image = read_image(saved(tmp_path, bytes(data)), 40_000)
    except (BadImageError, TooLargeError):
        return
    assert image.shape[0] * image.shape[1] <= 40_000
