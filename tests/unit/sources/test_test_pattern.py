"""The test pattern: that its truth is what its pixels show, and its options are checked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamseg.config import SourceConfig
from streamseg.errors import ConfigError, TooLargeError
from streamseg.sources import TestPattern, open_source
from streamseg.sources.pattern import BOX, CATEGORIES, DISC, PatternOptions

pytestmark = pytest.mark.timeout(60)


def pattern(query="", **options):
    return open_source(SourceConfig(url=f"test:{query}", **options))


def test_it_needs_no_options():
    source = pattern()
    assert isinstance(source, TestPattern)
    assert source.options == PatternOptions((360, 640), 25.0, 250, 6, 0)
    assert source.live is False
    assert source.report.expected == 250
    frames = list(source.frames())
    assert [f.index for f in frames] == list(range(250))
    assert frames[-1].pts == pytest.approx(249 / 25)
    assert {f.size for f in frames} == {(360, 640)}
    assert source.report.delivered == 250


def test_all_options_are_read():
    source = pattern("?size=100x50&fps=29.97&frames=3&objects=2&seed=9")
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
def test_a_wrong_option_is_refused_naming_it(query, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        pattern(query)
    assert f"test:{query}" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_size_over_the_limit_is_refused():
    with pytest.raises(TooLargeError, match="9000 x 9000"):
        pattern("?size=9000x9000")
    with pytest.raises(TooLargeError):
        pattern("?size=640x360", max_pixels=640 * 360 - 1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    index=st.integers(0, 10**6),
    objects=st.integers(0, 20),
    size=st.tuples(st.integers(1, 130), st.integers(1, 130)),
)
def test_the_truth_is_what_the_pixels_show(seed, index, objects, size):
    height, width = size
    source = pattern(f"?size={width}x{height}&objects={objects}&seed={seed}")
    image, truth = source.render(index), source.truth(index)
    bare = pattern(f"?size={width}x{height}&objects=0&seed={seed}")
    assert image.shape == (height, width, 3)
    assert truth.size == size
    masks = truth.masks.to_arrays()
    assert (masks.sum(axis=0) <= 1).all()
    for mask, track in zip(masks, truth.track_ids, strict=True):
        colours = np.unique(image[mask], axis=0)
        assert len(colours) == 1
        assert tuple(colours[0]) == source._shapes[(track - 1) % objects].colour
    if objects == 0:
        assert np.array_equal(image, bare.render(index))
    grey = np.ptp(image, axis=2) == 0
    assert np.array_equal(~grey, masks.any(axis=0))
    assert np.array_equal(truth.boxes, truth.masks.boxes)
    assert set(truth.labels) <= set(CATEGORIES)


def test_shapes_are_what_their_labels_say():
    truth = pattern("?objects=12&seed=3&size=640x360").truth(0)
    seen = set()
    for mask, label in zip(truth.masks, truth.labels, strict=True):
        x1, y1, x2, y2 = mask.box
        inside = x1 > 0 and y1 > 0 and x2 < 640 and y2 < 360
        filled = mask.area / ((x2 - x1) * (y2 - y1))
        if inside and label == BOX and filled == 1:
            seen.add(BOX)
        if inside and label == DISC and filled == pytest.approx(np.pi / 4, abs=0.02):
            seen.add(DISC)
    assert seen == {DISC, BOX}


def test_objects_overlap_leave_and_enter_and_a_new_pass_is_a_new_identity():
    source = pattern("?size=320x180&objects=8&seed=1")
    present = [set(source.truth(index).track_ids.tolist()) for index in range(0, 2000, 5)]
    spans = {}
    for step, ids in enumerate(present):
        for track in ids:
            spans.setdefault(track, []).append(step)
    assert len(spans) > 16
    assert any(not {1, 2, 3, 4, 5, 6, 7, 8} & ids for ids in present[-1:])
    hidden = [
        sum(source.truth(i).masks.areas)
        < sum(np.count_nonzero(source._place(s, i)[1]) for s in source._shapes)
        for i in range(0, 200, 10)
    ]
    assert any(hidden)


def test_an_object_moves_by_little_from_frame_to_frame():
    source = pattern("?objects=6&seed=2")
    before = source.truth(0)
    for index in range(1, 100):
        now = source.truth(index)
        shared = np.intersect1d(before.track_ids, now.track_ids)
        assert len(shared) >= len(now) - 1
        for track in shared:
            a = before.boxes[before.track_ids == track][0]
            b = now.boxes[now.track_ids == track][0]
            assert np.abs(a - b).max() < 200  # being uncovered may change a box by much
        ious = before.masks.pairwise_iou(now.masks)
        same = before.track_ids[:, None] == now.track_ids[None]
        assert np.median(ious[same]) > 0.7
        before = now


def test_objects_have_colours_of_their_own():
    colours = [shape.colour for shape in pattern("?objects=12")._shapes]
    assert len(set(colours)) == 12
    gaps = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(gaps) > 20


def test_frames_are_what_render_gives_and_depend_on_the_url_alone():
    first, second = (list(pattern("?frames=5&seed=4").frames()) for _ in range(2))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))
    assert np.array_equal(first[3].image, pattern("?seed=4").render(3))
    assert not np.array_equal(first[3].image, pattern("?seed=5").render(3))


def test_stride_start_and_end_hold_for_it_too():
    frames = list(pattern("?frames=100", start=1.0, end=2.0, stride=10).frames())
    assert [frame.index for frame in frames] == [25, 35, 45]
