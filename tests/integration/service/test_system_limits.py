"""Limits of open files and threads: checked before the start; the HTTP API stays reachable."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import command, environment

from streamseg.config import PublishConfig, SourceConfig
from streamseg.errors import ConfigError
from streamseg.service import capacity, system_limits
from streamseg.service.capacity import OWN_FILES, check_capacity
from streamseg.service.system_limits import FileReserve, check_open_files, check_threads
from streamseg.sinks.zmq.endpoints import max_connections_within, open_files_needed
from streamseg.sources import open_source


def run_program(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20
    ).stdout


def cameras(count: int):
    return [
        open_source(SourceConfig(url="rtsp://127.0.0.1:9/x", name=f"c{n}")) for n in range(count)
    ]


@pytest.mark.parametrize("publish", [PublishConfig(max_connections=1), PublishConfig(replay=0)])
@pytest.mark.parametrize("count", [1, 40])
def test_the_limit_in_the_message_is_exactly_sufficient(monkeypatch, publish, count) -> None:
    sources = cameras(count)
    monkeypatch.setattr(system_limits, "raise_open_files_limit", lambda: 1)
    with pytest.raises(ConfigError) as refused:
        check_capacity(publish, (), sources)
    advised = int(re.search(r"ulimit -n (\d+)", str(refused.value))[1])
    monkeypatch.setattr(system_limits, "raise_open_files_limit", lambda: advised)
    check_capacity(publish, (), sources)
    monkeypatch.setattr(system_limits, "raise_open_files_limit", lambda: advised - 1)
    with pytest.raises(ConfigError, match=f"^{advised} open files are needed"):
        check_capacity(publish, (), sources)


@given(st.integers(2, 10_000), st.booleans(), st.integers(0, 100_000))
def test_the_advised_number_of_connections_fits_and_one_more_does_not(
    requested, has_replay, available
) -> None:
    def publish(connections: int) -> PublishConfig:
        return PublishConfig(max_connections=connections, replay=30 if has_replay else 0)

    advised = max_connections_within(publish(requested), available)
    if advised >= 1:
        assert open_files_needed(publish(advised)) <= available
    assert open_files_needed(publish(max(advised, 0) + 1)) > available


def test_fewer_connections_are_advised_only_if_that_helps(monkeypatch) -> None:

    for limit, advised in [(500, False), (OWN_FILES + 1500, True)]:
        for module in (system_limits, capacity):
            monkeypatch.setattr(module, "raise_open_files_limit", lambda limit=limit: limit)
        with pytest.raises(ConfigError) as refused:
            check_capacity(PublishConfig(), (), cameras(1))
        assert ("publish.max_connections to" in str(refused.value)) == advised


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    program = (
        "import resource\nfrom streamseg.service.system_limits import raise_open_files_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300))\n"
        "print(raise_open_files_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert completed.stdout == "300 (300, 300)\n"


@pytest.mark.slow
def test_a_service_beyond_the_limit_of_open_files_is_refused(tmp_path) -> None:
    config = tmp_path / "many.yaml"
    rows = "".join(f"  - {{name: c{n}, url: 'rtsp://127.0.0.1:9/x'}}\n" for n in range(200))
    config.write_text("publish: {max_connections: 1, bind: 'tcp://127.0.0.1:*'}\nsources:\n" + rows)
    completed = subprocess.run(
        command("serve", config),
        check=False, capture_output=True, text=True, timeout=60, env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 700)),
    )  # fmt: skip
    assert completed.returncode == 2
    assert completed.stderr == (
        "streamseg: 1446 open files are needed (390 for subscribers, 800 for sources, 256 for the "
        "service itself), and this process may have 700: raise the limit (ulimit -n 1446; "
        "LimitNOFILE= of a systemd unit)\n"
    )


def test_too_few_threads_are_an_error_of_one_line(monkeypatch) -> None:
    before = threading.active_count()
    check_threads(50)
    assert threading.active_count() == before
    start = threading.Thread.start
    allowed = iter(range(7))

    def start_limited(thread: threading.Thread) -> None:
        if next(allowed, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_limited)
    with pytest.raises(ConfigError, match="50 threads are needed, and the system allows 7: raise"):
        check_threads(50)
    assert threading.active_count() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the threads of a user")
def test_the_limit_of_threads_of_the_system_is_found() -> None:
    program = (
        "import os, resource\nfrom streamseg.errors import ConfigError\n"
        "from streamseg.service.system_limits import check_threads\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (20, 20))\n"
        "if os.getuid() == 0: os.setuid(64321)\n"  # the administrator has no limit
        "try: check_threads(5000)\nexcept ConfigError as error: print(error)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert re.match(r"5000 threads are needed, and the system allows \d+: raise", completed.stdout)


def test_needed_open_files_are_listed_by_purpose() -> None:
    with pytest.raises(ConfigError, match=r"\(2 for this, 99999999 for that\)"):
        check_open_files({"this": 2, "nothing": 0, "that": 99_999_999})


def test_a_returned_descriptor_is_never_free_in_between() -> None:
    reserve = FileReserve()
    try:
        assert reserve.release_one()
        server, client = socket.socketpair()
        descriptor = server.detach()
        reserve.take_back(descriptor)
        assert client.recv(1) == b""  # the connection is closed
        client.close()
        assert Path(f"/proc/self/fd/{descriptor}").readlink() == Path(os.devnull)
        extra = os.dup(descriptor)
        reserve.take_back(extra)  # the reserve is complete
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(extra)
    finally:
        reserve.close()
        reserve.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


EXHAUSTED_SERVER = """
import asyncio, os, resource, socket, threading, time
from streamseg.service.system_limits import FileReserve, ReservedListener
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
async def answer(reader, writer):
    await reader.readline()
    writer.write(b"well\\n")
    await writer.drain()
    writer.close()
def use_descriptors(descriptors):
    # like cameras that reconnect
    while True:
        try: descriptors.append(os.open("/dev/null", os.O_RDONLY))
        except OSError: descriptors and os.close(descriptors.pop(0))
        time.sleep(0.001)
async def main():
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    server = await asyncio.start_server(answer, sock=ReservedListener(listener, FileReserve()))
    print(server.sockets[0].getsockname()[1], flush=True)
    for _ in range(3): threading.Thread(target=use_descriptors, args=([],), daemon=True).start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_listener_with_a_reserve_answers_without_free_descriptors() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", EXHAUSTED_SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            port = int(running.stdout.readline())
            while len(list(Path(f"/proc/{running.pid}/fd").iterdir())) < 60:
                time.sleep(0.01)
            for _ in range(100):  # more often than the reserve has descriptors
                with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                    client.sendall(b"?\n")
                    assert client.makefile().readline() == "well\n"
        finally:
            running.kill()
            running.communicate()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs resource.prlimit")
def test_the_http_api_answers_when_a_service_has_no_free_descriptor() -> None:
    pattern = ("--source", "test:?live=1&size=64x64", "--bind", "tcp://127.0.0.1:*")
    small = ("--model", "nanomask", "--weights", "none", "--set", "model.input_size=64")
    with subprocess.Popen(
        command("serve", *pattern, *small, "--control", "127.0.0.1:0"),
        env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as running:  # fmt: skip
        try:
            while "control at" not in (line := running.stderr.readline()):
                assert line
            url = line.split()[-1]
            get(f"{url}/healthz")  # the HTTP API is ready
            count = len(list(Path(f"/proc/{running.pid}/fd").iterdir()))
            resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (count, count))
            for _ in range(20):  # more often than the reserve has descriptors
                assert get(f"{url}/healthz") == b"ok"
                assert b"streamseg_" in get(f"{url}/metrics")
                assert b'"name":"test"' in get(f"{url}/v1/sources")
            running.terminate()
            assert running.wait(30) == 0
        finally:
            running.kill()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read()
