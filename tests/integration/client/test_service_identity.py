"""Through a tunnel the address that a service names for its pictures may be another service's."""

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
def saying(**status: object):
    """A publisher of masks that says, again and again, who it is; its address."""
    with lying_publisher() as (sock, at):
        over = threading.Event()

        def say() -> None:
            seq = 0
            while not over.wait(0.05):
                sock.send_multipart([STATUS, status_json(seq=seq, **status)])
                seq += 1

        speaker = threading.Thread(target=say)
        speaker.start()
        try:
            yield at
        finally:
            over.set()
            speaker.join()


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("newest", [False, True])
def test_a_picture_of_another_service_is_never_given(newest, named, caplog) -> None:
    with service() as near, saying(started="far", endpoints={"frames": near.frames_at}) as far:
        options = {"frames_address": near.frames_at} if named else {}
        with streamseg.connect(
            far, frames="annotated", newest=newest, timeout=0.8, **options
        ) as sub:
            pictures = threading.Event()

            def show() -> None:
                index = 0
                while not pictures.wait(0.05):
                    near.show(result(index), jpeg())
                    index += 1

            showing = threading.Thread(target=show)
            showing.start()
            try:
                with pytest.raises(ReceiveTimeout, match=r"frames_address \(--frames-address\)"):
                    sub.receive()
            finally:
                pictures.set()
                showing.join()
            assert sub.rejected > 0
            assert not sub.ended
        lines = [r.message for r in caplog.records if "another service" in r.message]
        assert len(lines) == 1
        assert near.publisher.service in lines[0]


def test_the_end_of_another_service_ends_nothing() -> None:
    with (
        service() as near,
        saying(started="far", endpoints={"frames": near.frames_at}) as far,
        streamseg.connect(far, frames="annotated", timeout=0.6) as sub,
    ):
        with contextlib.suppress(ReceiveTimeout):
            sub.receive()
        near.publisher.set_state("", "ended", "over", 0)
        with pytest.raises(ReceiveTimeout):
            sub.receive()


# Without sockets: every order in which things may come


def guided() -> Session:
    return Session(None, "frames", 10_000, guided=True)


def say(known: Session, started: str, seq: int = 0) -> None:
    known.feed_guide(
        [STATUS, status_json(seq=seq, started=started, endpoints={"frames": "tcp://h:1"})]
    )


def show(known: Session, seq: int, started: str) -> list[int]:
    """The numbers of all that is given after a picture has come."""
    known.feed([FRAMES, masks_json(seq, started=started), jpeg()])
    return given(known)


def given(known: Session) -> list[int]:
    numbers = []
    while (received := known.take()) is not None:
        numbers.append(received.seq)
    return numbers


def test_a_picture_that_comes_before_its_service_has_said_who_it_is_waits_for_that() -> None:
    known = guided()
    assert show(known, 0, "one") == show(known, 1, "one") == []
    say(known, "one")
    assert given(known) == [0, 1]
    assert show(known, 2, "one") == [2]
    assert known.other_service is None


def test_a_service_that_starts_again_is_still_the_same_one_whichever_is_heard_first() -> None:
    known = guided()
    say(known, "one")
    assert show(known, 0, "one") == [0]
    assert show(known, 0, "two") == []  # the pictures are there before the status
    say(known, "two")
    assert given(known) == [0]
    assert show(known, 1, "two") == [1]
    say(known, "three")  # the status is there before the last picture of the one before
    assert show(known, 2, "two") == [2]
    assert show(known, 0, "three") == [0]
    assert (known.rejected, known.other_service) == (0, None)


def test_another_service_is_named_and_none_of_its_pictures_is_kept() -> None:
    known = guided()
    say(known, "one")
    for seq in range(100):
        assert show(known, seq, "other") == []
    say(known, "one", 1)
    assert given(known) == []
    assert known.other_service == ("one", "other")
    assert known.rejected == service_identity.HELD_PICTURES


def test_pictures_of_a_named_address_come_when_the_masks_cannot_be_reached(monkeypatch) -> None:
    monkeypatch.setattr(service_identity, "ANSWER_WITHIN", 0.0)
    known = guided()
    assert show(known, 0, "one") == [0]
    assert show(known, 1, "one") == [1]
    say(known, "far")  # until they can, and say that it is another
    assert show(known, 2, "one") == []
