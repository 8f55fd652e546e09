"""The subscriber with publishers that send invalid or hostile messages."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import read_resident_memory
from support.publishers import encode_solid_jpeg, wait_until
from support.subscribers import feed_and_take, masks_json, raw_publisher, status_json

import streamseg
from streamseg import client, protocol
from streamseg.client import link
from streamseg.client import session as session_module
from streamseg.client.session import Session
from streamseg.errors import ReceiveTimeout
from streamseg.protocol.messages import ReplayAnswer


@pytest.mark.parametrize("kind", ["masks", pytest.param("frames", marks=pytest.mark.slow)])
def test_subscriber_recovers_after_an_oversized_message(monkeypatch, kind) -> None:
    """libzmq abandons such a connection."""
    monkeypatch.setattr(link, "RECONNECT_AFTER", 0.4)
    monkeypatch.setattr(protocol, "MAX_JSON_BYTES", 100_000)
    monkeypatch.setattr(protocol, "MAX_JPEG_BYTES", 100_000)
    frames = False if kind == "masks" else "annotated"
    with raw_publisher() as (sock, at):
        options = {} if kind == "masks" else {"frames_address": at}
        with streamseg.connect(at, timeout=0.1, frames=frames, **options) as sub:
            assert sock.recv().startswith(b"\x01")
            numbers = itertools.count()
            for _ in range(2):
                sock.send_multipart([f"{kind}/gate/".encode(), bytes(200_000)])
                received, deadline = None, time.monotonic() + 10
                while received is None and time.monotonic() < deadline:
                    seq = next(numbers)
                    tail = [encode_solid_jpeg()] if kind == "frames" else []
                    sock.send_multipart([f"{kind}/gate/".encode(), masks_json(seq), *tail])
                    with contextlib.suppress(ReceiveTimeout):
                        received = sub.receive()
                assert received is not None, "no message received"
            assert sub.reopened >= 2


def test_idle_subscriber_queues_a_bounded_number_of_messages() -> None:
    with raw_publisher(send_hwm=10) as (sock, at), streamseg.connect(at, timeout=1) as sub:
        assert sock.recv()
        noise = os.urandom(1_000_000)
        before = read_resident_memory()
        for _ in range(200):
            sock.send_multipart([b"masks/gate/", noise])
            time.sleep(0.002)
        assert read_resident_memory() - before < (client.MASKS_QUEUED + 10 + 15) * len(noise)
        with pytest.raises(ReceiveTimeout):
            sub.receive()
        assert sub.rejected >= client.MASKS_QUEUED


def test_malformed_messages_are_counted_and_skipped() -> None:
    valid = masks_json(7)
    malformed = [
        [b""],
        [b"masks/gate/"],
        [b"masks/gate/", valid, b"more"],
        [b"masks//", masks_json(1, source="gate")],
        [b"masks/../", valid],
        [b"masks/other/", valid],
        [b"frames/gate/", valid, b"jpeg"],
        [b"nonsense/gate/", valid],
        [b"masks/gate/", b""],
        [b"masks/gate/", b"[]"],
        [b"masks/gate/", b"\xff\xfe"],
        [b"masks/gate/", valid[:-1]],
        [b"masks/gate/", b"[" * 100_000],
        [b"masks/gate/", valid.replace(b'"v":1', b'"v":2')],
        [b"masks/gate/", valid.replace(b'"size":[40,60]', b'"size":[40,61]')],
        [b"masks/gate/", valid.replace(b'"size":[40,60]', b'"size":[-40,-60]')],
        [b"masks/gate/", valid.replace(b'"size":[40,60]', b'"size":[100000,100000]')],
        [b"masks/gate/", valid.replace(b'"track":1', b'"track":99999999999999999999')],
        [b"masks/gate/", valid.replace(b'"label":1', b'"label":null')],
        [b"masks/gate/", valid.replace(b'"score":0.8', b'"score":1e300,"s":0.8')],
        [b"masks/gate/", valid.replace(b'"rle":"', b'"rle":"0')],
        [b"masks/gate/", valid.replace(b'"rle":"', b'"rle":"\xc3\xa9')],
        [b"status//", status_json().replace(b"live", b"lively")],
        [b"status/x/", status_json()],
        [b"status//", valid],
    ]
    with raw_publisher() as (sock, at), streamseg.connect(at, timeout=5) as sub:
        for _ in range(2):
            assert sock.recv()
        for parts in malformed:
            assert parts[-1] != valid or parts[0] != b"masks/gate/"
            sock.send_multipart(parts)
        sock.send_multipart([b"masks/gate/", valid])
        assert sub.receive().seq == 7
        matching = [parts for parts in malformed if parts[0].startswith((b"masks/", b"status/"))]
        assert sub.rejected == len(matching)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_arbitrary_parts_do_not_crash_the_session(parts) -> None:
    session = Session(None, "masks", 10_000)
    assert feed_and_take(session, parts) is None
    session.feed_service_status(parts)
    assert session.rejected == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_FIELDS = sorted(msgspec.json.decode(masks_json()))
_ROW_FIELDS = sorted(msgspec.json.decode(masks_json())["instances"][0])


@given(st.sampled_from(_FIELDS), st.sampled_from(_ROW_FIELDS), JSON, st.booleans())
def test_arbitrary_field_values_do_not_crash_the_session(field, row_field, value, in_row) -> None:
    message = msgspec.json.decode(masks_json())
    if in_row:
        message["instances"][1][row_field] = value
    else:
        message[field] = value
    session = Session(None, "masks", 10_000, uses_replay=True)
    session.feed([b"status//", status_json(endpoints={"replay": "tcp://127.0.0.1:7"})])
    received = feed_and_take(session, [b"masks/gate/", msgspec.json.encode(message)])
    assert (received is None) == (session.rejected == 1)
    if received is not None:
        assert received.instances.masks.areas.sum() <= 40 * 60 * len(received.instances)
        assert received.instances.to_coco(1) is not None


@given(st.integers() | st.integers(2**63 - 3, 2**64 + 3), st.booleans())
def test_arbitrary_sequence_numbers_do_not_crash_replay(number, in_status) -> None:
    session = Session(None, "masks", 10_000, uses_replay=True)
    endpoints = {"replay": "tcp://127.0.0.1:7"}
    session.feed([b"status//", status_json(endpoints=endpoints)])
    assert feed_and_take(session, [b"masks/gate/", masks_json(0)]).seq == 0
    for value in (number, number + 2):
        if in_status:
            changes = {"published": value, "seq": value % 2**62}
            status = msgspec.json.decode(status_json(source="gate", endpoints=endpoints)) | changes
            session.feed([b"status/gate/", json.dumps(status).encode()])
        else:
            message = msgspec.json.decode(masks_json(0)) | {"seq": value}
            session.feed([b"masks/gate/", json.dumps(message).encode()])
        _answer_all(session)


def _answer_all(session) -> None:
    """Answer every replay request with an empty answer."""
    for _ in range(5):
        if session.next_request() is None:
            return
        answer = ReplayAnswer(
            v=1, service="one", source="gate", complete=True, first=None, last=None
        )
        assert session.feed_replay([protocol.encode(answer)])
    raise AssertionError("the session requests without end")


def test_number_of_sources_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(session_module, "MAX_SOURCES", 5)
    session = Session(None, "masks", 10_000)
    for i in range(20):
        name = f"s{i}"
        feed_and_take(
            session, [f"masks/{name}/".encode(), masks_json(source=name, service=str(i % 3))]
        )
        feed_and_take(
            session, [f"status/{name}/".encode(), status_json(source=name, service=str(i % 3))]
        )
    assert len(session.gaps) <= 5
    assert len(session.statuses) <= 5
    assert session.rejected > 0


@pytest.mark.parametrize(
    "address",
    ["", "tcp://127.0.0.1:0", "udp://1", "tcp://-:5", "inproc://x", "tcp://127.0.0.1:99999"],
)
def test_invalid_images_address_is_rejected(address) -> None:
    with raw_publisher() as (sock, at), streamseg.connect(at, frames="plain") as sub:
        assert sock.recv()
        sock.send_multipart([b"status//", status_json(endpoints={"frames": address})])

        def is_rejected() -> bool:
            with pytest.raises(ReceiveTimeout):
                sub.receive(timeout=0.1)
            return sub.rejected > 0

        wait_until(is_rejected)
        assert sub.rejected == 1


def test_wildcard_images_address_is_resolved_to_the_masks_host() -> None:
    with raw_publisher() as (sock, at), raw_publisher() as (images, images_at):
        port = protocol.Address.parse(images_at).port
        with streamseg.connect(at, frames="plain", timeout=5) as sub:
            assert sock.recv()
            status = status_json(endpoints={"frames": f"tcp://0.0.0.0:{port}"})
            sock.send_multipart([b"status//", status])
            publisher_thread = threading.Thread(
                target=lambda: (
                    images.recv(),
                    images.recv(),
                    images.send_multipart([b"video/gate/", masks_json(), encode_solid_jpeg()]),
                )
            )
            publisher_thread.start()
            assert sub.receive().jpeg == encode_solid_jpeg()
            publisher_thread.join()
