"""Parser for MOT text, the format of MOTChallenge, in the variants that tools write.

Columns are separated by commas, semicolons, spaces or tabs; lines that begin with ``#`` are
comments. The first line may be a header; one whose columns are in another order is refused.

After the seventh column benchmarks differ: MOT16 and later have class and visibility, MOT15 has
world coordinates x, y, z, and results have -1 three times. The eighth column is the class unless
the file has world coordinates: a file has them if any row has an eighth number that can't be a
class id (not an integer, or below -1) or a tenth that isn't -1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from streamseg.errors import DataError

_SEPARATORS = re.compile(rb"\s*[,;]\s*|\s+")
_NUMBER = re.compile(rb"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_CLASS, _WORLD_Z = 7, 9
_COLUMN_NAMES: tuple[frozenset[str], ...] = (
    frozenset({"frame", "frameid", "frameindex", "framenumber", "t"}),
    frozenset({"id", "trackid", "objectid", "identity", "targetid"}),
    frozenset({"left", "bbleft", "x", "x1", "xmin", "bboxleft", "bbx"}),
    frozenset({"top", "bbtop", "y", "y1", "ymin", "bboxtop", "bby"}),
    frozenset({"width", "w", "bbwidth", "bboxwidth"}),
    frozenset({"height", "h", "bbheight", "bboxheight"}),
)


@dataclass(frozen=True, slots=True)
class MotLine:
    """One row of MOT text.

    Attributes:
        location: file and line number.
        columns: the columns, at least six.
        has_class: whether the eighth column is a class.
    """

    location: str
    columns: tuple[bytes, ...]
    has_class: bool


def split_columns(line: bytes) -> tuple[bytes, ...]:
    """Split a line into its columns; empty columns at the end are left out."""
    return tuple(_SEPARATORS.split(line.strip(b" \t\r\n,;")))


def is_header(columns: Sequence[bytes]) -> bool:
    """Return whether columns are a header: none of them is a number."""
    return not any(_NUMBER.fullmatch(column) for column in columns)


def read_mot_lines(lines: Iterable[tuple[str, bytes]]) -> Iterator[MotLine]:
    """Return the rows of a file.

    Args:
        lines: (file and line number, line) of each line that isn't blank.

    Raises:
        DataError: a line has fewer than six columns, or the header has another order.
    """
    rows: list[tuple[str, tuple[bytes, ...]]] = []
    for number, (location, line) in enumerate(lines):
        columns = split_columns(line)
        if line.lstrip().startswith(b"#"):
            continue
        if number == 0 and is_header(columns):
            _check_header(location, columns)
        elif len(columns) < len(_COLUMN_NAMES):
            raise DataError(f"{location}: isn't MOT text: frame,id,left,top,width,height,…")
        else:
            rows.append((location, columns))
    has_world = any(_has_world_coordinates(columns) for _, columns in rows)
    return (
        MotLine(location, columns, len(columns) > _CLASS and not has_world)
        for location, columns in rows
    )


def _has_world_coordinates(columns: Sequence[bytes]) -> bool:
    """Return whether a row shows that the columns after the seventh are world coordinates."""
    extra = columns[_CLASS:]
    if not extra or not all(_NUMBER.fullmatch(column) for column in extra):
        return False
    eighth = float(extra[0])
    if not eighth.is_integer() or eighth < -1:
        return True
    return len(columns) > _WORLD_Z and float(columns[_WORLD_Z]) != -1


def _check_header(location: str, columns: Sequence[bytes]) -> None:
    names = [
        re.sub(r"[^a-z0-9]", "", column.decode("utf-8", "replace").lower()) for column in columns
    ]
    if len(names) < len(_COLUMN_NAMES) or any(
        name not in known for name, known in zip(names, _COLUMN_NAMES, strict=False)
    ):
        raise DataError(
            f"{location}: the header must be frame,id,left,top,width,height,… in this order"
        )
