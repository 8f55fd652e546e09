"""Closing a subscriber from any thread or signal handler ends its loop normally."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.ports import free_port
from support.publishers import result, service

import streamseg
from streamseg.client import subscriber as client_subscriber
from streamseg.errors import UsageError

KINDS = [{}, {"newest": True}, {"frames": "plain"}, {"frames": "plain", "newest": True}]
MAX_SECONDS = 3.0
"""Limit of the end of a loop, in seconds; without a wake-up it would take far longer."""


@pytest.fixture(params=KINDS, ids=str)
def subscriber(request, monkeypatch):
    """Connect without a service and with a long poll timeout: only ``close`` ends the loop."""
    monkeypatch.setattr(client_subscriber, "_POLL_TIMEOUT", 30.0)
    with streamseg.connect(f"tcp://127.0.0.1:{free_port()}", **request.param) as sub:
        yield sub


def close_later(subscriber, after: float = 0.15) -> threading.Timer:
    timer = threading.Timer(after, subscriber.close)
    timer.start()
    return timer


def test_close_from_another_thread_ends_the_loop(subscriber) -> None:
    started_at = time.monotonic()
    timer = close_later(subscriber)
    assert list(subscriber) == []
    timer.join()
    assert time.monotonic() - started_at < MAX_SECONDS
    assert subscriber.ended
    assert subscriber.receive() is None


def test_close_ends_an_async_loop(subscriber) -> None:
    async def read(*, in_loop: bool) -> list[object]:
        if in_loop:
            asyncio.get_running_loop().call_later(0.15, subscriber.close)
        else:
            close_later(subscriber)
        return [received async for received in subscriber]

    for in_loop in (False, True):  # the second time, the subscriber is already closed
        assert asyncio.run(asyncio.wait_for(read(in_loop=in_loop), MAX_SECONDS)) == []


def test_async_loop_may_close_its_own_subscriber(monkeypatch) -> None:
    monkeypatch.setattr(client_subscriber, "_POLL_TIMEOUT", 30.0)

    async def read() -> list[object]:
        sub = streamseg.connect(f"tcp://127.0.0.1:{free_port()}", newest=True)
        asyncio.get_running_loop().call_later(0.15, sub.close)
        return [received async for received in sub]

    assert asyncio.run(asyncio.wait_for(read(), MAX_SECONDS)) == []


def test_close_in_a_signal_handler_ends_the_loop(subscriber) -> None:
    """Repeated signals also interrupt ``close`` itself."""
    previous = signal.signal(signal.SIGALRM, lambda *_: subscriber.close())
    signal.setitimer(signal.ITIMER_REAL, 0.15, 0.001)
    try:
        assert list(subscriber) == []
        assert subscriber.receive() is None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_concurrent_closes_while_receiving_are_safe() -> None:
    with service() as running:
        sub = streamseg.connect(running.masks_endpoint)
        closers = [threading.Thread(target=sub.close) for _ in range(8)]
        running.wait_for_subscribers()
        running.put(*(result(index) for index in range(10)))
        received = []
        for item in sub:
            received.append(item.index)
            if len(received) == 3:
                for closer in closers:
                    closer.start()
        for closer in closers:
            closer.join()
    assert received[:3] == [0, 1, 2]


def test_receive_returns_none_while_another_thread_closes(subscriber) -> None:
    closing, closed = threading.Event(), threading.Event()

    def close_slowly() -> None:
        closing.set()
        closed.wait(MAX_SECONDS)

    close_sockets = subscriber._reader_lock._close_sockets
    subscriber._reader_lock._close_sockets = close_slowly
    closer = threading.Thread(target=subscriber.close)
    closer.start()
    assert closing.wait(MAX_SECONDS)
    assert subscriber.receive() is None
    closed.set()
    closer.join(MAX_SECONDS)
    subscriber._reader_lock._close_sockets = close_sockets
    subscriber.close()


def test_second_reader_is_a_usage_error(subscriber) -> None:
    reader = threading.Thread(target=lambda: list(subscriber))
    reader.start()
    time.sleep(0.15)
    with pytest.raises(UsageError, match="another thread or task"):
        subscriber.receive()
    subscriber.close()
    reader.join(MAX_SECONDS)
    assert not reader.is_alive()


EXIT_PROGRAM = """
import atexit, threading, time
import streamseg
class Holder:
    def __init__(self): self.sub = streamseg.connect("tcp://127.0.0.1:9", newest={newest})
    def __del__(self): self.sub.close()
holder = Holder()
if {reading}:
    threading.Thread(target=lambda: list(holder.sub), daemon=True).start()
    time.sleep(0.1)
if {at_exit}:
    atexit.register(holder.sub.close)
print("end")
"""


@pytest.mark.parametrize(
    ("newest", "reading", "at_exit"),
    [(False, True, False), (True, True, True), (True, False, False)],
)
def test_interpreter_exits_with_an_open_subscriber(newest, reading, at_exit) -> None:
    program = EXIT_PROGRAM.format(newest=newest, reading=reading, at_exit=at_exit)
    completed = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=20
    )
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "end\n", "")
