"""Stop signals: in every phase of a command, in bursts and with busy threads."""

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

SETUP = """
import os, signal, sys, threading, time
from streamseg.cli import shutdown
shutdown.STOP_TIMEOUT = shutdown.ABORT_TIMEOUT = 0.5
shutdown.install()
signals = shutdown.installed()
def report(text): print(text, flush=True)
class Work:
    def __init__(self): self.over = threading.Event()
    def stop(self): report("stop")
    def abort(self): report("abort"); self.over.set()
work = Work()
"""
BEGIN = "signals.begin(0, report)\n"
TAKE_LOCKS = """
import logging
log = logging.getLogger()
def take_locks():
    event = threading.Event()
    while not work.over.is_set():
        event.set(); event.clear(); log.debug("x"); threading.Thread(target=int).start()
"""


@pytest.fixture
def start_program():
    """Return a function that starts a program; programs are killed at the end of the test."""
    with contextlib.ExitStack() as programs:

        def start_program(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
            program = subprocess.Popen(
                [*map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,  # communicate() does not return buffered bytes
                **options,
            )
            programs.enter_context(program)
            programs.callback(program.kill)
            return program

        yield start_program


@pytest.fixture
def start_python(start_program):
    """Return a function that starts a Python program and waits for its line "ready"."""

    def start_python(body: str) -> subprocess.Popen[bytes]:
        program = start_program(sys.executable, "-c", SETUP + body)
        assert program.stdout.readline() == b"ready\n"
        return program

    return start_python


def send_signals_and_wait(program: subprocess.Popen[str], *numbers: int, pause: float = 0.1):
    """Send the signals, wait for the end, return the exit code and the lines of stdout."""
    for number in numbers:
        program.send_signal(number)
        time.sleep(pause)
    out, err = program.communicate(timeout=10)
    assert b"Traceback" not in err
    return program.returncode, out.decode().splitlines()


def test_signal_before_begin_is_kept(start_python) -> None:
    program = start_python(f"report('ready'); time.sleep(0.3)\n{BEGIN}time.sleep(60)")
    assert send_signals_and_wait(program, signal.SIGTERM) == (0, ["stopped during start-up"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_during_startup_exits_at_once(start_python, number) -> None:
    busy_loop = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    program = start_python(f"{BEGIN}report('ready')\n{busy_loop}")
    assert send_signals_and_wait(program, number) == (0, ["stopped during start-up"])


def test_first_signal_stops_and_second_aborts(start_python) -> None:
    program = start_python(
        f"{BEGIN}\nwith signals.stopping(work):\n    report('ready'); work.over.wait(60)\n"
        "report('end')\nshutdown.end_process(3)"
    )
    assert send_signals_and_wait(program, signal.SIGINT, signal.SIGTERM) == (
        3,
        ["stop", "abort", "end"],
    )


def test_burst_of_signals_does_not_deadlock(start_python) -> None:
    program = start_python(
        f"{BEGIN}{TAKE_LOCKS}\nwith signals.stopping(work):\n    report('ready'); take_locks()\n"
        "shutdown.end_process(0)"
    )
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM] * 50
    assert send_signals_and_wait(program, *numbers, pause=0.0003) == (0, ["stop", "abort"])


def test_blocked_work_is_ended_by_force_with_its_output(start_python) -> None:
    program = start_python(
        f"{BEGIN}with signals.stopping(work):\n    report('ready'); sys.stdout.write('partial ')\n"
        "    while True: time.sleep(60)"
    )
    code, lines = send_signals_and_wait(program, signal.SIGTERM)
    assert code == 1
    assert lines == ["partial stop", "still running 0.5 s after the stop signal: ending by force"]


def test_interrupt_unwinds_once_and_later_signals_are_ignored(start_python) -> None:
    program = start_python(
        f"{BEGIN}\ntry:\n    with signals.interrupting():\n"
        "        try: report('ready'); time.sleep(60)\n"
        "        finally: time.sleep(0.3); report('cleaned up')\n"
        "except KeyboardInterrupt: report('interrupted')\nshutdown.end_process(130)"
    )
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    assert send_signals_and_wait(program, *numbers, pause=0.02) == (
        130,
        ["cleaned up", "interrupted"],
    )


def test_hangup_calls_the_callback_and_is_ignored_before(start_python) -> None:
    program = start_python(
        "signals.begin(0, report, hangup_stops=False)\nreport('ready'); time.sleep(0.2)\n"
        "with signals.hangup_calls(lambda: (report('reloaded'), work.over.set())):\n"
        "    report('running'); work.over.wait(60)\nshutdown.end_process(0)"
    )
    program.send_signal(signal.SIGHUP)
    assert program.stdout.readline() == b"running\n"
    assert send_signals_and_wait(program, signal.SIGHUP) == (0, ["reloaded"])


def test_forked_child_has_default_signal_handlers(start_python) -> None:
    program = start_python(
        f"{BEGIN}child = os.fork()\nif not child: time.sleep(60)\n"
        "time.sleep(0.2); os.kill(child, signal.SIGINT); time.sleep(0.1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "report('ready'); report(code); shutdown.end_process(0)"
    )
    assert send_signals_and_wait(program) == (0, ["-15"])


def test_end_process_destroys_no_objects_in_use(start_python) -> None:
    """The atexit callbacks are called, children are killed and output is flushed."""
    program = start_python(
        f"{BEGIN}import atexit, multiprocessing\natexit.register(report, 'at exit')\n"
        "class Used:\n    def __del__(self): report('destroyed')\n"
        "used = Used()\nthreading.Thread(target=lambda: (time.sleep(60), used)).start()\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "child.start(); report('ready'); report(child.pid); sys.stdout.write('partial')\n"
        "shutdown.end_process(0)"
    )
    code, lines = send_signals_and_wait(program)
    assert (code, lines[1:]) == (0, ["partialat exit"])
    status = Path(f"/proc/{lines[0]}/status")
    assert not status.exists() or "(zombie)" in status.read_text()


def test_unwritable_stdout_is_reported_in_one_line() -> None:
    with Path("/dev/full").open("w") as full_device:
        process = subprocess.run(
            [sys.executable, "-c", f"{SETUP}sys.stdout.write('x'); shutdown.end_process(0)"],
            check=False, stdout=full_device, stderr=subprocess.PIPE, text=True, timeout=20,
            env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr.splitlines() == ["streamseg: stdout: [Errno 28] No space left on device"]


# The commands

PATTERN = ("--source", "test:?live=1&size=64x64&fps=10", "--bind", "tcp://127.0.0.1:*")
SMALL = ("--model", "nanomask", "--weights", "none", "--set", "model.input_size=64")


def has_signal_handler(pid: int, number: int) -> bool:
    """Return True if a process has a handler for a signal."""
    handled_mask = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(handled_mask, 16) >> (number - 1) & 1)


def wait_until_caught(pid: int) -> None:
    deadline = time.monotonic() + 20
    while not has_signal_handler(pid, signal.SIGTERM):
        assert time.monotonic() < deadline
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
def test_command_can_be_stopped_during_startup(start_program, arguments, code, tmp_path) -> None:
    process = start_program(*command(*arguments), cwd=tmp_path, env=environment())
    wait_until_caught(process.pid)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err == b"stopped during start-up\n"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare for a PID namespace")
def test_pid_1_of_a_container_can_be_stopped_during_startup(start_program) -> None:
    unshare_command = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if subprocess.run([*unshare_command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not available")
    process = start_program(
        *unshare_command, *command("serve", *PATTERN, *SMALL), env=environment()
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (child_pids := children.read_text().split()):
        time.sleep(0.002)
    wait_until_caught(int(child_pids[0]))
    os.kill(int(child_pids[0]), signal.SIGTERM)
    assert process.wait(20) == 0


@pytest.fixture
def start_service(start_program):
    """Return a function that starts a service and waits until it serves."""

    def start_service(*arguments: object) -> subprocess.Popen[bytes]:
        process = start_program(*arguments, env=environment())
        while b"control at" not in (line := process.stderr.readline()):
            assert line, "the service has ended"
        return process

    return start_service


@pytest.mark.slow
@pytest.mark.parametrize("repetitions", [1, 4])
def test_service_prints_summary_after_burst_of_signals(start_service, repetitions) -> None:
    for number in range(repetitions):
        process = start_service(*command("serve", *PATTERN, *SMALL))
        time.sleep(0.1 * number)
        for index in range(40):
            if process.poll() is None:
                process.send_signal([signal.SIGINT, signal.SIGTERM, signal.SIGHUP][index % 3])
            time.sleep(0.0003 * (index % 4))
        out, err = process.communicate(timeout=15)
        assert process.returncode == 0, err
        assert b"dropped" in out
        assert b"Traceback" not in err


BUSY = """
import torch
from streamseg.pipeline import runner as pipeline
from streamseg.service import service as serve
serve.STOP_WITHIN = pipeline.LATE_AFTER = 0.5
warm_up_model = serve.warm_up_model
def compute_forever(*_):
    print("busy", flush=True)
    matrix = torch.ones(1500, 1500)
    while True:
        matrix = matrix @ matrix
def warm_up_and_block(model):
    warm_up_model(model).network.register_forward_pre_hook(compute_forever)
    return model
serve.warm_up_model = warm_up_and_block
from streamseg.__main__ import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_service_prints_summary_while_model_runs_native_code(start_service, signals) -> None:
    process = start_service(sys.executable, "-c", BUSY, "serve", *PATTERN, *SMALL)
    assert process.stdout.readline() == b"busy\n"
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert b"1 stopped" in out
    assert b"left behind, blocked: worker" in err
