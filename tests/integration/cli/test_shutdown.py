"""Stop signals: in every phase of a command, in any number, and whatever its threads are doing."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import command, environment

STARTING = """
import os, signal, sys, threading, time
from streamseg.cli import shutdown
shutdown.STOP_TIMEOUT = shutdown.ABORT_TIMEOUT = 0.5
shutdown.install()
signals = shutdown.installed()
def say(text): print(text, flush=True)
class Work:
    def __init__(self): self.over = threading.Event()
    def stop(self): say("stop")
    def abort(self): say("abort"); self.over.set()
work = Work()
"""
BEGIN = "signals.begin(0, say)\n"
TAKES_LOCKS = """
import logging
log = logging.getLogger()
def take_locks():
    event = threading.Event()
    while not work.over.is_set():
        event.set(); event.clear(); log.debug("x"); threading.Thread(target=int).start()
"""


@pytest.fixture
def start():
    """Start a program; it is killed at the test's end."""
    with contextlib.ExitStack() as programs:

        def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
            program = subprocess.Popen(
                [*map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,  # communicate() does not see what a buffer has taken
                **options,
            )
            programs.enter_context(program)
            programs.callback(program.kill)
            return program

        yield start


@pytest.fixture
def started(start):
    """Start a program of Python, up to where it says that it is ready."""

    def started(body: str) -> subprocess.Popen[bytes]:
        program = start(sys.executable, "-c", STARTING + body)
        assert program.stdout.readline() == b"ready\n"
        return program

    return started


def ended(program: subprocess.Popen[str], *numbers: int, pause: float = 0.1):
    """Its exit code and what it said, after these signals."""
    for number in numbers:
        program.send_signal(number)
        time.sleep(pause)
    out, err = program.communicate(timeout=10)
    assert b"Traceback" not in err
    return program.returncode, out.decode().splitlines()


def test_a_signal_before_the_command_is_known_is_kept(started) -> None:
    program = started(f"say('ready'); time.sleep(0.3)\n{BEGIN}time.sleep(60)")
    assert ended(program, signal.SIGTERM) == (0, ["stopped during start-up"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_has_done_nothing_ends_at_once_whatever_the_main_thread_does(started, number) -> None:
    swallows = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    program = started(f"{BEGIN}say('ready')\n{swallows}")
    assert ended(program, number) == (0, ["stopped during start-up"])


def test_the_first_signal_stops_and_the_second_aborts(started) -> None:
    program = started(
        f"{BEGIN}\nwith signals.stopping(work):\n    say('ready'); work.over.wait(60)\nsay('end')\n"
        "shutdown.end_process(3)"
    )
    assert ended(program, signal.SIGINT, signal.SIGTERM) == (3, ["stop", "abort", "end"])


def test_a_burst_that_interrupts_a_thread_that_takes_locks_ends_it(started) -> None:
    program = started(
        f"{BEGIN}{TAKES_LOCKS}\nwith signals.stopping(work):\n    say('ready'); take_locks()\n"
        "shutdown.end_process(0)"
    )
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM] * 50
    assert ended(program, *numbers, pause=0.0003) == (0, ["stop", "abort"])


def test_work_that_does_not_stop_is_ended_by_force_with_what_it_said(started) -> None:
    program = started(
        f"{BEGIN}with signals.stopping(work):\n    say('ready'); sys.stdout.write('partial ')\n"
        "    while True: time.sleep(60)"
    )
    code, lines = ended(program, signal.SIGTERM)
    assert code == 1
    assert lines == ["partial stop", "still running 0.5 s after the stop signal: ending by force"]


def test_an_interrupt_unwinds_once_and_what_comes_later_disturbs_nothing(started) -> None:
    program = started(
        f"{BEGIN}\ntry:\n    with signals.interrupting():\n"
        "        try: say('ready'); time.sleep(60)\n"
        "        finally: time.sleep(0.3); say('cleaned up')\n"
        "except KeyboardInterrupt: say('interrupted')\nshutdown.end_process(130)"
    )
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    assert ended(program, *numbers, pause=0.02) == (130, ["cleaned up", "interrupted"])


def test_a_hangup_calls_what_it_is_told_to_and_is_nothing_before(started) -> None:
    program = started(
        "signals.begin(0, say, hangup_stops=False)\nsay('ready'); time.sleep(0.2)\n"
        "with signals.hangup_calls(lambda: (say('again'), work.over.set())):\n"
        "    say('running'); work.over.wait(60)\nshutdown.end_process(0)"
    )
    program.send_signal(signal.SIGHUP)
    assert program.stdout.readline() == b"running\n"
    assert ended(program, signal.SIGHUP) == (0, ["again"])


def test_a_forked_child_has_the_system_s_handling(started) -> None:
    program = started(
        f"{BEGIN}child = os.fork()\nif not child: time.sleep(60)\n"
        "time.sleep(0.2); os.kill(child, signal.SIGINT); time.sleep(0.1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "say('ready'); say(code); shutdown.end_process(0)"
    )
    assert ended(program) == (0, ["-15"])


def test_nothing_of_an_interpreter_is_destroyed_under_a_thread_that_uses_it(started) -> None:
    """And what is registered with atexit is called, children are gone, output is out."""
    program = started(
        f"{BEGIN}import atexit, multiprocessing\natexit.register(say, 'at exit')\n"
        "class Used:\n    def __del__(self): say('destroyed')\n"
        "used = Used()\nthreading.Thread(target=lambda: (time.sleep(60), used)).start()\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "child.start(); say('ready'); say(child.pid); sys.stdout.write('partial')\n"
        "shutdown.end_process(0)"
    )
    code, lines = ended(program)
    assert (code, lines[1:]) == (0, ["partialat exit"])
    status = Path(f"/proc/{lines[0]}/status")
    assert not status.exists() or "(zombie)" in status.read_text()


def test_output_that_cannot_be_written_is_a_failure_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", f"{STARTING}sys.stdout.write('x'); shutdown.end_process(0)"],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20,
            env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["streamseg: stdout: [Errno 28] No space left on device"]


# The commands

PATTERN = ("--source", "test:?live=1&size=64x64&fps=10", "--bind", "tcp://127.0.0.1:*")
SMALL = ("--model", "nanomask", "--weights", "none", "--set", "model.input_size=64")


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(caught, 16) >> (number - 1) & 1)


def wait_until_caught(pid: int) -> None:
    until = time.monotonic() + 20
    while not catches(pid, signal.SIGTERM):
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("serve", *PATTERN, *SMALL), 0),
        (("process", "no.mp4", "--out", "out"), 130),
        (("train", "no.yaml"), 130),
        (("ctl", "list"), 130),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_a_command_can_be_stopped_from_its_first_moment(start, arguments, code, tmp_path) -> None:
    running = start(*command(*arguments), cwd=tmp_path, env=environment())
    wait_until_caught(running.pid)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=20)
    assert running.returncode == code
    assert err == b"stopped during start-up\n"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="makes a PID namespace")
def test_process_1_of_a_container_can_be_stopped_while_it_starts(start) -> None:
    into = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if subprocess.run([*into, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespace can be made here")
    running = start(*into, *command("serve", *PATTERN, *SMALL), env=environment())
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not (inner := children.read_text().split()):
        time.sleep(0.002)
    wait_until_caught(int(inner[0]))
    os.kill(int(inner[0]), signal.SIGTERM)
    assert running.wait(20) == 0


@pytest.fixture
def serving(start):
    """Start a service, up to where it serves."""

    def serving(*arguments: object) -> subprocess.Popen[bytes]:
        running = start(*arguments, env=environment())
        while b"control at" not in (line := running.stderr.readline()):
            assert line, "it has ended"
        return running

    return serving


@pytest.mark.slow
@pytest.mark.parametrize("starts", [1, 4])
def test_a_burst_of_signals_ends_a_service_with_its_table(serving, starts) -> None:
    for number in range(starts):
        running = serving(*command("serve", *PATTERN, *SMALL))
        time.sleep(0.1 * number)
        for each in range(40):
            if running.poll() is None:
                running.send_signal([signal.SIGINT, signal.SIGTERM, signal.SIGHUP][each % 3])
            time.sleep(0.0003 * (each % 4))
        out, err = running.communicate(timeout=15)
        assert running.returncode == 0, err
        assert b"dropped" in out
        assert b"Traceback" not in err


BUSY = """
import torch
from streamseg.pipeline import runner as pipeline
from streamseg.service import service as serve
serve.STOP_WITHIN = pipeline.LATE_AFTER = 0.5
warmed_up = serve.warm_up_model
def never_done(*_):
    print("busy", flush=True)
    matrix = torch.ones(1500, 1500)
    while True:
        matrix = matrix @ matrix
def slow(model):
    warmed_up(model).network.register_forward_pre_hook(never_done)
    return model
serve.warm_up_model = slow
from streamseg.__main__ import main
main()
"""


@pytest.mark.parametrize("signals", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_service_ends_with_its_table_while_the_model_is_in_native_code(serving, signals) -> None:
    running = serving(sys.executable, "-c", BUSY, "serve", *PATTERN, *SMALL)
    assert running.stdout.readline() == b"busy\n"
    for _ in range(signals):
        running.send_signal(signal.SIGINT)
        time.sleep(0.1)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    assert b"1 stopped" in out
    assert b"left behind, blocked: worker" in err
