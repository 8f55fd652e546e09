"""Painting: the same pixels as the textbook way, legible, and never more than is asked for."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from streamseg.errors import StreamsegError
from streamseg.pipeline.metrics import Metrics
from streamseg.pipeline.rendering import encode_images
from streamseg.structures.masks import Mask, Masks
from streamseg.structures.results import Frame, Instances, Result, Segment
from streamseg.visualization import (
    FILL_ALPHA,
    PALETTE,
    _label_texts,
    annotate,
    encode_jpeg,
    fill_masks,
    instance_colors,
)

NAMES = {1: "person", 3: "car", 18: "dog"}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def instances_of(masks, *, boxes=None, tracks=None):
    rows = len(masks)
    return Instances(
        masks.boxes if boxes is None else boxes,
        np.linspace(0.99, 0.4, rows, dtype=np.float32),
        np.resize([1, 3, 18], rows),
        masks,
        NAMES,
        None if tracks is None else np.asarray(tracks),
    )


def disc(size, x, y, radius):
    rows, columns = np.indices(size)
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def result_of(image, instances, source="gate"):
    return Result(Frame(source, 0, 0, 0.0, 0.0, 0.0, image), instances, "test")


def textbook(image, bitmaps, row_colours, alpha):
    """What everybody writes: every instance blended over the whole frame."""
    out = image.copy()
    for bitmap, colour in zip(bitmaps, row_colours, strict=True):
        over = np.empty_like(out)
        over[:] = colour
        out[bitmap] = cv2.addWeighted(out, 1 - alpha, over, alpha, 0)[bitmap]
    return out


@st.composite
def random_masks(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    crops, origins = [], []
    for _ in range(draw(st.integers(0, 6))):
        h, w = int(rng.integers(0, height + 1)), int(rng.integers(0, width + 1))
        origins.append((int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))))
        crops.append(rng.random((h, w)) < rng.random())
    drawn = Masks.from_crops(crops, origins, (height, width))
    if draw(st.booleans()):
        drawn = Masks.from_rle(drawn.counts, drawn.size)  # crops that go down the columns
    boxes = rng.uniform(-5, 45, (draw(st.integers(0, 2)), 4))
    return Masks.concatenate([drawn, Masks.from_boxes(boxes, drawn.size)])


@settings(max_examples=200, deadline=None)
@given(random_masks(), st.floats(0, 1), st.integers(0, 99))
def test_fill_has_the_pixels_of_add_weighted_over_full_frames(masks, alpha, seed):
    image = noise(*masks.size, seed)
    instances = instances_of(masks)
    canvas = image.copy()
    fill_masks(canvas, instances, alpha)
    expected = textbook(image, masks.to_arrays(), instance_colors(instances), alpha)
    np.testing.assert_array_equal(canvas, expected)


def test_fill_has_the_same_pixels_on_a_large_frame():
    size = (1080, 1920)
    rng = np.random.default_rng(4)
    bitmaps = np.stack(
        [disc(size, *rng.integers(0, size[::-1]), rng.integers(20, 300)) for _ in range(8)]
    )
    image = noise(*size)
    instances = instances_of(Masks.from_arrays(bitmaps), tracks=np.arange(8))
    canvas = image.copy()
    fill_masks(canvas, instances, FILL_ALPHA)
    np.testing.assert_array_equal(
        canvas, textbook(image, bitmaps, instance_colors(instances), FILL_ALPHA)
    )


def test_paint_leaves_a_read_only_frame_as_it_was():
    image = noise(120, 160)
    before = image.copy()
    image.flags.writeable = False
    painted = annotate(image, instances_of(Masks.from_arrays(disc((120, 160), 80, 60, 30)[None])))
    np.testing.assert_array_equal(image, before)
    assert painted.dtype == np.uint8
    assert painted.shape == image.shape
    assert painted.flags.writeable


def test_paint_of_nothing_is_the_frame():
    image = noise(120, 160)
    painted = annotate(image, Instances.empty((120, 160), NAMES))
    np.testing.assert_array_equal(painted, image)
    assert not np.shares_memory(painted, image)


def test_a_mask_is_filled_and_has_an_outline_of_its_full_colour():
    size = (240, 320)
    bitmap = disc(size, 160, 150, 50)
    instances = instances_of(Masks.from_arrays(bitmap[None]), tracks=[2])
    image = np.full((*size, 3), 90, np.uint8)
    painted = annotate(image, instances)
    (colour,) = instance_colors(instances)
    inner = cv2.erode(bitmap.view(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert (painted[bitmap & ~inner] == colour).all()
    np.testing.assert_array_equal(
        painted[inner], textbook(image, bitmap[None], [colour], FILL_ALPHA)[inner]
    )


def test_what_lies_outside_masks_and_tags_is_untouched():
    size = (240, 320)
    image = noise(*size)
    bitmap = disc(size, 160, 150, 50)
    painted = annotate(image, instances_of(Masks.from_arrays(bitmap[None])))
    changed = (painted != image).any(axis=2) & ~bitmap
    rows, columns = np.nonzero(changed)
    assert 0 < changed.sum() < 40 * 150  # the tag
    assert rows.max() <= 101
    assert columns.min() >= 110


@pytest.mark.parametrize("size", [(240, 320), (576, 768), (1080, 1920)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_tag_is_whole_even_where_its_object_is_in_a_corner(size, corner):
    image = np.full((*size, 3), 90, np.uint8)

    def painted_pixels(y, x):
        one_pixel = Masks.from_crops([np.ones((1, 1), np.bool_)], [(x, y)], size)
        return (annotate(image, instances_of(one_pixel, tracks=[4])) != image).any(axis=2).sum()

    beside_its_object = painted_pixels(size[0] // 2, size[1] // 2)
    over_its_object = painted_pixels((size[0] - 1) * corner[0], (size[1] - 1) * corner[1])
    assert beside_its_object > 14 * 60
    assert over_its_object in (beside_its_object, beside_its_object - 1)


def test_tags_of_neighbours_cover_neither_each_other_nor_an_object():
    size = (576, 768)
    masks = Masks.from_boxes([[300 + 60 * i, 200, 340 + 60 * i, 320] for i in range(4)], size)
    image = np.zeros((*size, 3), np.uint8)
    painted = annotate(image, instances_of(masks, tracks=range(4))).any(axis=2)
    objects = masks.to_arrays().any(axis=0)
    alone = [
        annotate(image, instances_of(masks, tracks=range(4))[[i]]).any(axis=2) & ~objects
        for i in range(4)
    ]
    np.testing.assert_array_equal(painted & objects, objects)
    assert (painted & ~objects).sum() == sum(tag.sum() for tag in alone)
    assert (sum(alone) > 1).any()  # each would rather be where another is


def test_a_box_far_outside_the_frame_still_has_its_tag_inside():
    masks = Masks.from_boxes([(-1e30, 5, 1e30, 9)], (60, 160))
    boxes = np.array([[-1e30, -1e30, 1e30, 1e30]], np.float32)
    image = np.zeros((60, 160, 3), np.uint8)
    painted = annotate(image, instances_of(masks, boxes=boxes)).any(axis=2)
    assert painted.sum() > 4 * 160 + 10 * 50


def test_the_same_place_for_more_tags_than_fit_is_no_failure():
    size = (60, 80)
    masks = Masks.from_boxes([(0, 0, 80, 60)] * 30, size)
    assert (annotate(noise(*size), instances_of(masks)) > 0).any()


def test_label_texts_say_name_track_and_score():
    masks = Masks.from_boxes([(0, 0, 5, 5)] * 3, (10, 10))
    instances = instances_of(masks, tracks=[12, -1, 0])
    assert list(_label_texts(instances)) == ["person 12  99%", "car  69%", "dog 0  40%"]


def test_a_track_keeps_its_colour_whatever_its_row_and_untracked_rows_have_their_category_s():
    masks = Masks.from_boxes([(0, 0, 5, 5)] * 3, (10, 10))
    first = instance_colors(instances_of(masks, tracks=[7, 8, -1]))
    second = instance_colors(instances_of(masks, tracks=[8, -1, 7]))
    assert (first[0], first[1]) == (second[2], second[0])
    assert first[2] == PALETTE[18 % len(PALETTE)]
    assert second[1] == PALETTE[3]


def test_the_palette_has_no_two_alike():
    apart = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(PALETTE) for b in PALETTE[:i]]
    assert min(apart) >= 60


def test_stuff_lies_beneath_things_in_muted_colours():
    size = (240, 320)
    image = np.full((*size, 3), 90, np.uint8)
    ground = np.zeros(size, np.bool_)
    ground[120:] = True
    thing = disc(size, 160, 180, 30)
    segments = (
        Segment(1, 100, "grass", False, Mask.from_array(ground)),
        Segment(2, 1, "person", True, Mask.from_array(disc(size, 20, 20, 10))),
    )
    painted = annotate(image, instances_of(Masks.from_arrays(thing[None])), segments)
    assert (painted[20, 20] == 90).all()  # things come from the instances
    stuff = painted[230, 10].astype(int)
    assert (stuff != 90).any()
    assert np.ptp(stuff) < np.ptp(PALETTE[100 % len(PALETTE)]) / 2
    assert (painted[180, 160] != stuff).any()


def test_instances_of_another_frame_are_refused():
    with pytest.raises(StreamsegError, match="don't fit"):
        annotate(noise(20, 20), Instances.empty((10, 10), NAMES))


def test_a_jpeg_has_the_colours_of_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:] = (200, 30, 60)
    jpeg = encode_jpeg(image, 90)
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).max() <= 4


def test_quality_is_heeded():
    image = noise(64, 64)
    assert len(encode_jpeg(image, 20)) < len(encode_jpeg(image, 95))


def test_an_image_too_large_for_jpeg_is_refused_in_one_line():
    with pytest.raises(StreamsegError, match="can't be encoded as JPEG"):
        encode_jpeg(np.zeros((1, 70_000, 3), np.uint8), 80)


@pytest.mark.parametrize(
    ("wanted", "annotated", "plain"),
    [({"frames"}, True, False), ({"video"}, False, True), ({"frames", "video"}, True, True)],
)
def test_only_the_pictures_that_somebody_wants_are_made(wanted, annotated, plain):
    image = noise(60, 80)
    instances = instances_of(Masks.from_arrays(disc((60, 80), 40, 30, 20)[None]))
    result = result_of(image, instances)
    metrics = Metrics()
    (picture,) = encode_images([result], lambda kind, source: kind in wanted, 80, metrics)
    assert picture.result is result
    assert picture.source == "gate"
    assert picture.annotated == (encode_jpeg(annotate(image, instances), 80) if annotated else None)
    assert picture.plain == (encode_jpeg(image, 80) if plain else None)
    assert (
        'streamseg_pictures_total{source="gate"} 1.0' in generate_latest(metrics.registry).decode()
    )


def test_frames_that_nobody_wants_make_no_picture():
    results = [
        result_of(noise(20, 20), Instances.empty((20, 20), NAMES), source) for source in "abab"
    ]
    made = encode_images(results, lambda kind, source: source == "b", 80, Metrics())
    assert [picture.source for picture in made] == ["b", "b"]


def test_frames_that_no_jpeg_can_hold_have_no_pictures_and_end_nothing(caplog):
    def result_of_width(width):
        frame = Frame("gate", 0, 0, 0.0, 0.0, 0.0, np.zeros((2, width, 3), np.uint8))
        return Result(frame, Instances.empty(frame.size, {}), "test")

    metrics = Metrics()
    results = [result_of_width(width) for width in (64, 65_501, 70_000, 65_500)]
    made = list(encode_images(results, lambda kind, source: True, 80, metrics))
    assert [picture.result.frame.size[1] for picture in made] == [64, 65_500]
    assert metrics.images_dropped_total() == 2
    assert caplog.messages == [
        "gate: frames of 65501 x 2 pixels have no images: JPEG sides are at most 65500"
    ]
