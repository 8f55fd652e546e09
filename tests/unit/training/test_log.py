"""Training log: recovery after an interruption, and write errors."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support.training import read_csv

from streamseg.errors import DataError, OutputError
from streamseg.training.log import TrainingLog

LINES = b"step,epoch,rate,loss,mask\n20,1,0.001,0.5,0.5\n40,2,0.0005,0.25,0.25\n"


@pytest.mark.parametrize(
    ("content", "lines", "kept", "note"),
    [
        (LINES, 2, 2, ""),
        (LINES, 1, 1, ""),
        (LINES + b"60,3,0.0", 2, 2, "its end is damaged, dropped"),
        (LINES + b"60,3,0.0002,0.1,0.1", 2, 2, "its end is damaged, dropped"),
        (LINES + bytes(40), 2, 2, "its end is damaged, dropped"),
        (LINES + b"\xff\xfe,3\n", 2, 2, "its end is damaged, dropped"),
        (LINES + bytes(9) + b"\n60,3,0.1,0.1,0.1\n", 2, 2, "its end is damaged, dropped"),
        (LINES[:-9], 2, 1, "1 of its last lines are damaged or missing, dropped"),
        (LINES[:30], 2, 0, "2 of its last lines are damaged or missing, dropped"),
        (b"", 2, 0, "2 of its last lines are damaged or missing, dropped"),
        (bytes(70), 2, 0, "2 of its last lines are damaged or missing, dropped"),
        (None, 2, 0, "is missing, starting a new file"),
        (LINES, 0, 0, ""),
    ],
)
def test_interrupted_log_keeps_the_lines_of_the_checkpoint(
    tmp_path: Path, content: bytes | None, lines: int, kept: int, note: str
):
    if content is not None:
        (tmp_path / "steps.csv").write_bytes(content)
    log = TrainingLog(tmp_path, {"steps.csv": lines})
    assert log.line_counts == {"steps.csv": kept, "measures.csv": 0, "panoptic.csv": 0}
    assert log.notes == ([f"{tmp_path}/steps.csv: {note}"] if note else [])
    expected = b"".join(LINES.splitlines(keepends=True)[: kept + 1]) if kept else b""
    assert (tmp_path / "steps.csv").read_bytes() == expected
    log.log_step(60, 3, 0.1, {"mask": 1.0})
    assert len(read_csv(tmp_path / "steps.csv")) == kept + 1


@pytest.mark.parametrize(("line", "number"), [(b"step,epoch,rate", 1), (b"20,1,0.001,0.5", 2)])
def test_damage_before_an_intact_line_is_an_error(tmp_path: Path, line: bytes, number: int):
    damaged = LINES.replace(line, b"\0\xff," + line[9:])
    (tmp_path / "steps.csv").write_bytes(damaged)
    with pytest.raises(DataError, match=rf"steps\.csv: line {number} is damaged and later ones"):
        TrainingLog(tmp_path, {"steps.csv": 2})
    assert (tmp_path / "steps.csv").read_bytes() == damaged


def test_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = TrainingLog(tmp_path, {})
    log.log_step(1, 1, 0.1, {"mask": 1.0})
    monkeypatch.setattr("streamseg.sinks.files.part_file.write_whole", fail)
    with pytest.raises(OutputError, match=r"steps\.csv: can't be written: the disk is full"):
        log.log_step(2, 1, 0.1, {"mask": 1.0})


def test_symbolic_link_in_place_of_a_log_is_not_followed(tmp_path: Path):
    (tmp_path / "target").write_text("content")
    log = TrainingLog(tmp_path, {})
    log.log_step(1, 1, 0.1, {"mask": 1.0})
    (tmp_path / "steps.csv").unlink()
    (tmp_path / "steps.csv").symlink_to(tmp_path / "target")
    with pytest.raises(OutputError, match=r"steps\.csv: .*links are not followed"):
        log.log_step(2, 1, 0.1, {"mask": 1.0})
    assert (tmp_path / "target").read_text() == "content"
