"""MOT text as tools write it: the columns of each line, whatever separates them.

Columns are separated by commas, semicolons, spaces or tabs; lines that begin with ``#``
are comments.
The first line may name the columns: names that say another order than MOTChallenge's are refused.

After the seventh column benchmarks differ: MOT16 and later have the class and the visibility, MOT15
has world coordinates x, y, z, and results have -1 three times. The eighth column is the class, but
in files of world coordinates: those in which any row has an eighth number that is no class id (not
whole, or below -1) or a tenth that isn't -1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from streamseg.errors import DataError

_SEPARATORS = re.compile(rb"\s*[,;]\s*|\s+")
_NUMBER = re.compile(rb"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_CLASS, _WORLD_Z = 7, 9
_ORDER: tuple[frozenset[str], ...] = (
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
        where: file and line number.
        columns: at least six.
        has_class: whether the eighth column is a class.
    """

    where: str
    columns: tuple[bytes, ...]
    has_class: bool


def split_columns(line: bytes) -> tuple[bytes, ...]:
    """The columns of a line; empty ones at the end are left out."""
    return tuple(_SEPARATORS.split(line.strip(b" \t\r\n,;")))


def is_header(columns: Sequence[bytes]) -> bool:
    """Whether a line names columns: none of them is a number."""
    return not any(_NUMBER.fullmatch(column) for column in columns)


def read_mot_lines(lines: Iterable[tuple[str, bytes]]) -> Iterator[MotLine]:
    """The rows of a file.

    Args:
        lines: file and line number, and the line, of each that isn't empty.

    Raises:
        DataError: a line has fewer than six columns, or the first names them in another order.
    """
    rows: list[tuple[str, tuple[bytes, ...]]] = []
    for number, (where, line) in enumerate(lines):
        columns = split_columns(line)
        if line.lstrip().startswith(b"#"):
            continue
        if number == 0 and is_header(columns):
            _check_header(where, columns)
        elif len(columns) < len(_ORDER):
            raise DataError(f"{where}: isn't MOT text: frame,id,left,top,width,height,…")
        else:
            rows.append((where, columns))
    is_world = any(_is_world(columns) for _, columns in rows)
    return (
        MotLine(where, columns, len(columns) > _CLASS and not is_world) for where, columns in rows
    )


def _is_world(columns: Sequence[bytes]) -> bool:
    """Whether the columns after the seventh are world coordinates."""
    numbers = [_to_float(column) for column in columns[_CLASS:]]
    if not numbers or None in numbers:
        return False
    eighth = numbers[0] or 0.0
    if not eighth.is_integer() or eighth < -1:
        return True
    return len(columns) > _WORLD_Z and numbers[_WORLD_Z - _CLASS] != -1


def _check_header(where: str, columns: Sequence[bytes]) -> None:
    names = [
        re.sub(r"[^a-z0-9]", "", column.decode("utf-8", "replace").lower()) for column in columns
    ]
    if len(names) < len(_ORDER) or any(
        name not in known for name, known in zip(names, _ORDER, strict=False)
    ):
        raise DataError(
            f"{where}: the columns must be frame,id,left,top,width,height,… in this order, and the "
            "first line names others"
        )


def _to_float(column: bytes) -> float | None:
    return float(column) if _NUMBER.fullmatch(column) else None
