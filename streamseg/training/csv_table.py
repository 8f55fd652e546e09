"""CSV file that grows row by row and survives an interruption."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from streamseg.errors import DataError
from streamseg.sinks.files.part_file import append_bytes, output_errors
from streamseg.sinks.files.results import write_bytes_atomically

TEXT_COLUMNS = frozenset({"dataset", "on", "of"})
"""Columns that hold text; all others hold numbers."""


class CsvTable:
    """CSV file that is complete after every row; it is created with its first row.

    An existing file is read and truncated to ``count`` rows. Damaged rows at its end, as a kill or
    a full disk leaves them, are dropped.

    Args:
        path: the file.
        count: rows of an existing file to keep.

    Attributes:
        path: the file.
        rows: the rows, each a dict by column.
        note: description of the damage in an existing file, empty if there was none.

    Raises:
        DataError: a damaged row is followed by an intact one, which no interruption leaves.
        OutputError: the file can't be written.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.note = ""
        if count or path.exists():
            self.rows, self.note = _read_rows(path, count)
            self._rewrite()

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; the first row defines the columns."""
        self.rows.append(row)
        if len(self.rows) == 1:
            self._rewrite()
            return
        with output_errors(self.path):
            append_bytes(self.path, (_format_line(row.values()) + "\n").encode())

    def _rewrite(self) -> None:
        lines = [",".join(self.rows[0])] if self.rows else []
        lines += [_format_line(row.values()) for row in self.rows]
        write_bytes_atomically(self.path, "".join(line + "\n" for line in lines).encode())


def _read_rows(path: Path, count: int) -> tuple[list[dict[str, Any]], str]:
    """Return the first ``count`` rows of a file and a description of the damage in it.

    Text after the last line break is an incomplete row.

    Raises:
        DataError: a damaged row is followed by an intact one, or the file can't be read.
    """
    try:
        *lines, incomplete = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], f"{path}: is missing, starting a new file"
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    columns = _decode(lines[0]).split(",") if lines else []
    if count and len(lines) > 1 and "step" not in columns:
        raise DataError(_describe_damage(path, 1))
    rows = [_parse_row(line, columns) for line in lines[1 : count + 1]]
    intact = next((number for number, row in enumerate(rows) if row is None), len(rows))
    if any(rows[intact:]):
        raise DataError(_describe_damage(path, intact + 2))
    kept = [row for row in rows[:intact] if row is not None]
    if len(kept) < count:
        dropped = count - len(kept)
        return kept, f"{path}: {dropped} of its last lines are damaged or missing, dropped"
    later = [_parse_row(line, columns) for line in lines[count + 1 :]]
    if incomplete or not all(later):
        return kept, f"{path}: its end is damaged, dropped"
    return kept, ""


def _describe_damage(path: Path, number: int) -> str:
    return (
        f"{path}: line {number} is damaged and later ones aren't: repair it, or move the file away "
        "to continue without its earlier lines"
    )


def _parse_row(line: bytes, columns: Sequence[str]) -> dict[str, Any] | None:
    """Return a line's cells by column; None if the line is damaged."""
    cells = _decode(line).split(",")
    if len(cells) != len(columns) or "step" not in columns:
        return None
    row = dict(zip(columns, cells, strict=True))
    intact = all(_is_number(cell) for name, cell in row.items() if name not in TEXT_COLUMNS)
    return row if intact and row["step"] and all(map(str.isprintable, cells)) else None


def _decode(line: bytes) -> str:
    # A NUL makes an undecodable line unprintable, and so damaged: no row that we write has one.
    return line.decode("utf-8", "replace").replace("\ufffd", "\0")


def _is_number(cell: str) -> bool:
    """Return whether a cell is empty or a number."""
    try:
        return not cell or not math.isnan(float(cell))
    except ValueError:
        return False


def _format_line(values: Iterable[Any]) -> str:
    return ",".join(map(_format_cell, values))


def _format_cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else " ".join(str(value).replace(",", " ").split("\n"))
