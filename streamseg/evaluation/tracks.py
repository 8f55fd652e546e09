"""Readers of tracks: who is where in each frame, from one of three kinds of file.

=====================  ========================================  ============================
MOTS text              ``frame id class height width rle``       frames as they are, from 0
MOT text               ``frame,id,left,top,width,height,…``      frames from 1, here from 0
``results.jsonl``      this project's own (:mod:`streamseg.protocol.messages`)  frames from 0
=====================  ========================================  ============================

MOTS text is KITTI MOTS's (Voigtlaender et al., "MOTS", CVPR 2019), which counts frames from 0; the
files of MOTS20 count from 1 and must be compared with files that do. In it, what has class 10 or id
10000 is no object but a region that isn't annotated.

MOT text is MOTChallenge's (Dendorfer et al., 2020): the seventh column says in the truth whether a
row counts, the eighth what it is, from MOT16 on (see :mod:`streamseg.evaluation.mot_text`). There,
rows of the classes 2, 7, 8 and 12 are distractors: what was found in their place is neither right
nor wrong. Frames count from 1; a file that has a frame 0 is refused.
"""

from __future__ import annotations

import codecs
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamseg.errors import DataError, MaskError, WireError
from streamseg.evaluation.mot_text import MotLine, is_header, read_mot_lines
from streamseg.protocol.encoding import decode, decode_instances
from streamseg.protocol.messages import RecordedMessage
from streamseg.structures.masks import BoolArray, IntArray, Masks, Size
from streamseg.structures.results import NOT_TRACKED

ANYTHING = 0  # the label of every row where no classes are asked for
OTHER = -1  # the label of what isn't of any class that is asked for, where labels are names
MOTS_COLUMNS = 6
MOTS_REGION_CLASS, MOTS_REGION_ID = 10, 10000
MOT_DISTRACTORS = frozenset({2, 7, 8, 12})  # person on vehicle, static, distractor, reflection


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFrame:
    """N tracked objects in one frame.

    Attributes:
        ids: int64 (N,), no two the same.
        labels: int64 (N,), category ids; 0 for all where no classes are asked for.
        boxes: float64 (N, 4) xyxy in pixels.
        masks: None where the file has boxes only.
        counted: bool (N,), false for rows that the truth marks as not to be found.
        distractors: bool (N,), true for rows in whose place results are neither right nor wrong.
        regions: parts of the frame that aren't annotated; None where the file has boxes only.
    """

    ids: IntArray
    labels: IntArray
    boxes: npt.NDArray[np.float64]
    masks: Masks | None
    counted: BoolArray
    distractors: BoolArray
    regions: Masks | None


@dataclass(frozen=True, slots=True, eq=False)
class Tracks:
    """The tracks of one sequence.

    Attributes:
        path: the file.
        size: (height, width) of every frame; None where the file doesn't say.
        frames: by number, from 0; frames with nothing in them may be missing.
        names: what the objects are called: names, or category ids as text.
    """

    path: Path
    size: Size | None
    frames: Mapping[int, TrackedFrame]
    names: frozenset[str]

    def __getitem__(self, frame: int) -> TrackedFrame:
        return self.frames[frame] if frame in self.frames else _gather([], self.size)

    @property
    def length(self) -> int:
        """One more than the number of the last frame that has something in it."""
        return max(self.frames, default=-1) + 1


@dataclass(frozen=True, slots=True)
class _Row:
    """One object in one frame; ``where`` is file and line."""

    where: str
    frame: int
    id: int
    label: int
    name: str
    box: tuple[float, ...] | None = None
    mask: Masks | None = None
    counted: bool = True
    distractor: bool = False
    region: bool = False


Reader = Callable[[Path, list[bytes], Mapping[str, int]], Iterator[_Row]]


def read_tracks(path: Path, classes: Mapping[str, int]) -> Tracks:
    """The tracks in a file of any of the three kinds; what kind it is, its first line says.

    What has no identity (-1) is left out.

    Args:
        path: the file.
        classes: category ids by name. A row of ``results.jsonl`` is of the class whose name it
            has, a row of text of the class whose id it has. Without any, all rows are of one.

    Raises:
        DataError: the file can't be read, a line isn't what it should be, frames are of different
            sizes, or an id is in one frame twice; the message names the line.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    rows = list(_reader(lines)(path, lines, classes))
    size = next((row.mask.size for row in rows if row.mask is not None), None)
    _check(rows, size)
    by_frame: dict[int, list[_Row]] = defaultdict(list)
    for row in rows:
        by_frame[row.frame].append(row)
    return Tracks(
        path,
        size,
        {frame: _gather(of_frame, size) for frame, of_frame in by_frame.items()},
        frozenset(row.name for row in rows if not row.region),
    )


def _check(rows: list[_Row], size: Size | None) -> None:
    """That frames are of one size, and that an id is in a frame but once."""
    seen: set[tuple[int, int]] = set()
    for row in rows:
        if row.mask is not None and row.mask.size != size:
            raise DataError(f"{row.where}: a frame of {row.mask.size}, the first was of {size}")
        if (row.frame, row.id) in seen and not row.region:
            raise DataError(f"{row.where}: its id is in frame {row.frame} for the second time")
        seen.add((row.frame, row.id))


def _reader(lines: list[bytes]) -> Reader:
    """What reads the file, by its first line that is no comment."""
    plain = (line.strip() for line in lines)
    first = next((line for line in plain if line and not line.startswith(b"#")), b"")
    if first.startswith(b"{"):
        return _results_rows
    return _mots_rows if _is_mots(first) else _mot_rows


def _is_mots(line: bytes) -> bool:
    """Whether a line is MOTS text: five numbers and run lengths, which may look like a number."""
    columns = line.split()
    numbers = b" ".join(columns[: MOTS_COLUMNS - 1])  # run lengths may have a semicolon
    has_separators = b"," in numbers or b";" in numbers
    if has_separators or len(columns) > MOTS_COLUMNS or is_header(columns[:1]):
        return False
    if len(columns) < MOTS_COLUMNS or is_header(columns[-1:]):
        return True
    try:
        Masks.from_rle([columns[-1]], (int(columns[3]), int(columns[4])))
    except (MaskError, ValueError):
        return False
    return True


def _gather(rows: list[_Row], size: Size | None) -> TrackedFrame:
    objects = [row for row in rows if not row.region]
    masks, regions = None, None
    if size is not None:
        empty = Masks.empty(size)
        masks = Masks.concatenate([empty, *(row.mask for row in objects if row.mask)])
        regions = Masks.concatenate([empty, *(row.mask for row in rows if row.mask and row.region)])
    if masks is not None and all(row.box is None for row in objects):
        boxes = masks.boxes.astype(np.float64)
    else:
        boxes = np.array([row.box for row in objects], np.float64).reshape(-1, 4)
    return TrackedFrame(
        np.array([row.id for row in objects], np.int64),
        np.array([row.label for row in objects], np.int64),
        boxes,
        masks,
        np.array([row.counted for row in objects], np.bool_),
        np.array([row.distractor for row in objects], np.bool_),
        regions,
    )


def _mots_rows(path: Path, lines: list[bytes], classes: Mapping[str, int]) -> Iterator[_Row]:
    for where, line in _numbered(path, lines):
        columns = line.split()
        if len(columns) != MOTS_COLUMNS:
            raise DataError(f"{where}: isn't MOTS text: frame id class height width rle")
        frame, id_, label, height, width = (_whole(column, where) for column in columns[:5])
        _check_frame(frame, 0, where)
        try:
            mask = Masks.from_rle([columns[5]], (height, width))
        except MaskError as error:
            raise DataError(f"{where}: {error}") from None
        region = label == MOTS_REGION_CLASS or id_ == MOTS_REGION_ID
        yield _Row(
            where,
            frame,
            id_,
            label if classes else ANYTHING,
            str(label),
            mask=mask,
            region=region,
        )


def _mot_rows(path: Path, lines: list[bytes], classes: Mapping[str, int]) -> Iterator[_Row]:
    for line in read_mot_lines(_numbered(path, lines)):
        where, columns = line.where, line.columns
        frame, id_ = (_whole(column, where) for column in columns[:2])
        left, top, width, height = (_number(column, where) for column in columns[2:6])
        _check_frame(frame, 1, where)
        if id_ == NOT_TRACKED:
            continue
        label = _mot_label(line, classes)
        yield _Row(
            where,
            frame - 1,
            id_,
            label,
            str(label),
            box=(left, top, left + width, top + height),
            counted=len(columns) < 7 or _number(columns[6], where) != 0,
            distractor=bool(classes) and label in MOT_DISTRACTORS - set(classes.values()),
        )


def _mot_label(line: MotLine, classes: Mapping[str, int]) -> int:
    """The category id; MOT15 and results for one class have none, which is written as -1."""
    if not classes:
        return ANYTHING
    label = _whole(line.columns[7], line.where) if line.has_class else -1
    if label != -1:
        return label
    if len(classes) > 1:
        raise DataError(
            f"{line.where}: has no class, in the eighth column: name one class, or none"
        )
    return next(iter(classes.values()))


def _results_rows(path: Path, lines: list[bytes], classes: Mapping[str, int]) -> Iterator[_Row]:
    known: dict[tuple[int, int], int] = {}  # identities don't cross epochs
    frames: set[int] = set()
    source = None
    for where, line in _numbered(path, lines):
        try:
            message = decode(line, RecordedMessage)
            found = decode_instances(message)
        except WireError as error:
            raise DataError(f"{where}: {error}") from None
        _check_frame(message.frame, 0, where)
        source = source or message.source
        if message.source != source:
            raise DataError(f"{where}: is of {message.source}, those before of {source}: split it")
        if message.frame in frames:
            raise DataError(f"{where}: frame {message.frame} is there for the second time")
        frames.add(message.frame)
        for row in np.flatnonzero(found.track_ids != NOT_TRACKED).tolist():
            name = message.instances[row].class_name
            identity = (message.epoch, int(found.track_ids[row]))
            yield _Row(
                where,
                message.frame,
                known.setdefault(identity, len(known)),
                classes.get(name, OTHER) if classes else ANYTHING,
                name,
                box=tuple(found.boxes[row].tolist()),
                mask=found.masks[[row]],
            )


def _numbered(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """File and line number, and the line, of each that isn't empty."""
    return (
        (f"{path}: line {number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )


def _check_frame(frame: int, first: int, where: str) -> None:
    if frame < first:
        raise DataError(f"{where}: frame {frame}, but frames are counted from {first}")


def _whole(text: bytes, where: str) -> int:
    number = _number(text, where)
    if not number.is_integer() or abs(number) > 2**53:
        raise DataError(f"{where}: {_shown(text)} isn't a whole number")
    return int(number)


def _number(text: bytes, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise DataError(f"{where}: {_shown(text)} isn't a number") from None
    if not math.isfinite(number):
        raise DataError(f"{where}: {_shown(text)} isn't a finite number")
    return number


def _shown(text: bytes) -> str:
    return repr(text[:20].decode("utf-8", "replace"))
