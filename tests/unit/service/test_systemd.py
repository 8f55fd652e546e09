"""What systemd is told, heard on a socket as it has one."""

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
from support.publishers import eventually

from streamseg import load_model
from streamseg.config import Config, ControlConfig, PublishConfig, SourceConfig
from streamseg.errors import ConfigError
from streamseg.service import systemd as systemd_module
from streamseg.service.service import Service
from streamseg.service.supervisor import Supervisor


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
        (systemd_module.notify_ready, ["READY=1"]),
        (systemd_module.notify_stopping, ["STOPPING=1"]),
        (systemd_module.notify_watchdog, ["WATCHDOG=1"]),
        (
            lambda: systemd_module.notify_status("3 of 4 sources live"),
            ["STATUS=3 of 4 sources live"],
        ),
    ],
)
def test_each_change_is_one_datagram(systemd, tell, said) -> None:
    tell()
    assert heard(systemd) == said


def test_a_reload_brings_the_time_on_the_monotonic_clock(systemd) -> None:
    before = time.monotonic()
    systemd_module.notify_reloading()
    first, second = heard(systemd)
    assert first == "RELOADING=1"
    when = int(re.fullmatch(r"MONOTONIC_USEC=(\d+)", second)[1]) / 1e6
    assert before - 0.001 <= when <= time.monotonic()


def test_a_status_can_not_say_anything_else(systemd) -> None:
    systemd_module.notify_status("all well\nREADY=1\r\nMAINPID=1")
    assert heard(systemd) == ["STATUS=all well READY=1 MAINPID=1"]


def test_without_systemd_nothing_happens(monkeypatch, caplog) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    for tell in (
        systemd_module.notify_ready,
        systemd_module.notify_reloading,
        systemd_module.notify_stopping,
        systemd_module.notify_watchdog,
    ):
        tell()
    systemd_module.notify_status("x")
    assert systemd_module.watchdog_interval() is None
    assert caplog.records == []


def test_a_systemd_that_is_gone_is_a_line_in_the_log_and_no_failure(
    tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd_module.notify_watchdog()
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "nobody: can't notify systemd of WATCHDOG=1: No such file or directory"
    )


def test_a_process_that_can_open_nothing_more_goes_on(systemd, caplog) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        systemd_module.notify_stopping()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in caplog.text


def test_a_systemd_that_does_not_read_holds_nothing_up(systemd, caplog) -> None:
    began = time.monotonic()
    for _ in range(10_000):
        systemd_module.notify_watchdog()
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
    ids=["nobody's", "everybody's", "ours", "another's"],
)
def test_the_watchdog_is_this_process_own(monkeypatch, usec, pid, interval) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert systemd_module.watchdog_interval() == interval


@pytest.mark.parametrize("usec", ["", "0", "-1", "soon", "1e6"])
def test_an_interval_that_can_not_be_is_refused(monkeypatch, usec) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with pytest.raises(ConfigError, match=r"WATCHDOG_USEC=.*number of microseconds"):
        systemd_module.watchdog_interval()


PATTERN = "test:?live=1&size=160x120&fps=20"


def until(systemd, wanted: str) -> list[str]:
    """All that is said up to a line that is so."""
    said: list[str] = []
    deadline = time.monotonic() + 60
    while not said or not re.fullmatch(wanted, said[-1]):
        assert time.monotonic() < deadline, said
        said += heard(systemd)
    return said


@pytest.fixture
def listening(tmp_path, monkeypatch):
    """The socket of a systemd that wants to hear every two seconds that all is well."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        yield listening


def test_a_service_tells_systemd_all_its_life(listening, tmp_path) -> None:
    """From its start, over a SIGHUP, to its end."""
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
            assert heard(listening) == ["READY=1"]
            until(listening, r"STATUS=1 of 1 sources live, [1-9]\d* results/s")
            assert heard(listening) == ["WATCHDOG=1"]
            began = time.monotonic()
            until(listening, "WATCHDOG=1")
            assert time.monotonic() - began < 2
            file.write_text(
                file.read_text().replace("[{", f"[{{url: '{PATTERN}', name: yard}}, {{")
            )
            serving.send_signal(signal.SIGHUP)
            said = until(listening, r"STATUS=2 of 2 sources live, [1-9]\d* results/s")
            assert said.index("RELOADING=1") < said.index("READY=1")
            serving.send_signal(signal.SIGTERM)
            until(listening, "STOPPING=1")
            _, err = serving.communicate(timeout=30)
            assert serving.returncode == 0, err
        finally:
            serving.kill()


@pytest.fixture
def operation():
    """Of a service with a camera that isn't there beside one that is; not started."""
    config = Config(
        sources=(
            SourceConfig(url=PATTERN, name="gate"),
            SourceConfig(url="/dev/video99", name="yard"),
        ),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
        control=ControlConfig(bind="127.0.0.1:0"),
    )
    service = Service(config, load_model("nanomask", input_size=128))
    made = Supervisor(service, config, None)
    yield made
    made._http_api.stop()  # where it never ran
    service.close()


@contextlib.contextmanager
def running(operation: Supervisor) -> Iterator[None]:
    thread = threading.Thread(target=operation.run)
    thread.start()
    try:
        yield
    finally:
        operation.stop()
        thread.join(20)
    assert not thread.is_alive()


def test_a_source_that_is_not_live_is_named(listening, operation) -> None:
    with running(operation):
        until(listening, r"STATUS=1 of 2 sources live \(yard (waiting|connecting)\), [1-9].*")


def test_a_service_that_is_not_well_says_so_and_is_no_longer_taken_for_alive(
    listening, operation, monkeypatch, caplog
) -> None:
    metrics = operation._service.metrics.registry
    with running(operation):
        until(listening, "READY=1")
        until(listening, "WATCHDOG=1")
        assert metrics.get_sample_value("streamseg_well") == 1
        assert metrics.get_sample_value("streamseg_ready") == 1
        monkeypatch.setattr(Service, "health_problem", "the model hangs")
        until(listening, "STATUS=not healthy: the model hangs")
        assert [heard(listening) for _ in range(3)] == [["STATUS=not healthy: the model hangs"]] * 3
        assert caplog.text.count("not healthy") == 1, "it is said once"
        assert metrics.get_sample_value("streamseg_well") == 0
    assert metrics.get_sample_value("streamseg_ready") == 0


def test_a_watch_that_can_not_be_ends_the_command_before_it_begins(monkeypatch, operation) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    with pytest.raises(ConfigError, match="WATCHDOG_USEC"):
        Supervisor(operation._service, operation._service._config, None)


def test_looking_for_garbage_does_not_go_through_the_model_while_it_runs(
    monkeypatch, operation
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(
        systemd_module, "notify_ready", lambda: frozen.append(gc.get_freeze_count())
    )
    with running(operation):
        eventually(lambda: frozen)
    assert frozen[0] > 100_000
    assert gc.get_freeze_count() == 0
