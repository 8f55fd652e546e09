"""TIFF: every layout gives the expected pixels or is refused; none gives wrong pixels."""

from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.still_images import build_tiff, encode_image, smooth_image, strip_page, tiled_page

from streamseg.errors import TooLargeError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_exif_orientation, read_image, read_image_file

pytestmark = pytest.mark.timeout(60)
PIXELS = smooth_image(90, 130)
GRAY = PIXELS[..., 0]
PIXELS_16 = PIXELS.astype(np.uint16) * 256 + np.roll(PIXELS, 1, 0)


def save_file(tmp_path, data):
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    return path


def max_difference(path, expected):
    image = read_image(path, 10**6)
    expected = np.dstack([expected] * 3) if expected.ndim == 2 else expected
    assert image.shape == expected.shape
    return np.abs(image.astype(int) - expected).max()


def encode_jpeg(tile):
    return encode_image(tile, "JPEG", quality=95, subsampling=0, keep_rgb=True)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_tiles_are_joined(tmp_path, order, big):
    path = save_file(tmp_path, build_tiff([tiled_page(PIXELS)], order, big=big))
    assert max_difference(path, PIXELS) == 0
    path = save_file(tmp_path, build_tiff([tiled_page(GRAY, photometric=1)], order, big=big))
    assert max_difference(path, GRAY) == 0


def test_big_endian_bigtiff_is_refused(tmp_path):
    with pytest.raises(BadImageError, match="big-endian"):
        read_image(save_file(tmp_path, build_tiff([tiled_page(PIXELS)], ">", big=True)), 10**6)


def test_jpeg_compression_is_decoded(tmp_path):
    path = save_file(tmp_path, build_tiff([tiled_page(PIXELS, 64, encode_jpeg, compression=7)]))
    assert max_difference(path, PIXELS) < 12
    path = save_file(
        tmp_path, build_tiff([tiled_page(GRAY, 64, encode_jpeg, compression=7, photometric=1)])
    )
    assert max_difference(path, GRAY) < 12


COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd")


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *product(("RGB", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "1"), COMPRESSIONS),
        *product(("RGB", "L", "RGBA", "LA", "CMYK", "YCbCr"), ("jpeg",)),
    ],
)
def test_every_mode_and_compression_gives_the_pixels_that_pillow_reads(tmp_path, mode, compression):
    path = tmp_path / "a.tif"
    Image.fromarray(PIXELS).convert(mode).save(path, compression=compression)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert max_difference(path, expected) <= (mode == "CMYK")  # FFmpeg's is one level darker


@pytest.mark.parametrize(("photometric", "planes"), [(0, 1), (1, 1), (2, 1), (2, 2)])
def test_16_bits_are_rounded_to_8(tmp_path, photometric, planes):
    samples = PIXELS_16 if photometric == 2 else PIXELS_16[..., 0]
    rounded = np.minimum((samples.astype(int) + 128) >> 8, 255)
    expected = 255 - rounded if photometric == 0 else rounded
    path = save_file(
        tmp_path, build_tiff([strip_page(samples, photometric, bits=16, planes=planes)])
    )
    assert max_difference(path, expected) <= 1


def test_tiled_uncompressed_16_bit_planes_are_refused(tmp_path):
    planes = [np.ascontiguousarray(PIXELS_16[:64, :64, n]).tobytes() for n in range(3)]
    tags, _ = tiled_page(PIXELS[:64, :64], 64)
    page = tags | {258: (3, [16] * 3), 284: (3, [2])}, planes
    with pytest.raises(BadImageError, match="16-bit planes"):
        read_image(save_file(tmp_path, build_tiff([page])), 10**6)


def test_floating_point_samples_must_lie_between_0_and_1(tmp_path):
    floats = (PIXELS / np.float32(255)).astype(np.float32)
    page = strip_page(floats, bits=32, sample_format=3)
    assert max_difference(save_file(tmp_path, build_tiff([page])), PIXELS) <= 1
    page = strip_page(PIXELS.astype(np.float32), bits=32, sample_format=3)
    with pytest.raises(BadImageError, match="between 0 and 1"):
        read_image(save_file(tmp_path, build_tiff([page])), 10**6)


@pytest.mark.parametrize(
    ("samples", "bits", "sample_format", "photometric"),
    [
        (GRAY.astype(np.float32), 32, 3, 1),
        (GRAY.astype(np.int16), 16, 2, 1),
        (GRAY.astype(np.uint32), 32, 1, 1),
        (PIXELS, 8, 1, 8),  # L*a*b*
    ],
)
def test_samples_without_a_conversion_to_8_bits_are_refused(
    tmp_path, samples, bits, sample_format, photometric
):
    page = strip_page(samples, photometric, bits=bits, sample_format=sample_format)
    with pytest.raises(BadImageError):
        read_image(save_file(tmp_path, build_tiff([page])), 10**6)


def test_main_image_is_the_largest_one(tmp_path):
    small, other = smooth_image(12, 16, 1), smooth_image(90, 130, 2)
    for marks in ({}, {"t254": (4, [1])}, {"t255": (3, [2])}):
        pages = [strip_page(small, **marks), strip_page(PIXELS), strip_page(small, **marks)]
        path = save_file(tmp_path, build_tiff(pages))
        assert max_difference(path, PIXELS) == 0
        assert read_image_file(path, 10**6).header.images == (1 if marks else 3)
    path = save_file(tmp_path, build_tiff([strip_page(PIXELS), tiled_page(other)]))
    assert max_difference(path, PIXELS) == 0
    assert read_image_file(path, 10**6).header.images == 2
    mask = strip_page(GRAY, 4, t254=(4, [4]))
    path = save_file(tmp_path, build_tiff([mask, strip_page(PIXELS)]))
    assert max_difference(path, PIXELS) == 0
    assert read_image_file(path, 10**6).header.images == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_the_main_image(tmp_path, orientation):
    marked = {"t274": (3, [orientation])}
    other = {"t274": (3, [9 - orientation])}
    pages = [
        strip_page(smooth_image(12, 16), **other),
        tiled_page(PIXELS, **marked),
        strip_page(smooth_image(8, 8), **other),
    ]
    path = save_file(tmp_path, build_tiff(pages))
    alone = tmp_path / "alone.tif"
    alone.write_bytes(build_tiff([strip_page(PIXELS, **marked)]))
    with Image.open(alone) as image:
        image.load()
        expected = np.asarray(image)
    assert max_difference(path, expected) == 0
    assert read_exif_orientation(path, 10**6) == orientation


def test_too_large_image_or_tile_is_refused_before_decoding(tmp_path):
    with pytest.raises(TooLargeError):
        read_image(save_file(tmp_path, build_tiff([tiled_page(PIXELS)])), 130 * 90 - 1)
    tags, blocks = tiled_page(PIXELS, 64)
    huge = tags | {322: (4, [2**20]), 323: (4, [2**20])}
    with pytest.raises(BadImageError, match="tiles"):
        read_image(save_file(tmp_path, build_tiff([(huge, blocks)])), 10**6)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_compressed_tiff_is_refused(tmp_path, compression, share):
    Image.fromarray(PIXELS).save(tmp_path / "whole.tif", compression=compression)
    data = (tmp_path / "whole.tif").read_bytes()
    with pytest.raises(BadImageError):
        read_image(save_file(tmp_path, data[: int(len(data) * share)]), 10**6)


def test_circular_directories_are_read_once(tmp_path):
    data = bytearray(build_tiff([strip_page(smooth_image(8, 8))] * 2))
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    second = first + 2 + 12 * count
    at = int.from_bytes(data[second : second + 4], "little")
    end = at + 2 + 12 * count
    data[end : end + 4] = first.to_bytes(4, "little")
    path = save_file(tmp_path, bytes(data))
    assert read_image_file(path, 10**6).header.images == 2


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 399), st.integers(1, 255)), min_size=1, max_size=8),
    from_end=st.booleans(),
)
def test_damaged_directory_gives_an_image_or_is_refused(tmp_path, flips, from_end):
    data = bytearray(
        build_tiff([tiled_page(smooth_image(40, 40), 16), strip_page(smooth_image(8, 8))])
    )
    for position, bits in flips:
        data[-1 - position if from_end else position] ^= bits
    try:
        image = read_image(save_file(tmp_path, bytes(data)), 20_000)
    except (BadImageError, TooLargeError):
        return
    assert image.dtype == np.uint8
    assert image.shape[0] * image.shape[1] <= 20_000
