"""Test pattern: ground truth, rendered pixels and options."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamseg.config import SourceConfig
from streamseg.errors import ConfigError, TooLargeError
from streamseg.sources import TestPattern, open_source
from streamseg.sources.pattern import BOX, CATEGORIES, DISC, PatternOptions

pytestmark = pytest.mark.timeout(60)


def open_pattern(query="", **options):
    return open_source(SourceConfig(url=f"test:{query}", **options))


def test_pattern_needs_no_options():
    source = open_pattern(stride=10)
    assert isinstance(source, TestPattern)
    assert source.options == PatternOptions((360, 640), 25.0, 250, 6, 0)
    assert source.live is False
    assert source.report.expected == 250
    frames = list(source.frames())
    assert [f.index for f in frames] == list(range(0, 250, 10))
    assert frames[-1].pts == pytest.approx(240 / 25)
    assert {f.size for f in frames} == {(360, 640)}
    assert source.report.delivered + source.report.skipped == 250


def test_all_options_are_parsed():
    source = open_pattern("?size=100x50&fps=29.97&frames=3&objects=2&seed=9")
    assert source.options == PatternOptions((50, 100), 29.97, 3, 2, 9)
    assert [f.pts for f in source.frames()] == pytest.approx([0, 1 / 29.97, 2 / 29.97])


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("?color=red", "'color' is unknown; known are size, fps, frames, objects, seed"),
        ("?frames=0", "frames must be a whole number from 1"),
        ("?frames=-1", "frames must be a whole number"),
        ("?frames=1e3", "frames must be a whole number"),
        ("?frames=", "frames must be a whole number"),
        ("?size=640", "size must be width x height"),
        ("?size=0x8", "size must be width x height"),
        ("?size=8x8x8", "size must be width x height"),
        ("?fps=0", "fps must be a number over 0"),
        ("?fps=nan", "fps must be a number over 0"),
        ("?fps=1001", "fps must be a number over 0"),
        ("?objects=1001", "objects must be a whole number from 0 to 1000"),
        ("?seed=x", "seed must be a whole number"),
        ("?frames=3&frames=4", "frames is given twice"),
        ("frames=3", r"write the options as test:\?key=value"),
        ("?frames", r"write the options as test:\?key=value"),
    ],
)
def test_invalid_option_is_refused_by_name(query, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        open_pattern(query)
    assert f"test:{query}" in str(caught.value)
    assert caught.value.exit_code == 2


def test_size_over_the_limit_is_refused():
    with pytest.raises(TooLargeError, match="9000 x 9000"):
        open_pattern("?size=9000x9000")
    with pytest.raises(TooLargeError):
        open_pattern("?size=640x360", max_pixels=640 * 360 - 1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    index=st.integers(0, 10**6),
    objects=st.integers(0, 20),
    size=st.tuples(st.integers(1, 130), st.integers(1, 130)),
)
def test_ground_truth_matches_the_pixels(seed, index, objects, size):
    height, width = size
    source = open_pattern(f"?size={width}x{height}&objects={objects}&seed={seed}")
    image, truth = source.render(index), source.ground_truth(index)
    background = open_pattern(f"?size={width}x{height}&objects=0&seed={seed}")
    assert image.shape == (height, width, 3)
    assert truth.size == size
    masks = truth.masks.to_arrays()
    assert (masks.sum(axis=0) <= 1).all()
    for mask, track in zip(masks, truth.track_ids, strict=True):
        colors = np.unique(image[mask], axis=0)
        assert len(colors) == 1
        assert tuple(colors[0]) == source._shapes[(track - 1) % objects].color
    if objects == 0:
        assert np.array_equal(image, background.render(index))
    is_gray = np.ptp(image, axis=2) == 0
    assert np.array_equal(~is_gray, masks.any(axis=0))
    assert np.array_equal(truth.boxes, truth.masks.boxes)
    assert set(truth.labels) <= set(CATEGORIES)


def test_shapes_match_their_labels():
    truth = open_pattern("?objects=12&seed=3&size=640x360").ground_truth(0)
    shapes = set()
    for mask, label in zip(truth.masks, truth.labels, strict=True):
        x1, y1, x2, y2 = mask.box
        inside = x1 > 0 and y1 > 0 and x2 < 640 and y2 < 360
        filled = mask.area / ((x2 - x1) * (y2 - y1))
        if inside and label == BOX and filled == 1:
            shapes.add(BOX)
        if inside and label == DISC and filled == pytest.approx(np.pi / 4, abs=0.02):
            shapes.add(DISC)
    assert shapes == {DISC, BOX}


def test_objects_overlap_and_get_a_new_track_id_when_they_return():
    source = open_pattern("?size=320x180&objects=8&seed=1")
    present = [set(source.ground_truth(index).track_ids.tolist()) for index in range(0, 2000, 5)]
    spans = {}
    for step, ids in enumerate(present):
        for track in ids:
            spans.setdefault(track, []).append(step)
    assert len(spans) > 16
    assert any(not {1, 2, 3, 4, 5, 6, 7, 8} & ids for ids in present[-1:])
    has_occlusion = [
        sum(source.ground_truth(i).masks.areas)
        < sum(np.count_nonzero(source._locate(s, i)[1]) for s in source._shapes)
        for i in range(0, 200, 10)
    ]
    assert any(has_occlusion)


def test_objects_move_smoothly():
    source = open_pattern("?objects=6&seed=2")
    previous = source.ground_truth(0)
    for index in range(1, 100):
        current = source.ground_truth(index)
        shared = np.intersect1d(previous.track_ids, current.track_ids)
        assert len(shared) >= len(current) - 1
        for track in shared:
            a = previous.boxes[previous.track_ids == track][0]
            b = current.boxes[current.track_ids == track][0]
            assert np.abs(a - b).max() < 200  # an uncovered object's box may grow a lot
        ious = previous.masks.pairwise_iou(current.masks)
        is_same = previous.track_ids[:, None] == current.track_ids[None]
        assert np.median(ious[is_same]) > 0.7
        previous = current


def test_objects_have_colours_of_their_own():
    colors = [shape.color for shape in open_pattern("?objects=12")._shapes]
    assert len(set(colors)) == 12
    differences = [
        np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colors) for b in colors[:i]
    ]
    assert min(differences) > 20


def test_frames_depend_on_the_url_alone():
    first, second = (list(open_pattern("?frames=5&seed=4").frames()) for _ in range(2))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))
    assert np.array_equal(first[3].image, open_pattern("?seed=4").render(3))
    assert not np.array_equal(first[3].image, open_pattern("?seed=5").render(3))


def test_frame_selection_applies_to_the_pattern():
    frames = list(open_pattern("?frames=100", start=1.0, end=2.0, stride=10).frames())
    assert [frame.index for frame in frames] == [25, 35, 45]
