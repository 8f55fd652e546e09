"""Relay of the viewer: dashboard messages and frames that browsers receive from a service."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest
from support.ports import free_port
from support.processes import read_resident_memory
from support.publishers import encode_solid_jpeg, instances, result, service, wait_until
from support.viewers import is_image_requested, open_client, port_of, source_view, viewer

from streamseg.viewer import Viewer, dashboard_state, relay
from streamseg.viewer.browser_session import MAX_UNACKNOWLEDGED

NO_SERVICE = "tcp://127.0.0.1:9"


def test_dashboard_is_sent_at_once() -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "live", "", 2)
        running.wait_for_subscribers()
        running.put_and_wait(*[result(i, found=instances(3)) for i in range(10)])
        with open_client(shown) as client:
            dashboard = client.wait_for_dashboard(lambda b: source_view(b).get("published") == 10)
    gate = source_view(dashboard)
    assert dashboard["address"] == running.masks_endpoint
    assert dashboard["state"] == "live"
    assert (gate["state"], gate["epoch"], gate["lost"], gate["in_view"]) == ("live", 2, 0, 3)
    assert gate["size"] == [40, 60]
    assert gate["model"] == "nanomask"
    assert gate["timing"] == {"forward": 12.5}
    assert gate["decoded"] == 10
    assert 0 <= gate["age_ms"] < 1000
    assert 0 <= gate["way_ms"] < 1000
    assert gate["fps"] > 0
    people, cars = gate["classes"]
    assert (people["name"], people["label"], people["now"]) == ("person", 1, 2)
    assert (cars["name"], cars["label"], cars["now"]) == ("car", 3, 1)
    assert len(people["history"]) == dashboard_state.HISTORY_SECONDS


def test_change_of_state_is_sent_at_once_with_its_reason(monkeypatch) -> None:
    async def wait_forever(_self) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(relay.Relay, "_send_dashboard_every_second", wait_forever)
    monkeypatch.setattr("streamseg.sinks.zmq.status.STATUS_INTERVAL", 60.0)
    monkeypatch.setattr(dashboard_state, "SILENCE_TIMEOUT", 60.0)
    with (
        service() as running,
        viewer(running.masks_endpoint) as shown,
        open_client(shown) as client,
    ):
        running.publisher.set_state("gate", "live", "", 0)
        client.wait_for_dashboard(lambda b: source_view(b).get("state") == "live")
        started_at = time.monotonic()
        running.publisher.set_state("gate", "stalled", "no frame for 3 s", 0)
        dashboard = client.wait_for_dashboard(
            lambda b: source_view(b)["state"] == "stalled", within=20
        )
        assert time.monotonic() - started_at < 10
        assert source_view(dashboard)["reason"] == "no frame for 3 s"


def test_dropped_failed_and_lost_frames_are_counted() -> None:
    with (
        service() as running,
        viewer(running.masks_endpoint) as shown,
        open_client(shown) as client,
    ):
        running.wait_for_subscribers()
        account = running.metrics.account("gate")
        for _ in range(3):
            account.decode()
        account.drop("inbox_full")
        account.drop("inbox_full")
        account.fail("corrupt")
        running.put_and_wait(result())
        running.publisher._next_seq(b"masks/gate/")  # a sequence number without a message
        running.put_and_wait(result(1))
        running.publisher.set_state("gate", "live", "", 0)
        gate = source_view(client.wait_for_dashboard(lambda b: source_view(b).get("lost")))
        assert gate["dropped"] == {"inbox_full": 2}
        assert gate["failed"] == {"corrupt": 1}
        assert gate["lost"] == 1


def test_only_requested_sources_are_listed() -> None:
    with service() as running, viewer(running.masks_endpoint, sources=["yard"]) as shown:
        for name in ("gate", "yard"):
            running.publisher.set_state(name, "live", "", 0)
        with open_client(shown) as client:
            dashboard = client.wait_for_dashboard(lambda b: source_view(b, "yard"))
            assert [view["source"] for view in dashboard["sources"]] == ["yard"]


def test_ping_is_answered(idle_viewer) -> None:
    with open_client(idle_viewer) as client:
        client.wait_for_dashboard()
        client.send("ping", at=12.5)
        wait_until(lambda: client.receive() == {"kind": "pong", "at": 12.5})


def test_images_are_requested_only_for_visible_sources() -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        for name in ("gate", "yard"):
            running.publisher.set_state(name, "live", "", 0)
        with open_client(shown) as client:
            client.wait_for_dashboard(lambda b: source_view(b, "yard"))
            time.sleep(3 * relay.POLL_INTERVAL)
            assert not is_image_requested(running, "gate")
            client.request_sources("gate")
            wait_until(lambda: is_image_requested(running, "gate"))
            assert not is_image_requested(running, "yard")
            client.request_sources("yard")
            wait_until(lambda: is_image_requested(running, "yard"))
            wait_until(lambda: not is_image_requested(running, "gate"))
            assert not running.publisher.has_image_subscribers("frames", "yard")
        wait_until(lambda: not is_image_requested(running, "yard"))


def test_images_of_unknown_sources_are_not_requested() -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with open_client(shown, visible_sources=("gate", "../x", "unknown", "")) as client:
            client.wait_for_dashboard(source_view)
            wait_until(lambda: is_image_requested(running), 5)
            assert not is_image_requested(running, "unknown")


def test_image_is_sent_with_the_masks_of_its_frame() -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with open_client(shown, visible_sources=("gate",)) as client:
            wait_until(lambda: is_image_requested(running), 5)
            running.put_images(result(7, found=instances(5)), None, encode_solid_jpeg())
            message, image = client.frame()
    assert image == encode_solid_jpeg()
    assert message["frame"] == 7
    assert [i["track"] for i in message["instances"]] == [1, 2, 3, 4, 5]
    assert message["instances"][0]["rle"] == instances(5).masks.counts[0]


def test_masks_are_sent_without_an_image_if_there_are_no_images() -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with open_client(shown, visible_sources=("gate",)) as client:
            client.wait_for_dashboard(source_view)
            running.put_and_wait(result(3))
            message, image = client.frame()
    assert message["frame"] == 3
    assert image == b""


def test_masks_are_not_sent_without_an_image_if_there_are_images() -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with open_client(shown, visible_sources=("gate",)) as client:
            wait_until(lambda: is_image_requested(running), 5)
            for index in range(10):
                running.put_images(result(index), None, encode_solid_jpeg())
                assert client.frame()[0]["frame"] == index
                running.put_and_wait(result(100 + index))


def test_slow_browser_receives_the_newest_frame_and_delays_no_other() -> None:
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with (
            open_client(shown, visible_sources=("gate",)) as slow,
            open_client(shown, visible_sources=("gate",)) as fast,
        ):
            slow.wait_for_dashboard(source_view)
            fast.wait_for_dashboard(source_view)
            for index in range(20):
                running.put_and_wait(result(index))
                assert fast.frame()[0]["frame"] == index
            indices = [slow.frame(acknowledge=False)[0]["frame"] for _ in range(MAX_UNACKNOWLEDGED)]
            assert indices == list(range(MAX_UNACKNOWLEDGED))
            with pytest.raises(TimeoutError):
                slow.frame(0.3, acknowledge=False)
            slow.acknowledge("gate")
            assert slow.frame(acknowledge=False)[0]["frame"] == 19


def test_memory_for_a_browser_that_does_not_read_is_bounded() -> None:
    size = (720, 1280)
    image = encode_solid_jpeg(size) + bytes(2_000_000)
    found = instances(2, size)
    with service() as running, viewer(running.masks_endpoint) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with (
            open_client(shown, visible_sources=("gate",)) as stalled,
            open_client(shown, visible_sources=("gate",)) as fast,
        ):
            stalled.socket.recv(5)
            wait_until(lambda: is_image_requested(running), 5)
            memory_before = read_resident_memory()
            for index in range(60):
                running.put_images(result(index, found=found), None, image)
                assert fast.frame()[0]["frame"] == index
            assert read_resident_memory() - memory_before < 60e6  # 120 MB were published


def test_viewer_waits_for_an_ended_service() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with viewer(address) as shown, open_client(shown, visible_sources=("gate",)) as client:
        with service(bind=address) as first:
            first.publisher.set_state("gate", "live", "", 0)
            client.wait_for_dashboard(lambda b: source_view(b).get("state") == "live")
            first.end()
            dashboard = client.wait_for_dashboard(lambda b: b["state"] == "ended")
            assert source_view(dashboard)["state"] == "ended"
        with service(bind=address) as second:
            second.publisher.set_state("gate", "live", "", 0)
            client.wait_for_dashboard(
                lambda b: b["state"] == "live" and source_view(b).get("state") == "live"
            )
            wait_until(lambda: is_image_requested(second), 5)
            second.put_and_wait(result(5))
            assert client.frame()[0]["frame"] == 5


@pytest.mark.slow
def test_service_without_an_end_of_stream_message_becomes_silent(monkeypatch) -> None:
    monkeypatch.setattr(dashboard_state, "SILENCE_TIMEOUT", 1.2)
    address = f"tcp://127.0.0.1:{free_port()}"
    with viewer(address) as shown, open_client(shown, visible_sources=("gate",)) as client:
        with service(bind=address) as first:
            first.publisher.set_state("gate", "live", "", 0)
            client.wait_for_dashboard(lambda b: source_view(b).get("state") == "live")
            first.kill()
            dashboard = client.wait_for_dashboard(lambda b: b["state"] == "silent")
            assert "no word from the service" in dashboard["reason"]
            assert source_view(dashboard)["state"] == "silent"
        with service(bind=address) as second:
            second.publisher.set_state("gate", "live", "", 0)
            client.wait_for_dashboard(
                lambda b: b["state"] == "live" and source_view(b)["state"] == "live"
            )


def test_source_that_returns_after_its_end_is_displayed_again() -> None:
    with (
        service() as running,
        viewer(running.masks_endpoint) as shown,
        open_client(shown, visible_sources=("gate",)) as client,
    ):
        running.publisher.set_state("gate", "live", "", 0)
        wait_until(lambda: is_image_requested(running), 5)
        running.publisher.set_state("gate", "ended", "", 0)
        client.wait_for_dashboard(lambda b: source_view(b).get("state") == "ended")
        wait_until(lambda: not is_image_requested(running), 5)
        running.publisher.set_state("gate", "live", "", 1)
        wait_until(lambda: is_image_requested(running), 5)
        running.put_images(result(9, epoch=1), None, encode_solid_jpeg())
        assert client.frame()[0]["frame"] == 9


@pytest.mark.slow
def test_source_of_a_previous_service_is_removed(monkeypatch) -> None:
    monkeypatch.setattr(dashboard_state, "REMOVAL_TIMEOUT", 2.5)
    address = f"tcp://127.0.0.1:{free_port()}"
    with viewer(address) as shown, open_client(shown) as client:
        with service(bind=address) as first:
            first.publisher.set_state("gate", "live", "", 0)
            client.wait_for_dashboard(source_view)
            first.kill()
        with service(bind=address) as second:
            second.publisher.set_state("yard", "live", "", 0)
            client.wait_for_dashboard(lambda b: source_view(b, "yard"))
            dashboard = client.wait_for_dashboard(lambda b: not source_view(b, "gate"), within=10)
            assert source_view(dashboard, "yard")["state"] == "live"


def test_stop_closes_websockets_and_the_port() -> None:
    shown = Viewer(NO_SERVICE, port=0)
    thread = threading.Thread(target=shown.run)
    thread.start()
    try:
        with open_client(shown) as client:
            client.wait_for_dashboard()
            started_at = time.monotonic()
            shown.stop()
            assert client.wait_closed().code in (1001, 1012)
            thread.join(3)
            assert not thread.is_alive()
            assert time.monotonic() - started_at < 3
    finally:
        shown.stop()
        thread.join(10)
    socket.create_server(("127.0.0.1", port_of(shown))).close()


def test_error_of_the_relay_is_raised_by_run(monkeypatch) -> None:
    shown = Viewer(NO_SERVICE, port=0)

    async def fail() -> None:
        raise ZeroDivisionError("the relay")

    monkeypatch.setattr(shown._relay, "run", fail)
    with pytest.raises(ZeroDivisionError, match="the relay"):
        shown.run()
