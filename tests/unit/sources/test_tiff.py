"""TIFF: every layout is the picture, as Pillow and NumPy know it, or refused; never another one."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.still_images import encoded, scene, strips, tiff, tiles

from streamseg.errors import TooLargeError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_image, read_orientation, read_still

pytestmark = pytest.mark.timeout(60)
PIXELS = scene(90, 130)
GREY = PIXELS[..., 0]
DEEP = PIXELS.astype(np.uint16) * 256 + np.roll(PIXELS, 1, 0)


def saved(tmp_path, data):
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    return path


def difference(path, expected):
    image = read_image(path, 10**6)
    expected = np.dstack([expected] * 3) if expected.ndim == 2 else expected
    assert image.shape == expected.shape
    return np.abs(image.astype(int) - expected).max()


def jpeg(tile):
    return encoded(tile, "JPEG", quality=95, subsampling=0, keep_rgb=True)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_tiles_are_put_where_they_belong(tmp_path, order, big):
    assert difference(saved(tmp_path, tiff([tiles(PIXELS)], order, big=big)), PIXELS) == 0
    assert (
        difference(saved(tmp_path, tiff([tiles(GREY, photometric=1)], order, big=big)), GREY) == 0
    )


def test_a_big_endian_bigtiff_is_refused(tmp_path):
    with pytest.raises(BadImageError, match="big-endian"):
        read_image(saved(tmp_path, tiff([tiles(PIXELS)], ">", big=True)), 10**6)


def test_jpeg_inside_is_decoded(tmp_path):
    path = saved(tmp_path, tiff([tiles(PIXELS, 64, jpeg, compression=7)]))
    assert difference(path, PIXELS) < 12
    path = saved(tmp_path, tiff([tiles(GREY, 64, jpeg, compression=7, photometric=1)]))
    assert difference(path, GREY) < 12


@pytest.mark.parametrize(
    "compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "1"])
def test_every_mode_and_compression_is_as_pillow_reads_it_or_refused(tmp_path, mode, compression):
    if compression == "jpeg" and mode in ("P", "1"):
        pytest.skip("there is no such TIFF")
    path = tmp_path / "a.tif"
    Image.fromarray(PIXELS).convert(mode).save(path, compression=compression)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert difference(path, expected) <= (mode == "CMYK")  # FFmpeg's is one level darker


@pytest.mark.parametrize(("photometric", "planes"), [(0, 1), (1, 1), (2, 1), (2, 2)])
def test_16_bits_are_rounded_to_8(tmp_path, photometric, planes):
    samples = DEEP if photometric == 2 else DEEP[..., 0]
    rounded = np.minimum((samples.astype(int) + 128) >> 8, 255)
    expected = 255 - rounded if photometric == 0 else rounded
    path = saved(tmp_path, tiff([strips(samples, photometric, bits=16, planes=planes)]))
    assert difference(path, expected) <= 1


def test_uncompressed_planes_of_16_bits_in_tiles_are_refused(tmp_path):
    halves = [np.ascontiguousarray(DEEP[:64, :64, n]).tobytes() for n in range(3)]
    tags, _ = tiles(PIXELS[:64, :64], 64)
    page = tags | {258: (3, [16] * 3), 284: (3, [2])}, halves
    with pytest.raises(BadImageError, match="16 bits"):
        read_image(saved(tmp_path, tiff([page])), 10**6)


def test_floats_are_read_from_0_to_1_and_refused_elsewhere(tmp_path):
    floats = (PIXELS / np.float32(255)).astype(np.float32)
    page = strips(floats, bits=32, sample_format=3)
    assert difference(saved(tmp_path, tiff([page])), PIXELS) <= 1
    page = strips(PIXELS.astype(np.float32), bits=32, sample_format=3)
    with pytest.raises(BadImageError, match="between 0 and 1"):
        read_image(saved(tmp_path, tiff([page])), 10**6)


@pytest.mark.parametrize(
    ("samples", "bits", "sample_format", "photometric"),
    [
        (GREY.astype(np.float32), 32, 3, 1),
        (GREY.astype(np.int16), 16, 2, 1),
        (GREY.astype(np.uint32), 32, 1, 1),
        (PIXELS, 8, 1, 8),  # L*a*b*
    ],
)
def test_samples_without_a_brightness_in_8_bits_are_refused(
    tmp_path, samples, bits, sample_format, photometric
):
    page = strips(samples, photometric, bits=bits, sample_format=sample_format)
    with pytest.raises(BadImageError):
        read_image(saved(tmp_path, tiff([page])), 10**6)


def test_the_main_image_is_the_largest_and_not_a_thumbnail(tmp_path):
    small, other = scene(12, 16, 1), scene(90, 130, 2)
    for marks in ({}, {"t254": (4, [1])}, {"t255": (3, [2])}):
        pages = [strips(small, **marks), strips(PIXELS), strips(small, **marks)]
        path = saved(tmp_path, tiff(pages))
        assert difference(path, PIXELS) == 0
        assert read_still(path, 10**6).header.images == (1 if marks else 3)
    path = saved(tmp_path, tiff([strips(PIXELS), tiles(other)]))
    assert difference(path, PIXELS) == 0
    assert read_still(path, 10**6).header.images == 2
    mask = strips(GREY, 4, t254=(4, [4]))
    path = saved(tmp_path, tiff([mask, strips(PIXELS)]))
    assert difference(path, PIXELS) == 0
    assert read_still(path, 10**6).header.images == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_that_of_the_image_that_is_read(tmp_path, orientation):
    marked = {"t274": (3, [orientation])}
    other = {"t274": (3, [9 - orientation])}
    pages = [strips(scene(12, 16), **other), tiles(PIXELS, **marked), strips(scene(8, 8), **other)]
    path = saved(tmp_path, tiff(pages))
    alone = tmp_path / "alone.tif"
    alone.write_bytes(tiff([strips(PIXELS, **marked)]))
    with Image.open(alone) as image:
        image.load()
        expected = np.asarray(image)
    assert difference(path, expected) == 0
    assert read_orientation(path, 10**6) == orientation


def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path):
    with pytest.raises(TooLargeError):
        read_image(saved(tmp_path, tiff([tiles(PIXELS)])), 130 * 90 - 1)
    tags, blocks = tiles(PIXELS, 64)
    huge = tags | {322: (4, [2**20]), 323: (4, [2**20])}
    with pytest.raises(BadImageError, match="tiles"):
        read_image(saved(tmp_path, tiff([(huge, blocks)])), 10**6)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_compressed_tiff_that_was_cut_off_is_refused(tmp_path, capfd, compression, share):
    Image.fromarray(PIXELS).save(tmp_path / "whole.tif", compression=compression)
    data = (tmp_path / "whole.tif").read_bytes()
    with pytest.raises(BadImageError):
        read_image(saved(tmp_path, data[: int(len(data) * share)]), 10**6)


def test_directories_without_end_are_given_up(tmp_path):
    data = bytearray(tiff([strips(scene(8, 8))] * 2))
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    second = first + 2 + 12 * count
    at = int.from_bytes(data[second : second + 4], "little")
    end = at + 2 + 12 * count
    data[end : end + 4] = first.to_bytes(4, "little")
    path = saved(tmp_path, bytes(data))
    assert read_still(path, 10**6).header.images == 2


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 399), st.integers(1, 255)), min_size=1, max_size=8),
    from_end=st.booleans(),
)
def test_any_damage_to_a_directory_ends_in_an_image_or_a_refusal(tmp_path, flips, from_end):
    data = bytearray(tiff([tiles(scene(40, 40), 16), strips(scene(8, 8))]))
    for place, bits in flips:
        data[-1 - place if from_end else place] ^= bits
    try:
        image = read_image(saved(tmp_path, bytes(data)), 20_000)
    except (BadImageError, TooLargeError):
        return
    assert image.dtype == np.uint8
    assert image.shape[0] * image.shape[1] <= 20_000
