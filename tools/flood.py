"""Flood a service with subscriptions, and measure what a good subscriber notices.

    python tools/flood.py --connections 20 --subscription 60

A service of its own (``streamseg serve``) with one live test pattern, one subscriber, and a process
of strangers that send distinct subscriptions as fast as they are taken, and come back as soon as
they are cut off. Prints how late results were while they did and afterwards, what was lost, and how
much the service grew; exits 1 if a result was lost or the service isn't itself again at the end.

``--keys`` gives the service keys; the strangers have none.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.ports import free_port
from support.publishers import GREETING, ready

import streamseg
from streamseg.errors import ReceiveTimeout
from streamseg.protocol.curve import KeyFolder, create_pair

FPS = 20
ITSELF_MS = 100.0
"""Results no older than this when they are received say that the service is itself again."""
HANDSHAKE = GREETING + ready(b"SUB")
SENT_AT_ONCE = 64 * 1024


def flood(port: int, connections: int, length: int, seconds: float) -> None:
    """What the process of strangers does."""
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=be_a_stranger, args=(port, subscriptions(length), until))
        for _ in range(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def subscriptions(length: int) -> bytes:
    """Many, no two alike as far as their length allows."""
    count = SENT_AT_ONCE // (length + 2)
    return b"".join(
        b"\x00" + bytes([length]) + b"\x01" + os.urandom(length - 1) for _ in range(count)
    )


def be_a_stranger(port: int, chunk: bytes, until: float) -> None:
    """Make one connection after the other, and send on each until it is cut off."""
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=1) as sock,
        ):
            sock.sendall(HANDSHAKE)
            answer = b""
            while len(answer) < len(HANDSHAKE) and (some := sock.recv(len(HANDSHAKE))):
                answer += some
            while answer and time.monotonic() < until:
                sock.sendall(chunk)


@contextlib.contextmanager
def service(folder: Path, port: int, keys: KeyFolder | None) -> Iterator[int]:
    """A service of one camera; its process."""
    config = {
        "sources": [{"url": f"test:?live=1&size=320x240&fps={FPS}", "name": "camera"}],
        "model": {"input_size": 128},
        "worker": {"threads": 1},
        "publish": {"bind": f"tcp://127.0.0.1:{port}"} | ({"keys": str(keys.path)} if keys else {}),
        "control": {"enabled": False},
    }
    file = folder / "flood.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "streamseg", "serve", str(file)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - ourselves
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def rss(process: int) -> int:
    """Bytes of a process that are in memory."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def late(results: streamseg.Subscriber, seconds: float) -> list[tuple[float, float]]:
    """When each result of so many seconds came, and how old it was then, in milliseconds."""
    seen: list[tuple[float, float]] = []
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        with contextlib.suppress(ReceiveTimeout):
            result = results.receive(timeout=left)
            if result is None:
                sys.exit("the service has ended")
            age = result.age_ms + (time.time() - result.published_at) * 1000
            seen.append((time.monotonic() - began, age))
    return seen


def summed_up(seen: list[tuple[float, float]], seconds: float) -> str:
    """Ages and the longest silence, in words."""
    if not seen:
        return f"no result in {seconds:g} s"
    times = [0.0, *(at for at, _ in seen), seconds]
    silence = max(after - before for before, after in itertools.pairwise(times))
    ages = sorted(age for _, age in seen)
    return (
        f"{len(seen)} results, age {median(ages):.0f} ms, p90 {ages[int(0.9 * len(ages))]:.0f} ms, "
        f"at most {ages[-1]:.0f} ms; longest silence {silence:.1f} s"
    )


def itself_after(seen: list[tuple[float, float]]) -> float:
    """Seconds after which no result was older than ``ITSELF_MS`` any more."""
    return max((at for at, age in seen if age > ITSELF_MS), default=0.0)


def made_keys(folder: Path) -> tuple[KeyFolder, dict[str, Path]]:
    """A service's keys, and what the good subscriber needs."""
    create_pair(folder / "keys", "server")
    keys = KeyFolder(folder / "keys")
    keys.allow(create_pair(folder, "good").public, "good")
    return keys, {"server_key": keys.path / "server.pub", "key_file": folder / "good.key"}


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--subscription", type=int, default=60, help="bytes of each")
    parser.add_argument("--seconds", type=float, default=10, help="of the flood")
    parser.add_argument("--after", type=float, default=30, help="seconds watched afterwards")
    parser.add_argument("--keys", action="store_true", help="the service has keys")
    options = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys, mine = made_keys(folder) if options.keys else (None, {})
        with (
            service(folder, port, keys) as process,
            streamseg.connect(f"tcp://127.0.0.1:{port}", timeout=60, **mine) as results,
        ):
            results.receive()
            before = late(results, 5)
            small = rss(process)
            strangers = multiprocessing.get_context("spawn").Process(
                target=flood,
                args=(port, options.connections, options.subscription, options.seconds),
            )
            strangers.start()
            during = late(results, options.seconds)
            after = late(results, options.after)
            strangers.join()
            expand_boxes = rss(process) - small
            lost = sum(results.gaps.values())
    print(f"before: {summed_up(before, 5)}")
    print(f"during: {summed_up(during, options.seconds)}")
    print(f"after:  {summed_up(after, options.after)}; itself after {itself_after(after):.1f} s")
    print(f"lost {lost}, expand_boxes by {expand_boxes / 1e6:.0f} MB")
    sys.exit(lost > 0 or not after or after[-1][1] > ITSELF_MS)


if __name__ == "__main__":
    main()
