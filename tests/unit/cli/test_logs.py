"""Log output: text and JSON format, redaction and other loggers."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from datetime import datetime

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cameras import http_camera
from support.publishers import wait_until

from streamseg import load_model
from streamseg.cli import logs, main
from streamseg.config import Config, PublishConfig, SourceConfig
from streamseg.service.service import Service
from streamseg.sources import live

log = logging.getLogger("streamseg.service.service")


@pytest.fixture(autouse=True)
def _restore_logging():
    root = logging.getLogger()
    handlers, level, show = list(root.handlers), root.level, warnings.showwarning
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    warnings.showwarning = show


def read_records(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def fail(message: str) -> None:
    raise RuntimeError(message)


def test_json_record_has_time_level_logger_message_and_extras(capsys) -> None:
    logs.configure("json")
    earliest = time.time()
    log.warning("%s: no frame for %d s", "gate", 5, extra={"source": "gate", "epoch": 3})
    (record,) = read_records(capsys)
    timestamp = record.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", timestamp)
    seconds = datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()
    assert earliest - 0.001 <= seconds <= time.time()
    assert record == {
        "level": "warning",
        "logger": "streamseg.service.service",
        "message": "gate: no frame for 5 s",
        "source": "gate",
        "epoch": 3,
    }


def test_text_line_has_level_and_message(capsys) -> None:
    logs.configure("text")
    log.warning("gate: no frame for 5 s", extra={"source": "gate"})
    assert capsys.readouterr().err == "WARNING gate: no frame for 5 s\n"


@pytest.mark.parametrize("style", ["text", "json"])
def test_record_contains_traceback(capsys, style) -> None:
    logs.configure(style)
    try:
        fail("boom")
    except RuntimeError:
        log.exception("it failed")
    output = capsys.readouterr().err
    if style == "json":
        assert output.count("\n") == 1
        output = json.loads(output)["exception"]
    assert "Traceback (most recent call last)" in output
    assert "RuntimeError: boom" in output


@pytest.mark.parametrize("options", [("--log", "json"), ("--debug", "--log=json")])
def test_command_failure_is_a_json_record(capsys, options) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["serve", "--source", "rtsp://admin:hunter2@h/x", "--set", "worker.x=1", *options])
    (record,) = read_records(capsys)
    assert exit_info.value.code == 2
    assert (record["level"], record["logger"]) == ("error", "streamseg.cli.app")
    assert "worker.x: unknown key" in record["message"]
    assert ("exception" in record) == ("--debug" in options)
    assert "hunter2" not in str(record)


def test_command_failure_is_one_line_of_text(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--set", "worker.x=1"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("streamseg: ")


def test_serve_logs_json_only(streamseg) -> None:
    source = "test:?size=64x48&frames=3"
    options = ("--set", "publish.bind=tcp://127.0.0.1:*", "--set", "model.input_size=64")
    result = streamseg("--log", "json", "serve", "--source", source, *options)
    assert result.returncode == 0
    records = [json.loads(line) for line in result.stderr.splitlines()]
    assert [record["level"] for record in records] == ["info"] * len(records)
    assert any(record["message"].startswith("masks at tcp://") for record in records)


def test_reconnect_is_logged_as_two_lines(caplog, monkeypatch) -> None:
    """The first connection and the end of the source are not logged."""
    monkeypatch.setattr(live, "MAX_DELAY", 0.2)
    with http_camera() as camera:
        source = SourceConfig(url=f"{camera.root}/cam", name="gate", stall_after=0.5)
        publish = PublishConfig(bind="tcp://127.0.0.1:*")
        service = Service(
            Config(sources=(source,), publish=publish), load_model("nanomask", input_size=64)
        )
        (session,) = service.sources
        service.start()
        wait_until(lambda: session.condition.state == "live")
        assert caplog.records == []
        camera.silent.set()
        camera.responses["/cam"] = ("text/plain", b"")
        reconnects = service.metrics.reconnects.labels("gate")
        wait_until(lambda: reconnects._value.get() >= 3)
        camera.silent.clear()
        del camera.responses["/cam"]
        wait_until(lambda: session.condition.state == "live")
        service.stop()
        service.wait()
    disconnected, reconnected = (
        r for r in caplog.records if r.name == "streamseg.service.source_session"
    )
    assert re.match(r"gate: (waiting|stalled): .+; next attempt in", disconnected.getMessage())
    assert (disconnected.source, disconnected.epoch) == ("gate", 0)
    assert reconnected.getMessage() == "gate: live again"
    assert (reconnected.state, reconnected.epoch) == ("live", 1)


URL = "rtsp://admin:hunter2@10.0.0.7/live?token=swordfish"


@pytest.mark.parametrize("style", ["text", "json"])
def test_passwords_are_redacted_in_all_fields(capsys, style) -> None:
    logs.configure(style)
    log.warning("can't open %s", URL, extra={"url": URL, "more": {"urls": [URL, (URL,)]}})
    try:
        fail(f"{URL}: refused")
    except RuntimeError:
        log.exception('first: "%s"\nsecond: %s', URL, URL)
    output = capsys.readouterr().err
    assert "admin:***@10.0.0.7" in output
    assert "hunter2" not in output
    assert "swordfish" not in output


@pytest.mark.parametrize("style", ["text", "json"])
def test_control_characters_are_escaped(capsys, style) -> None:
    logs.configure(style)
    log.warning("camera message: %s", "hello\nCRITICAL all is lost\r\x1b[2J\u2028x")
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert len(output.splitlines()) == 1
    assert "\x1b" not in output


class CustomObject:
    def __str__(self) -> str:
        return "odd"


@given(
    st.dictionaries(
        st.text().filter(lambda key: key not in logs._STANDARD_ATTRIBUTES),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
            | st.builds(CustomObject),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
            max_leaves=8,
        ),
        max_size=4,
    ),
    st.text(),
)  # fmt: skip
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_formatter_accepts_any_extras(extras, message) -> None:
    record = logging.makeLogRecord({"msg": message, "name": "x", **extras})
    line = logs.JsonFormatter().format(record)
    assert len(line.splitlines()) == 1
    decoded = json.loads(line)
    assert set(extras) <= set(decoded)


def test_debug_lowers_the_level(capsys) -> None:
    logs.configure("json")
    log.info("nothing much")
    assert read_records(capsys) == []
    logs.configure("json", debug=True)
    log.debug("nothing much")
    assert [record["level"] for record in read_records(capsys)] == ["debug"]


def test_configure_replaces_own_handler_only(capsys) -> None:
    other_handler = logging.NullHandler()
    logging.getLogger().addHandler(other_handler)
    for style in ("text", "json", "json"):
        logs.configure(style)
    log.warning("once")
    assert len(read_records(capsys)) == 1
    assert other_handler in logging.getLogger().handlers


def test_python_warnings_are_logged(capsys) -> None:
    logs.configure("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("json")
        warnings.warn("old", UserWarning, stacklevel=1)
    (record,) = read_records(capsys)
    assert record["logger"] == "py.warnings"
    assert record["message"].startswith("UserWarning: old (")


async def failing_app(scope, receive, send) -> None:
    raise RuntimeError("boom")


def test_uvicorn_logs_in_same_format_without_access_log(capsys) -> None:
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(sys.stdout))
    logs.configure("json")
    config = uvicorn.Config(failing_app, port=0, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/x?token=swordfish", timeout=5)
    server.should_exit = True
    thread.join(10)
    captured = capsys.readouterr()
    (record,) = [json.loads(line) for line in captured.err.splitlines()]
    assert record["logger"] == "uvicorn.error"
    assert "RuntimeError: boom" in record["exception"]
    assert captured.out == ""


def test_unformattable_record_is_reported_without_exception() -> None:
    """Run in a separate process, because pytest's handlers would raise."""
    program = (
        "import logging; from streamseg.cli import logs; logs.configure('json')\n"
        "logging.getLogger('x').warning('%d', 'seven')\n"
        "logging.getLogger('x').warning('next')"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert "--- Logging error ---" in process.stderr
    assert json.loads(process.stderr.splitlines()[-1])["message"] == "next"
