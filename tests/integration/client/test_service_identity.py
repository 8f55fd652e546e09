"""Service check: images of another service, reached through a tunnel, are never returned."""

from __future__ import annotations

import contextlib
import threading

import pytest
from support.publishers import encode_solid_jpeg, result, service
from support.subscribers import masks_json, raw_publisher, status_json

import streamseg
from streamseg import protocol
from streamseg.client import service_identity
from streamseg.client.session import Session
from streamseg.errors import ReceiveTimeout

FRAMES = protocol.topic("frames", "gate")
STATUS = protocol.topic("status", "")


@contextlib.contextmanager
def status_publisher(**status: object):
    """Run a masks publisher that repeats its status; yield its address."""
    with raw_publisher() as (sock, at):
        stopped = threading.Event()

        def publish_statuses() -> None:
            seq = 0
            while not stopped.wait(0.05):
                sock.send_multipart([STATUS, status_json(seq=seq, **status)])
                seq += 1

        publisher_thread = threading.Thread(target=publish_statuses)
        publisher_thread.start()
        try:
            yield at
        finally:
            stopped.set()
            publisher_thread.join()


@pytest.mark.parametrize("has_address", [False, True])
@pytest.mark.parametrize("newest", [False, True])
def test_image_of_another_service_is_never_returned(newest, has_address, caplog) -> None:
    with (
        service() as near,
        status_publisher(service="far", endpoints={"frames": near.images_endpoint}) as far,
    ):
        options = {"frames_address": near.images_endpoint} if has_address else {}
        with streamseg.connect(
            far, frames="annotated", newest=newest, timeout=0.8, **options
        ) as sub:
            stopped = threading.Event()

            def publish_images() -> None:
                index = 0
                while not stopped.wait(0.05):
                    near.put_images(result(index), encode_solid_jpeg())
                    index += 1

            publisher_thread = threading.Thread(target=publish_images)
            publisher_thread.start()
            try:
                with pytest.raises(ReceiveTimeout, match=r"frames_address \(--frames-address\)"):
                    sub.receive()
            finally:
                stopped.set()
                publisher_thread.join()
            assert sub.rejected > 0
            assert not sub.ended
        lines = [r.message for r in caplog.records if "another service" in r.message]
        assert len(lines) == 1
        assert near.publisher.service in lines[0]


def test_end_of_another_service_is_ignored() -> None:
    with (
        service() as near,
        status_publisher(service="far", endpoints={"frames": near.images_endpoint}) as far,
        streamseg.connect(far, frames="annotated", timeout=0.6) as sub,
    ):
        with contextlib.suppress(ReceiveTimeout):
            sub.receive()
        near.publisher.set_state("", "ended", "end of stream", 0)
        with pytest.raises(ReceiveTimeout):
            sub.receive()


# Without sockets: all orders of arrival


def image_session() -> Session:
    return Session(None, "frames", 10_000, has_status_link=True)


def feed_status(session: Session, service: str, seq: int = 0) -> None:
    session.feed_service_status(
        [STATUS, status_json(seq=seq, service=service, endpoints={"frames": "tcp://h:1"})]
    )


def feed_image(session: Session, seq: int, service: str) -> list[int]:
    """Feed an image; return the sequence numbers of all results that are ready then."""
    session.feed([FRAMES, masks_json(seq, service=service), encode_solid_jpeg()])
    return take_seqs(session)


def take_seqs(session: Session) -> list[int]:
    numbers = []
    while (received := session.take()) is not None:
        numbers.append(received.seq)
    return numbers


def test_image_waits_for_the_status_of_its_service() -> None:
    session = image_session()
    assert feed_image(session, 0, "one") == feed_image(session, 1, "one") == []
    feed_status(session, "one")
    assert take_seqs(session) == [0, 1]
    assert feed_image(session, 2, "one") == [2]
    assert session.other_service is None


def test_restarted_service_is_accepted_in_any_order_of_arrival() -> None:
    session = image_session()
    feed_status(session, "one")
    assert feed_image(session, 0, "one") == [0]
    assert feed_image(session, 0, "two") == []  # the images arrive before the status
    feed_status(session, "two")
    assert take_seqs(session) == [0]
    assert feed_image(session, 1, "two") == [1]
    feed_status(session, "three")  # the status arrives before an earlier image
    assert feed_image(session, 2, "two") == [2]
    assert feed_image(session, 0, "three") == [0]
    assert (session.rejected, session.other_service) == (0, None)


def test_other_service_is_reported_and_its_images_are_discarded() -> None:
    session = image_session()
    feed_status(session, "one")
    for seq in range(100):
        assert feed_image(session, seq, "other") == []
    feed_status(session, "one", 1)
    assert take_seqs(session) == []
    assert session.other_service == ("one", "other")
    assert session.rejected == service_identity.MAX_BUFFERED_IMAGES


def test_other_service_is_reported_with_the_latest_start_of_the_service() -> None:
    session = image_session()
    feed_status(session, "one")
    feed_status(session, "two")
    assert feed_image(session, 0, "other") == []
    feed_status(session, "two", 1)
    assert session.other_service == ("two", "other")


def test_latest_status_of_each_source_waits_for_the_status_of_its_service(monkeypatch) -> None:
    monkeypatch.setattr(service_identity, "MAX_BUFFERED_STATUSES", 2)
    session = image_session()
    for seq, name in enumerate(["gate", "yard", "hall", "gate"]):
        topic = protocol.topic("status", name)
        session.feed([topic, status_json(seq=seq, source=name, service="one")])
    assert session.statuses == {}
    feed_status(session, "one")
    assert {name: status.seq for name, status in session.statuses.items()} == {"gate": 3, "yard": 1}


def test_images_of_an_explicit_address_are_returned_when_the_masks_are_unreachable(
    monkeypatch,
) -> None:
    monkeypatch.setattr(service_identity, "ANSWER_TIMEOUT", 0.0)
    session = image_session()
    assert feed_image(session, 0, "one") == [0]
    assert feed_image(session, 1, "one") == [1]
    feed_status(session, "far")  # the status is that of another service
    assert feed_image(session, 2, "one") == []
