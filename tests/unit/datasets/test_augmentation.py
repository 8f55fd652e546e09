"""Varied samples: picture, boxes and masks stay together, and nothing depends on anything else."""

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
COLOURS = np.array([c for c in product((0, 127, 255), repeat=3) if any(c)], np.uint8)
"""The colour of each class; a scene has one object of a class at most, so colours tell objects."""

DONORS = 12
"""Classes from here on are the donor's."""

COLUMNS = ("boxes", "labels", "masks", "has_mask", "crowd")


def scene(height, width, seed=0, *, first=0, boxed=0.3):
    """Objects, each of its own colour, on black; some (``boxed``) are rectangles without a mask.

    The others have no symmetry: rectangles with a quarter cut out.
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
        masked = random.random() >= boxed
        if masked:
            mask[top : (top + bottom) // 2, left : (left + right) // 2] = False
        image[mask] = COLOURS[first + len(boxes)]
        boxes.append((left, top, right, bottom))
        masks.append(mask & masked)
        has_mask.append(masked)
    return sample(image, boxes, masks, has_mask, first=first, seed=seed)


def sample(image, boxes, masks=(), has_mask=(), *, first=0, seed=0, crowd=None):
    height, width = image.shape[:2]
    rows = len(boxes)
    return Sample(
        torch.from_numpy(image).permute(2, 0, 1),
        Targets(
            image_id=7,
            seed=seed,
            boxes=torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
            labels=torch.arange(first, first + rows),
            masks=torch.tensor(np.array(masks, bool).reshape(-1, height, width)),
            has_mask=torch.tensor(has_mask, dtype=torch.bool),
            crowd=torch.tensor(crowd or [False] * rows, dtype=torch.bool),
            annotated=torch.arange(CLASSES) % 2 == 0,
        ),
    )


def boxed(height, width, *boxes, **kwargs):
    """A black picture with objects that have no masks."""
    none = np.zeros((len(boxes), height, width), bool)
    image = np.zeros((height, width, 3), np.uint8)
    return sample(image, boxes, none, [False] * len(boxes), **kwargs)


def whole(height, width, colour, **kwargs):
    """A picture that one object fills."""
    image = np.full((height, width, 3), colour, np.uint8)
    return sample(image, [(0, 0, width, height)], np.ones((1, height, width)), [True], **kwargs)


def config(**kwargs):
    return AugmentConfig(**{"photometric": 0.0} | kwargs)


def seeded(given_sample, seed):
    return replace(given_sample, targets=replace(given_sample.targets, seed=seed))


def box_around(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def check_colours(varied):
    """Every object is where its colour is, by its mask and by its box; how many were looked at."""
    image = varied.image.permute(1, 2, 0).numpy().astype(int)
    targets = varied.targets
    taken = targets.masks.any(0).numpy()
    looked_at = 0
    for row in range(len(targets)):
        area = targets.masks[row].numpy()
        if targets.has_mask[row]:
            assert targets.boxes[row].tolist() == box_around(area)
        else:
            x1, y1, x2, y2 = targets.boxes[row].round().int().tolist()
            area = np.zeros_like(area)
            area[y1:y2, x1:x2] = True
        # Resizing mixes colours at edges, and an edge may lie on the picture's.
        edged = cv2.copyMakeBorder(area.astype(np.uint8), 3, 3, 3, 3, cv2.BORDER_CONSTANT)
        inside = cv2.erode(edged, np.ones((7, 7), np.uint8))[3:-3, 3:-3].astype(bool)
        inside &= ~taken | targets.has_mask[row].numpy()
        if not inside.any() or targets.crowd[row]:
            continue
        off = np.abs(image[inside] - COLOURS[targets.labels[row]]).max(axis=1)
        assert (off <= 12).mean() >= 0.95
        looked_at += 1
    return looked_at


def check_invariants(varied, given_sample, input_size):
    height, width = varied.image.shape[1:]
    targets, rows = varied.targets, len(varied.targets)
    assert varied.image.dtype == torch.uint8
    assert varied.image.shape[0] == 3
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
    for tensor in (varied.image, *(getattr(targets, name) for name in COLUMNS)):
        assert type(tensor) is torch.Tensor
    assert (targets.image_id, targets.seed) == (7, given_sample.targets.seed)
    assert torch.equal(targets.annotated, given_sample.targets.annotated)


def tensors(given_sample):
    columns = (getattr(given_sample.targets, field.name) for field in fields(Targets))
    return [given_sample.image, *(column for column in columns if torch.is_tensor(column))]


def equal(one, other):
    pairs = zip(tensors(one), tensors(other), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def copied(given_sample):
    return pickle.loads(pickle.dumps(given_sample))


sizes = st.integers(6, 200)
seeds = st.integers(0, 2**31)
scales = st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)).map(sorted).map(tuple)


@settings(deadline=None, max_examples=150)
@given(
    sizes, sizes, sizes, sizes, seeds, scales, st.sampled_from((0, 0.5, 1)), st.booleans(),
    st.integers(16, 160),
)  # fmt: skip
def test_picture_boxes_and_masks_move_together(
    height, width, other_height, other_width, seed, scale, flip, pastes, input_size
):
    given_sample = scene(height, width, seed)
    donor = scene(other_height, other_width, seed + 1, first=DONORS)
    before = copied(given_sample), copied(donor)
    vary = Augmentation(config(flip=flip, scale=scale, copy_paste=float(pastes)), input_size)
    varied = vary(given_sample, lambda: donor)
    check_invariants(varied, given_sample, input_size)
    check_colours(varied)
    assert equal(given_sample, before[0])
    assert equal(donor, before[1])


def test_the_check_looks_at_every_object():
    given_sample = scene(360, 480, seed=55)
    assert len(given_sample.targets) == 9
    assert set(given_sample.targets.has_mask.tolist()) == {True, False}
    varied = Augmentation(config(flip=1, scale=(1, 1)), 480)(given_sample, None)
    assert check_colours(varied) == len(varied.targets) == 9


@pytest.mark.parametrize("left_behind", ["image", "boxes", "masks"])
def test_the_textbook_mistake_would_be_noticed(monkeypatch, left_behind):
    move = augmentation._transform

    def forgetful(given_sample, step):
        """Mirrors two of the three."""
        moved = move(given_sample, step)
        if step is not functional.horizontal_flip:
            return moved
        if left_behind == "image":
            return replace(moved, image=given_sample.image)
        old = getattr(given_sample.targets, left_behind)
        return replace(moved, targets=replace(moved.targets, **{left_behind: old}))

    given_sample = scene(150, 200, seed=5)
    vary = Augmentation(config(flip=1, scale=(1, 1)), 200)
    check_colours(vary(given_sample, None))
    monkeypatch.setattr(augmentation, "_transform", forgetful)
    with pytest.raises(AssertionError):
        check_colours(vary(given_sample, None))


def with_stuff(given_sample, seed=0):
    """A map of stuff that says of each object's pixels that a thing is there."""
    targets = given_sample.targets
    stuff = torch.randint(1, 4, targets.masks.shape[1:], dtype=torch.uint8)
    stuff = stuff.masked_fill(targets.masks.any(0), THING)
    return replace(given_sample, targets=replace(targets, stuff=stuff))


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, seeds, scales, st.integers(16, 160))
def test_stuff_moves_with_the_masks(height, width, seed, scale, input_size):
    """Each pixel of a map that numbers the objects stays with its object's mask."""
    given_sample = scene(height, width, seed, boxed=0)
    masks = given_sample.targets.masks
    numbers = torch.arange(1, len(masks) + 1, dtype=torch.uint8)[:, None, None]
    stuff = (masks * numbers).sum(0, dtype=torch.uint8)
    numbered = replace(given_sample, targets=replace(given_sample.targets, stuff=stuff))
    varied = Augmentation(config(scale=scale), input_size)(numbered, None).targets
    assert varied.stuff.dtype == torch.uint8
    assert type(varied.stuff) is torch.Tensor
    for label, mask in zip(varied.labels.tolist(), varied.masks, strict=True):
        assert torch.equal(varied.stuff == label + 1, mask)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(20, 120), st.integers(20, 120), st.booleans())
def test_what_is_pasted_is_a_thing_and_the_rest_of_the_stuff_stays(seed, height, width, known):
    given_sample = with_stuff(scene(height, width, seed))
    donor = scene(width, height, seed + 1, first=DONORS)
    donor = with_stuff(donor) if known else donor
    without = Augmentation(config(), 96)(given_sample, None).targets
    targets = Augmentation(config(copy_paste=1), 96)(given_sample, lambda: donor).targets
    over = targets.masks[targets.labels >= DONORS].any(0)
    assert (targets.stuff[over] == THING).all()
    assert torch.equal(targets.stuff[~over], without.stuff[~over])


def test_pictures_without_stuff_get_none_from_a_donor():
    donor = with_stuff(scene(60, 60, 3, first=DONORS))
    varied = Augmentation(config(copy_paste=1), 64)(scene(60, 60, 2), lambda: donor)
    assert (varied.targets.labels >= DONORS).any()
    assert varied.targets.stuff is None


def test_a_mirror_image_is_exact():
    given_sample = scene(90, 120, seed=4)
    varied = Augmentation(config(flip=1, scale=(1, 1)), 120)(given_sample, None)
    assert torch.equal(varied.image, given_sample.image.flip(2))
    assert torch.equal(varied.targets.masks, given_sample.targets.masks.flip(2))
    x1, y1, x2, y2 = given_sample.targets.boxes.T
    boxed_only = ~varied.targets.has_mask
    mirrored = torch.stack([120 - x2, y1, 120 - x1, y2], 1)
    assert torch.equal(varied.targets.boxes[boxed_only], mirrored[boxed_only])


@pytest.mark.parametrize("scale", [0.23, 0.4, 0.71, 1.0, 1.9, 3.3])
def test_a_mask_is_not_shifted_against_its_picture(scale):
    image = np.zeros((160, 200, 3), np.uint8)
    cv2.circle(image, (90, 80), 50, (255, 255, 255), cv2.FILLED)
    disc = sample(image, [(40, 30, 141, 131)], image[None, ..., 0] > 0, [True])
    varied = Augmentation(config(scale=(scale, scale), flip=0), 200)(disc, None)
    seen, mask = varied.image[0] >= 128, varied.targets.masks[0]
    rows, columns = (seen.nonzero().float().mean(0) - mask.nonzero().float().mean(0)).tolist()
    assert abs(rows) < 0.1
    assert abs(columns) < 0.1


def test_scales_are_spread_over_their_range():
    vary = Augmentation(config(scale=(0.5, 2)), 100)
    given_sample = scene(60, 120)
    widths = [vary(seeded(given_sample, seed), None).image.shape[2] for seed in range(300)]
    assert min(widths) < 54
    assert max(widths) == 100
    # In logarithms half of the range is enlarged, and cropped.
    assert 0.4 < np.mean(np.equal(widths, 100)) < 0.6


def test_nothing_is_enlarged_more_than_four_times():
    varied = Augmentation(config(scale=(3, 3)), 400)(scene(20, 30), None)
    assert varied.image.shape == (3, 80, 120)


def test_a_crop_shows_an_object():
    one = boxed(300, 3000, (2900, 10, 2960, 290))
    vary = Augmentation(config(scale=(10, 10)), 64)
    seen = [len(vary(seeded(one, seed), None).targets) for seed in range(50)]
    assert np.mean(seen) > 0.9  # by chance one in ten would


def test_only_the_seed_matters():
    given_sample, donor = scene(120, 160, 3), scene(100, 90, 4, first=DONORS)
    settings_ = AugmentConfig(photometric=1, copy_paste=0.7)
    vary = Augmentation(settings_, 96)
    seen = []
    for seed in range(12):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        one = vary(seeded(given_sample, seed), lambda: donor)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(5)
        again = pickle.loads(pickle.dumps(vary))(seeded(given_sample, seed), lambda: donor)
        assert equal(one, again)
        seen.append(one)
    assert not any(equal(one, other) for one, other in pairwise(seen))


def test_the_generator_is_left_alone_when_a_donor_fails():
    def broken():
        torch.rand(3)
        raise OSError("gone")

    state = torch.get_rng_state()
    with pytest.raises(OSError, match="gone"):
        Augmentation(config(copy_paste=1), 64)(scene(50, 50), broken)
    assert torch.equal(torch.get_rng_state(), state)


def test_colours_are_changed_and_nothing_else():
    given_sample = scene(90, 120, 4)
    changed = 0
    for seed in range(8):
        one = seeded(given_sample, seed)
        plain = Augmentation(config(), 100)(one, None)
        coloured = Augmentation(config(photometric=0.8), 100)(one, None)
        assert equal(replace(coloured, image=plain.image), plain)
        changed += not torch.equal(coloured.image, plain.image)
    assert changed == 8


def test_no_donor_is_asked_unless_that_is_drawn():
    def unwanted():
        raise AssertionError

    vary = Augmentation(config(copy_paste=0.0), 64)
    for seed in range(20):
        vary(scene(40, 50, seed), unwanted)
    asked = []
    vary = Augmentation(config(copy_paste=0.25), 64)
    for seed in range(200):
        vary(scene(20, 20, seed), lambda: asked.append(1) or scene(20, 20, first=DONORS))
    assert 25 < len(asked) < 75


@settings(deadline=None, max_examples=100)
@given(seeds, st.integers(20, 120), st.integers(20, 120))
def test_what_is_pasted_hides_what_was_there(seed, height, width):
    given_sample = scene(height, width, seed, boxed=0.4)
    donor = scene(width, height, seed + 1, first=DONORS, boxed=0.4)
    without = Augmentation(config(), 96)(given_sample, None).targets
    targets = Augmentation(config(copy_paste=1), 96)(given_sample, lambda: donor).targets

    pasted = targets.labels >= DONORS
    donated = donor.targets.labels[donor.targets.has_mask]
    assert set(targets.labels[pasted].tolist()) <= set(donated.tolist())
    assert targets.has_mask[pasted].all()
    assert targets.labels[~pasted].lt(DONORS).all()
    assert torch.equal(pasted, pasted.sort(stable=True).values)  # they come last

    over = targets.masks[pasted].any(0)
    for row, label in enumerate(without.labels.tolist()):
        found = (targets.labels == label).nonzero().flatten().tolist()
        left = without.masks[row] & ~over
        x1, y1, x2, y2 = without.boxes[row].round().int().tolist()
        if not without.has_mask[row]:
            hidden = over[y1:y2, x1:x2].float().mean() > 0.5
            assert targets.crowd[found].tolist() == [bool(hidden or without.crowd[row])]
            assert torch.equal(targets.boxes[found[0]], without.boxes[row])
        elif found:
            assert torch.equal(targets.masks[found[0]], left)
            assert left.sum() >= 0.2 * without.masks[row].sum()
        else:
            x1, y1, x2, y2 = box_around(left.numpy()) if left.any() else (0, 0, 0, 0)
            thin = min(x2 - x1, y2 - y1) < 2
            assert thin or left.sum() < 0.2 * without.masks[row].sum()


def test_what_is_wholly_hidden_is_gone_and_a_hidden_box_is_a_crowd():
    given_sample = scene(60, 80, seed=5)
    has_mask = given_sample.targets.has_mask
    assert has_mask.any()
    assert not has_mask.all()
    donor = whole(60, 80, 255, first=DONORS)
    vary = Augmentation(config(scale=(1, 1), copy_paste=1), 80)
    varied = vary(given_sample, lambda: donor)
    assert varied.targets.labels[-1] == DONORS
    assert torch.equal(
        varied.targets.labels[:-1].sort().values, given_sample.targets.labels[~has_mask]
    )
    assert varied.targets.crowd.tolist() == [True] * (len(varied.targets) - 1) + [False]
    assert (varied.image == 255).all()


def test_a_larger_object_fills_the_picture_and_is_cut_off():
    donor = whole(80, 80, 255, first=DONORS)
    varied = Augmentation(config(scale=(1, 1), copy_paste=1), 80)(scene(20, 80), lambda: donor)
    assert varied.targets.boxes[-1].tolist() == [0, 0, 80, 20]
    assert (varied.image == 255).all()


def test_crowds_and_boxes_are_not_pasted():
    donors = [
        boxed(50, 50, (5, 5, 30, 40), first=DONORS),
        whole(50, 50, 200, first=DONORS, crowd=[True]),
        boxed(50, 50, first=DONORS),
    ]
    given_sample = scene(60, 60, 5)
    plain = Augmentation(config(), 64)(given_sample, None)
    for donor in donors:
        varied = Augmentation(config(copy_paste=1), 64)(given_sample, lambda donor=donor: donor)
        assert equal(varied, plain)


def test_some_of_the_donors_objects_are_pasted():
    donor = scene(90, 90, 5, first=DONORS, boxed=0)
    vary = Augmentation(config(scale=(1, 1), copy_paste=1), 90)
    counts = [len(vary(boxed(90, 90, seed=seed), lambda: donor).targets) for seed in range(60)]
    assert set(counts) == set(range(1, len(donor.targets) + 1))


def test_of_a_box_without_a_mask_three_tenths_must_be_left():
    cut_left, cut_more, cut_below = (-70, 0, 30, 50), (-71, 0, 29, 50), (10, 40, 30, 300)
    tidied = augmentation._sanitize(boxed(100, 100, cut_left, cut_more, cut_below)).targets
    assert tidied.boxes.tolist() == [[0, 0, 30, 50], [0, 0, 29, 50], [10, 40, 30, 100]]
    assert tidied.crowd.tolist() == [False, True, True]


def test_slivers_are_dropped():
    kept, thin, outside = (10, 10, 12, 40), (-50, 10, 1.9, 40), (100, 20, 130, 40)
    assert augmentation._sanitize(boxed(100, 100, kept, thin, outside)).targets.labels.tolist() == [
        0
    ]


def test_a_crowd_keeps_its_box_while_any_of_it_is_seen():
    image, mask = np.zeros((60, 60, 3), np.uint8), np.zeros((2, 60, 60), bool)
    mask[:, 20:30, 20:30] = True
    box = (5, 5, 55, 50)
    given_sample = sample(image, [box, box], mask, [True, True], crowd=[True, False])
    vary = Augmentation(config(scale=(1, 1), flip=0, copy_paste=1), 60)
    assert vary(given_sample, None).targets.boxes.tolist() == [list(box), [20, 20, 30, 30]]
    image[20:30, 20:29] = 255
    image[20, 20] = 0
    over = sample(image, [(0, 0, 60, 60)], image[None, ..., 0] > 0, [True], first=DONORS)
    hidden = augmentation._sanitize(
        Sample(over.image, augmentation._occlude(given_sample.targets, over.targets.masks[0]))
    )
    assert hidden.targets.labels.tolist() == [0]
    assert hidden.targets.boxes.tolist() == [list(box)]
    gone = augmentation._sanitize(
        Sample(over.image, augmentation._occlude(given_sample.targets, torch.ones(60, 60) > 0))
    )
    assert len(gone.targets) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (40, 2000), (2, 3000), (2000, 40)])
@pytest.mark.parametrize("pasted", [(1, 1), (1, 200), (2000, 40), (64, 64)])
def test_thin_and_wide_pictures(size, pasted):
    vary = Augmentation(AugmentConfig(scale=(0.3, 2), photometric=1, copy_paste=1), 64)
    for seed in range(6):
        for given_sample in (scene(*size, seed), boxed(*size, seed=seed), whole(*size, 9)):
            donor = whole(*pasted, 255, first=DONORS)
            check_invariants(vary(given_sample, lambda donor=donor: donor), given_sample, 64)


def test_tight_boxes():
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
