"""Under ``--log json`` every line on stderr is a record, whoever wrote it and however it ends."""

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

class Odd:
    def __del__(self):
        raise ValueError("as it was deleted")

@app.command()
def odd() -> int:
    {}
    return 0

main()
"""


def run(body: str, *options: str, group: tuple[signal.Signals, ...] = ()) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a program that ends as the command line does."""
    program = COMMAND.format(body.strip().replace("\n", "\n    "))
    child = subprocess.Popen(
        [sys.executable, "-c", program, *options, "odd"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment(),
        text=True,
    )
    if group:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for number in group:
        os.killpg(child.pid, number)
    out, err = child.communicate(timeout=40)
    return child.returncode, out, err


def records(err: str) -> list[dict]:
    made = [json.loads(line) for line in err.splitlines()]
    assert all(isinstance(record, dict) for record in made)
    return made


def test_what_libraries_the_interpreter_and_children_print_are_records() -> None:
    code, _, err = run(
        """
os.write(2, b"a library: rtsp://admin:hunter2@h/x\\nbytes: \\xff\\r")
thread = threading.Thread(target=lambda: 1 / 0, name="helper")
thread.start()
thread.join()
Odd()
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
    made = records(err)
    said = [record["message"] for record in made]
    assert {"a library: rtsp://admin:***@h/x", "bytes: \\xff", "a child", "past the log"} <= set(
        said
    )
    assert "unexpected ZeroDivisionError in helper: division by zero" in said
    assert any(text.startswith("UserWarning: old (") for text in said)
    assert any("as it was deleted" in record.get("exception", "") for record in made)
    assert sum(len(text) for text in said if set(text) == {"x"}) == 200_000
    assert said[-1] == "no end of a line", "what was printed before an abort is not lost"
    assert {record["logger"] for record in made} >= {"stderr", "streamseg.cli.logs", "py.warnings"}


@pytest.mark.slow
def test_records_and_lines_of_libraries_do_not_run_into_each_other() -> None:
    _, _, err = run(
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
    said = [record["message"] for record in records(err)]
    lines = [text for text in said if text.startswith("line")]
    assert lines == [f"line {number}" for number in range(1000)]
    assert [text[:6].strip() for text in said if text.startswith("own")] == [
        f"own {number}" for number in range(100)
    ]


def test_signals_to_the_whole_group_lose_no_line() -> None:
    _, _, err = run(
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
        group=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    )
    assert [record["message"] for record in records(err)] == ["after the signal"]


def test_nothing_is_left_running_and_nobody_waits_for_the_child() -> None:
    began = time.monotonic()
    program = COMMAND.format("subprocess.Popen(['sleep', '30'], stdout=subprocess.DEVNULL)")
    child = subprocess.Popen(
        [sys.executable, "-c", program, "--log", "json", "odd"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert child.communicate(timeout=20)[0] == b""
        assert child.returncode == 0
        assert time.monotonic() - began < 15, "a child that holds stderr does not hold the service"
    finally:
        os.killpg(child.pid, signal.SIGKILL)


def test_tracebacks_of_threads_have_no_secret_in_them_in_text_either() -> None:
    _, _, err = run(
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
