"""Viewer page in a browser: states of sources and service, accessibility, and load."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import pytest
from support.ports import free_port
from support.publishers import service, wait_until
from support.viewer_pages import (
    GRAY,
    SIZE,
    Camera,
    centers,
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
from support.viewers import open_client as websocket_client

from streamseg.viewer import server
from streamseg.visualization import PALETTE, encode_jpeg


@pytest.mark.slow
def test_state_of_a_stopped_camera_is_displayed_with_its_reason(open_page) -> None:
    with viewed_camera() as (running, shown, camera):
        page = open_page(shown.url)
        wait_for_image(page)
        expect(part(page, "state")).to_have_text("live")
        camera.stop()
        running.publisher.set_state("gate", "stalled", "no frame for 3 s", 0)
        expect(part(page, "state")).to_have_text("stalled")
        expect(part(page, "cover")).to_be_visible()
        expect(part(page, "cover-reason")).to_have_text("no frame for 3 s")
        expect(page.locator("#announcements")).to_have_text("gate: stalled, no frame for 3 s")
        assert "stalled, no frame for 3 s" in tile(page).get_attribute("aria-label")
        for state in ("waiting", "connecting", "failed", "ended"):
            running.publisher.set_state("gate", state, f"because of {state}", 0)
            expect(part(page, "state")).to_have_text(state)
            expect(part(page, "cover-reason")).to_have_text(f"because of {state}")
        running.publisher.set_state("gate", "live", "", 1)
        expect(part(page, "state")).to_have_text("live")
        expect(part(page, "cover")).to_be_hidden()


@pytest.mark.slow
def test_restarted_service_is_displayed_without_a_reload(open_page) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with viewer(address) as shown:
        page = open_page(shown.url, wait_for_tile=False)
        expect(page.locator("#banner-text")).to_contain_text(f"Waiting for {address}")
        with service(bind=address) as first, Camera(first) as camera:
            wait_for_image(page)
            expect(page.locator("#banner")).to_be_hidden()
            camera.stop()
            first.end()
            expect(page.locator("#banner-text")).to_contain_text("The service has ended")
            expect(part(page, "state")).to_have_text("ended")
        with service(bind=address) as second, Camera(second, instances=squares([8])):
            expect(page.locator("#banner")).to_be_hidden()
            expect(part(page, "state")).to_have_text("live")
            set_layers(page, labels=False, ids=False)
            expected = (np.array(PALETTE[8]) + GRAY) / 2
            wait_for_color(page, centers(squares([8]))[0], expected, within=20)


@pytest.mark.slow
def test_restarted_viewer_is_reconnected(open_page) -> None:
    port = free_port()
    with service() as running, Camera(running):
        with viewer(running.masks_endpoint, port=port) as shown:
            page = open_page(shown.url)
            wait_for_image(page)
        expect(page.locator("#banner-text")).to_contain_text("Not connected")
        with viewer(running.masks_endpoint, port=port):
            expect(page.locator("#banner")).to_be_hidden(timeout=15_000)
            running.publisher.set_state("gate", "stalled", "again", 0)
            expect(part(page, "cover-reason")).to_have_text("again")


@pytest.mark.slow
def test_browser_above_the_limit_displays_the_reason(open_page, monkeypatch) -> None:
    monkeypatch.setattr(server, "MAX_BROWSERS", 1)
    with viewed_camera() as (_, shown, _), websocket_client(shown) as first:
        first.wait_for_dashboard()
        page = open_page(shown.url, wait_for_tile=False)
        expect(page.locator("#banner-text")).to_contain_text("1 browsers are looking")


def test_html_in_names_is_displayed_as_text(open_page) -> None:
    name = '<img src=x onerror="document.title=1"><b>person</b>'
    with viewed_camera(instances=squares([5], names=(name,))) as (running, shown, _):
        page = open_page(shown.url)
        wait_for_image(page)
        expect(part(page, "counts").locator("li span").nth(1)).to_have_text(name)
        page.keyboard.press("f")
        expect(part(page, "followed-title")).to_have_text(f"{name} #5")
        running.publisher.set_state("gate", "stalled", name, 0)
        expect(part(page, "cover-reason")).to_have_text(name)
        assert page.title() == "streamseg"
        assert tile(page).locator("img").count() == 0


@pytest.mark.slow
def test_theme_follows_the_system_or_the_setting(open_page) -> None:
    def background(page):
        return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    with viewed_camera() as (_, shown, _):
        light, dark = open_page(shown.url, color_scheme="light"), open_page(shown.url)
        light_color, dark_color = background(light), background(dark)
        assert sum(map(int, light_color[4:-1].split(","))) > 600
        assert sum(map(int, dark_color[4:-1].split(","))) < 120
        dark.locator("#theme").click()
        assert background(dark) == light_color
        dark.reload()
        assert background(dark) == light_color
        dark.keyboard.press("t")
        light.emulate_media(color_scheme="dark")
        assert background(light) == background(dark) == dark_color


CONTRAST_RATIOS = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const toRgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = ([r, g, b]) => [r, g, b]
        .map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, index) => sum + v * [0.2126, 0.7152, 0.0722][index], 0);
    const background = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const color = toRgba(getComputedStyle(e).backgroundColor);
            if (color[3] > 200) return color;
        }
    };
    const elements = [...document.querySelectorAll("h1, h2, dt, dd, p, span, b, button, li")]
        .filter((e) => e.checkVisibility() && e.innerText?.trim() && !e.closest(".image-area"));
    return elements.map((e) => {
        const [a, b] = [toRgba(getComputedStyle(e).color), background(e)].map(luminance);
        return [e.innerText.slice(0, 30), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""


@pytest.mark.slow
def test_contrast_of_texts_is_sufficient_in_both_themes(open_page) -> None:
    """WCAG 2 requires a contrast ratio of 4.5 : 1 for small text."""
    with viewed_camera() as (_, shown, _):
        for scheme in ("light", "dark"):
            page = open_page(shown.url, color_scheme=scheme)
            wait_for_image(page)
            ratios = page.evaluate(CONTRAST_RATIOS)
            assert len(ratios) > 15
            assert [(text, ratio) for text, ratio in ratios if ratio < 4.5] == []


def test_page_is_usable_by_keyboard(open_page) -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        for name in "abcde":
            running.publisher.set_state(name, "waiting", "no route to host", 0)
        page = open_page(shown.url, viewport={"width": 1280, "height": 900})
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
        page.keyboard.press("m")  # shortcuts are disabled in the dialog
        assert page.locator("#masks").get_attribute("aria-pressed") == "true"
        page.keyboard.press("Escape")
        assert page.locator("#keys").is_hidden()


@pytest.mark.slow
def test_buttons_and_tiles_have_accessible_names(open_page) -> None:
    with viewed_camera() as (_, shown, _):
        page = open_page(shown.url)
        wait_for_image(page)
        page.keyboard.press("f")
        for button in page.get_by_role("button").all():
            name = button.get_attribute("aria-label") or button.inner_text()
            assert name.strip()
        assert part(page, "enlarge").get_attribute("aria-label")
        assert "gate, live" in tile(page).get_attribute("aria-label")


def test_page_fits_the_width_of_a_phone(open_page) -> None:
    long_name = "W" * 64
    instances = squares([1, -1], names=("w" * 80,), labels=[1, 1])
    with (
        service() as running,
        viewer(running.masks_endpoint) as shown,
        Camera(running, long_name, instances=instances),
    ):
        running.publisher.set_state("gate", "stalled", "x" * 200, 0)
        page = open_page(
            shown.url, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True
        )
        wait_for_image(page, long_name)
        page.keyboard.press("f")
        part(page, "followed", long_name).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        tile(page, long_name).focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.keyboard.press("?")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_reduced_motion_disables_animations(open_page) -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "waiting", "", 0)
        animated = open_page(shown.url, reduced_motion="no-preference")
        still = open_page(shown.url, reduced_motion="reduce")
        animation = "getComputedStyle(document.querySelector('.tile .dot')).animationName"
        assert animated.evaluate(animation) == "pulse"
        assert still.evaluate(animation) == "none"


@pytest.mark.slow
def test_images_are_requested_only_for_sources_on_the_screen(open_page) -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        for number in range(12):
            running.publisher.set_state(f"cam{number:02d}", "live", "", 0)
        page = open_page(shown.url, viewport={"width": 500, "height": 600})
        tile(page, "cam11").wait_for()
        wait_until(lambda: is_image_requested(running, "cam00"))
        assert not is_image_requested(running, "cam11")
        tile(page, "cam11").scroll_into_view_if_needed()
        wait_until(lambda: is_image_requested(running, "cam11"))
        wait_until(lambda: not is_image_requested(running, "cam00"))
        page.evaluate(
            """() => {
                Object.defineProperty(document, "hidden", { value: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
        wait_until(lambda: not is_image_requested(running, "cam11"))


MEASURE_RESPONSIVENESS = """() => {
    window.measured = { longTasks: [], clicks: [], frames: 0, worstInterval: 0 };
    new PerformanceObserver((list) => {
        for (const { duration } of list.getEntries()) measured.longTasks.push(duration);
    }).observe({ type: "longtask" });
    addEventListener("click", ({ timeStamp }) => {
        requestAnimationFrame(() => measured.clicks.push(performance.now() - timeStamp));
    }, true);
    let last = performance.now();
    const countFrame = (now) => {
        measured.frames += 1;
        measured.worstInterval = Math.max(measured.worstInterval, now - last);
        last = now;
        requestAnimationFrame(countFrame);
    };
    requestAnimationFrame(countFrame);
}"""


@pytest.mark.alone
def test_page_stays_responsive_at_100_frames_per_second(open_page, browser) -> None:
    noise = np.random.default_rng(1).integers(0, 60, (*SIZE, 3), np.uint8)
    jpeg = encode_jpeg(gray_image() + noise, 80)
    instances = squares(list(range(1, 21)), labels=[1, 3] * 10, names=("person", "car"))
    with viewed_camera(instances=instances, jpeg=jpeg, fps=100) as (_, shown, camera):
        page = open_page(shown.url)
        wait_for_image(page)
        page.wait_for_timeout(2000)
        page.evaluate(MEASURE_RESPONSIVENESS)
        memory_before, count_before = renderer_memory(browser), camera.frame_count
        started_at = time.monotonic()
        for _ in range(10):
            page.locator("#boxes").click()
            page.wait_for_timeout(1000)
        seconds = time.monotonic() - started_at
        memory_growth = renderer_memory(browser) - memory_before
        published_fps = (camera.frame_count - count_before) / seconds
        measured = page.evaluate("measured")
        fps = float(part(page, "fps").inner_text())
    print(f"published {published_fps:.0f}/s, {measured}, +{memory_growth / 1e6:.0f} MB, {fps} fps")
    assert published_fps > 90
    assert fps > 85
    assert len(measured["clicks"]) == 10
    assert max(measured["clicks"]) < 200
    assert max(measured["longTasks"], default=0) < 200
    assert measured["frames"] / seconds > 20
    assert memory_growth < 60e6


def renderer_memory(browser) -> int:
    """Return the resident memory of the renderer processes of the browser, in bytes."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    total = 0
    for process in processes:
        if process["type"] == "renderer":
            with contextlib.suppress(FileNotFoundError):
                statm = Path(f"/proc/{process['id']}/statm").read_text()
                total += int(statm.split()[1]) * 4096
    return total
