"""State of the dashboard: rates, class counts, limits, and removal of sources."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support.publishers import instances, result
from support.subscribers import status_json
from support.viewers import source_view

from streamseg import protocol
from streamseg.client import Received
from streamseg.structures.results import Instances
from streamseg.viewer import dashboard_state
from streamseg.viewer.dashboard_state import REMOVAL_TIMEOUT, DashboardState


def received(count=1, *, age_ms=40.0, published_at=0.0):
    """Return a received message with ``count`` instances, alternately persons and cars."""
    item = result(found=instances(count))
    message = protocol.masks_message(
        protocol.recorded_message(item, 0),
        item,
        service="a",
        published_at=published_at,
        age_ms=age_ms,
        dropped={},
    )
    return Received(message, item.instances, None)


def view(dashboard, now=0.0):
    return source_view(msgspec.to_builtins(dashboard.message(now)))


def test_rates_and_latencies_are_those_of_the_last_seconds() -> None:
    dashboard = DashboardState("tcp://x:1")
    for number in range(100):
        dashboard.add(received(age_ms=900), number / 10, number / 10)
    for number in range(200):
        dashboard.add(received(age_ms=40, published_at=9.75), 10 + number / 25, 10)
    latest = view(dashboard, 18)
    assert latest["fps"] == 25
    assert latest["age_ms"] == latest["age_p95_ms"] == 40
    assert latest["way_ms"] == 250
    assert view(dashboard, 60)["fps"] == 0
    assert view(dashboard, 60)["age_ms"] is None


@pytest.mark.parametrize("published_at", [10.0, -100.0])
def test_transit_time_is_unknown_if_the_clocks_differ(published_at) -> None:
    dashboard = DashboardState("tcp://x:1")
    dashboard.add(received(published_at=published_at), 0, 0)
    assert view(dashboard)["way_ms"] is None


def test_history_has_the_mean_of_each_second_and_gaps() -> None:
    dashboard = DashboardState("tcp://x:1")
    dashboard.end_second(0)
    for second, counts in enumerate([[1, 3], [], [5]]):
        for count in counts:
            dashboard.add(received(count), second, second)
        dashboard.end_second(second)
    people, cars = view(dashboard)["classes"]
    assert (people["name"], people["now"]) == ("person", 3)
    assert people["history"][-4:] == [None, 1.5, None, 3]
    assert (cars["name"], cars["now"]) == ("car", 2)
    assert cars["history"][-4:] == [None, 0.5, None, 2]
    for second in range(dashboard_state.HISTORY_SECONDS):
        dashboard.add(received(0), second, second)
        dashboard.end_second(second)
    assert view(dashboard)["classes"] == []


def test_number_of_classes_and_sources_is_limited() -> None:
    dashboard = DashboardState("tcp://x:1")
    names = dict(enumerate(f"class {n}" for n in range(500)))
    found = instances(500, (200, 300))
    found = Instances(
        found.boxes, found.scores, np.arange(500), found.masks, names, found.track_ids
    )
    template = received()
    for number in range(100):
        message = msgspec.structs.replace(template.message, source=f"cam{number}")
        dashboard.add(Received(message, found, None), 0, 0)
    for second in range(3):
        dashboard.end_second(second)
    message = dashboard.message(0)
    assert len(message.sources) == dashboard_state.MAX_DISPLAYED_SOURCES
    assert message.hidden == 100 - dashboard_state.MAX_DISPLAYED_SOURCES
    assert len(message.sources[0].classes) == dashboard_state.MAX_DISPLAYED_CLASSES
    assert len(msgspec.json.encode(message)) < 1e6


def test_state_is_connecting_before_the_first_message() -> None:
    assert DashboardState("tcp://x:1").message(1000.0).state == "connecting"


def status(state="live", seq=0, *, source="", service="one"):
    encoded = status_json(state, seq, source=source, service=service)
    return msgspec.json.decode(encoded, type=protocol.StatusMessage)


class RunningService:
    """Dashboard of a running service, updated every second with all statuses so far."""

    def __init__(self) -> None:
        self.dashboard = DashboardState("tcp://x:1")
        self.statuses = {}
        self.now = 0.0

    def displayed_sources(self, seconds: float) -> list[list[str]]:
        """Advance the time and return the displayed sources after each change."""
        changes: list[list[str]] = []
        for _ in range(round(seconds)):
            self.now += 1
            self.statuses[""] = status(seq=int(self.now))
            self.dashboard.update(self.statuses, {}, 0, self.now)
            self.dashboard.end_second(self.now)
            displayed = [view.source for view in self.dashboard.message(self.now).sources]
            if [displayed] != changes[-1:]:
                changes.append(displayed)
        return changes


def test_removed_source_stays_removed() -> None:
    running = RunningService()
    running.statuses["yard"] = status("ended", 5, source="yard")
    assert running.displayed_sources(5 * REMOVAL_TIMEOUT) == [["yard"], []]


def test_removed_source_returns_with_a_new_status() -> None:
    running = RunningService()
    for new_status in (
        status("ended", 5, source="yard"),
        status("live", 6, source="yard"),
        status("live", 6, source="yard", service="two"),
    ):
        running.statuses["yard"] = new_status
        assert running.displayed_sources(2 * REMOVAL_TIMEOUT) == [["yard"], []]


def test_removed_status_id_is_deleted_with_its_status() -> None:
    running = RunningService()
    running.statuses["yard"] = status("ended", 5, source="yard")
    running.displayed_sources(2 * REMOVAL_TIMEOUT)
    assert set(running.dashboard._removed) == {"yard"}
    del running.statuses["yard"]  # as in a new subscriber
    running.displayed_sources(1)
    assert not running.dashboard._removed
