"""Augmentation: image, boxes, masks and stuff stay aligned, and only the seed matters."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from itertools import islice, pairwise, product

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from streamseg.config.training import AugmentConfig
from streamseg.datasets import Augmentation, augmentation
from streamseg.structures.targets import THING, Sample, Targets

CLASSES = 26
COLORS = np.array([c for c in product((0, 127, 255), repeat=3) if any(c)], np.uint8)
"""Color of each class; a scene has at most one object of a class, so colors identify objects."""

DONOR_CLASS = 12
"""First class index of objects in donor samples."""

OBJECT_FIELDS = ("boxes", "labels", "masks", "has_mask", "crowd")


def make_scene(height, width, seed=0, *, first_class=0, box_only=0.3):
    """Return a sample of objects in different colors on black.

    A fraction ``box_only`` are rectangles without a mask. The others are rectangles without their
    upper left quarter, so that they have no symmetry.
    """
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    boxes, masks, has_mask = [], [], []
    for row, column in islice(product(range(3), range(3)), int(random.integers(1, 10))):
        top, bottom = np.sort(random.integers(row * height // 3, (row + 1) * height // 3 + 1, 2))
        left, right = np.sort(
            random.integers(column * width // 3, (column + 1) * width // 3 + 1, 2)
        )
        if bottom - top < 2 or right - left < 2:
            continue
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
        is_masked = random.random() >= box_only
        if is_masked:
            mask[top : (top + bottom) // 2, left : (left + right) // 2] = False
        image[mask] = COLORS[first_class + len(boxes)]
        boxes.append((left, top, right, bottom))
        masks.append(mask & is_masked)
        has_mask.append(is_masked)
    return make_sample(image, boxes, masks, has_mask, first_class=first_class, seed=seed)


def make_sample(image, boxes, masks=(), has_mask=(), *, first_class=0, seed=0, crowd=None):
    height, width = image.shape[:2]
    rows = len(boxes)
    return Sample(
        torch.from_numpy(image).permute(2, 0, 1),
        Targets(
            image_id=7,
            seed=seed,
            boxes=torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
            labels=torch.arange(first_class, first_class + rows),
            masks=torch.tensor(np.array(masks, bool).reshape(-1, height, width)),
            has_mask=torch.tensor(has_mask, dtype=torch.bool),
            crowd=torch.tensor(crowd or [False] * rows, dtype=torch.bool),
            annotated=torch.arange(CLASSES) % 2 == 0,
        ),
    )


def make_boxes(height, width, *boxes, **kwargs):
    """Return a black sample of objects without masks."""
    no_masks = np.zeros((len(boxes), height, width), bool)
    image = np.zeros((height, width, 3), np.uint8)
    return make_sample(image, boxes, no_masks, [False] * len(boxes), **kwargs)


def make_full_object(height, width, gray, **kwargs):
    """Return a sample of one object that fills the image."""
    image = np.full((height, width, 3), gray, np.uint8)
    return make_sample(
        image, [(0, 0, width, height)], np.ones((1, height, width)), [True], **kwargs
    )


def make_config(**kwargs):
    """Return a config without color changes by default."""
    return AugmentConfig(**{"photometric": 0.0} | kwargs)


def with_seed(sample, seed):
    return replace(sample, targets=replace(sample.targets, seed=seed))


def compute_box(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def check_colors(augmented):
    """Assert that masks and boxes match the colors; return the number of objects compared."""
    image = augmented.image.permute(1, 2, 0).numpy().astype(int)
    targets = augmented.targets
    masked = targets.masks.any(0).numpy()
    compared = 0
    for row in range(len(targets)):
        area = targets.masks[row].numpy()
        if targets.has_mask[row]:
            assert targets.boxes[row].tolist() == compute_box(area)
        else:
            x1, y1, x2, y2 = targets.boxes[row].round().int().tolist()
            area = np.zeros_like(area)
            area[y1:y2, x1:x2] = True
        # Resizing mixes colors at edges; the border erodes edges at the image's edge, too.
        padded = cv2.copyMakeBorder(area.astype(np.uint8), 3, 3, 3, 3, cv2.BORDER_CONSTANT)
        inside = cv2.erode(padded, np.ones((7, 7), np.uint8))[3:-3, 3:-3].astype(bool)
        inside &= ~masked | targets.has_mask[row].numpy()
        if not inside.any() or targets.crowd[row]:
            continue
        errors = np.abs(image[inside] - COLORS[targets.labels[row]]).max(axis=1)
        assert (errors <= 12).mean() >= 0.95
        compared += 1
    return compared


def check_invariants(augmented, sample, input_size):
    height, width = augmented.image.shape[1:]
    targets, rows = augmented.targets, len(augmented.targets)
    assert augmented.image.dtype == torch.uint8
    assert augmented.image.shape[0] == 3
    assert 1 <= height <= input_size
    assert 1 <= width <= input_size
    assert (targets.boxes.dtype, targets.boxes.shape) == (torch.float32, (rows, 4))
    assert (targets.labels.dtype, targets.labels.shape) == (torch.int64, (rows,))
    assert (targets.masks.dtype, targets.masks.shape) == (torch.bool, (rows, height, width))
    assert (targets.has_mask.dtype, targets.has_mask.shape) == (torch.bool, (rows,))
    assert (targets.crowd.dtype, targets.crowd.shape) == (torch.bool, (rows,))
    x1, y1, x2, y2 = targets.boxes.T
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 <= width).all()
    assert (y2 <= height).all()
    assert (x2 - x1 >= 2).all()
    assert (y2 - y1 >= 2).all()
    assert torch.equal(targets.masks.flatten(1).any(1), targets.has_mask)
    assert int(targets.masks.sum(0).max()) <= 1 if rows else True
    for tensor in (augmented.image, *(getattr(targets, name) for name in OBJECT_FIELDS)):
        assert type(tensor) is torch.Tensor
    assert (targets.image_id, targets.seed) == (7, sample.targets.seed)
    assert torch.equal(targets.annotated, sample.targets.annotated)


def list_tensors(sample):
    columns = (getattr(sample.targets, field.name) for field in fields(Targets))
    return [sample.image, *(column for column in columns if torch.is_tensor(column))]


def is_equal(one, other):
    pairs = zip(list_tensors(one), list_tensors(other), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def copy_sample(sample):
    return pickle.loads(pickle.dumps(sample))


sizes = st.integers(6, 200)
seeds = st.integers(0, 2**31)
scales = st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)).map(sorted).map(tuple)


@settings(deadline=None, max_examples=150)
@given(
    sizes, sizes, sizes, sizes, seeds, scales, st.sampled_from((0, 0.5, 1)), st.booleans(),
    st.integers(16, 160),
)  # fmt: skip
def test_image_boxes_and_masks_stay_aligned(
    height, width, other_height, other_width, seed, scale, flip, has_donor, input_size
):
    sample = make_scene(height, width, seed)
    donor = make_scene(other_height, other_width, seed + 1, first_class=DONOR_CLASS)
    before = copy_sample(sample), copy_sample(donor)
    augment = Augmentation(
        make_config(flip=flip, scale=scale, copy_paste=float(has_donor)), input_size
    )
    augmented = augment(sample, lambda: donor)
    check_invariants(augmented, sample, input_size)
    check_colors(augmented)
    assert is_equal(sample, before[0])
    assert is_equal(donor, before[1])


def test_check_colors_compares_every_object():
    sample = make_scene(360, 480, seed=55)
    assert len(sample.targets) == 9
    assert set(sample.targets.has_mask.tolist()) == {True, False}
    augmented = Augmentation(make_config(flip=1, scale=(1, 1)), 480)(sample, None)
    assert check_colors(augmented) == len(augmented.targets) == 9


@pytest.mark.parametrize("unflipped", ["image", "boxes", "masks"])
def test_check_colors_detects_a_part_that_was_not_flipped(monkeypatch, unflipped):
    transform_all = augmentation._transform

    def transform_except_one(sample, transform):
        transformed = transform_all(sample, transform)
        if transform is not functional.horizontal_flip:
            return transformed
        if unflipped == "image":
            return replace(transformed, image=sample.image)
        column = {unflipped: getattr(sample.targets, unflipped)}
        return replace(transformed, targets=replace(transformed.targets, **column))

    sample = make_scene(150, 200, seed=5)
    augment = Augmentation(make_config(flip=1, scale=(1, 1)), 200)
    check_colors(augment(sample, None))
    monkeypatch.setattr(augmentation, "_transform", transform_except_one)
    with pytest.raises(AssertionError):
        check_colors(augment(sample, None))


def with_stuff(sample):
    """Return the sample with a random stuff map in which the masks are things."""
    targets = sample.targets
    stuff = torch.randint(1, 4, targets.masks.shape[1:], dtype=torch.uint8)
    stuff = stuff.masked_fill(targets.masks.any(0), THING)
    return replace(sample, targets=replace(targets, stuff=stuff))


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, seeds, scales, st.integers(16, 160))
def test_stuff_stays_aligned_with_masks(height, width, seed, scale, input_size):
    """The stuff map holds the number of the object at each pixel."""
    sample = make_scene(height, width, seed, box_only=0)
    masks = sample.targets.masks
    numbers = torch.arange(1, len(masks) + 1, dtype=torch.uint8)[:, None, None]
    stuff = (masks * numbers).sum(0, dtype=torch.uint8)
    numbered = replace(sample, targets=replace(sample.targets, stuff=stuff))
    augmented = Augmentation(make_config(scale=scale), input_size)(numbered, None).targets
    assert augmented.stuff.dtype == torch.uint8
    assert type(augmented.stuff) is torch.Tensor
    for label, mask in zip(augmented.labels.tolist(), augmented.masks, strict=True):
        assert torch.equal(augmented.stuff == label + 1, mask)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(20, 120), st.integers(20, 120), st.booleans())
def test_pasted_objects_become_things_in_the_stuff_map(seed, height, width, donor_has_stuff):
    sample = with_stuff(make_scene(height, width, seed))
    donor = make_scene(width, height, seed + 1, first_class=DONOR_CLASS)
    donor = with_stuff(donor) if donor_has_stuff else donor
    unpasted = Augmentation(make_config(), 96)(sample, None).targets
    targets = Augmentation(make_config(copy_paste=1), 96)(sample, lambda: donor).targets
    covered = targets.masks[targets.labels >= DONOR_CLASS].any(0)
    assert (targets.stuff[covered] == THING).all()
    assert torch.equal(targets.stuff[~covered], unpasted.stuff[~covered])


def test_copy_paste_adds_no_stuff_map():
    donor = with_stuff(make_scene(60, 60, 3, first_class=DONOR_CLASS))
    augmented = Augmentation(make_config(copy_paste=1), 64)(make_scene(60, 60, 2), lambda: donor)
    assert (augmented.targets.labels >= DONOR_CLASS).any()
    assert augmented.targets.stuff is None


def test_flip_is_exact():
    sample = make_scene(90, 120, seed=4)
    augmented = Augmentation(make_config(flip=1, scale=(1, 1)), 120)(sample, None)
    assert torch.equal(augmented.image, sample.image.flip(2))
    assert torch.equal(augmented.targets.masks, sample.targets.masks.flip(2))
    x1, y1, x2, y2 = sample.targets.boxes.T
    box_only = ~augmented.targets.has_mask
    mirrored = torch.stack([120 - x2, y1, 120 - x1, y2], 1)
    assert torch.equal(augmented.targets.boxes[box_only], mirrored[box_only])


@pytest.mark.parametrize("scale", [0.23, 0.4, 0.71, 1.0, 1.9, 3.3])
def test_resized_mask_is_not_shifted_against_the_image(scale):
    image = np.zeros((160, 200, 3), np.uint8)
    cv2.circle(image, (90, 80), 50, (255, 255, 255), cv2.FILLED)
    disc = make_sample(image, [(40, 30, 141, 131)], image[None, ..., 0] > 0, [True])
    augmented = Augmentation(make_config(scale=(scale, scale), flip=0), 200)(disc, None)
    disc_pixels, mask = augmented.image[0] >= 128, augmented.targets.masks[0]
    dy, dx = (disc_pixels.nonzero().float().mean(0) - mask.nonzero().float().mean(0)).tolist()
    assert abs(dy) < 0.1
    assert abs(dx) < 0.1


def test_scales_are_log_uniform():
    augment = Augmentation(make_config(scale=(0.5, 2)), 100)
    sample = make_scene(60, 120)
    widths = [augment(with_seed(sample, seed), None).image.shape[2] for seed in range(300)]
    assert min(widths) < 54
    assert max(widths) == 100
    # On a log scale, half of the range is above 1 and therefore cropped.
    assert 0.4 < np.mean(np.equal(widths, 100)) < 0.6


def test_enlargement_is_at_most_four_times():
    augmented = Augmentation(make_config(scale=(3, 3)), 400)(make_scene(20, 30), None)
    assert augmented.image.shape == (3, 80, 120)


def test_crop_contains_an_object():
    sample = make_boxes(300, 3000, (2900, 10, 2960, 290))
    augment = Augmentation(make_config(scale=(10, 10)), 64)
    counts = [len(augment(with_seed(sample, seed), None).targets) for seed in range(50)]
    assert np.mean(counts) > 0.9  # a uniform crop would contain it in a tenth of the cases


def test_augmentation_depends_on_the_seed_alone():
    sample, donor = make_scene(120, 160, 3), make_scene(100, 90, 4, first_class=DONOR_CLASS)
    augment = Augmentation(AugmentConfig(photometric=1, copy_paste=0.7), 96)
    results = []
    for seed in range(12):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        first = augment(with_seed(sample, seed), lambda: donor)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(5)
        second = pickle.loads(pickle.dumps(augment))(with_seed(sample, seed), lambda: donor)
        assert is_equal(first, second)
        results.append(first)
    assert not any(is_equal(one, other) for one, other in pairwise(results))


def test_generator_state_is_restored_if_the_donor_raises():
    def failing_donor():
        torch.rand(3)
        raise OSError("gone")

    state = torch.get_rng_state()
    with pytest.raises(OSError, match="gone"):
        Augmentation(make_config(copy_paste=1), 64)(make_scene(50, 50), failing_donor)
    assert torch.equal(torch.get_rng_state(), state)


def test_photometric_changes_only_the_colors():
    sample = make_scene(90, 120, 4)
    for seed in range(8):
        seeded = with_seed(sample, seed)
        plain = Augmentation(make_config(), 100)(seeded, None)
        changed = Augmentation(make_config(photometric=0.8), 100)(seeded, None)
        assert is_equal(replace(changed, image=plain.image), plain)
        assert not torch.equal(changed.image, plain.image)


def test_donor_is_called_with_the_probability_of_copy_paste():
    def unexpected_donor():
        raise AssertionError

    augment = Augmentation(make_config(copy_paste=0.0), 64)
    for seed in range(20):
        augment(make_scene(40, 50, seed), unexpected_donor)
    calls = []
    augment = Augmentation(make_config(copy_paste=0.25), 64)
    for seed in range(200):
        augment(
            make_scene(20, 20, seed),
            lambda: calls.append(1) or make_scene(20, 20, first_class=DONOR_CLASS),
        )
    assert 25 < len(calls) < 75


@settings(deadline=None, max_examples=100)
@given(seeds, st.integers(20, 120), st.integers(20, 120))
def test_pasted_objects_occlude_the_others(seed, height, width):
    sample = make_scene(height, width, seed, box_only=0.4)
    donor = make_scene(width, height, seed + 1, first_class=DONOR_CLASS, box_only=0.4)
    unpasted = Augmentation(make_config(), 96)(sample, None).targets
    targets = Augmentation(make_config(copy_paste=1), 96)(sample, lambda: donor).targets

    pasted = targets.labels >= DONOR_CLASS
    donor_labels = donor.targets.labels[donor.targets.has_mask]
    assert set(targets.labels[pasted].tolist()) <= set(donor_labels.tolist())
    assert targets.has_mask[pasted].all()
    assert targets.labels[~pasted].lt(DONOR_CLASS).all()
    assert torch.equal(pasted, pasted.sort(stable=True).values)  # pasted objects are last

    covered = targets.masks[pasted].any(0)
    for row, label in enumerate(unpasted.labels.tolist()):
        rows = (targets.labels == label).nonzero().flatten().tolist()
        visible = unpasted.masks[row] & ~covered
        x1, y1, x2, y2 = unpasted.boxes[row].round().int().tolist()
        if not unpasted.has_mask[row]:
            is_hidden = covered[y1:y2, x1:x2].float().mean() > 0.5
            assert targets.crowd[rows].tolist() == [bool(is_hidden or unpasted.crowd[row])]
            assert torch.equal(targets.boxes[rows[0]], unpasted.boxes[row])
        elif rows:
            assert torch.equal(targets.masks[rows[0]], visible)
            assert visible.sum() >= 0.2 * unpasted.masks[row].sum()
        else:
            x1, y1, x2, y2 = compute_box(visible.numpy()) if visible.any() else (0, 0, 0, 0)
            is_thin = min(x2 - x1, y2 - y1) < 2
            assert is_thin or visible.sum() < 0.2 * unpasted.masks[row].sum()


def test_covered_masks_are_dropped_and_covered_boxes_become_crowds():
    sample = make_scene(60, 80, seed=5)
    has_mask = sample.targets.has_mask
    assert has_mask.any()
    assert not has_mask.all()
    donor = make_full_object(60, 80, 255, first_class=DONOR_CLASS)
    augment = Augmentation(make_config(scale=(1, 1), copy_paste=1), 80)
    augmented = augment(sample, lambda: donor)
    assert augmented.targets.labels[-1] == DONOR_CLASS
    assert torch.equal(
        augmented.targets.labels[:-1].sort().values, sample.targets.labels[~has_mask]
    )
    assert augmented.targets.crowd.tolist() == [True] * (len(augmented.targets) - 1) + [False]
    assert (augmented.image == 255).all()


def test_pasted_object_larger_than_the_image_is_clipped():
    donor = make_full_object(80, 80, 255, first_class=DONOR_CLASS)
    augmented = Augmentation(make_config(scale=(1, 1), copy_paste=1), 80)(
        make_scene(20, 80), lambda: donor
    )
    assert augmented.targets.boxes[-1].tolist() == [0, 0, 80, 20]
    assert (augmented.image == 255).all()


def test_crowds_and_objects_without_mask_are_not_pasted():
    donors = [
        make_boxes(50, 50, (5, 5, 30, 40), first_class=DONOR_CLASS),
        make_full_object(50, 50, 200, first_class=DONOR_CLASS, crowd=[True]),
        make_boxes(50, 50, first_class=DONOR_CLASS),
    ]
    sample = make_scene(60, 60, 5)
    plain = Augmentation(make_config(), 64)(sample, None)
    for donor in donors:
        augmented = Augmentation(make_config(copy_paste=1), 64)(sample, lambda donor=donor: donor)
        assert is_equal(augmented, plain)


def test_random_number_of_donor_objects_is_pasted():
    donor = make_scene(90, 90, 5, first_class=DONOR_CLASS, box_only=0)
    augment = Augmentation(make_config(scale=(1, 1), copy_paste=1), 90)
    counts = [
        len(augment(make_boxes(90, 90, seed=seed), lambda: donor).targets) for seed in range(60)
    ]
    assert set(counts) == set(range(1, len(donor.targets) + 1))


def test_box_without_mask_becomes_a_crowd_if_less_than_three_tenths_are_visible():
    left, further_left, below = (-70, 0, 30, 50), (-71, 0, 29, 50), (10, 40, 30, 300)
    targets = augmentation._sanitize(make_boxes(100, 100, left, further_left, below)).targets
    assert targets.boxes.tolist() == [[0, 0, 30, 50], [0, 0, 29, 50], [10, 40, 30, 100]]
    assert targets.crowd.tolist() == [False, True, True]


def test_thin_boxes_are_dropped():
    valid, thin, outside = (10, 10, 12, 40), (-50, 10, 1.9, 40), (100, 20, 130, 40)
    sanitized = augmentation._sanitize(make_boxes(100, 100, valid, thin, outside))
    assert sanitized.targets.labels.tolist() == [0]


def test_crowd_keeps_its_box_while_any_pixel_is_visible():
    image, masks = np.zeros((60, 60, 3), np.uint8), np.zeros((2, 60, 60), bool)
    masks[:, 20:30, 20:30] = True
    box = (5, 5, 55, 50)
    sample = make_sample(image, [box, box], masks, [True, True], crowd=[True, False])
    augment = Augmentation(make_config(scale=(1, 1), flip=0, copy_paste=1), 60)
    assert augment(sample, None).targets.boxes.tolist() == [list(box), [20, 20, 30, 30]]
    covered = torch.zeros(60, 60, dtype=torch.bool)
    covered[20:30, 20:29] = True
    covered[20, 20] = False

    def occlude(covered):
        targets = augmentation._occlude(sample.targets, covered)
        return augmentation._sanitize(Sample(sample.image, targets)).targets

    assert occlude(covered).labels.tolist() == [0]
    assert occlude(covered).boxes.tolist() == [list(box)]
    assert len(occlude(torch.ones(60, 60, dtype=torch.bool))) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (40, 2000), (2, 3000), (2000, 40)])
@pytest.mark.parametrize("donor_size", [(1, 1), (1, 200), (2000, 40), (64, 64)])
def test_extreme_aspect_ratios(size, donor_size):
    augment = Augmentation(AugmentConfig(scale=(0.3, 2), photometric=1, copy_paste=1), 64)
    for seed in range(3):
        for sample in (
            make_scene(*size, seed),
            make_boxes(*size, seed=seed),
            make_full_object(*size, 9),
        ):
            donor = make_full_object(*donor_size, 255, first_class=DONOR_CLASS)
            check_invariants(augment(sample, lambda donor=donor: donor), sample, 64)


def test_compute_mask_boxes():
    masks = torch.zeros(3, 5, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    masks[0, 1, 2] = False
    masks[2, 4, 7] = True
    assert augmentation.compute_mask_boxes(masks).tolist() == [
        [2, 1, 7, 4],
        [0, 0, 0, 0],
        [7, 4, 8, 5],
    ]
    assert augmentation.compute_mask_boxes(masks[:0]).shape == (0, 4)
