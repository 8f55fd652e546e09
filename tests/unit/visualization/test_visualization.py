"""Annotated images: pixels of masks, positions of labels, colors, and encoding on demand."""

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


def instances_from(masks, *, boxes=None, tracks=None):
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


def blend_full_frames(image, bitmaps, colors, alpha):
    """Blend each instance over the whole frame, one after the other."""
    out = image.copy()
    for bitmap, color in zip(bitmaps, colors, strict=True):
        layer = np.empty_like(out)
        layer[:] = color
        out[bitmap] = cv2.addWeighted(out, 1 - alpha, layer, alpha, 0)[bitmap]
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
def test_fill_masks_equals_blending_of_full_frames(masks, alpha, seed):
    image = noise(*masks.size, seed)
    instances = instances_from(masks)
    canvas = image.copy()
    fill_masks(canvas, instances, alpha)
    expected = blend_full_frames(image, masks.to_arrays(), instance_colors(instances), alpha)
    np.testing.assert_array_equal(canvas, expected)


def test_fill_masks_equals_blending_of_full_frames_at_1080p():
    size = (1080, 1920)
    rng = np.random.default_rng(4)
    bitmaps = np.stack(
        [disc(size, *rng.integers(0, size[::-1]), rng.integers(20, 300)) for _ in range(8)]
    )
    image = noise(*size)
    instances = instances_from(Masks.from_arrays(bitmaps), tracks=np.arange(8))
    canvas = image.copy()
    fill_masks(canvas, instances, FILL_ALPHA)
    np.testing.assert_array_equal(
        canvas, blend_full_frames(image, bitmaps, instance_colors(instances), FILL_ALPHA)
    )


def test_annotate_does_not_modify_the_image():
    image = noise(120, 160)
    before = image.copy()
    image.flags.writeable = False
    annotated = annotate(
        image, instances_from(Masks.from_arrays(disc((120, 160), 80, 60, 30)[None]))
    )
    np.testing.assert_array_equal(image, before)
    assert annotated.dtype == np.uint8
    assert annotated.shape == image.shape
    assert annotated.flags.writeable


def test_annotate_without_instances_returns_a_copy():
    image = noise(120, 160)
    annotated = annotate(image, Instances.empty((120, 160), NAMES))
    np.testing.assert_array_equal(annotated, image)
    assert not np.shares_memory(annotated, image)


def test_masks_are_filled_and_outlined_in_the_full_color():
    size = (240, 320)
    bitmap = disc(size, 160, 150, 50)
    instances = instances_from(Masks.from_arrays(bitmap[None]), tracks=[2])
    image = np.full((*size, 3), 90, np.uint8)
    annotated = annotate(image, instances)
    (color,) = instance_colors(instances)
    inner = cv2.erode(bitmap.view(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert (annotated[bitmap & ~inner] == color).all()
    np.testing.assert_array_equal(
        annotated[inner], blend_full_frames(image, bitmap[None], [color], FILL_ALPHA)[inner]
    )


def test_pixels_outside_masks_and_labels_are_unchanged():
    size = (240, 320)
    image = noise(*size)
    bitmap = disc(size, 160, 150, 50)
    annotated = annotate(image, instances_from(Masks.from_arrays(bitmap[None])))
    changed = (annotated != image).any(axis=2) & ~bitmap
    rows, columns = np.nonzero(changed)
    assert 0 < changed.sum() < 40 * 150  # the label
    assert rows.max() <= 101
    assert columns.min() >= 110


@pytest.mark.parametrize("size", [(240, 320), (576, 768), (1080, 1920)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_label_of_an_object_in_a_corner_is_complete(size, corner):
    image = np.full((*size, 3), 90, np.uint8)

    def changed_pixels(y, x):
        one_pixel = Masks.from_crops([np.ones((1, 1), np.bool_)], [(x, y)], size)
        return (annotate(image, instances_from(one_pixel, tracks=[4])) != image).any(axis=2).sum()

    label_above_object = changed_pixels(size[0] // 2, size[1] // 2)
    label_in_corner = changed_pixels((size[0] - 1) * corner[0], (size[1] - 1) * corner[1])
    assert label_above_object > 14 * 60
    assert label_in_corner in (label_above_object, label_above_object - 1)


def test_labels_of_adjacent_objects_do_not_overlap():
    size = (576, 768)
    masks = Masks.from_boxes([[300 + 60 * i, 200, 340 + 60 * i, 320] for i in range(4)], size)
    image = np.zeros((*size, 3), np.uint8)
    annotated = annotate(image, instances_from(masks, tracks=range(4))).any(axis=2)
    objects = masks.to_arrays().any(axis=0)
    single_labels = [
        annotate(image, instances_from(masks, tracks=range(4))[[i]]).any(axis=2) & ~objects
        for i in range(4)
    ]
    np.testing.assert_array_equal(annotated & objects, objects)
    assert (annotated & ~objects).sum() == sum(label.sum() for label in single_labels)
    assert (sum(single_labels) > 1).any()  # their preferred positions overlap


def test_label_of_a_box_far_beyond_the_frame_is_inside():
    masks = Masks.from_boxes([(-1e30, 5, 1e30, 9)], (60, 160))
    boxes = np.array([[-1e30, -1e30, 1e30, 1e30]], np.float32)
    image = np.zeros((60, 160, 3), np.uint8)
    annotated = annotate(image, instances_from(masks, boxes=boxes)).any(axis=2)
    assert annotated.sum() > 4 * 160 + 10 * 50


def test_more_labels_than_fit_are_drawn_without_an_error():
    size = (60, 80)
    masks = Masks.from_boxes([(0, 0, 80, 60)] * 30, size)
    assert (annotate(noise(*size), instances_from(masks)) > 0).any()


def test_label_text_has_name_track_id_and_score():
    masks = Masks.from_boxes([(0, 0, 5, 5)] * 3, (10, 10))
    instances = instances_from(masks, tracks=[12, -1, 0])
    assert list(_label_texts(instances)) == ["person 12  99%", "car  69%", "dog 0  40%"]


def test_color_is_that_of_the_track_or_of_the_category():
    masks = Masks.from_boxes([(0, 0, 5, 5)] * 3, (10, 10))
    first = instance_colors(instances_from(masks, tracks=[7, 8, -1]))
    second = instance_colors(instances_from(masks, tracks=[8, -1, 7]))
    assert (first[0], first[1]) == (second[2], second[0])
    assert first[2] == PALETTE[18 % len(PALETTE)]
    assert second[1] == PALETTE[3]


def test_palette_colors_are_distinct():
    distances = [
        np.abs(np.subtract(a, b)).sum() for i, a in enumerate(PALETTE) for b in PALETTE[:i]
    ]
    assert min(distances) >= 60


def test_stuff_is_drawn_below_things_in_muted_colors():
    size = (240, 320)
    image = np.full((*size, 3), 90, np.uint8)
    ground = np.zeros(size, np.bool_)
    ground[120:] = True
    thing = disc(size, 160, 180, 30)
    segments = (
        Segment(1, 100, "grass", False, Mask.from_array(ground)),
        Segment(2, 1, "person", True, Mask.from_array(disc(size, 20, 20, 10))),
    )
    annotated = annotate(image, instances_from(Masks.from_arrays(thing[None])), segments)
    assert (annotated[20, 20] == 90).all()  # things come from the instances
    stuff = annotated[230, 10].astype(int)
    assert (stuff != 90).any()
    assert np.ptp(stuff) < np.ptp(PALETTE[100 % len(PALETTE)]) / 2
    assert (annotated[180, 160] != stuff).any()


def test_instances_of_another_frame_size_are_refused():
    with pytest.raises(StreamsegError, match="don't fit"):
        annotate(noise(20, 20), Instances.empty((10, 10), NAMES))


def test_jpeg_has_the_colors_of_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:] = (200, 30, 60)
    jpeg = encode_jpeg(image, 90)
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).max() <= 4


def test_lower_quality_gives_a_smaller_jpeg():
    image = noise(64, 64)
    assert len(encode_jpeg(image, 20)) < len(encode_jpeg(image, 95))


def test_image_too_large_for_jpeg_is_refused():
    with pytest.raises(StreamsegError, match="can't be encoded as JPEG"):
        encode_jpeg(np.zeros((1, 70_000, 3), np.uint8), 80)


@pytest.mark.parametrize(
    ("requested", "has_annotated", "has_plain"),
    [({"frames"}, True, False), ({"video"}, False, True), ({"frames", "video"}, True, True)],
)
def test_only_requested_images_are_encoded(requested, has_annotated, has_plain):
    image = noise(60, 80)
    instances = instances_from(Masks.from_arrays(disc((60, 80), 40, 30, 20)[None]))
    result = result_of(image, instances)
    metrics = Metrics()
    (encoded,) = encode_images([result], lambda kind, source: kind in requested, 80, metrics)
    assert encoded.result is result
    assert encoded.source == "gate"
    assert encoded.annotated == (
        encode_jpeg(annotate(image, instances), 80) if has_annotated else None
    )
    assert encoded.plain == (encode_jpeg(image, 80) if has_plain else None)
    assert (
        'streamseg_pictures_total{source="gate"} 1.0' in generate_latest(metrics.registry).decode()
    )


def test_frames_without_subscribers_are_not_encoded():
    results = [
        result_of(noise(20, 20), Instances.empty((20, 20), NAMES), source) for source in "abab"
    ]
    encoded_images = encode_images(results, lambda kind, source: source == "b", 80, Metrics())
    assert [encoded.source for encoded in encoded_images] == ["b", "b"]


def test_frames_too_large_for_jpeg_are_skipped(caplog):
    def result_of_width(width):
        frame = Frame("gate", 0, 0, 0.0, 0.0, 0.0, np.zeros((2, width, 3), np.uint8))
        return Result(frame, Instances.empty(frame.size, {}), "test")

    metrics = Metrics()
    results = [result_of_width(width) for width in (64, 65_501, 70_000, 65_500)]
    encoded_images = list(encode_images(results, lambda kind, source: True, 80, metrics))
    assert [encoded.result.frame.size[1] for encoded in encoded_images] == [64, 65_500]
    assert metrics.images_dropped_total() == 2
    assert caplog.messages == [
        "gate: frames of 65501 x 2 pixels have no images: JPEG sides are at most 65500"
    ]
