"""What the log looks like, whoever writes to it."""

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
from support.publishers import eventually

from streamseg import load_model
from streamseg.cli import logs, main
from streamseg.config import Config, PublishConfig, SourceConfig
from streamseg.service.service import Service

log = logging.getLogger("streamseg.service.service")


@pytest.fixture(autouse=True)
def _as_before():
    root = logging.getLogger()
    handlers, level, show = list(root.handlers), root.level, warnings.showwarning
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    warnings.showwarning = show


def objects(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def fail(message: str) -> None:
    raise RuntimeError(message)


def test_json_lines_say_when_what_and_who_and_bring_the_extras(capsys) -> None:
    logs.configure("json")
    before = time.time()
    log.warning("%s: no frame for %d s", "gate", 5, extra={"source": "gate", "epoch": 3})
    (said,) = objects(capsys)
    when = said.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", when)
    at = datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp()
    assert before - 0.001 <= at <= time.time()
    assert said == {
        "level": "warning",
        "logger": "streamseg.service.service",
        "message": "gate: no frame for 5 s",
        "source": "gate",
        "epoch": 3,
    }


def test_text_lines_are_a_level_and_a_message(capsys) -> None:
    logs.configure("text")
    log.warning("gate: no frame for 5 s", extra={"source": "gate"})
    assert capsys.readouterr().err == "WARNING gate: no frame for 5 s\n"


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_is_kept(capsys, style) -> None:
    logs.configure(style)
    try:
        fail("boom")
    except RuntimeError:
        log.exception("it failed")
    said = capsys.readouterr().err
    if style == "json":
        assert said.count("\n") == 1
        said = json.loads(said)["exception"]
    assert "Traceback (most recent call last)" in said
    assert "RuntimeError: boom" in said


@pytest.mark.parametrize("where", [("--log", "json"), ("--debug", "--log=json")])
def test_what_a_command_fails_with_is_a_record_too(capsys, where) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--source", "rtsp://admin:hunter2@h/x", "--set", "worker.x=1", *where])
    (said,) = objects(capsys)
    assert ended.value.code == 2
    assert (said["level"], said["logger"]) == ("error", "streamseg.cli.app")
    assert "worker.x: unknown key" in said["message"]
    assert ("exception" in said) == ("--debug" in where)
    assert "hunter2" not in str(said)


def test_in_text_a_command_fails_with_one_line(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--set", "worker.x=1"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("streamseg: ")


def test_everything_that_a_service_says_is_json(streamseg) -> None:
    source = "test:?size=64x48&frames=3"
    options = ("--set", "publish.bind=tcp://127.0.0.1:*", "--set", "model.input_size=64")
    ended = streamseg("--log", "json", "serve", "--source", source, *options)
    assert ended.returncode == 0
    said = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [record["level"] for record in said] == ["info"] * len(said)
    assert any(record["message"].startswith("masks at tcp://") for record in said)


def test_a_camera_that_goes_and_comes_back_is_two_lines_whatever_is_tried_between(caplog) -> None:
    """And none for its first connection, nor for its end."""
    with http_camera() as camera:
        source = SourceConfig(url=f"{camera.root}/cam", name="gate", stall_after=0.5)
        publish = PublishConfig(bind="tcp://127.0.0.1:*")
        service = Service(
            Config(sources=(source,), publish=publish), load_model("nanomask", input_size=64)
        )
        (feed,) = service.sources
        service.start()
        eventually(lambda: feed.condition.state == "live")
        assert caplog.records == []
        camera.silent.set()
        camera.pages["/cam"] = ("text/plain", b"")
        reconnects = service.metrics.reconnects.labels("gate")
        eventually(lambda: reconnects._value.get() >= 3)
        camera.silent.clear()
        del camera.pages["/cam"]
        eventually(lambda: feed.condition.state == "live")
        service.stop()
        service.wait()
    away, back = (r for r in caplog.records if r.name == "streamseg.service.source_session")
    assert re.match(r"gate: (waiting|stalled): .+; next attempt in", away.getMessage())
    assert (away.source, away.epoch) == ("gate", 0)
    assert back.getMessage() == "gate: live again"
    assert (back.state, back.epoch) == ("live", 1)


URL = "rtsp://admin:hunter2@10.0.0.7/live?token=swordfish"


@pytest.mark.parametrize("style", ["text", "json"])
def test_passwords_are_redacted_wherever_they_are(capsys, style) -> None:
    logs.configure(style)
    log.warning("can't open %s", URL, extra={"url": URL, "more": {"urls": [URL, (URL,)]}})
    try:
        fail(f"{URL}: refused")
    except RuntimeError:
        log.exception('it said "%s"\nand again: %s', URL, URL)
    said = capsys.readouterr().err
    assert "admin:***@10.0.0.7" in said
    assert "hunter2" not in said
    assert "swordfish" not in said


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_comes_from_outside_can_not_forge_a_line(capsys, style) -> None:
    logs.configure(style)
    log.warning("camera says %s", "hello\nCRITICAL all is lost\r\x1b[2J\u2028x")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said.splitlines()) == 1
    assert "\x1b" not in said


class Odd:
    def __str__(self) -> str:
        return "odd"


@given(
    st.dictionaries(
        st.text().filter(lambda key: key not in logs._STANDARD_ATTRIBUTES),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
            | st.builds(Odd),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
            max_leaves=8,
        ),
        max_size=4,
    ),
    st.text(),
)  # fmt: skip
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_extras_are_a_line_is_one_json_object(extras, message) -> None:
    record = logging.makeLogRecord({"msg": message, "name": "x", **extras})
    line = logs.JsonFormatter().format(record)
    assert len(line.splitlines()) == 1
    said = json.loads(line)
    assert set(extras) <= set(said)


def test_debug_shows_everything_and_otherwise_only_what_matters(capsys) -> None:
    logs.configure("json")
    log.info("nothing much")
    assert objects(capsys) == []
    logs.configure("json", debug=True)
    log.debug("nothing much")
    assert [said["level"] for said in objects(capsys)] == ["debug"]


def test_configuring_again_replaces_what_was_and_leaves_other_handlers_alone(capsys) -> None:
    mine = logging.NullHandler()
    logging.getLogger().addHandler(mine)
    for style in ("text", "json", "json"):
        logs.configure(style)
    log.warning("once")
    assert len(objects(capsys)) == 1
    assert mine in logging.getLogger().handlers


def test_warnings_of_python_are_lines_as_all_others(capsys) -> None:
    logs.configure("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("json")
        warnings.warn("old", UserWarning, stacklevel=1)
    (said,) = objects(capsys)
    assert said["logger"] == "py.warnings"
    assert said["message"].startswith("UserWarning: old (")


async def failing(scope, receive, send) -> None:
    raise RuntimeError("boom")


def test_uvicorn_comes_out_in_the_same_format_and_without_an_access_log(capsys) -> None:
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(sys.stdout))
    logs.configure("json")
    config = uvicorn.Config(failing, port=0, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/x?token=swordfish", timeout=5)
    server.should_exit = True
    thread.join(10)
    captured = capsys.readouterr()
    (said,) = [json.loads(line) for line in captured.err.splitlines()]
    assert said["logger"] == "uvicorn.error"
    assert "RuntimeError: boom" in said["exception"]
    assert captured.out == ""


def test_a_record_that_can_not_be_formatted_is_reported_and_does_not_raise() -> None:
    """In a process of its own: pytest's handlers would raise."""
    program = (
        "import logging; from streamseg.cli import logs; logs.configure('json')\n"
        "logging.getLogger('x').warning('%d', 'seven')\n"
        "logging.getLogger('x').warning('and on')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert "--- Logging error ---" in ended.stderr
    assert json.loads(ended.stderr.splitlines()[-1])["message"] == "and on"
