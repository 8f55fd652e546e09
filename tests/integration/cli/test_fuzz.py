"""Fuzzer: detection of planted faults, mutation and replay of previous findings."""

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
REGRESSION_INPUTS = TESTS / "fuzzed"


def run_python(*arguments: object, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module")
def planted_findings(tmp_path_factory) -> tuple[dict[str, str], Path]:
    out = tmp_path_factory.mktemp("found")
    process = run_python(
        TESTS / "support" / "planted_faults.py", out, out / "findings.json", seconds=100
    )
    assert process.returncode == 0, process.stderr
    return json.loads((out / "findings.json").read_text()), out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected_finding"),
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
def test_fuzzer_reports_planted_fault_and_saves_input(
    planted_findings, fault, expected_finding
) -> None:
    findings, out = planted_findings
    assert findings[fault].startswith(expected_finding)
    (saved_input,) = (out / fault).glob("*-a.bin")
    assert saved_input.read_bytes() in (b"x", b"@CANARY@", b"@CANARY_FILE@"), (
        "the input before the trial"
    )


@pytest.mark.slow
@pytest.mark.parametrize("correct_target", ["read_well", "refuse"])
def test_fuzzer_reports_nothing_for_correct_targets(planted_findings, correct_target) -> None:
    assert correct_target not in planted_findings[0]


def test_mutations_are_bounded_and_reproducible() -> None:
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


def test_mutation_accepts_empty_input() -> None:
    for seed in range(200):
        random = Random(seed)
        mutate_bytes(random, b"", [])
        mutate_text(random, b"", [], [b"token"])


@pytest.mark.slow
def test_replay_of_previous_findings_succeeds() -> None:
    inputs = sorted(file for file in REGRESSION_INPUTS.glob("*/*") if file.is_file())
    assert inputs
    process = run_python(FUZZ, "--replay", *inputs, seconds=110)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_fuzzing_for_one_minute_has_no_findings() -> None:
    seed = ["--seed", "1"] if "CI" in os.environ else []
    process = run_python(FUZZ, "--seconds", 60, *seed, seconds=170)
    assert process.returncode == 0, process.stdout + process.stderr
