"""What systemd is told, heard on a socket as it has one."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time

import pytest

from streamseg import notify
from streamseg.errors import ConfigError


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path, monkeypatch):
    """The socket that systemd would listen to."""
    if request.param == "path":
        address = named = str(tmp_path / "notify")
    else:
        named = f"@streamseg-{secrets.token_hex(8)}"
        address = "\0" + named[1:]
    monkeypatch.setenv("NOTIFY_SOCKET", named)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(5)
        yield listening


def heard(systemd) -> list[str]:
    return systemd.recv(4096).decode().split("\n")


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        (notify.ready, ["READY=1"]),
        (notify.stopping, ["STOPPING=1"]),
        (notify.watchdog, ["WATCHDOG=1"]),
        (lambda: notify.status("3 of 4 sources live"), ["STATUS=3 of 4 sources live"]),
    ],
)
def test_each_change_is_one_datagram(systemd, tell, said) -> None:
    tell()
    assert heard(systemd) == said


def test_a_reload_brings_the_time_on_the_monotonic_clock(systemd) -> None:
    before = time.monotonic()
    notify.reloading()
    first, second = heard(systemd)
    assert first == "RELOADING=1"
    when = int(re.fullmatch(r"MONOTONIC_USEC=(\d+)", second)[1]) / 1e6
    assert before - 0.001 <= when <= time.monotonic()


def test_a_status_can_not_say_anything_else(systemd) -> None:
    notify.status("all well\nREADY=1\r\nMAINPID=1")
    assert heard(systemd) == ["STATUS=all well READY=1 MAINPID=1"]


def test_without_systemd_nothing_happens(monkeypatch, caplog) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    for tell in (notify.ready, notify.reloading, notify.stopping, notify.watchdog):
        tell()
    notify.status("x")
    assert notify.watchdog_interval() is None
    assert caplog.records == []


def test_a_systemd_that_is_gone_is_a_line_in_the_log_and_no_failure(
    tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify.watchdog()
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "nobody: systemd can't be told WATCHDOG=1: No such file or directory"
    )


def test_a_systemd_that_does_not_read_holds_nothing_up(systemd, caplog) -> None:
    began = time.monotonic()
    for _ in range(10_000):
        notify.watchdog()
        if caplog.records:
            break
    assert "temporarily unavailable" in caplog.text
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        (None, None, None),
        ("30000000", None, 30.0),
        ("1500000", str(os.getpid()), 1.5),
        ("30000000", "1", None),
    ],
)
def test_the_watchdog_is_this_process_own(monkeypatch, usec, pid, interval) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert notify.watchdog_interval() == interval


@pytest.mark.parametrize("usec", ["", "0", "-1", "soon", "1e6"])
def test_an_interval_that_can_not_be_is_refused(monkeypatch, usec) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with pytest.raises(ConfigError, match=r"WATCHDOG_USEC=.*number of microseconds"):
        notify.watchdog_interval()
