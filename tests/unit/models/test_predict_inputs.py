"""Accepted and rejected input types of ``predict``."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.paths import CLIP

from streamseg.config import Thresholds
from streamseg.errors import ArgumentError, SourceError, StreamsegError
from streamseg.models import load_model
from streamseg.models.inputs import is_single, read_image_of_any_type, read_images
from streamseg.sources import open_source
from streamseg.structures.results import Instances

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def street_image():
    with av.open(str(CLIP)) as clip:
        return next(clip.decode(video=0)).to_ndarray(format="rgb24")


@pytest.fixture(scope="module")
def model():
    return load_model("nanomask", device="cpu", input_size=256, score=0.3)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def assert_read_as(images, expected):
    """Assert that an image is read as the expected pixels."""
    pixels = read_image_of_any_type(images, "it")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def test_predict_returns_instances_for_one_image_and_list_for_several(model, street_image):
    expected = model.predict([street_image])[0]
    assert len(expected) > 3
    single = model.predict(street_image)
    assert isinstance(single, Instances)
    assert single.to_coco(1) == expected.to_coco(1)
    for images in (
        [street_image],
        (street_image,),
        iter([street_image]),
        street_image[None],
        street_image[None][:0],
    ):
        found = model.predict(images)
        assert isinstance(found, list)
        assert [len(each) for each in found] in ([len(expected)], [])
    assert model.predict([]) == []


def test_predict_accepts_every_image_type(model, street_image, tmp_path):
    expected = model.predict(street_image).to_coco(1)
    Image.fromarray(street_image).save(tmp_path / "street.png")
    tensor = torch.from_numpy(street_image).permute(2, 0, 1)
    inputs = [
        *(tensor, tensor / 255, Image.fromarray(street_image), tmp_path / "street.png"),
        *(
            str(tmp_path / "street.png"),
            street_image / 255,
            np.dstack([street_image, street_image[:, :, 0]]),
        ),
        next(iter(open_source(CLIP).frames())),
    ]
    assert len(expected) > 3
    for each in inputs[:-1]:
        assert model.predict(each).to_coco(1) == expected, type(each)
    assert len(model.predict(inputs[-1])) > 3


def test_read_image_accepts_grey_images_and_alpha(image):
    grey = np.repeat(image[:, :, :1], 3, axis=2)
    for grey_input in (image[:, :, 0], image[:, :, :1], torch.tensor(image[:, :, 0])):
        assert_read_as(grey_input, grey)
    assert_read_as(torch.tensor(image[:, :, 0])[None], grey)
    assert_read_as(np.dstack([image, image[:, :, 0]]), image)
    assert_read_as(torch.tensor(np.dstack([image, image[:, :, 0]])).permute(2, 0, 1), image)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_read_image_scales_and_rounds_floats(image, dtype):
    assert_read_as((image / 255).astype(dtype), image)
    assert_read_as(torch.tensor((image / 255).astype(dtype)).permute(2, 0, 1), image)


def test_read_image_accepts_tensors_with_gradient_and_bf16(image):
    scaled = torch.tensor(image / 255).permute(2, 0, 1)
    assert_read_as(scaled.clone().requires_grad_(), image)
    assert abs(read_image_of_any_type(scaled.bfloat16(), "it").astype(int) - image).max() <= 1


def test_read_image_accepts_any_strides_and_does_not_write(image):
    views = [
        *(image[::-1, ::-1], image[::2, ::3], image[:, :, ::-1], np.asfortranarray(image)),
        np.broadcast_to(image[:1], image.shape),
    ]
    read_only = image.copy()
    read_only.flags.writeable = False
    before = image.copy()
    for view in [*views, read_only]:
        assert_read_as(view, np.array(view))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA"])
def test_read_image_converts_pillow_modes_to_rgb(image, mode):
    converted = Image.fromarray(image).convert(mode)
    assert_read_as(converted, np.asarray(converted.convert("RGB")))


def test_read_image_accepts_pillow_transparency_and_premultiplied_alpha(image):
    palette = Image.fromarray(image).convert("P")
    expected = np.asarray(palette.convert("RGB"))
    palette.info["transparency"] = bytes(range(256))
    assert_read_as(palette, expected)
    opaque = Image.fromarray(image).convert("RGBA")
    assert_read_as(opaque.convert("RGBa"), image)
    assert (
        read_image_of_any_type(Image.fromarray(image).convert("LA").convert("La"), "it").shape
        == image.shape
    )


def test_read_image_applies_exif_orientation_to_files_only(image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    assert_read_as(tmp_path / "turned.png", np.rot90(image, -1))
    with Image.open(tmp_path / "turned.png") as opened:
        assert_read_as(opened, image)


@pytest.mark.parametrize(
    "invalid",
    [
        *(np.zeros((3, 48, 64), np.uint8), np.zeros((48, 64, 2), np.uint8)),
        *(np.zeros((0, 5, 3), np.uint8), np.zeros(3, np.uint8), np.array(3)),
        *(np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4, 3), np.int64), np.zeros((4, 4, 3), bool)),
        *(np.full((4, 4, 3), 1.5), np.full((4, 4, 3), -0.1), np.full((4, 4, 3), np.nan)),
        *(np.zeros((4, 4, 3), complex), np.array([None]), np.array(["a.jpg"])),
        *(torch.zeros(48, 64, 3), torch.full((3, 4, 4), 255.0), torch.zeros(3, 4, 4).long()),
        *(torch.zeros(3, 4, 4, device="meta"), torch.zeros(3, 4, 4).to_sparse()),
        *(Image.new("I", (4, 4)), Image.new("F", (4, 4)), Image.new("I;16", (4, 4))),
        *("", "rtsp://admin:hunter2@camera/live", None, 5, b"abc", {1: 2}, {1}, object()),
    ],
    ids=lambda each: str(getattr(each, "dtype", "")) + type(each).__name__,
)
def test_predict_rejects_ambiguous_and_invalid_images(model, invalid):
    for argument in (invalid, [invalid]):
        with pytest.raises(ArgumentError) as caught:
            model.predict(argument)
        assert "\n" not in str(caught.value)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ArgumentError):
        model.predict([[invalid]])


@pytest.mark.parametrize("name", ["missing.jpg", "text.jpg", ".", "nul\0byte", "x" * 5000])
def test_predict_rejects_invalid_image_file(model, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("not an image")
    with pytest.raises(SourceError):
        model.predict(name)


def test_read_images_rejects_truncated_pillow_image(tmp_path, image):
    Image.fromarray(np.repeat(image, 20, axis=0)).save(tmp_path / "truncated.jpg")
    encoded = (tmp_path / "truncated.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(encoded[: len(encoded) // 2])
    with (
        Image.open(tmp_path / "truncated.jpg") as opened,
        pytest.raises(SourceError, match="Pillow"),
    ):
        read_images([opened])


def test_is_single_depends_on_dimensions():
    assert is_single(np.zeros((4, 4, 3)))
    assert is_single("a.jpg")
    assert not is_single(np.zeros((1, 4, 4, 3)))
    assert not is_single(torch.zeros(2, 3, 4, 4))
    assert not is_single(["a.jpg"])


@pytest.mark.parametrize(
    "thresholds",
    ["x", {}, 5, [1], [Thresholds()] * 2, Thresholds(score="x"), Thresholds(classes="person")],
    ids=str,
)
def test_predict_rejects_invalid_thresholds(model, image, thresholds):
    with pytest.raises(StreamsegError):
        model.predict([image], thresholds)
