"""Images as a source: formats, orientation, order, and damaged or oversized files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.media import MEDIA
from support.still_images import smooth_image

from streamseg.config import SourceConfig
from streamseg.errors import NoFramesError, TooLargeError
from streamseg.sources import expand_inputs, open_source
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import IMAGE_EXTENSIONS, read_image
from streamseg.sources.inputs import natural_key

pytestmark = pytest.mark.timeout(60)
FORMATS = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF"}


def save_image(path, pixels, **options):
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(pixels).save(path, quality=95, subsampling=0, **lossless, **options)


def open_images(url, **options):
    return open_source(SourceConfig(url=str(url), **options))


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_gives_the_pixels_that_were_saved(tmp_path, extension):
    pixels = smooth_image(48, 64)
    save_image(tmp_path / f"a.{extension}", pixels)
    tolerance = 12 if extension == "jpg" else 0
    image = next(open_images(tmp_path / f"a.{extension}").frames()).image
    assert np.abs(image.astype(int) - pixels).max() <= tolerance
    assert image.flags.c_contiguous


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_with_exif_orientation_is_upright(tmp_path, extension, orientation):
    path = tmp_path / f"a.{extension}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    save_image(path, smooth_image(48, 64), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    image = next(open_images(path).frames()).image
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= (4 if extension == "jpg" else 0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
def test_other_pixel_formats_are_converted_to_rgb(tmp_path, mode):
    pixels = smooth_image(48, 64)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
        expected = np.repeat(pixels[..., :1], 3, axis=2)
    else:
        image = Image.fromarray(pixels).convert(mode)
        image.save(path)
        expected = np.asarray(image.convert("RGB"))
    decoded = next(open_images(path).frames()).image
    if mode == "CMYK":
        assert decoded.shape == expected.shape
    else:
        assert np.abs(decoded.astype(int) - expected).max() <= 1


def test_alpha_is_dropped(tmp_path):
    pixels = np.dstack([smooth_image(48, 64), np.full((48, 64), 90, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(next(open_images(tmp_path / "a.png").frames()).image, pixels[..., :3])


def test_samples_equal_those_that_pillow_reads():
    expected = np.asarray(Image.open(MEDIA / "still.png").convert("RGB"))
    assert np.array_equal(next(open_images(MEDIA / "still.png").frames()).image, expected)
    jpeg = np.asarray(Image.open(MEDIA / "still.jpg").convert("RGB")).astype(int)
    image = next(open_images(MEDIA / "still.jpg").frames()).image
    assert np.abs(image - jpeg).mean() < 4


def test_folder_is_read_in_natural_order(tmp_path):
    names = ["10.png", "2.PNG", "1.jpg", "x9y10.bmp", "x9y2.bmp", "x10y1.bmp"]
    for seed, name in enumerate(names):
        save_image(tmp_path / name, smooth_image(48 + seed, 64, seed))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    frames = list(open_images(tmp_path).frames())
    assert [f.item for f in frames] == [names[i] for i in (2, 1, 0, 4, 3, 5)]
    assert [f.pts for f in frames] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert [f.size[0] for f in frames] == [50, 49, 48, 52, 51, 53]
    assert [f.index for f in frames] == list(range(6))
    assert {f.epoch for f in frames} == {0}


def test_glob_matches_images_and_nested_folders(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/a1.png", "in/b1.png", "in/deep/a2.png", "in/a.mp4"):
        if name.endswith("png"):
            save_image(tmp_path / name, smooth_image(48, 64))
        else:
            (tmp_path / name).touch()
    assert [f.item for f in open_images(tmp_path / "in" / "a*").frames()] == ["a1.png"]
    deep = open_images(tmp_path / "in" / "**" / "*.png").frames()
    assert [f.item for f in deep] == ["a1.png", "b1.png", "a2.png"]


def test_existing_file_takes_precedence_over_a_glob(tmp_path):
    for seed, name in enumerate(["a[1].png", "a1.png", "a%02d.png"]):
        save_image(tmp_path / name, smooth_image(48, 64, seed=seed))
    for name in ("a[1].png", "a%02d.png"):
        assert [f.item for f in open_images(tmp_path / name).frames()] == [name]
        assert expand_inputs(str(tmp_path / name)) == [str(tmp_path / name)]


def test_format_is_detected_by_content(tmp_path):
    pixels = smooth_image(48, 64)
    save_image(tmp_path / "a.png", pixels)
    shutil.move(tmp_path / "a.png", tmp_path / "a.jpg")
    assert np.array_equal(next(open_images(tmp_path / "a.jpg").frames()).image, pixels)


def test_damaged_image_is_skipped_and_reported(tmp_path):
    for number in range(5):
        save_image(tmp_path / f"{number}.png", smooth_image(48, 64, seed=number))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    (tmp_path / "3.png").write_bytes(b"")
    source = open_images(tmp_path)
    frames = list(source.frames())
    assert [(f.item, f.index, f.pts) for f in frames] == [
        ("0.png", 0, 0.0),
        ("2.png", 2, 2.0),
        ("4.png", 4, 4.0),
    ]
    assert (source.report.delivered, source.report.bad, source.report.skipped) == (3, 2, 0)
    assert [Path(note.split(": ")[0]).name for note in source.report.notes] == ["1.png", "3.png"]


def test_too_large_image_is_skipped_in_a_folder_and_refused_alone(tmp_path):
    save_image(tmp_path / "small.png", smooth_image(48, 64))
    shutil.copy(MEDIA / "bomb_30000.png", tmp_path)
    source = open_images(tmp_path)
    assert [f.item for f in source.frames()] == ["small.png"]
    assert source.report.bad == 1
    assert "30000 x 30000" in source.report.notes[0]
    with pytest.raises(TooLargeError, match="64 x 48 is over the limit of 3000 pixels"):
        list(open_images(tmp_path / "small.png", max_pixels=3000).frames())


def test_folder_with_fewer_than_one_good_image_in_ten_is_an_error(tmp_path):
    for number in range(11):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    save_image(tmp_path / "5.jpg", smooth_image(48, 64))
    with pytest.raises(NoFramesError, match=r"1 of 11 frames could be decoded .*10\.jpg"):
        list(open_images(tmp_path).frames())


def test_folder_without_images_is_refused_with_the_supported_extensions(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(NoFramesError, match=r"\.jpg, \.jpeg, \.png"):
        open_images(tmp_path)


def test_frame_selection_counts_one_image_per_second(tmp_path):
    for number in range(10):
        save_image(tmp_path / f"{number}.png", smooth_image(8, 8, number))
    assert [f.index for f in open_images(tmp_path, stride=4).frames()] == [0, 4, 8]
    assert [f.index for f in open_images(tmp_path, start=3.0, end=6.0).frames()] == [3, 4, 5]
    assert [f.index for f in open_images(tmp_path, max_fps=0.25).frames()] == [0, 4, 8]


def test_images_that_are_not_selected_are_not_opened(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    save_image(tmp_path / "0.png", smooth_image(48, 64))
    source = open_images(tmp_path, stride=4)
    assert [f.index for f in source.frames()] == [0]
    assert (source.report.bad, source.report.skipped) == (0, 3)


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.97])
def test_truncated_image_is_refused(tmp_path, extension, share):
    path = tmp_path / f"a.{extension}"
    save_image(path, smooth_image(240, 320))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadImageError):
        read_image(path, 10**6)


@settings(
    max_examples=80, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    extension=st.sampled_from(sorted(FORMATS)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=20),
    damaged_bytes=st.sampled_from([40, 400, 10**9]),
    share=st.floats(0, 1),
)
def test_damaged_image_gives_an_image_within_the_limit_or_is_refused(
    tmp_path, extension, flips, damaged_bytes, share
):
    path = tmp_path / f"a.{extension}"
    save_image(path, smooth_image(48, 64))
    data = bytearray(path.read_bytes())
    data = data[: max(1, int(len(data) * share))]
    for position, bits in flips:
        data[int(position * min(damaged_bytes, len(data)))] ^= bits
    path.write_bytes(data)
    try:
        image = read_image(path, 20_000)
    except (BadImageError, TooLargeError):
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.shape[0] * image.shape[1] <= 20_000


def test_natural_key_orders_any_names():
    names = ["b", "a10", "a2", "A1", "10", "9", "a", "", "²", "a٣"]
    assert sorted(names, key=natural_key)[:4] == ["", "9", "10", "a"]
    assert all(extension == extension.lower() for extension in IMAGE_EXTENSIONS)
