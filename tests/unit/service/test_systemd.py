"""Notifications to systemd, received on a socket like its own."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import resource
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from support.commands import command, environment
from support.publishers import wait_until

from streamseg import load_model
from streamseg.config import Config, ControlConfig, PublishConfig, SourceConfig
from streamseg.errors import ConfigError
from streamseg.service import systemd as systemd_module
from streamseg.service.service import Service
from streamseg.service.supervisor import Supervisor


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path, monkeypatch):
    """Create the socket on which systemd would receive notifications."""
    if request.param == "path":
        address = named = str(tmp_path / "notify")
    else:
        named = f"@streamseg-{secrets.token_hex(8)}"
        address = "\0" + named[1:]
    monkeypatch.setenv("NOTIFY_SOCKET", named)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd_socket:
        systemd_socket.bind(address)
        systemd_socket.settimeout(5)
        yield systemd_socket


def receive(systemd) -> list[str]:
    return systemd.recv(4096).decode().split("\n")


@pytest.mark.parametrize(
    ("notify", "lines"),
    [
        (systemd_module.notify_ready, ["READY=1"]),
        (systemd_module.notify_stopping, ["STOPPING=1"]),
        (systemd_module.notify_watchdog, ["WATCHDOG=1"]),
        (
            lambda: systemd_module.notify_status("3 of 4 sources live"),
            ["STATUS=3 of 4 sources live"],
        ),
    ],
)
def test_each_notification_is_one_datagram(systemd, notify, lines) -> None:
    notify()
    assert receive(systemd) == lines


def test_a_reload_notification_has_the_monotonic_time(systemd) -> None:
    before = time.monotonic()
    systemd_module.notify_reloading()
    first, second = receive(systemd)
    assert first == "RELOADING=1"
    when = int(re.fullmatch(r"MONOTONIC_USEC=(\d+)", second)[1]) / 1e6
    assert before - 0.001 <= when <= time.monotonic()


def test_a_status_cannot_inject_other_notifications(systemd) -> None:
    systemd_module.notify_status("all well\nREADY=1\r\nMAINPID=1")
    assert receive(systemd) == ["STATUS=all well READY=1 MAINPID=1"]


def test_without_systemd_nothing_happens(monkeypatch, caplog) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    for notify in (
        systemd_module.notify_ready,
        systemd_module.notify_reloading,
        systemd_module.notify_stopping,
        systemd_module.notify_watchdog,
    ):
        notify()
    systemd_module.notify_status("x")
    assert systemd_module.watchdog_interval() is None
    assert caplog.records == []


def test_an_unreachable_systemd_is_logged_and_no_error(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "missing"))
    systemd_module.notify_watchdog()
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "missing: can't notify systemd of WATCHDOG=1: No such file or directory"
    )


def test_a_process_without_free_descriptors_continues(systemd, caplog) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        systemd_module.notify_stopping()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in caplog.text


def test_a_systemd_that_does_not_read_never_blocks(systemd, caplog) -> None:
    started_at = time.monotonic()
    for _ in range(10_000):
        systemd_module.notify_watchdog()
        if caplog.records:
            break
    assert "temporarily unavailable" in caplog.text
    assert time.monotonic() - started_at < 5


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        (None, None, None),
        ("30000000", None, 30.0),
        ("1500000", str(os.getpid()), 1.5),
        ("30000000", "1", None),
    ],
    ids=["no watchdog", "any process", "this process", "another process"],
)
def test_the_watchdog_interval_is_that_of_this_process(monkeypatch, usec, pid, interval) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert systemd_module.watchdog_interval() == interval


@pytest.mark.parametrize("usec", ["", "0", "-1", "soon", "1e6"])
def test_an_invalid_watchdog_interval_is_refused(monkeypatch, usec) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with pytest.raises(ConfigError, match=r"WATCHDOG_USEC=.*number of microseconds"):
        systemd_module.watchdog_interval()


PATTERN = "test:?live=1&size=160x120&fps=20"


def receive_until(systemd, pattern: str) -> list[str]:
    """Return the lines received up to one that matches."""
    lines: list[str] = []
    deadline = time.monotonic() + 60
    while not lines or not re.fullmatch(pattern, lines[-1]):
        assert time.monotonic() < deadline, lines
        lines += receive(systemd)
    return lines


@pytest.fixture
def systemd_socket(tmp_path, monkeypatch):
    """Create the socket of a systemd with a watchdog interval of one second."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd_socket:
        systemd_socket.bind(str(tmp_path / "notify"))
        systemd_socket.settimeout(60)
        yield systemd_socket


@pytest.mark.slow
def test_a_service_notifies_systemd_from_start_to_stop(systemd_socket, tmp_path) -> None:
    """Covers the start, a reload by SIGHUP and the end."""
    file = tmp_path / "live.yaml"
    file.write_text(
        f"sources: [{{url: '{PATTERN}', name: gate}}]\n"
        "model: {input_size: 128}\n"
        "publish: {bind: 'tcp://127.0.0.1:*'}\n"
    )
    with subprocess.Popen(
        command("serve", file, "--log", "json"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as serving:
        try:
            assert receive(systemd_socket) == ["READY=1"]
            receive_until(systemd_socket, r"STATUS=1 of 1 sources live, [1-9]\d* results/s")
            assert receive(systemd_socket) == ["WATCHDOG=1"]
            started_at = time.monotonic()
            receive_until(systemd_socket, "WATCHDOG=1")
            assert time.monotonic() - started_at < 1
            file.write_text(
                file.read_text().replace("[{", f"[{{url: '{PATTERN}', name: yard}}, {{")
            )
            serving.send_signal(signal.SIGHUP)
            lines = receive_until(systemd_socket, r"STATUS=2 of 2 sources live, [1-9]\d* results/s")
            assert lines.index("RELOADING=1") < lines.index("READY=1")
            serving.send_signal(signal.SIGTERM)
            receive_until(systemd_socket, "STOPPING=1")
            _, err = serving.communicate(timeout=30)
            assert serving.returncode == 0, err
        finally:
            serving.kill()


@pytest.fixture
def supervisor():
    """Create a supervisor, not started, of a service with a live and a missing camera."""
    config = Config(
        sources=(
            SourceConfig(url=PATTERN, name="gate"),
            SourceConfig(url="/dev/video99", name="yard"),
        ),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
        control=ControlConfig(bind="127.0.0.1:0"),
    )
    service = Service(config, load_model("nanomask", input_size=128))
    supervisor = Supervisor(service, config, None)
    yield supervisor
    supervisor._http_api.stop()  # in tests that never start it
    service.close()


@contextlib.contextmanager
def run_supervisor(supervisor: Supervisor) -> Iterator[None]:
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield
    finally:
        supervisor.stop()
        thread.join(20)
    assert not thread.is_alive()


def test_the_status_names_sources_that_are_not_live(systemd_socket, supervisor) -> None:
    with run_supervisor(supervisor):
        receive_until(
            systemd_socket, r"STATUS=1 of 2 sources live \(yard (waiting|connecting)\), [1-9].*"
        )


def test_an_unhealthy_service_reports_the_problem_and_sends_no_watchdog_notification(
    systemd_socket, supervisor, monkeypatch, caplog
) -> None:
    metrics = supervisor._service.metrics.registry
    with run_supervisor(supervisor):
        receive_until(systemd_socket, "READY=1")
        receive_until(systemd_socket, "WATCHDOG=1")
        assert metrics.get_sample_value("streamseg_well") == 1
        assert metrics.get_sample_value("streamseg_ready") == 1
        monkeypatch.setattr(Service, "health_problem", "the model hangs")
        receive_until(systemd_socket, "STATUS=not healthy: the model hangs")
        assert [receive(systemd_socket) for _ in range(2)] == [
            ["STATUS=not healthy: the model hangs"]
        ] * 2
        assert caplog.text.count("not healthy") == 1, "logged once"
        assert metrics.get_sample_value("streamseg_well") == 0
    assert metrics.get_sample_value("streamseg_ready") == 0


def test_an_invalid_watchdog_interval_is_refused_before_the_start(monkeypatch, supervisor) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    with pytest.raises(ConfigError, match="WATCHDOG_USEC"):
        Supervisor(supervisor._service, supervisor._service._config, None)


def test_the_model_is_frozen_for_the_garbage_collector_while_the_service_runs(
    monkeypatch, supervisor
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(
        systemd_module, "notify_ready", lambda: frozen.append(gc.get_freeze_count())
    )
    with run_supervisor(supervisor):
        wait_until(lambda: frozen)
    assert frozen[0] > 100_000
    assert gc.get_freeze_count() == 0
