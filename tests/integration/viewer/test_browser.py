"""The viewer's page in a real browser, over a real publisher: what people see, and can do.

Pixels are read from screenshots: what is compared is what somebody would have seen.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image as Pillow
from support.ports import free_port
from support.publishers import Service, eventually, result, service
from support.viewers import page as bare_page
from support.viewers import viewer

from streamseg import visualization
from streamseg.structures.masks import Masks
from streamseg.structures.results import Instances, Result, Segment
from streamseg.viewer import server

if os.environ.get("CI"):  # there, what is missing is an error
    import playwright.sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

SIZE = (720, 1280)
GREY = 100
CHROMIUM = shutil.which("chromium")

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("chromium isn't installed", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser):
    """Open a page; whatever its console says is a failure, and so is a script that fails.

    But for a viewer that isn't there any more: browsers say that, whatever a page does.
    """
    troubles, contexts = [], []

    def open_page(url, *, wait=True, **options):
        given = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"} | options
        context = browser.new_context(**given)
        context.set_default_timeout(8000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))

        def heard(message) -> None:
            if "ERR_CONNECTION_REFUSED" not in message.text:
                troubles.append(message.text)

        page.on("console", heard)
        page.goto(url)
        if wait:
            page.wait_for_selector(".tile")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


# What is sent


def blocks(tracks, *, names=("person",), size=SIZE, side=100, labels=None):
    """Squares in rows, one for each of ``tracks``."""
    across = size[1] // (side + 60)
    origins = [
        (30 + n % across * (side + 60), 40 + n // across * (side + 60)) for n in range(len(tracks))
    ]
    count = len(tracks)
    labels = np.ones(count, np.int64) if labels is None else np.array(labels, np.int64)
    return Instances(
        np.array([(x, y, x + side, y + side) for x, y in origins], np.float32).reshape(-1, 4),
        np.full(count, 0.87, np.float32),
        labels,
        Masks.from_crops([np.ones((side, side), np.bool_)] * count, origins, size),
        {label: names[at % len(names)] for at, label in enumerate(sorted(set(labels.tolist())))},
        np.array(tracks, np.int64),
    )


def plain(size=SIZE) -> np.ndarray:
    return np.full((*size, 3), GREY, np.uint8)


GREY_JPEG = visualization.encode_jpeg(plain(), 95)


class Camera:
    """Sends what ``found`` is, with its picture, so many times a second."""

    def __init__(
        self, running: Service, name="gate", *, found=None, picture=GREY_JPEG, fps=12
    ) -> None:
        self.found = blocks([5, 6, 7]) if found is None else found
        self.picture, self.epoch, self.sent = picture, 0, 0
        self._running, self._name, self._fps = running, name, fps
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(max(0, begun + self.sent / self._fps - time.monotonic())):
            found = self.found
            one = result(self.sent, self._name, found=found, epoch=self.epoch)
            self._running.put(one)
            if self.picture and self._running.publisher.has_image_subscribers("video", self._name):
                self._running.show(one, None, self.picture)
            self.sent += 1

    def __enter__(self) -> Camera:  # noqa: PYI034 - Self came with Python 3.11
        self._running.publisher.set_state(self._name, "live", "", 0)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def watched(**camera):
    """A service with one camera, and a viewer of it."""
    with (
        service() as running,
        viewer(running.masks_at) as shown,
        Camera(running, **camera) as sending,
    ):
        yield running, shown, sending


# What is seen


def tile(page, name="gate"):
    return page.locator(f'[data-source="{name}"]')


def part(page, which, name="gate"):
    return tile(page, name).locator(f'[data-part="{which}"]')


def painted(page, name="gate") -> None:
    """Wait until there is a picture."""
    part(page, "veil", name).wait_for(state="hidden")


def switch(page, **layers) -> None:
    for name, on in layers.items():
        button = page.locator(f"#{name}")
        if (button.get_attribute("aria-pressed") == "true") != on:
            button.click()


def pixels(page, name="gate", size=SIZE):
    """Reads the colour at a place of the frame."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    shot = np.asarray(
        Pillow.open(io.BytesIO(part(page, "picture", name).screenshot())).convert("RGB")
    )
    scale = min(shot.shape[0] / size[0], shot.shape[1] / size[1])
    left, top = (shot.shape[1] - scale * size[1]) / 2, (shot.shape[0] - scale * size[0]) / 2
    return lambda x, y: shot[int(top + y * scale), int(left + x * scale)].astype(int)


def centres(found):
    return [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in found.boxes.tolist()]


def assert_colour(colour, expected, within=8) -> None:
    assert np.abs(np.asarray(colour) - np.asarray(expected)).max() <= within, (colour, expected)


def click_at(page, place, name="gate", size=SIZE) -> None:
    canvas = part(page, "picture", name)
    box = canvas.bounding_box()
    scale = min(box["height"] / size[0], box["width"] / size[1])
    left, top = (box["width"] - scale * size[1]) / 2, (box["height"] - scale * size[0]) / 2
    canvas.click(position={"x": left + place[0] * scale, "y": top + place[1] * scale})


@pytest.mark.parametrize("ratio", [1, 2])
def test_instances_have_the_colours_that_the_service_paints_them_in(show, ratio) -> None:
    found = blocks(
        [*range(1, 19), -1, -1], labels=[*[1] * 18, 3, 7], names=("person", "car", "train")
    )
    expected = plain()
    visualization.fill_masks(expected, found, visualization.FILL_ALPHA)
    with watched(found=found) as (_, shown, _):
        page = show(shown.url, device_scale_factor=ratio)
        painted(page)
        switch(page, labels=False, ids=False)
        at = pixels(page)
        for x, y in centres(found):
            assert_colour(at(x, y), expected[int(y), int(x)])
        assert_colour(at(1270, 700), (GREY, GREY, GREY))


@pytest.mark.slow
def test_the_palette_is_the_services(show) -> None:
    with watched() as (_, shown, _):
        page = show(shown.url)
        palette = page.evaluate("import('/palette.js').then((m) => m.PALETTE)")
        assert palette == [list(colour) for colour in visualization.PALETTE]


@pytest.mark.slow
def test_stuff_is_painted_muted_beneath(show) -> None:
    found = blocks([5])
    sky = Masks.from_crops([np.ones((200, 400), np.bool_)], [(600, 300)], SIZE)[0]
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        page = show(shown.url)
        eventually(lambda: running.publisher.has_image_subscribers("video", "gate"))
        whole = result(found=found)
        whole = Result(whole.frame, found, "m", {}, (Segment(1, 9, "sky", False, sky),))
        running.put(whole)
        running.show(whole, None, GREY_JPEG)
        painted(page)
        expected = visualization.annotate(plain(), found, whole.segments)
        assert_colour(pixels(page)(800, 400), expected[400, 800])


@pytest.mark.slow
def test_masks_are_decoded_as_the_service_meant_them(show) -> None:
    random = np.random.default_rng(7)
    shapes, counts = [], []
    for _ in range(40):
        height, width = random.integers(1, 40, 2)
        bits = random.random((height, width)) < random.choice([0.02, 0.5, 0.98])
        shapes.append(bits)
        counts.append(Masks.from_crops([bits], [(0, 0)], (height, width)).counts[0])
    with watched() as (_, shown, _):
        page = show(shown.url)
        for step in (1, 2, 3):
            found = page.evaluate(
                """async ([counts, sizes, step]) => {
                    const { decodeMask } = await import('/rle.js');
                    return counts.map((c, at) => {
                        const { bits, ...where } = decodeMask(c, sizes[at], step);
                        return { ...where, bits: [...bits] };
                    });
                }""",
                [counts, [list(bits.shape) for bits in shapes], step],
            )
            for bits, got in zip(shapes, found, strict=True):
                coarse = bits[::step, ::step]
                whole = np.zeros_like(coarse)
                crop = np.array(got["bits"], np.bool_).reshape(got["height"], got["width"])
                whole[got["y"] :, got["x"] :][: got["height"], : got["width"]] = crop
                np.testing.assert_array_equal(whole, coarse)


@pytest.mark.slow
@pytest.mark.parametrize("counts", ["", "0", "PPPP", "~~", "o" * 30, "ok", "4000000"])
def test_run_lengths_that_are_no_mask_are_refused(show, counts) -> None:
    with watched() as (_, shown, _):
        page = show(shown.url)
        refused = page.evaluate(
            """async (counts) => {
                const { decodeMask } = await import('/rle.js');
                try { decodeMask(counts, [40, 60]); return false; } catch { return true; }
            }""",
            counts,
        )
        assert refused


def test_masks_boxes_labels_and_ids_can_be_switched(show) -> None:
    found = blocks([2], side=200)
    colour = visualization.PALETTE[2]
    with watched(found=found) as (_, shown, _):
        page = show(shown.url)
        painted(page)
        switch(page, masks=False, boxes=False, labels=False, ids=False)
        at = pixels(page)
        assert_colour(at(130, 140), (GREY, GREY, GREY))
        assert_colour(at(30, 140), (GREY, GREY, GREY))
        page.keyboard.press("b")
        assert_colour(pixels(page)(30, 140), colour, within=70)
        assert_colour(pixels(page)(130, 140), (GREY, GREY, GREY))
        page.keyboard.press("b")
        page.keyboard.press("i")
        tagged = pixels(page)(33, 36)
        assert_colour(tagged, colour, within=20)
        page.keyboard.press("i")
        page.keyboard.press("l")
        assert_colour(pixels(page)(33, 36), colour, within=20)
        page.keyboard.press("l")
        page.keyboard.press("m")
        at = pixels(page)
        assert_colour(at(130, 140), (np.array(colour) + GREY) / 2)
        assert_colour(at(33, 20), (GREY, GREY, GREY))
        page.reload()
        painted(page)
        assert page.locator("#labels").get_attribute("aria-pressed") == "false"  # it is remembered


def test_the_numbers_and_counts_are_shown(show) -> None:
    found = blocks([1, 2, 3], labels=[1, 1, 3], names=("person", "car"))
    with watched(found=found) as (running, shown, _):
        running.metrics.account("gate").decode()
        running.metrics.account("gate").drop("inbox_full")
        page = show(shown.url)
        painted(page)
        expect = playwright.expect
        expect(part(page, "fps")).to_have_text("12", timeout=8000)
        expect(part(page, "dropped")).to_have_text("1")
        expect(part(page, "lost")).to_have_text("0")
        expect(part(page, "latency")).to_contain_text("ms")
        rows = part(page, "counts").locator("li")
        expect(rows.nth(0)).to_contain_text("person2")
        expect(rows.nth(1)).to_contain_text("car1")
        drawn = (
            rows.nth(0)
            .locator("canvas")
            .evaluate(
                "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height)"
                ".data.some((value) => value)"
            )
        )
        assert drawn
        assert "3 in view" in tile(page).get_attribute("aria-label")
        tile(page).focus()
        page.keyboard.press("Enter")
        expect(part(page, "details")).to_contain_text("nanomask")
        expect(part(page, "details")).to_contain_text("1280 \N{MULTIPLICATION SIGN} 720")
        expect(part(page, "details")).to_contain_text("inbox full 1")


# Following


def test_who_is_clicked_is_followed_until_lost(show) -> None:
    found = blocks([5, 6, 7])
    expect = playwright.expect
    with watched(found=found) as (_, shown, sending):
        page = show(shown.url)
        painted(page)
        switch(page, labels=False, ids=False)
        first, second, _third = centres(found)
        click_at(page, second)
        expect(part(page, "followed-who")).to_have_text("person #6")
        expect(part(page, "followed-how")).to_contain_text("in view for")
        expect(page.locator("#announcements")).to_have_text("following person #6")
        at = pixels(page)
        assert_colour(at(second[0], second[1]), (np.array(visualization.PALETTE[6]) + GREY) / 2)
        assert_colour(at(*first), (GREY, GREY, GREY), within=25)  # others are dimmed
        sending.found = found[np.array([0, 2])]
        expect(part(page, "followed-how")).to_contain_text("lost for")
        expect(page.locator("#announcements")).to_have_text("person #6 is lost")
        sending.found = found
        expect(part(page, "followed-how")).to_contain_text("in view for")
        sending.epoch = 1
        expect(part(page, "followed-how")).to_contain_text("began anew")
        at = pixels(page)  # who has that number now is somebody else: nobody is dimmed
        assert_colour(at(*first), (np.array(visualization.PALETTE[5]) + GREY) / 2)
        page.keyboard.press("Escape")
        expect(part(page, "followed")).to_be_hidden()


@pytest.mark.slow
def test_a_trail_shows_where_it_went(show) -> None:
    found = blocks([5])
    with watched(found=found) as (_, shown, sending):
        page = show(shown.url)
        painted(page)
        switch(page, labels=False, ids=False, masks=False)
        click_at(page, centres(found)[0])
        part(page, "followed").wait_for()
        moved = blocks([9, 9, 9, 5])
        sending.found = moved[np.array([3])]
        page.wait_for_timeout(400)
        trail = pixels(page)(30 + 50 + 240, 140)  # between both places, at its foot
        assert_colour(trail, visualization.PALETTE[5], within=60)


@pytest.mark.slow
def test_what_has_no_identity_is_not_followed_and_it_is_said(show) -> None:
    found = blocks([-1])
    with watched(found=found) as (_, shown, _):
        page = show(shown.url)
        painted(page)
        click_at(page, centres(found)[0])
        playwright.expect(page.locator("#notice")).to_contain_text("no identity yet")
        assert part(page, "followed").is_hidden()


@pytest.mark.slow
def test_following_needs_no_mouse(show) -> None:
    expect = playwright.expect
    with watched(found=blocks([5, 6])) as (_, shown, _):
        page = show(shown.url)
        painted(page)
        page.keyboard.press("f")
        expect(part(page, "followed-who")).to_have_text("person #5")
        page.keyboard.press("f")
        expect(part(page, "followed-who")).to_have_text("person #6")
        part(page, "unfollow").focus()
        page.keyboard.press("Enter")
        expect(part(page, "followed")).to_be_hidden()


# When things go wrong


def test_a_camera_that_stops_shows_its_state_and_the_reason(show) -> None:
    expect = playwright.expect
    with watched() as (running, shown, sending):
        page = show(shown.url)
        painted(page)
        expect(part(page, "state")).to_have_text("live")
        sending.stop()
        running.publisher.set_state("gate", "stalled", "no frame for 3 s", 0)
        expect(part(page, "state")).to_have_text("stalled")
        expect(part(page, "veil")).to_be_visible()
        expect(part(page, "veil-reason")).to_have_text("no frame for 3 s")
        expect(page.locator("#announcements")).to_have_text("gate: stalled, no frame for 3 s")
        assert "stalled, no frame for 3 s" in tile(page).get_attribute("aria-label")
        for state in ("waiting", "connecting", "failed", "ended"):
            running.publisher.set_state("gate", state, f"because of {state}", 0)
            expect(part(page, "state")).to_have_text(state)
            expect(part(page, "veil-reason")).to_have_text(f"because of {state}")
        running.publisher.set_state("gate", "live", "", 1)
        expect(part(page, "state")).to_have_text("live")
        expect(part(page, "veil")).to_be_hidden()


@pytest.mark.slow
def test_a_service_that_ends_and_starts_again_is_shown_so_without_a_reload(show) -> None:
    expect = playwright.expect
    where = f"tcp://127.0.0.1:{free_port()}"
    with viewer(where) as shown:
        page = show(shown.url, wait=False)
        expect(page.locator("#banner-text")).to_contain_text(f"Waiting for {where}")
        with service(bind=where) as first, Camera(first) as sending:
            painted(page)
            expect(page.locator("#banner")).to_be_hidden()
            sending.stop()
            first.end()
            expect(page.locator("#banner-text")).to_contain_text("The service has ended")
            expect(part(page, "state")).to_have_text("ended")
        with service(bind=where) as second, Camera(second, found=blocks([8])):
            expect(page.locator("#banner")).to_be_hidden()
            expect(part(page, "state")).to_have_text("live")
            x, y = centres(blocks([8]))[0]
            expected = (np.array(visualization.PALETTE[8]) + GREY) / 2
            switch(page, labels=False, ids=False)
            eventually(lambda: np.abs(pixels(page)(x, y) - expected).max() < 8)


@pytest.mark.slow
def test_a_viewer_that_goes_away_is_shown_so_and_found_again(show) -> None:
    expect = playwright.expect
    port = free_port()
    with service() as running, Camera(running):
        with viewer(running.masks_at, port=port) as shown:
            page = show(shown.url)
            painted(page)
        expect(page.locator("#banner-text")).to_contain_text("Not connected")
        with viewer(running.masks_at, port=port):
            expect(page.locator("#banner")).to_be_hidden(timeout=15_000)
            running.publisher.set_state("gate", "stalled", "again", 0)
            expect(part(page, "veil-reason")).to_have_text("again")


@pytest.mark.slow
def test_one_browser_too_many_reads_why(show, monkeypatch) -> None:
    monkeypatch.setattr(server, "MAX_BROWSERS", 1)
    with watched() as (_, shown, _), bare_page(shown) as other:
        other.board()
        page = show(shown.url, wait=False)
        playwright.expect(page.locator("#banner-text")).to_contain_text("1 browsers are looking")


@pytest.mark.slow
def test_masks_are_shown_where_there_is_no_picture(show) -> None:
    found = blocks([5])
    with watched(found=found, picture=None) as (_, shown, _):
        page = show(shown.url)
        painted(page)
        switch(page, labels=False, ids=False)
        playwright.expect(part(page, "trouble")).to_have_text("no picture: masks only")
        dark = np.array([20, 24, 31])
        expected = (np.array(visualization.PALETTE[5]) + dark) / 2
        assert_colour(pixels(page)(*centres(found)[0]), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "picture", [b"not a JPEG", visualization.encode_jpeg(plain((40, 60)), 90), GREY_JPEG[:2000]]
)
def test_a_picture_that_cannot_be_shown_is_said_and_the_next_one_is_shown(show, picture) -> None:
    with watched(picture=picture) as (_, shown, sending):
        page = show(shown.url)
        playwright.expect(part(page, "trouble")).to_contain_text("can't be shown")
        sending.picture = GREY_JPEG
        painted(page)
        playwright.expect(part(page, "trouble")).to_have_text("")


def test_names_are_text_whatever_they_are(show) -> None:
    evil = '<img src=x onerror="document.title=1"><b>person</b>'
    with watched(found=blocks([5], names=(evil,))) as (running, shown, _):
        page = show(shown.url)
        painted(page)
        playwright.expect(part(page, "counts").locator("li span").nth(1)).to_have_text(evil)
        page.keyboard.press("f")
        playwright.expect(part(page, "followed-who")).to_have_text(f"{evil} #5")
        running.publisher.set_state("gate", "stalled", evil, 0)
        playwright.expect(part(page, "veil-reason")).to_have_text(evil)
        assert page.title() == "streamseg"
        assert tile(page).locator("img").count() == 0


# How it looks and is used


def background(page):
    return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")


@pytest.mark.slow
def test_it_is_light_or_dark_as_the_system_is_or_as_it_is_told(show) -> None:
    with watched() as (_, shown, _):
        light, dark = show(shown.url, color_scheme="light"), show(shown.url)
        of_light, of_dark = background(light), background(dark)
        assert sum(map(int, of_light[4:-1].split(","))) > 600
        assert sum(map(int, of_dark[4:-1].split(","))) < 120
        dark.locator("#theme").click()
        assert background(dark) == of_light
        dark.reload()
        assert background(dark) == of_light  # it is remembered
        dark.keyboard.press("t")
        light.emulate_media(color_scheme="dark")
        assert background(light) == background(dark) == of_dark


@pytest.mark.slow
def test_every_text_can_be_read_in_both_themes(show) -> None:
    """Contrast of at least 4.5 : 1, as WCAG 2 has it for small text."""
    with watched() as (_, shown, _):
        for scheme in ("light", "dark"):
            page = show(shown.url, color_scheme=scheme)
            painted(page)
            ratios = page.evaluate(
                """() => {
                    const canvas = document.createElement("canvas")
                        .getContext("2d", { willReadFrequently: true });
                    const rgb = (colour) => {
                        canvas.clearRect(0, 0, 1, 1);
                        canvas.fillStyle = colour;
                        canvas.fillRect(0, 0, 1, 1);
                        return [...canvas.getImageData(0, 0, 1, 1).data];
                    };
                    const light = ([r, g, b]) => [r, g, b]
                        .map((v) => v / 255)
                        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                        .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
                    const ground = (element) => {
                        for (let e = element; e; e = e.parentElement) {
                            const colour = rgb(getComputedStyle(e).backgroundColor);
                            if (colour[3] > 200) return colour;
                        }
                    };
                    const texts = "h1, h2, dt, dd, p, span, b, button, li";
                    const words = [...document.querySelectorAll(texts)].filter(
                        (e) => e.checkVisibility() && e.innerText?.trim() && !e.closest(".screen")
                    );
                    return words.map((e) => {
                        const [one, other] = [rgb(getComputedStyle(e).color), ground(e)].map(light);
                        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
                        return [e.innerText.slice(0, 30), ratio];
                    });
                }"""
            )
            assert len(ratios) > 15
            assert [said for said in ratios if said[1] < 4.5] == []


def test_it_can_be_used_by_keyboard_alone(show) -> None:
    names = ["a", "b", "c", "d", "e"]
    with service() as running, viewer(running.masks_at) as shown:
        for name in names:
            running.publisher.set_state(name, "waiting", "no route to host", 0)
        page = show(shown.url, viewport={"width": 1280, "height": 900})
        tile(page, "e").wait_for()
        focused = "document.activeElement.closest('[data-source]')?.dataset.source"
        order = []
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
            order.append(page.evaluate(focused))
        assert order == ["a", "b", "e", "b", "a", "a"]
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "b"
        page.keyboard.press("Enter")
        assert "enlarged" in tile(page, "b").get_attribute("class")
        assert tile(page, "b").bounding_box()["width"] > 1000
        page.keyboard.press("Escape")
        assert "enlarged" not in tile(page, "b").get_attribute("class")
        page.keyboard.press("?")
        assert page.locator("#keys").is_visible()
        page.keyboard.press("m")
        assert page.locator("#masks").get_attribute("aria-pressed") == "true"
        page.keyboard.press("Escape")
        assert page.locator("#keys").is_hidden()


@pytest.mark.slow
def test_everything_that_can_be_pressed_has_a_name(show) -> None:
    with watched() as (_, shown, _):
        page = show(shown.url)
        painted(page)
        page.keyboard.press("f")
        for button in page.get_by_role("button").all():
            name = button.get_attribute("aria-label") or button.inner_text()
            assert name.strip()
        assert part(page, "enlarge").get_attribute("aria-label")
        assert "gate, live" in tile(page).get_attribute("aria-label")


def test_a_phone_needs_no_sideways_scrolling(show) -> None:
    long = "W" * 64
    found = blocks([1, -1], names=("w" * 80,), labels=[1, 1])
    with (
        service() as running,
        viewer(running.masks_at) as shown,
        Camera(running, long, found=found),
    ):
        running.publisher.set_state("gate", "stalled", "x" * 200, 0)
        page = show(
            shown.url, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True
        )
        painted(page, long)
        page.keyboard.press("f")
        part(page, "followed", long).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        tile(page, long).focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.keyboard.press("?")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_who_wants_no_motion_gets_none(show) -> None:
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "waiting", "", 0)
        moving, still = show(shown.url), show(shown.url, reduced_motion="reduce")
        animation = "getComputedStyle(document.querySelector('.tile .dot')).animationName"
        assert moving.evaluate(animation) == "breathe"
        assert still.evaluate(animation) == "none"


@pytest.mark.slow
def test_only_what_is_on_the_screen_is_asked_for(show) -> None:
    names = [f"cam{n:02d}" for n in range(12)]
    with service() as running, viewer(running.masks_at) as shown:
        wants = running.publisher.has_image_subscribers
        for name in names:
            running.publisher.set_state(name, "live", "", 0)
        page = show(shown.url, viewport={"width": 500, "height": 600})
        tile(page, "cam11").wait_for()
        eventually(lambda: wants("video", "cam00"))
        assert not wants("video", "cam11")
        tile(page, "cam11").scroll_into_view_if_needed()
        eventually(lambda: wants("video", "cam11"))
        eventually(lambda: not wants("video", "cam00"))
        page.evaluate(
            """() => {
                Object.defineProperty(document, "hidden", { value: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
        eventually(lambda: not wants("video", "cam11"))


# Load


@pytest.mark.alone
def test_a_hundred_messages_a_second_do_not_freeze_it(show, browser) -> None:
    noise = np.random.default_rng(1).integers(0, 60, (*SIZE, 3), np.uint8)
    picture = visualization.encode_jpeg(plain() + noise, 80)
    found = blocks(list(range(1, 21)), labels=[1, 3] * 10, names=("person", "car"))
    with watched(found=found, picture=picture, fps=100) as (_, shown, sending):
        page = show(shown.url)
        painted(page)
        page.wait_for_timeout(2000)
        page.evaluate(
            """() => {
                window.seen = { long: [], clicks: [], frames: 0, worst: 0 };
                new PerformanceObserver((list) => {
                    for (const { duration } of list.getEntries()) seen.long.push(duration);
                }).observe({ type: "longtask" });
                addEventListener("click", (event) => {
                    const { timeStamp } = event;
                    requestAnimationFrame((now) => seen.clicks.push(performance.now() - timeStamp));
                }, true);
                let last = performance.now();
                const tick = (now) => {
                    seen.frames += 1;
                    seen.worst = Math.max(seen.worst, now - last);
                    last = now;
                    requestAnimationFrame(tick);
                };
                requestAnimationFrame(tick);
            }"""
        )
        before, sent_before, begun = renderer_rss(browser), sending.sent, time.monotonic()
        for _ in range(10):
            page.locator("#boxes").click()
            page.wait_for_timeout(1000)
        took = time.monotonic() - begun
        grown, sent = renderer_rss(browser) - before, sending.sent - sent_before
        seen = page.evaluate("seen")
        fps = float(part(page, "fps").inner_text())
    print(f"sent {sent / took:.0f}/s, {seen}, grown {grown / 1e6:.0f} MB, fps {fps}")
    assert sent / took > 90
    assert fps > 85
    assert len(seen["clicks"]) == 10
    assert max(seen["clicks"]) < 200
    assert max(seen["long"], default=0) < 200
    assert seen["frames"] / took > 20
    assert grown < 60e6


def renderer_rss(browser) -> int:
    """Bytes that the browser's pages have in memory."""
    session = browser.new_browser_cdp_session()
    pids = [
        process["id"]
        for process in session.send("SystemInfo.getProcessInfo")["processInfo"]
        if process["type"] == "renderer"
    ]
    session.detach()
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/statm") as statm:  # noqa: PTH123
            total += int(statm.read().split()[1]) * 4096
    return total
