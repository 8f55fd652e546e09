"""The fuzzer: it finds every kind of fault, and nothing else; what it once found stays mended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from support.paths import ROOT, TESTS

sys.path.insert(0, str(ROOT / "tools"))

from fuzzing.mutation import MAX_INPUT_BYTES, mutate_bytes, mutate_text

FUZZ = ROOT / "tools" / "fuzz.py"
FOUND = TESTS / "fuzzed"


def run(*arguments: object, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict[str, str], Path]:
    out = tmp_path_factory.mktemp("found")
    ended = run(TESTS / "support" / "planted_faults.py", out, out / "findings.json", seconds=100)
    assert ended.returncode == 0, ended.stderr
    return json.loads((out / "findings.json").read_text()), out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        ("abort", "dies by SIGABRT"),
        ("raise_error", "KeyError in planted_faults.py, raise_error"),
        ("raise_error_in_thread", "prints a traceback: ZeroDivisionError"),
        ("raise_in_destructor", "prints a traceback: ValueError: unraisable"),
        ("refuse_without_reason", "an error that is not one printable line"),
        ("wait_without_end", "hangs: no end after 1 s"),
        ("compute_without_end", "hangs: 1 s of the processor"),
        ("take_memory", "takes over 50 MiB"),
        ("connect_elsewhere", "makes a connection to 127.0.0.2"),
        ("send_elsewhere", "makes a datagram to 127.0.0.2"),
        ("read_elsewhere", "makes a read of canary.ts"),
    ],
)
def test_a_planted_fault_is_found_and_its_input_kept(found, fault, reported) -> None:
    findings, out = found
    assert findings[fault].startswith(reported)
    (kept,) = (out / fault).glob("*-a.bin")
    assert kept.read_bytes() in (b"x", b"@CANARY@", b"@CANARY_FILE@"), "as it was before the trial"


@pytest.mark.slow
@pytest.mark.parametrize("sound", ["read_well", "refuse"])
def test_what_reads_or_refuses_in_one_line_is_no_finding(found, sound) -> None:
    assert sound not in found[0]


def test_mutations_are_bounded_and_the_same_for_a_seed() -> None:
    data = bytes(range(256)) * 40
    others = [b"x" * 3000, b""]

    def mutate(seed: int) -> list[bytes]:
        random = Random(seed)
        return [
            change
            for _ in range(300)
            for change in (
                mutate_bytes(random, data, others),
                mutate_text(random, b"a: 1\nb: 22\n", others, [b"token"]),
            )
        ]

    first = mutate(1)
    assert first == mutate(1) != mutate(2)
    assert max(map(len, first)) <= MAX_INPUT_BYTES
    assert sum(change == data for change in first) < 30


def test_an_empty_input_can_be_mutated() -> None:
    for seed in range(200):
        random = Random(seed)
        mutate_bytes(random, b"", [])
        mutate_text(random, b"", [], [b"token"])


@pytest.mark.slow
def test_what_was_found_once_stays_mended() -> None:
    inputs = sorted(file for file in FOUND.glob("*/*") if file.is_file())
    assert inputs
    ended = run(FUZZ, "--replay", *inputs, seconds=110)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_minute_of_it_finds_nothing() -> None:
    seed = ["--seed", "1"] if "CI" in os.environ else []
    ended = run(FUZZ, "--seconds", 60, *seed, seconds=170)
    assert ended.returncode == 0, ended.stdout + ended.stderr
