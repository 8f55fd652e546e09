"""Viewer page in a browser: drawing of masks, boxes and labels, and following of tracks."""

from __future__ import annotations

import numpy as np
import pytest
from support.publishers import result, service, wait_until
from support.viewer_pages import (
    GRAY,
    GRAY_JPEG,
    SIZE,
    assert_color,
    centers,
    click_frame,
    expect,
    gray_image,
    part,
    set_layers,
    squares,
    tile,
    viewed_camera,
    wait_for_color,
    wait_for_image,
)
from support.viewers import is_image_requested, viewer

from streamseg.structures.masks import Masks
from streamseg.structures.results import Result, Segment
from streamseg.visualization import FILL_ALPHA, PALETTE, annotate, encode_jpeg, fill_masks


@pytest.mark.parametrize("pixel_ratio", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_instance_colors_equal_those_of_annotated_images(open_page, pixel_ratio) -> None:
    instances = squares(
        [*range(1, 19), -1, -1], labels=[*[1] * 18, 3, 7], names=("person", "car", "train")
    )
    expected = gray_image()
    fill_masks(expected, instances, FILL_ALPHA)
    with viewed_camera(instances=instances) as (_, shown, _):
        page = open_page(shown.url, device_scale_factor=pixel_ratio)
        wait_for_image(page)
        set_layers(page, labels=False, ids=False)
        x, y = centers(instances)[0]
        pixels = wait_for_color(page, (x, y), expected[int(y), int(x)])
        for x, y in centers(instances):
            assert_color(pixels(x, y), expected[int(y), int(x)])
        assert_color(pixels(1270, 700), (GRAY, GRAY, GRAY))


@pytest.mark.slow
def test_palette_equals_that_of_visualization(open_page) -> None:
    with viewed_camera() as (_, shown, _):
        page = open_page(shown.url)
        palette = page.evaluate("import('/palette.js').then((m) => m.PALETTE)")
        assert palette == [list(color) for color in PALETTE]


@pytest.mark.slow
def test_stuff_is_drawn_in_muted_colors_below_instances(open_page) -> None:
    instances = squares([5])
    sky = Masks.from_crops([np.ones((200, 400), np.bool_)], [(600, 300)], SIZE)[0]
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        page = open_page(shown.url)
        wait_until(lambda: is_image_requested(running))
        frame = result(found=instances).frame
        item = Result(frame, instances, "m", {}, (Segment(1, 9, "sky", False, sky),))
        running.put(item)
        running.put_images(item, None, GRAY_JPEG)
        wait_for_image(page)
        expected = annotate(gray_image(), instances, item.segments)
        wait_for_color(page, (800, 400), expected[400, 800])


@pytest.mark.slow
def test_decoded_masks_equal_the_published_ones(open_page) -> None:
    random = np.random.default_rng(7)
    bitmaps, counts = [], []
    for _ in range(40):
        height, width = random.integers(1, 40, 2)
        bitmap = random.random((height, width)) < random.choice([0.02, 0.5, 0.98])
        bitmaps.append(bitmap)
        counts.append(Masks.from_crops([bitmap], [(0, 0)], (height, width)).counts[0])
    with viewed_camera() as (_, shown, _):
        page = open_page(shown.url)
        for step in (1, 2, 3):
            decoded = page.evaluate(
                """async ([counts, sizes, step]) => {
                    const { decodeMask } = await import('/rle.js');
                    return counts.map((text, index) => {
                        const { bits, ...window } = decodeMask(text, sizes[index], step);
                        return { ...window, bits: [...bits] };
                    });
                }""",
                [counts, [list(bitmap.shape) for bitmap in bitmaps], step],
            )
            for bitmap, mask in zip(bitmaps, decoded, strict=True):
                expected = bitmap[::step, ::step]
                pasted = np.zeros_like(expected)
                crop = np.array(mask["bits"], np.bool_).reshape(mask["height"], mask["width"])
                pasted[mask["y"] :, mask["x"] :][: mask["height"], : mask["width"]] = crop
                np.testing.assert_array_equal(pasted, expected)


@pytest.mark.slow
def test_invalid_run_lengths_are_refused(open_page) -> None:
    with viewed_camera() as (_, shown, _):
        page = open_page(shown.url)
        accepted = page.evaluate(
            """async (allCounts) => {
                const { decodeMask } = await import('/rle.js');
                return allCounts.filter((counts) => {
                    try { decodeMask(counts, [40, 60]); return true; } catch { return false; }
                });
            }""",
            ["", "0", "PPPP", "~~", "o" * 30, "ok", "4000000"],
        )
        assert accepted == []


def test_layers_are_switched_by_keys_and_stored(open_page) -> None:
    color = np.array(PALETTE[2])
    gray = (GRAY, GRAY, GRAY)
    inside_mask, on_box, on_label, above_box = (130, 140), (30, 140), (33, 36), (33, 20)
    with viewed_camera(instances=squares([2], side=200)) as (_, shown, _):
        page = open_page(shown.url)
        wait_for_image(page)
        set_layers(page, masks=False, boxes=False, labels=False, ids=False)
        pixels = wait_for_color(page, inside_mask, gray)
        assert_color(pixels(*on_box), gray)
        page.keyboard.press("b")
        pixels = wait_for_color(page, on_box, color, tolerance=70)
        assert_color(pixels(*inside_mask), gray)
        page.keyboard.press("b")
        page.keyboard.press("i")
        wait_for_color(page, on_label, color, tolerance=20)
        page.keyboard.press("i")
        page.keyboard.press("l")
        wait_for_color(page, on_label, color, tolerance=20)
        page.keyboard.press("l")
        page.keyboard.press("m")
        pixels = wait_for_color(page, inside_mask, (color + GRAY) / 2)
        assert_color(pixels(*above_box), gray)
        page.reload()
        wait_for_image(page)
        assert page.locator("#labels").get_attribute("aria-pressed") == "false"


def test_numbers_and_class_counts_are_displayed(open_page) -> None:
    instances = squares([1, 2, 3], labels=[1, 1, 3], names=("person", "car"))
    with viewed_camera(instances=instances) as (running, shown, _):
        running.metrics.account("gate").decode()
        running.metrics.account("gate").drop("inbox_full")
        page = open_page(shown.url)
        wait_for_image(page)
        expect(part(page, "fps")).to_have_text("12", timeout=8000)
        expect(part(page, "dropped")).to_have_text("1")
        expect(part(page, "lost")).to_have_text("0")
        expect(part(page, "latency")).to_contain_text("ms")
        rows = part(page, "counts").locator("li")
        expect(rows.nth(0)).to_contain_text("person2")
        expect(rows.nth(1)).to_contain_text("car1")
        has_sparkline = (
            rows.nth(0)
            .locator("canvas")
            .evaluate(
                "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height)"
                ".data.some((value) => value)"
            )
        )
        assert has_sparkline
        assert "3 in view" in tile(page).get_attribute("aria-label")
        tile(page).focus()
        page.keyboard.press("Enter")
        expect(part(page, "details")).to_contain_text("nanomask")
        expect(part(page, "details")).to_contain_text("1280 \N{MULTIPLICATION SIGN} 720")
        expect(part(page, "details")).to_contain_text("inbox full 1")


@pytest.mark.slow
def test_clicked_instance_is_followed_until_it_is_lost(open_page) -> None:
    instances = squares([5, 6, 7])
    first, second, _third = centers(instances)
    with viewed_camera(instances=instances) as (_, shown, camera):
        page = open_page(shown.url)
        wait_for_image(page)
        set_layers(page, labels=False, ids=False)
        click_frame(page, second)
        expect(part(page, "followed-title")).to_have_text("person #6")
        expect(part(page, "followed-status")).to_contain_text("in view for")
        expect(page.locator("#announcements")).to_have_text("following person #6")
        pixels = wait_for_color(page, second, (np.array(PALETTE[6]) + GRAY) / 2)
        assert_color(pixels(*first), (GRAY, GRAY, GRAY), tolerance=25)  # others are dimmed
        camera.instances = instances[np.array([0, 2])]
        expect(part(page, "followed-status")).to_contain_text("lost for")
        expect(page.locator("#announcements")).to_have_text("person #6 is lost")
        camera.instances = instances
        expect(part(page, "followed-status")).to_contain_text("in view for")
        camera.epoch = 1
        expect(part(page, "followed-status")).to_contain_text("reconnected")
        # The id may now belong to another object, so nothing is dimmed.
        wait_for_color(page, first, (np.array(PALETTE[5]) + GRAY) / 2)
        page.keyboard.press("Escape")
        expect(part(page, "followed")).to_be_hidden()


@pytest.mark.slow
def test_trail_connects_the_positions_of_the_followed_track(open_page) -> None:
    instances = squares([5])
    with viewed_camera(instances=instances) as (_, shown, camera):
        page = open_page(shown.url)
        wait_for_image(page)
        set_layers(page, labels=False, ids=False, masks=False)
        click_frame(page, centers(instances)[0])
        part(page, "followed").wait_for()
        camera.instances = squares([9, 9, 9, 5])[np.array([3])]
        between_both_positions = (30 + 50 + 240, 140)
        wait_for_color(page, between_both_positions, PALETTE[5], tolerance=60)


@pytest.mark.slow
def test_untracked_instance_is_not_followed(open_page) -> None:
    instances = squares([-1])
    with viewed_camera(instances=instances) as (_, shown, _):
        page = open_page(shown.url)
        wait_for_image(page)
        click_frame(page, centers(instances)[0])
        expect(page.locator("#notice")).to_contain_text("no identity yet")
        assert part(page, "followed").is_hidden()


@pytest.mark.slow
def test_following_works_by_keyboard(open_page) -> None:
    with viewed_camera(instances=squares([5, 6])) as (_, shown, _):
        page = open_page(shown.url)
        wait_for_image(page)
        page.keyboard.press("f")
        expect(part(page, "followed-title")).to_have_text("person #5")
        page.keyboard.press("f")
        expect(part(page, "followed-title")).to_have_text("person #6")
        part(page, "unfollow").focus()
        page.keyboard.press("Enter")
        expect(part(page, "followed")).to_be_hidden()


@pytest.mark.slow
def test_masks_are_drawn_on_a_dark_background_without_an_image(open_page) -> None:
    instances = squares([5])
    with viewed_camera(instances=instances, jpeg=None) as (_, shown, _):
        page = open_page(shown.url)
        wait_for_image(page)
        set_layers(page, labels=False, ids=False)
        expect(part(page, "warning")).to_have_text("no image: masks only")
        background = np.array([20, 24, 31])
        wait_for_color(page, centers(instances)[0], (np.array(PALETTE[5]) + background) / 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "jpeg", [b"not a JPEG", encode_jpeg(gray_image((40, 60)), 90), GRAY_JPEG[:2000]]
)
def test_invalid_image_is_reported_and_the_next_one_is_displayed(open_page, jpeg) -> None:
    with viewed_camera(jpeg=jpeg) as (_, shown, camera):
        page = open_page(shown.url)
        expect(part(page, "warning")).to_contain_text("can't be shown")
        camera.jpeg = GRAY_JPEG
        wait_for_image(page)
        expect(part(page, "warning")).to_have_text("")
