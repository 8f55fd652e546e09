"""``predict`` takes images as people have them, and refuses what can be meant in two ways."""

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
def street():
    with av.open(str(CLIP)) as clip:
        return next(clip.decode(video=0)).to_ndarray(format="rgb24")


@pytest.fixture(scope="module")
def model():
    return load_model("nanomask", device="cpu", input_size=256, score=0.3)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def same(images, expected):
    """Whether the pixels that the model is given are the expected ones."""
    got = read_image_of_any_type(images, "it")
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_one_image_has_one_result_and_several_have_a_list(model, street):
    here = model.predict([street])[0]
    assert len(here) > 3
    alone = model.predict(street)
    assert isinstance(alone, Instances)
    assert alone.to_coco(1) == here.to_coco(1)
    for several in ([street], (street,), iter([street]), street[None], street[None][:0]):
        found = model.predict(several)
        assert isinstance(found, list)
        assert [len(each) for each in found] in ([len(here)], [])
    assert model.predict([]) == []


def test_every_kind_of_image_gives_the_same_result(model, street, tmp_path):
    here = model.predict(street).to_coco(1)
    Image.fromarray(street).save(tmp_path / "street.png")
    tensor = torch.from_numpy(street).permute(2, 0, 1)
    kinds = [
        *(tensor, tensor / 255, Image.fromarray(street), tmp_path / "street.png"),
        *(str(tmp_path / "street.png"), street / 255, np.dstack([street, street[:, :, 0]])),
        next(iter(open_source(CLIP).frames())),
    ]
    assert len(here) > 3
    for each in kinds[:-1]:
        assert model.predict(each).to_coco(1) == here, type(each)
    assert len(model.predict(kinds[-1])) > 3


def test_grey_images_and_alpha(image):
    grey = np.repeat(image[:, :, :1], 3, axis=2)
    for kind in (image[:, :, 0], image[:, :, :1], torch.tensor(image[:, :, 0])):
        same(kind, grey)
    same(torch.tensor(image[:, :, 0])[None], grey)
    same(np.dstack([image, image[:, :, 0]]), image)
    same(torch.tensor(np.dstack([image, image[:, :, 0]])).permute(2, 0, 1), image)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_scaled_and_rounded(image, dtype):
    same((image / 255).astype(dtype), image)
    same(torch.tensor((image / 255).astype(dtype)).permute(2, 0, 1), image)


def test_tensors_that_need_gradients_or_are_bf16_are_read(image):
    scaled = torch.tensor(image / 255).permute(2, 0, 1)
    same(scaled.clone().requires_grad_(), image)
    assert abs(read_image_of_any_type(scaled.bfloat16(), "it").astype(int) - image).max() <= 1


def test_any_strides_are_read_and_nothing_is_written_to(image):
    views = [
        *(image[::-1, ::-1], image[::2, ::3], image[:, :, ::-1], np.asfortranarray(image)),
        np.broadcast_to(image[:1], image.shape),
    ]
    locked = image.copy()
    locked.flags.writeable = False
    before = image.copy()
    for view in [*views, locked]:
        same(view, np.array(view))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA"])
def test_pillow_images_of_every_mode_are_as_pillow_converts_them(image, mode):
    picture = Image.fromarray(image).convert(mode)
    same(picture, np.asarray(picture.convert("RGB")))


def test_pillow_images_with_transparency_or_premultiplied_alpha_are_read(image):
    palette = Image.fromarray(image).convert("P")
    expected = np.asarray(palette.convert("RGB"))
    palette.info["transparency"] = bytes(range(256))
    same(palette, expected)
    opaque = Image.fromarray(image).convert("RGBA")
    same(opaque.convert("RGBa"), image)
    assert (
        read_image_of_any_type(Image.fromarray(image).convert("LA").convert("La"), "it").shape
        == image.shape
    )


def test_a_file_is_read_upright_and_a_pillow_image_as_it_is(image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    same(tmp_path / "turned.png", np.rot90(image, -1))
    with Image.open(tmp_path / "turned.png") as opened:
        same(opened, image)


@pytest.mark.parametrize(
    "wrong",
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
def test_what_can_be_meant_in_two_ways_or_in_none_is_refused_in_one_line(model, wrong):
    for given in (wrong, [wrong]):
        with pytest.raises(ArgumentError) as refused:
            model.predict(given)
        assert "\n" not in str(refused.value)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(ArgumentError):
        model.predict([[wrong]])


@pytest.mark.parametrize("name", ["missing.jpg", "text.jpg", ".", "nul\0byte", "x" * 5000])
def test_a_file_that_is_no_image_is_refused_with_its_name(model, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("not an image")
    with pytest.raises(SourceError):
        model.predict(name)


def test_a_picture_that_pillow_can_not_decode_is_refused(tmp_path, image):
    Image.fromarray(np.repeat(image, 20, axis=0)).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "cut.jpg") as opened, pytest.raises(SourceError, match="Pillow"):
        read_images([opened])


def test_what_is_one_image_is_known_by_its_dimensions():
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
def test_wrong_thresholds_are_refused(model, image, thresholds):
    with pytest.raises(StreamsegError):
        model.predict([image], thresholds)
