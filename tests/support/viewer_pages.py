"""The viewer page in a browser: a camera to publish, and access to the elements and pixels.

Pixels are read from screenshots. Importing this module skips a test module if playwright or
chromium is not installed; in CI that is an error.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as Pillow
from support.publishers import Service, result, service
from support.viewers import is_image_requested, viewer

from streamseg import visualization
from streamseg.structures.masks import Masks
from streamseg.structures.results import Instances
from streamseg.viewer import Viewer

if os.environ.get("CI"):
    import playwright.sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("chromium isn't installed", allow_module_level=True)

Point = tuple[float, float]

SIZE = (720, 1280)
GRAY = 100
expect = playwright.expect


def gray_image(size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    return np.full((*size, 3), GRAY, np.uint8)


GRAY_JPEG = visualization.encode_jpeg(gray_image(), 95)


@contextlib.contextmanager
def launched_browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def page_opener(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open pages; fail at the end if a script failed or wrote to the console.

    Refused connections are allowed: browsers write them to the console when the viewer stops.
    """
    errors: list[str] = []
    contexts = []

    def add_console_message(message: Any) -> None:
        if "ERR_CONNECTION_REFUSED" not in message.text:
            errors.append(message.text)

    def open_page(url: str, *, wait_for_tile: bool = True, **options: Any) -> Any:
        defaults = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"}
        # Without transitions, the pixels of a screenshot are final.
        context = browser.new_context(**defaults | {"reduced_motion": "reduce"} | options)
        context.set_default_timeout(8000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", add_console_message)
        page.goto(url)
        if wait_for_tile:
            page.wait_for_selector(".tile")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def squares(
    track_ids: Sequence[int],
    *,
    names: Sequence[str] = ("person",),
    size: tuple[int, int] = SIZE,
    side: int = 100,
    labels: Sequence[int] | None = None,
) -> Instances:
    """Return a square for each track id, arranged in rows."""
    per_row = size[1] // (side + 60)
    origins = [
        (30 + n % per_row * (side + 60), 40 + n // per_row * (side + 60))
        for n in range(len(track_ids))
    ]
    count = len(track_ids)
    ids = np.ones(count, np.int64) if labels is None else np.array(labels, np.int64)
    return Instances(
        np.array([(x, y, x + side, y + side) for x, y in origins], np.float32).reshape(-1, 4),
        np.full(count, 0.87, np.float32),
        ids,
        Masks.from_crops([np.ones((side, side), np.bool_)] * count, origins, size),
        {label: names[n % len(names)] for n, label in enumerate(sorted(set(ids.tolist())))},
        np.array(track_ids, np.int64),
    )


class Camera:
    """Source that publishes ``instances`` and an image at a constant frame rate.

    Attributes:
        instances: instances of the next frames.
        jpeg: encoded image of the next frames; None for none.
        epoch: epoch of the next frames.
        frame_count: number of published frames.
    """

    def __init__(
        self,
        running: Service,
        name: str = "gate",
        *,
        instances: Instances | None = None,
        jpeg: bytes | None = GRAY_JPEG,
        fps: float = 12,
    ) -> None:
        self.instances = squares([5, 6, 7]) if instances is None else instances
        self.jpeg, self.epoch, self.frame_count = jpeg, 0, 0
        self._service, self._name, self._fps = running, name, fps
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._publish)

    def _publish(self) -> None:
        started_at = time.monotonic()

        def delay() -> float:
            return max(0, started_at + self.frame_count / self._fps - time.monotonic())

        while not self._stopped.wait(delay()):
            item = result(self.frame_count, self._name, found=self.instances, epoch=self.epoch)
            self._service.put(item)
            if self.jpeg and is_image_requested(self._service, self._name):
                self._service.put_images(item, None, self.jpeg)
            self.frame_count += 1

    def __enter__(self) -> Camera:  # noqa: PYI034 - Self came with Python 3.11
        self._service.publisher.set_state(self._name, "live", "", 0)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


@contextlib.contextmanager
def viewed_camera(**options: Any) -> Iterator[tuple[Service, Viewer, Camera]]:
    """Run a service with one camera, and a viewer of the service."""
    with (
        service() as running,
        viewer(running.masks_endpoint) as shown,
        Camera(running, **options) as camera,
    ):
        yield running, shown, camera


def tile(page: Any, source: str = "gate") -> Any:
    return page.locator(f'[data-source="{source}"]')


def part(page: Any, name: str, source: str = "gate") -> Any:
    """Return an element of a tile by its ``data-part``."""
    return tile(page, source).locator(f'[data-part="{name}"]')


def wait_for_image(page: Any, source: str = "gate") -> None:
    part(page, "cover", source).wait_for(state="hidden")


def set_layers(page: Any, **layers: bool) -> None:
    """Press the buttons of layers until each is visible (True) or hidden (False)."""
    for name, is_visible in layers.items():
        button = page.locator(f"#{name}")
        if (button.get_attribute("aria-pressed") == "true") != is_visible:
            button.click()


def centers(instances: Instances) -> list[Point]:
    return [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in instances.boxes.tolist()]


def take_pixels(page: Any, source: str = "gate", size: tuple[int, int] = SIZE) -> Any:
    """Take a screenshot and return a function from a position in the frame to its color."""
    page.mouse.move(0, 0)
    png = part(page, "image", source).screenshot()
    screenshot = np.asarray(Pillow.open(io.BytesIO(png)).convert("RGB"))
    scale = min(screenshot.shape[0] / size[0], screenshot.shape[1] / size[1])
    left = (screenshot.shape[1] - scale * size[1]) / 2
    top = (screenshot.shape[0] - scale * size[0]) / 2
    return lambda x, y: screenshot[int(top + y * scale), int(left + x * scale)].astype(int)


def assert_color(color: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float = 8) -> None:
    error = np.abs(np.asarray(color) - np.asarray(expected)).max()
    assert error <= tolerance, (color, expected)


def wait_for_color(
    page: Any, position: Point, expected: npt.ArrayLike, tolerance: float = 8, within: float = 5
) -> Any:
    """Take screenshots until a position has a color; return the pixels of the last one."""
    deadline = time.monotonic() + within
    while True:
        pixels = take_pixels(page)
        if np.abs(pixels(*position) - np.asarray(expected)).max() <= tolerance:
            return pixels
        assert time.monotonic() < deadline, (pixels(*position), expected)
        page.wait_for_timeout(30)


def click_frame(page: Any, position: Point, source: str = "gate") -> None:
    """Click a position of the frame."""
    canvas = part(page, "image", source)
    box = canvas.bounding_box()
    scale = min(box["height"] / SIZE[0], box["width"] / SIZE[1])
    left, top = (box["width"] - scale * SIZE[1]) / 2, (box["height"] - scale * SIZE[0]) / 2
    canvas.click(position={"x": left + position[0] * scale, "y": top + position[1] * scale})
