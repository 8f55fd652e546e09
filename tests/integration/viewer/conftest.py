"""Fixtures of the viewer tests: an idle viewer, and pages in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.viewers import viewer

from streamseg.viewer import Viewer


@pytest.fixture(scope="module")
def idle_viewer() -> Iterator[Viewer]:
    """Run a viewer whose service does not exist."""
    with viewer("tcp://127.0.0.1:9") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from support.viewer_pages import launched_browser

    with launched_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open pages in the browser; any error of a script fails the test."""
    from support.viewer_pages import page_opener

    with page_opener(browser) as open_page:
        yield open_page
