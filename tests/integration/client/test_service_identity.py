"""Service check: images of another service, reached through a tunnel, are never returned."""

from __future__ import annotations

import contextlib
import threading

import pytest
from support.publishers import jpeg, result, service
from support.subscribers import lying_publisher, masks_json, status_json

import streamseg
from streamseg import protocol
from streamseg.client import service_identity
from streamseg.client.session import Session
from streamseg.errors import ReceiveTimeout

FRAMES = protocol.topic("frames", "gate")
STATUS = protocol.topic("status", "")


@contextlib.contextmanager
def status_publisher(**status: object):
    """Run a masks publisher that repeats its status; yields its address."""
    with lying_publisher() as (sock, at):
        over = threading.Event()

        def publish_statuses() -> None:
            seq = 0
            while not over.wait(0.05):
                sock.send_multipart([STATUS, status_json(seq=seq, **status)])
                seq += 1

        publisher_thread = threading.Thread(target=publish_statuses)
        publisher_thread.start()
        try:
            yield at
        finally:
            over.set()
            publisher_thread.join()


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("newest", [False, True])
def test_image_of_another_service_is_never_returned(newest, named, caplog) -> None:
    with (
        service() as near,
        status_publisher(started="far", endpoints={"frames": near.frames_at}) as far,
    ):
        options = {"frames_address": near.frames_at} if named else {}
        with streamseg.connect(
            far, frames="annotated", newest=newest, timeout=0.8, **options
        ) as sub:
            stopped = threading.Event()

            def show() -> None:
                index = 0
                while not stopped.wait(0.05):
                    near.show(result(index), jpeg())
                    index += 1

            showing = threading.Thread(target=show)
            showing.start()
            try:
                with pytest.raises(ReceiveTimeout, match=r"frames_address \(--frames-address\)"):
                    sub.receive()
            finally:
                stopped.set()
                showing.join()
            assert sub.rejected > 0
            assert not sub.ended
        lines = [r.message for r in caplog.records if "another service" in r.message]
        assert len(lines) == 1
        assert near.publisher.service in lines[0]


def test_end_of_another_service_is_ignored() -> None:
    with (
        service() as near,
        status_publisher(started="far", endpoints={"frames": near.frames_at}) as far,
        streamseg.connect(far, frames="annotated", timeout=0.6) as sub,
    ):
        with contextlib.suppress(ReceiveTimeout):
            sub.receive()
        near.publisher.set_state("", "ended", "over", 0)
        with pytest.raises(ReceiveTimeout):
            sub.receive()


# Without sockets: all orders of arrival


def image_session() -> Session:
    return Session(None, "frames", 10_000, has_status_link=True)


def feed_status(session: Session, started: str, seq: int = 0) -> None:
    session.feed_service_status(
        [STATUS, status_json(seq=seq, started=started, endpoints={"frames": "tcp://h:1"})]
    )


def show(session: Session, seq: int, started: str) -> list[int]:
    """Feed an image; return the sequence numbers of all results that are ready then."""
    session.feed([FRAMES, masks_json(seq, started=started), jpeg()])
    return given(session)


def given(session: Session) -> list[int]:
    numbers = []
    while (received := session.take()) is not None:
        numbers.append(received.seq)
    return numbers


def test_image_waits_for_the_status_of_its_service() -> None:
    session = image_session()
    assert show(session, 0, "one") == show(session, 1, "one") == []
    feed_status(session, "one")
    assert given(session) == [0, 1]
    assert show(session, 2, "one") == [2]
    assert session.other_service is None


def test_restarted_service_is_accepted_in_any_order_of_arrival() -> None:
    session = image_session()
    feed_status(session, "one")
    assert show(session, 0, "one") == [0]
    assert show(session, 0, "two") == []  # the images arrive before the status
    feed_status(session, "two")
    assert given(session) == [0]
    assert show(session, 1, "two") == [1]
    feed_status(session, "three")  # the status arrives before an earlier image
    assert show(session, 2, "two") == [2]
    assert show(session, 0, "three") == [0]
    assert (session.rejected, session.other_service) == (0, None)


def test_other_service_is_reported_and_its_images_are_discarded() -> None:
    session = image_session()
    feed_status(session, "one")
    for seq in range(100):
        assert show(session, seq, "other") == []
    feed_status(session, "one", 1)
    assert given(session) == []
    assert session.other_service == ("one", "other")
    assert session.rejected == service_identity.MAX_BUFFERED_IMAGES


def test_images_of_an_explicit_address_are_returned_when_the_masks_are_unreachable(
    monkeypatch,
) -> None:
    monkeypatch.setattr(service_identity, "ANSWER_TIMEOUT", 0.0)
    session = image_session()
    assert show(session, 0, "one") == [0]
    assert show(session, 1, "one") == [1]
    feed_status(session, "far")  # the status arrives, and it is another service
    assert show(session, 2, "one") == []
