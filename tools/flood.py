"""Flood test: many clients send subscriptions while the delay of a subscriber is measured.

    python tools/flood.py --connections 20 --subscription 60

Starts a service (``streamseg serve``) with one live test pattern, one subscriber, and a process of
attackers that send distinct subscriptions as fast as possible and reconnect when disconnected.
Prints the age of results before, during and after the flood, lost results, and the growth of the
service's memory. Exits 1 if a result was lost or the service has not recovered at the end.

``--keys`` enables CURVE encryption in the service; the attackers have no keys.
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
from support.publishers import GREETING, encode_ready

import streamseg
from streamseg.errors import ReceiveTimeout
from streamseg.protocol.curve import KeyFolder, create_pair

FPS = 20
RECOVERED_MS = 100.0
"""Age of received results, in milliseconds, up to which the service has recovered."""
HANDSHAKE = GREETING + encode_ready(b"SUB")
SENT_AT_ONCE = 64 * 1024


def flood(port: int, connections: int, length: int, seconds: float) -> None:
    """Run the attackers; the target of their process."""
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=attack, args=(port, make_subscriptions(length), until))
        for _ in range(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def make_subscriptions(length: int) -> bytes:
    """Return many subscription frames with random topics of ``length`` bytes."""
    count = SENT_AT_ONCE // (length + 2)
    return b"".join(
        b"\x00" + bytes([length]) + b"\x01" + os.urandom(length - 1) for _ in range(count)
    )


def attack(port: int, chunk: bytes, until: float) -> None:
    """Connect repeatedly, and send on each connection until it is closed."""
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=1) as sock,
        ):
            sock.sendall(HANDSHAKE)
            answer = b""
            while len(answer) < len(HANDSHAKE) and (received := sock.recv(len(HANDSHAKE))):
                answer += received
            while answer and time.monotonic() < until:
                sock.sendall(chunk)


@contextlib.contextmanager
def run_service(folder: Path, port: int, keys: KeyFolder | None) -> Iterator[int]:
    """Run a service with one camera; yield its process id."""
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


def read_rss(process: int) -> int:
    """Return the resident memory of a process in bytes."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure_ages(results: streamseg.Subscriber, seconds: float) -> list[tuple[float, float]]:
    """Return the arrival time in seconds and the age in milliseconds of each result."""
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


def summarize(seen: list[tuple[float, float]], seconds: float) -> str:
    """Return ages and the longest time without a result as text."""
    if not seen:
        return f"no result in {seconds:g} s"
    times = [0.0, *(at for at, _ in seen), seconds]
    silence = max(after - before for before, after in itertools.pairwise(times))
    ages = sorted(age for _, age in seen)
    return (
        f"{len(seen)} results, age {median(ages):.0f} ms, p90 {ages[int(0.9 * len(ages))]:.0f} ms, "
        f"at most {ages[-1]:.0f} ms; longest silence {silence:.1f} s"
    )


def recovery_time(seen: list[tuple[float, float]]) -> float:
    """Return the seconds after which no result was older than ``RECOVERED_MS``."""
    return max((at for at, age in seen if age > RECOVERED_MS), default=0.0)


def create_keys(folder: Path) -> tuple[KeyFolder, dict[str, Path]]:
    """Create the keys of the service, and return the key options of the subscriber."""
    create_pair(folder / "keys", "server")
    keys = KeyFolder(folder / "keys")
    keys.allow(create_pair(folder, "good").public, "good")
    return keys, {"server_key": keys.path / "server.pub", "key_file": folder / "good.key"}


def main() -> None:
    """Measure, print the results, set the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--subscription", type=int, default=60, help="bytes of each subscription")
    parser.add_argument("--seconds", type=float, default=10, help="duration of the flood")
    parser.add_argument("--after", type=float, default=30, help="seconds measured after the flood")
    parser.add_argument("--keys", action="store_true", help="enable CURVE encryption")
    options = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys, mine = create_keys(folder) if options.keys else (None, {})
        with (
            run_service(folder, port, keys) as process,
            streamseg.connect(f"tcp://127.0.0.1:{port}", timeout=60, **mine) as results,
        ):
            results.receive()
            before = measure_ages(results, 5)
            rss_before = read_rss(process)
            attackers = multiprocessing.get_context("spawn").Process(
                target=flood,
                args=(port, options.connections, options.subscription, options.seconds),
            )
            attackers.start()
            during = measure_ages(results, options.seconds)
            after = measure_ages(results, options.after)
            attackers.join()
            growth = read_rss(process) - rss_before
            lost = sum(results.gaps.values())
    print(f"before: {summarize(before, 5)}")
    print(f"during: {summarize(during, options.seconds)}")
    print(
        f"after:  {summarize(after, options.after)}; recovered after {recovery_time(after):.1f} s"
    )
    print(f"lost {lost}, grew by {growth / 1e6:.0f} MB")
    sys.exit(lost > 0 or not after or after[-1][1] > RECOVERED_MS)


if __name__ == "__main__":
    main()
