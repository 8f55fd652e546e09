"""The viewer's server without a browser: who may ask, who is sent what, and what nobody can do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ports import free_port
from support.publishers import eventually, instances, jpeg, result, rss, service
from support.viewers import authority, page, source, viewer
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streamseg import protocol
from streamseg.client import Received
from streamseg.errors import BindError, UsageError
from streamseg.service.http_access import HostNames
from streamseg.structures.results import Instances
from streamseg.viewer import Viewer, dashboard_state, relay, server
from streamseg.viewer.browsers import MAX_SAID, UNSEEN, Browser
from streamseg.viewer.dashboard_state import Board
from streamseg.viewer.server import MAX_BROWSERS, STATIC
from streamseg.viewer.tasks import first_of

NOWHERE = "tcp://127.0.0.1:9"
PNG_OR_TEXT = {".html": "text/html", ".css": "text/css", ".js": "javascript", ".svg": "image/svg"}


@pytest.fixture(scope="module")
def alone():
    """A viewer whose service isn't there."""
    with viewer(NOWHERE) as running:
        yield running


def get(running, path="/", **headers):
    return httpx.get(running.url.rstrip("/") + path, headers=headers)


# The page


@pytest.mark.parametrize("file", sorted(p.name for p in STATIC.iterdir()))
def test_every_file_is_served_with_its_type_and_the_headers_that_keep_it_safe(alone, file) -> None:
    answer = get(alone, f"/{file}")
    assert answer.status_code == 200
    assert PNG_OR_TEXT[Path(file).suffix] in answer.headers["content-type"]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


def test_the_page_is_at_the_root(alone) -> None:
    assert get(alone).text == (STATIC / "index.html").read_text()


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    for file in STATIC.iterdir():
        elsewhere = re.sub(r"http://www\.w3\.org/2000/svg", "", file.read_text())
        assert not re.search(r"https?://|@import|url\(", elsewhere), file


def test_no_script_can_turn_text_into_html() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    )
    for file in STATIC.glob("*.js"):
        assert not re.search(forbidden, file.read_text()), file


@pytest.mark.parametrize("path", ["/nothing", "/../server.py", "/%2e%2e/server.py", "/static/"])
def test_nothing_else_is_served(alone, path) -> None:
    assert get(alone, path).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent_to_it(alone, method) -> None:
    assert httpx.request(method, alone.url).status_code == 405


# Who may ask


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost",
        "127.0.0.1:{port}.evil.example",
        "localhost:{port}@evil.example",
        "0.0.0.0:{port}",
        "",
    ],
)
def test_a_name_that_it_does_not_go_by_is_refused(alone, host) -> None:
    port = alone.url.rstrip("/").rpartition(":")[2]
    answer = get(alone, host=host.format(port=port))
    assert answer.status_code == 403
    assert "--allow-host" in answer.text
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "evil.example:{port}"])
def test_a_websocket_under_another_name_is_refused(alone, host) -> None:
    port = alone.url.rstrip("/").rpartition(":")[2]
    with pytest.raises(InvalidStatus, match="403"), page(alone, host=host.format(port=port)):
        pass


@pytest.mark.parametrize("host", ["localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_the_names_of_this_machine_are_answered(alone, host) -> None:
    port = alone.url.rstrip("/").rpartition(":")[2]
    assert get(alone, host=host.format(port=port)).status_code == 200


def test_a_request_with_two_names_is_refused(alone) -> None:
    host = authority(alone).encode()
    raw = b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nHost: evil.example\r\n\r\n"
    name, _, port = authority(alone).partition(":")
    with socket.create_connection((name, int(port)), timeout=5) as peer:
        peer.sendall(raw)
        assert re.match(rb"HTTP/1.1 40[03] ", peer.recv(1000))


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:1", "file://", "https://evil:{port}"],
)
def test_pages_of_other_sites_are_refused(alone, origin) -> None:
    port = alone.url.rstrip("/").rpartition(":")[2]
    origin = origin.format(port=port)
    assert get(alone, origin=origin).status_code == 403
    with pytest.raises(InvalidStatus, match="403"), page(alone, origin=origin):
        pass


def test_a_websocket_from_nowhere_is_refused(alone) -> None:
    with pytest.raises(InvalidStatus, match="403"), page(alone, origin=None):
        pass


def test_its_own_page_is_answered(alone) -> None:
    assert get(alone, origin=alone.url.rstrip("/")).status_code == 200
    with page(alone) as it:
        assert it.board()["state"] == "connecting"


def test_behind_a_proxy_it_goes_by_the_names_that_are_allowed() -> None:
    with viewer(NOWHERE, allow_hosts=["Cams.example.org"]) as running:
        assert get(running, host="cams.example.org").status_code == 200
        assert get(running, host="other.example.org").status_code == 403
        with page(running, host="cams.example.org", origin="https://cams.example.org") as it:
            assert it.board()
        with (
            pytest.raises(InvalidStatus, match="403"),
            page(running, host="cams.example.org", origin="https://other.example.org"),
        ):
            pass


@given(st.text(max_size=40))
def test_only_exact_names_are_known(host) -> None:
    names = HostNames.of("127.0.0.1", 8080, ["cams.example.org:443"], "--allow-host")
    own = {"127.0.0.1:8080", "localhost:8080", "[::1]:8080", "cams.example.org:443"}
    assert (host.lower() in names.authorities) == (host.lower() in own)


# What can't be


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "cams.example.org"])
def test_beyond_loopback_is_refused_unless_insecure_is_said(host) -> None:
    with pytest.raises(UsageError, match="--insecure"):
        Viewer(NOWHERE, host=host, port=0)


def test_every_interface_can_be_bound_if_insecure_is_said() -> None:
    with viewer(NOWHERE, host="0.0.0.0", insecure=True) as running:
        port = running.url.rstrip("/").rpartition(":")[2]
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200


def test_the_other_loopback_can_be_bound() -> None:
    with viewer(NOWHERE, host="::1") as running:
        assert running.url.startswith("http://[::1]:")
        assert httpx.get(running.url).status_code == 200


def test_a_taken_port_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port} can't be served on") as caught:
            Viewer(NOWHERE, port=port)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": "udp://x:1"}, "isn't an address"),
        ({"sources": ["a/b"]}, "invalid source name"),
        ({"allow_hosts": ["http://x"]}, "--allow-host"),
        ({"allow_hosts": ["*"]}, "--allow-host"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(options, said) -> None:
    with pytest.raises(UsageError, match=said):
        Viewer(**{"address": NOWHERE, "port": 0} | options)


def test_a_port_that_cannot_be_is_said() -> None:
    with pytest.raises(UsageError, match="99999"):
        Viewer(NOWHERE, port=99999)


def test_it_needs_nothing_of_the_service() -> None:
    heavy = ["torch", "torchvision", "av", "cv2", "scipy", "yaml", "prometheus_client"]
    code = f"import sys, streamseg.viewer; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# What a browser is told


def test_the_board_comes_at_once_and_says_what_is_known() -> None:
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "live", "", 2)
        running.wait_for_subscribers()
        running.put_and_wait(*[result(i, found=instances(3)) for i in range(10)])
        with page(shown) as it:
            told = it.board(lambda b: source(b).get("published") == 10)
    gate = source(told)
    assert told["address"] == running.masks_at
    assert told["state"] == "live"
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
    assert len(people["history"]) == dashboard_state.HISTORY


def test_a_change_of_state_comes_at_once_with_its_reason(monkeypatch) -> None:
    async def never(_self) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(relay.Relay, "_tell_every_second", never)
    monkeypatch.setattr("streamseg.sinks.zmq.status.STATUS_INTERVAL", 60.0)
    monkeypatch.setattr(dashboard_state, "SILENT_AFTER", 60.0)
    with service() as running, viewer(running.masks_at) as shown, page(shown) as it:
        running.publisher.set_state("gate", "live", "", 0)
        it.board(lambda b: source(b).get("state") == "live")
        begun = time.monotonic()
        running.publisher.set_state("gate", "stalled", "no frame for 3 s", 0)
        told = it.board(lambda b: source(b)["state"] == "stalled", within=20)
        assert time.monotonic() - begun < 10
        assert source(told)["reason"] == "no frame for 3 s"


def test_drops_failures_and_losses_are_told() -> None:
    with service() as running, viewer(running.masks_at) as shown, page(shown) as it:
        running.wait_for_subscribers()
        account = running.metrics.account("gate")
        for _ in range(3):
            account.decode()
        account.drop("inbox_full")
        account.drop("inbox_full")
        account.fail("corrupt")
        running.put_and_wait(result())
        running.publisher._next_seq(b"masks/gate/")  # one is lost on the way
        running.put_and_wait(result(1))
        running.publisher.set_state("gate", "live", "", 0)
        gate = source(it.board(lambda b: source(b).get("lost")))
        assert gate["dropped"] == {"inbox_full": 2}
        assert gate["failed"] == {"corrupt": 1}
        assert gate["lost"] == 1


def test_only_the_sources_asked_for_are_shown() -> None:
    with service() as running, viewer(running.masks_at, sources=["yard"]) as shown:
        for name in ("gate", "yard"):
            running.publisher.set_state(name, "live", "", 0)
        with page(shown) as it:
            told = it.board(lambda b: source(b, "yard"))
            assert [s["source"] for s in told["sources"]] == ["yard"]


def test_a_ping_is_answered() -> None:
    with viewer(NOWHERE) as shown, page(shown) as it:
        it.board()
        it.say("ping", at=12.5)
        eventually(lambda: it.receive() == {"kind": "pong", "at": 12.5})


# Pictures


def test_pictures_are_asked_for_only_while_somebody_looks() -> None:
    with service() as running, viewer(running.masks_at) as shown:
        publisher = running.publisher
        for name in ("gate", "yard"):
            publisher.set_state(name, "live", "", 0)
        with page(shown) as it:
            it.board(lambda b: source(b, "yard"))
            time.sleep(0.5)
            assert not publisher.has_image_subscribers("video", "gate")
            it.look("gate")
            eventually(lambda: publisher.has_image_subscribers("video", "gate"))
            assert not publisher.has_image_subscribers("video", "yard")
            it.look("yard")
            eventually(lambda: publisher.has_image_subscribers("video", "yard"))
            eventually(lambda: not publisher.has_image_subscribers("video", "gate"))
            assert not publisher.has_image_subscribers("frames", "yard")
        eventually(lambda: not publisher.has_image_subscribers("video", "yard"))


def test_a_picture_comes_with_its_own_masks() -> None:
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with page(shown, looks=("gate",)) as it:
            eventually(lambda: running.publisher.has_image_subscribers("video", "gate"), 5)
            running.show(result(7, found=instances(5)), None, jpeg())
            message, picture = it.frame()
    assert picture == jpeg()
    assert message["frame"] == 7
    assert [i["track"] for i in message["instances"]] == [1, 2, 3, 4, 5]
    assert message["instances"][0]["rle"] == instances(5).masks.counts[0]


def test_masks_come_alone_where_there_are_no_pictures() -> None:
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with page(shown, looks=("gate",)) as it:
            it.board(source)
            running.put_and_wait(result(3))
            message, picture = it.frame()
    assert message["frame"] == 3
    assert picture == b""


def test_masks_do_not_come_alone_where_there_are_pictures() -> None:
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with page(shown, looks=("gate",)) as it:
            eventually(lambda: running.publisher.has_image_subscribers("video", "gate"), 5)
            for index in range(10):
                running.show(result(index), None, jpeg())
                assert it.frame()[0]["frame"] == index
                running.put_and_wait(result(100 + index))
            assert source(it.board(lambda b: source(b)["published"] == 10))["fps"] > 0


def test_who_does_not_keep_up_gets_the_newest_and_holds_up_nobody() -> None:
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with page(shown, looks=("gate",)) as slow, page(shown, looks=("gate",)) as quick:
            slow.board(source)
            quick.board(source)
            for index in range(20):
                running.put_and_wait(result(index))
                assert quick.frame()[0]["frame"] == index
            ahead = [slow.frame(seen=False)[0]["frame"] for _ in range(UNSEEN)]
            assert ahead == list(range(UNSEEN))
            with pytest.raises(TimeoutError):
                slow.frame(0.7, seen=False)
            slow.seen("gate")
            assert slow.frame(seen=False)[0]["frame"] == 19


def test_one_who_reads_nothing_at_all_costs_a_bounded_amount() -> None:
    size = (720, 1280)
    picture = jpeg(size) + bytes(2_000_000)
    found = instances(2, size)
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with page(shown, looks=("gate",)) as deaf, page(shown, looks=("gate",)) as quick:
            deaf.socket.recv(5)
            eventually(lambda: running.publisher.has_image_subscribers("video", "gate"), 5)
            before = rss()
            for index in range(60):
                running.show(result(index, found=found), None, picture)
                assert quick.frame()[0]["frame"] == index
            assert rss() - before < 60e6  # 120 MB were sent


messages = st.tuples(st.sampled_from(["offer", "seen", "take"]), st.sampled_from("abc"))


@given(st.lists(messages, max_size=80))
def test_newest_wins_whatever_is_offered_and_seen(steps) -> None:
    it = Browser()
    it.hear(json.dumps({"kind": "look", "sources": ["a", "b", "c"]}))
    offered, taken, unseen = (
        dict.fromkeys("abc", 0),
        dict.fromkeys("abc", 0),
        dict.fromkeys("abc", 0),
    )
    for what, name in steps:
        if what == "offer":
            offered[name] += 1
            it.offer(name, f"{name}{offered[name]}".encode())
        elif what == "seen":
            it.hear(json.dumps({"kind": "seen", "source": name}))
            unseen[name] = max(0, unseen[name] - 1)
        elif (message := it._take()) is not None:
            got, number = message.decode()[0], int(message.decode()[1:])
            assert number == offered[got] > taken[got]
            taken[got] = number
            unseen[got] += 1
            assert unseen[got] <= UNSEEN
    ready = [n for n in "abc" if taken[n] < offered[n] and unseen[n] < UNSEEN]
    assert (it._take() is not None) == bool(ready)


def test_sources_take_turns() -> None:
    it = Browser()
    it.hear('{"kind": "look", "sources": ["a", "b"]}')
    for _ in range(2):
        it.offer("a", b"a")
        it.offer("b", b"b")
        assert it._take() == b"a"
        it.offer("a", b"a")
        assert it._take() == b"b"
        assert it._take() == b"a"
        for name in "aab":
            it.hear(json.dumps({"kind": "seen", "source": name}))


def test_what_is_no_longer_looked_at_is_not_sent() -> None:
    it = Browser()
    it.hear('{"kind": "look", "sources": ["a"]}')
    it.offer("a", b"a")
    it.hear('{"kind": "look", "sources": []}')
    it.offer("a", b"a")
    assert it._take() is None


# Hostile browsers


@pytest.mark.parametrize(
    "said",
    [
        "",
        "{",
        "[]",
        "null",
        '{"kind": "shout"}',
        '{"kind": "look"}',
        '{"kind": "look", "sources": "gate"}',
        '{"kind": "look", "sources": [1]}',
        '{"kind": "look", "sources": ["' + "a" * 65 + '"]}',
        json.dumps({"kind": "look", "sources": ["a"] * 65}),
        '{"kind": "seen"}',
        '{"kind": "ping", "at": "now"}',
        '{"kind": "ping", "at": 1, "more": 1}',
        "[" * 5000,
        b"\x00\xff",
    ],
)
def test_who_says_what_is_not_allowed_is_put_out_and_nobody_else(alone, said) -> None:
    with page(alone) as good:
        with page(alone) as bad:
            bad.board()
            bad.socket.send(said)
            assert bad.closed().code == 1008
        good.say("ping", at=1)
        eventually(lambda: good.receive()["kind"] == "pong")


def test_a_message_that_is_too_large_is_refused(alone) -> None:
    with page(alone) as it:
        it.socket.send(" " * (MAX_SAID + 1))
        assert it.closed().code == 1009


def test_sources_that_nobody_knows_are_not_asked_for() -> None:
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with page(shown, looks=("gate", "../x", "nobody", "")) as it:
            it.board(source)
            eventually(lambda: running.publisher.has_image_subscribers("video", "gate"), 5)
            assert not running.publisher.has_image_subscribers("video", "nobody")


@given(
    st.one_of(
        st.text(max_size=200), st.recursive(st.none() | st.floats(), st.lists).map(json.dumps)
    )
)
def test_nothing_that_is_said_raises_anything_else(said) -> None:
    async def hear() -> None:
        with contextlib.suppress(msgspec.DecodeError):
            Browser().hear(said)

    asyncio.run(hear())


def test_one_who_never_stops_talking_keeps_nobody_waiting() -> None:
    with service() as running, viewer(running.masks_at) as shown:
        running.publisher.set_state("gate", "live", "", 0)
        with page(shown, looks=("gate",)) as good, page(shown) as bad:
            good.board(source)
            over = threading.Event()

            def talk() -> None:
                while not over.is_set():
                    bad.say("seen", source="gate")

            talker = threading.Thread(target=talk)
            talker.start()
            try:
                for index in range(20):
                    begun = time.monotonic()
                    running.put_and_wait(result(index))
                    assert good.frame(within=20)[0]["frame"] == index
                    assert time.monotonic() - begun < 10, "the other never stops"
            finally:
                over.set()
                talker.join()


def test_one_browser_too_many_is_told_so_and_may_come_when_another_has_left(alone) -> None:
    with contextlib.ExitStack() as stack:
        pages = [stack.enter_context(page(alone)) for _ in range(MAX_BROWSERS)]
        pages[-1].board()
        with page(alone) as late:
            closed = late.closed()
        assert closed.code == 1013
        assert "browsers are looking already" in closed.reason
        assert get(alone).status_code == 200
        pages[0].socket.close()

        def comes_in() -> bool:
            with page(alone) as late, contextlib.suppress(ConnectionClosed):
                return bool(late.receive())
            return False

        eventually(comes_in)


def test_a_connection_that_asks_for_nothing_is_cut(monkeypatch) -> None:
    monkeypatch.setattr(server, "FETCH_WITHIN", 2)
    with viewer(NOWHERE) as shown:
        name, _, port = authority(shown).partition(":")
        with page(shown) as it, socket.create_connection((name, int(port)), timeout=20) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: ")
            with contextlib.suppress(ConnectionResetError):
                assert idle.recv(1000) == b""
            time.sleep(2.2)
            it.say("ping", at=1)
            eventually(lambda: it.receive()["kind"] == "pong")  # a page's is not


def test_connections_are_bounded_and_it_serves_again_when_they_have_left() -> None:
    with viewer(NOWHERE) as shown, contextlib.ExitStack() as stack:
        name, _, port = authority(shown).partition(":")
        crowd = [
            stack.enter_context(socket.create_connection((name, int(port)), timeout=5))
            for _ in range(server.MAX_CONNECTIONS)
        ]
        with contextlib.suppress(ConnectionResetError):
            one_more = stack.enter_context(socket.create_connection((name, int(port)), timeout=5))
            assert one_more.recv(10) == b""
        for peer in crowd:
            peer.close()

        def served() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return get(shown).status_code == 200
            return False

        eventually(served)


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01", b"\x00" * 1000, b"A" * 100_000, b"\r\n\r\n"])
def test_hostile_bytes_leave_it_serving(alone, garbage) -> None:
    name, _, port = authority(alone).partition(":")
    with (
        socket.create_connection((name, int(port)), timeout=5) as peer,
        contextlib.suppress(ConnectionError),
    ):
        peer.sendall(garbage)
        peer.shutdown(socket.SHUT_WR)
        peer.recv(1000)
    assert get(alone).status_code == 200


# A service that goes away


def test_a_service_that_ends_is_waited_for() -> None:
    port = free_port()
    where = f"tcp://127.0.0.1:{port}"
    with viewer(where) as shown, page(shown, looks=("gate",)) as it:
        with service(bind=where) as first:
            first.publisher.set_state("gate", "live", "", 0)
            it.board(lambda b: source(b).get("state") == "live")
            first.end()
            told = it.board(lambda b: b["state"] == "ended")
            assert source(told)["state"] == "ended"
        with service(bind=where) as second:
            second.publisher.set_state("gate", "live", "", 0)
            it.board(lambda b: b["state"] == "live" and source(b).get("state") == "live")
            eventually(lambda: second.publisher.has_image_subscribers("video", "gate"), 5)
            second.put_and_wait(result(5))
            assert it.frame()[0]["frame"] == 5


@pytest.mark.slow
def test_a_service_that_dies_without_a_word_is_said_to_be_silent(monkeypatch) -> None:
    monkeypatch.setattr(dashboard_state, "SILENT_AFTER", 1.2)
    port = free_port()
    where = f"tcp://127.0.0.1:{port}"
    with viewer(where) as shown, page(shown, looks=("gate",)) as it:
        with service(bind=where) as first:
            first.publisher.set_state("gate", "live", "", 0)
            it.board(lambda b: source(b).get("state") == "live")
            first.kill()
            told = it.board(lambda b: b["state"] == "silent")
            assert "no word from the service" in told["reason"]
            assert source(told)["state"] == "silent"
        with service(bind=where) as second:
            second.publisher.set_state("gate", "live", "", 0)
            told = it.board(lambda b: b["state"] == "live" and source(b)["state"] == "live")


def test_a_source_that_ended_and_comes_back_is_shown_again() -> None:
    with (
        service() as running,
        viewer(running.masks_at) as shown,
        page(shown, looks=("gate",)) as it,
    ):
        running.publisher.set_state("gate", "live", "", 0)
        eventually(lambda: running.publisher.has_image_subscribers("video", "gate"), 5)
        running.publisher.set_state("gate", "ended", "", 0)
        it.board(lambda b: source(b).get("state") == "ended")
        eventually(lambda: not running.publisher.has_image_subscribers("video", "gate"), 5)
        running.publisher.set_state("gate", "live", "", 1)
        eventually(lambda: running.publisher.has_image_subscribers("video", "gate"), 5)
        running.show(result(9, epoch=1), None, jpeg())
        assert it.frame()[0]["frame"] == 9


@pytest.mark.slow
def test_a_source_that_the_service_speaks_no_more_of_is_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(dashboard_state, "FORGET_AFTER", 2.5)
    port = free_port()
    where = f"tcp://127.0.0.1:{port}"
    with viewer(where) as shown, page(shown) as it:
        with service(bind=where) as first:
            first.publisher.set_state("gate", "live", "", 0)
            it.board(source)
            first.kill()
        with service(bind=where) as second:
            second.publisher.set_state("yard", "live", "", 0)
            told = it.board(lambda b: source(b, "yard"))
            told = it.board(lambda b: not source(b, "gate"), within=10)
            assert source(told, "yard")["state"] == "live"


# Its end


def test_it_ends_at_once_and_its_browsers_are_told() -> None:
    shown = Viewer(NOWHERE, port=0)
    thread = threading.Thread(target=shown.run)
    thread.start()
    try:
        with page(shown) as it:
            it.board()
            begun = time.monotonic()
            shown.stop()
            assert it.closed().code in (1001, 1012)
            thread.join(3)
            assert not thread.is_alive()
            assert time.monotonic() - begun < 3
    finally:
        shown.stop()
        thread.join(10)
    port = int(authority(shown).rpartition(":")[2])
    socket.create_server(("127.0.0.1", port)).close()


def test_what_goes_wrong_in_the_relay_ends_it_with_that_error(monkeypatch) -> None:
    shown = Viewer(NOWHERE, port=0)

    async def fail() -> None:
        raise ZeroDivisionError("the relay")

    monkeypatch.setattr(shown._relay, "run", fail)
    with pytest.raises(ZeroDivisionError, match="the relay"):
        shown.run()


def test_the_first_to_end_ends_the_others() -> None:
    ended = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def ends() -> None:
        await asyncio.sleep(0)

    asyncio.run(first_of(waits(), ends(), waits()))
    assert ended == [True, True]


def test_one_that_forgets_that_it_was_cancelled_is_cancelled_again() -> None:
    async def forgets() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def ends() -> None:
        await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.wait_for(first_of(forgets(), ends()), 5)

    asyncio.run(both())


# The numbers


def received(count=1, *, age_ms=40.0, published_at=0.0):
    """A message with so many instances, every other one a person."""
    one = result(found=instances(count))
    message = protocol.masks_message(
        protocol.recorded_message(one, 0),
        one,
        service="a",
        published_at=published_at,
        age_ms=age_ms,
        dropped={},
    )
    return Received(message, one.instances, None)


def view(it, now=0.0):
    return source(msgspec.to_builtins(it.message(now)))


def test_rates_and_ages_are_those_of_the_last_seconds() -> None:
    it = Board("tcp://x:1")
    for number in range(100):
        it.add(received(age_ms=900), number / 10, number / 10)
    for number in range(200):
        it.add(received(age_ms=40, published_at=9.75), 10 + number / 25, 10)
    seen = view(it, 18)
    assert seen["fps"] == 25
    assert seen["age_ms"] == seen["age_p95_ms"] == 40
    assert seen["way_ms"] == 250
    assert view(it, 60)["fps"] == 0
    assert view(it, 60)["age_ms"] is None


@pytest.mark.parametrize("published_at", [10.0, -100.0])
def test_clocks_that_differ_are_not_taken_for_the_way(published_at) -> None:
    it = Board("tcp://x:1")
    it.add(received(published_at=published_at), 0, 0)
    assert view(it)["way_ms"] is None


def test_the_history_is_averages_by_second_and_gaps() -> None:
    it = Board("tcp://x:1")
    it.end_second(0)
    for second, counts in enumerate([[1, 3], [], [5]]):
        for count in counts:
            it.add(received(count), second, second)
        it.end_second(second)
    people, cars = view(it)["classes"]
    assert (people["name"], people["now"], people["history"][-4:]) == (
        "person",
        3,
        [None, 1.5, None, 3],
    )
    assert (cars["name"], cars["now"], cars["history"][-4:]) == ("car", 2, [None, 0.5, None, 2])
    for second in range(dashboard_state.HISTORY):
        it.add(received(0), second, second)
        it.end_second(second)
    assert view(it)["classes"] == []


def test_what_is_sent_of_very_many_classes_and_sources_is_bounded() -> None:
    it = Board("tcp://x:1")
    many = dict(enumerate(f"class {n}" for n in range(500)))
    found = instances(500, (200, 300))
    found = Instances(found.boxes, found.scores, np.arange(500), found.masks, many, found.track_ids)
    whole = received()
    for number in range(100):
        message = msgspec.structs.replace(whole.message, source=f"cam{number}")
        it.add(Received(message, found, None), 0, 0)
    for second in range(3):
        it.end_second(second)
    told = it.message(0)
    assert len(told.sources) == dashboard_state.SOURCES_SHOWN
    assert told.hidden == 100 - dashboard_state.SOURCES_SHOWN
    assert len(told.sources[0].classes) == dashboard_state.CLASSES_SHOWN
    assert len(msgspec.json.encode(told)) < 1e6


def test_until_the_service_is_heard_it_is_being_connected_to() -> None:
    it = Board("tcp://x:1")
    assert it.message(1000.0).state == "connecting"
