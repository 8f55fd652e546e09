"""Standard error with ``--log json``: every line is a JSON record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.commands import environment

pytestmark = pytest.mark.timeout(60)

COMMAND = """
import logging, os, subprocess, sys, threading, time, warnings
from streamseg.cli import main
from streamseg.cli.app import app

class FailingDestructor:
    def __del__(self):
        raise ValueError("as it was deleted")

@app.command()
def run_body() -> int:
    {}
    return 0

main()
"""


def run_command(
    body: str, *options: str, group_signals: tuple[signal.Signals, ...] = ()
) -> tuple[int, str, str]:
    """Run a command with this body; return its exit code, stdout and stderr."""
    program = COMMAND.format(body.strip().replace("\n", "\n    "))
    child = subprocess.Popen(
        [sys.executable, "-c", program, *options, "run-body"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment(),
        text=True,
    )
    if group_signals:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for number in group_signals:
        os.killpg(child.pid, number)
    out, err = child.communicate(timeout=40)
    return child.returncode, out, err


def parse_records(err: str) -> list[dict]:
    parsed = [json.loads(line) for line in err.splitlines()]
    assert all(isinstance(record, dict) for record in parsed)
    return parsed


def test_output_of_libraries_interpreter_and_children_is_json() -> None:
    code, _, err = run_command(
        """
os.write(2, b"a library: rtsp://admin:hunter2@h/x\\nbytes: \\xff\\r")
thread = threading.Thread(target=lambda: 1 / 0, name="helper")
thread.start()
thread.join()
FailingDestructor()
warnings.warn("old")
subprocess.run(["sh", "-c", "echo a child >&2"], check=True)
print("past the log", file=sys.stderr)
os.write(2, b"x" * 200_000 + b"\\nno end of a line")
os.abort()
""",
        "--log",
        "json",
    )
    assert code == -signal.SIGABRT
    records = parse_records(err)
    messages = [record["message"] for record in records]
    assert {"a library: rtsp://admin:***@h/x", "bytes: \\xff", "a child", "past the log"} <= set(
        messages
    )
    assert "unexpected ZeroDivisionError in helper: division by zero" in messages
    assert any(text.startswith("UserWarning: old (") for text in messages)
    assert any("as it was deleted" in record.get("exception", "") for record in records)
    assert sum(len(text) for text in messages if set(text) == {"x"}) == 200_000
    assert messages[-1] == "no end of a line", "output before an abort is not lost"
    assert {record["logger"] for record in records} >= {
        "stderr",
        "streamseg.cli.logs",
        "py.warnings",
    }


@pytest.mark.slow
def test_records_and_library_lines_are_not_interleaved() -> None:
    _, _, err = run_command(
        """
def library():
    for number in range(1000):
        os.write(2, b"line %d\\n" % number)
thread = threading.Thread(target=library)
thread.start()
for number in range(100):
    logging.getLogger("own").warning("own %d %s", number, "z" * 9000)
thread.join()
""",
        "--log",
        "json",
    )
    messages = [record["message"] for record in parse_records(err)]
    lines = [text for text in messages if text.startswith("line")]
    assert lines == [f"line {number}" for number in range(1000)]
    assert [text[:6].strip() for text in messages if text.startswith("own")] == [
        f"own {number}" for number in range(100)
    ]


def test_signals_to_process_group_lose_no_line() -> None:
    _, _, err = run_command(
        """
import signal
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(each, lambda *_: None)
print("ready", flush=True)
time.sleep(0.5)
os.write(2, b"after the signal\\n")
""",
        "--log",
        "json",
        group_signals=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    )
    assert [record["message"] for record in parse_records(err)] == ["after the signal"]


def test_running_child_does_not_delay_exit() -> None:
    started_at = time.monotonic()
    program = COMMAND.format("subprocess.Popen(['sleep', '30'], stdout=subprocess.DEVNULL)")
    child = subprocess.Popen(
        [sys.executable, "-c", program, "--log", "json", "run-body"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert child.communicate(timeout=20)[0] == b""
        assert child.returncode == 0
        assert time.monotonic() - started_at < 15, (
            "a child with an open stderr does not delay the exit"
        )
    finally:
        os.killpg(child.pid, signal.SIGKILL)


def test_thread_tracebacks_are_redacted_in_text() -> None:
    _, _, err = run_command(
        """
def fail():
    raise OSError("rtsp://admin:hunter2@h/x: no")
thread = threading.Thread(target=fail, name="helper")
thread.start()
thread.join()
os.write(2, b"a library\\n")
"""
    )
    assert err.startswith("ERROR unexpected OSError in helper: rtsp://admin:***@h/x: no\nTraceback")
    assert err.endswith("OSError: rtsp://admin:***@h/x: no\na library\n")
    assert "hunter2" not in err
