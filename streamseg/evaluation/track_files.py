"""Readers of track files in three formats.

=====================  ========================================  ============================
MOTS text              ``frame id class height width rle``       frames from 0
MOT text               ``frame,id,left,top,width,height,…``      frames from 1, converted
``results.jsonl``      this project's own (:mod:`streamseg.protocol.messages`)  frames from 0
=====================  ========================================  ============================

MOTS text is the format of KITTI MOTS (Voigtlaender et al., "MOTS", CVPR 2019), which counts frames
from 0. Files of MOTS20 count from 1 and must be compared with files that do. A row with class 10 or
id 10000 is not an object but a region that isn't annotated.

MOT text is the format of MOTChallenge (Dendorfer et al., 2020). In the ground truth, the seventh
column is 0 for rows that don't count; from MOT16 on the eighth column is the class (see
:mod:`streamseg.evaluation.mot_text`). The classes 2, 7, 8 and 12 are distractors: a prediction that
matches one is neither right nor wrong. Frames count from 1; a file with a frame 0 is refused.
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

ANY_CLASS = 0
"""Label of every row if no classes are requested."""
OTHER_CLASS = -1
"""Label of a row of ``results.jsonl`` whose class isn't requested."""
MOTS_COLUMNS = 6
MOTS_REGION_CLASS, MOTS_REGION_ID = 10, 10000
MOT_DISTRACTORS = frozenset({2, 7, 8, 12})
"""Classes person on vehicle, static person, distractor and reflection."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFrame:
    """N tracked objects in one frame.

    Attributes:
        ids: int64 (N,), unique.
        labels: int64 (N,), category ids; all 0 if no classes are requested.
        boxes: float64 (N, 4) xyxy in pixels.
        masks: None if the file has only boxes.
        counted: bool (N,), false for rows that the ground truth excludes from evaluation.
        distractors: bool (N,), true for rows with which a matching prediction is ignored.
        regions: regions that aren't annotated; None if the file has only boxes.
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
    """Tracks of one sequence.

    Attributes:
        path: the file.
        size: (height, width) of every frame; None if the file doesn't contain it.
        frames: frames by number, from 0; frames without an object may be missing.
        names: class names of the objects, or their category ids as text.
    """

    path: Path
    size: Size | None
    frames: Mapping[int, TrackedFrame]
    names: frozenset[str]

    def __getitem__(self, frame: int) -> TrackedFrame:
        return self.frames[frame] if frame in self.frames else _make_frame([], self.size)

    @property
    def length(self) -> int:
        """Number of frames up to the last one with an object."""
        return max(self.frames, default=-1) + 1


@dataclass(frozen=True, slots=True)
class _Row:
    """One object in one frame.

    Attributes:
        location: file and line, for errors.
        frame: frame number, from 0.
        id: track id.
        label: category id.
        name: class name, or category id as text.
        box: xyxy in pixels; None if there is a mask only.
        mask: one mask; None if the file has only boxes.
        counted: see :class:`TrackedFrame`.
        distractor: see :class:`TrackedFrame`.
        region: whether this is a region that isn't annotated.
    """

    location: str
    frame: int
    id: int
    label: int
    name: str
    box: tuple[float, ...] | None = None
    mask: Masks | None = None
    counted: bool = True
    distractor: bool = False
    region: bool = False


_Parser = Callable[[Path, list[bytes], Mapping[str, int]], Iterator[_Row]]


def read_tracks(path: Path, classes: Mapping[str, int]) -> Tracks:
    """Read a track file; its format is detected from its first line.

    Rows without a track id (-1) are left out.

    Args:
        path: the file.
        classes: category ids by name. Rows of ``results.jsonl`` are selected by class name, rows
            of text files by category id. If it is empty, all rows belong to one class.

    Raises:
        DataError: the file can't be read, a line is invalid, frames differ in size, or an id
            occurs twice in a frame; the message names the line.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    parse = _choose_parser(lines)
    rows = list(parse(path, lines, classes))
    size = next((row.mask.size for row in rows if row.mask is not None), None)
    _check_rows(rows, size)
    by_frame: dict[int, list[_Row]] = defaultdict(list)
    for row in rows:
        by_frame[row.frame].append(row)
    return Tracks(
        path,
        size,
        {number: _make_frame(frame_rows, size) for number, frame_rows in by_frame.items()},
        frozenset(row.name for row in rows if not row.region),
    )


def _check_rows(rows: list[_Row], size: Size | None) -> None:
    """Check that all frames have one size and that ids are unique in each frame."""
    seen: set[tuple[int, int]] = set()
    for row in rows:
        if row.mask is not None and row.mask.size != size:
            raise DataError(f"{row.location}: the frame is {row.mask.size}, the first was {size}")
        if (row.frame, row.id) in seen and not row.region:
            raise DataError(f"{row.location}: id {row.id} is in frame {row.frame} twice")
        seen.add((row.frame, row.id))


def _choose_parser(lines: list[bytes]) -> _Parser:
    """Return the parser of a file's format, by its first line that is no comment."""
    stripped = (line.strip() for line in lines)
    first = next((line for line in stripped if line and not line.startswith(b"#")), b"")
    if first.startswith(b"{"):
        return _parse_results
    return _parse_mots if _is_mots(first) else _parse_mot


def _is_mots(line: bytes) -> bool:
    """Return whether a line is MOTS text: five numbers and an RLE, which may look like a number."""
    columns = line.split()
    numbers = b" ".join(columns[: MOTS_COLUMNS - 1])  # an RLE may contain a semicolon
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


def _make_frame(rows: list[_Row], size: Size | None) -> TrackedFrame:
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


def _parse_mots(path: Path, lines: list[bytes], classes: Mapping[str, int]) -> Iterator[_Row]:
    for location, line in _locate_lines(path, lines):
        columns = line.split()
        if len(columns) != MOTS_COLUMNS:
            raise DataError(f"{location}: isn't MOTS text: frame id class height width rle")
        frame, id_, label, height, width = (
            _parse_integer(column, location) for column in columns[:5]
        )
        _check_frame(frame, 0, location)
        try:
            mask = Masks.from_rle([columns[5]], (height, width))
        except MaskError as error:
            raise DataError(f"{location}: {error}") from None
        region = label == MOTS_REGION_CLASS or id_ == MOTS_REGION_ID
        yield _Row(
            location,
            frame,
            id_,
            label if classes else ANY_CLASS,
            str(label),
            mask=mask,
            region=region,
        )


def _parse_mot(path: Path, lines: list[bytes], classes: Mapping[str, int]) -> Iterator[_Row]:
    for line in read_mot_lines(_locate_lines(path, lines)):
        location, columns = line.location, line.columns
        frame, id_ = (_parse_integer(column, location) for column in columns[:2])
        left, top, width, height = (_parse_number(column, location) for column in columns[2:6])
        _check_frame(frame, 1, location)
        if id_ == NOT_TRACKED:
            continue
        label = _mot_label(line, classes)
        yield _Row(
            location,
            frame - 1,
            id_,
            label,
            str(label),
            box=(left, top, left + width, top + height),
            counted=len(columns) < 7 or _parse_number(columns[6], location) != 0,
            distractor=bool(classes) and label in MOT_DISTRACTORS - set(classes.values()),
        )


def _mot_label(line: MotLine, classes: Mapping[str, int]) -> int:
    """Return the category id; MOT15 and results of one class have none, written as -1."""
    if not classes:
        return ANY_CLASS
    label = _parse_integer(line.columns[7], line.location) if line.has_class else -1
    if label != -1:
        return label
    if len(classes) > 1:
        raise DataError(
            f"{line.location}: has no class in the eighth column: set one class, or none"
        )
    return next(iter(classes.values()))


def _parse_results(path: Path, lines: list[bytes], classes: Mapping[str, int]) -> Iterator[_Row]:
    new_ids: dict[tuple[int, int], int] = {}  # by epoch too: a track ends with its epoch
    frames: set[int] = set()
    source = None
    for location, line in _locate_lines(path, lines):
        try:
            message = decode(line, RecordedMessage)
            instances = decode_instances(message)
        except WireError as error:
            raise DataError(f"{location}: {error}") from None
        _check_frame(message.frame, 0, location)
        source = source or message.source
        if message.source != source:
            raise DataError(
                f"{location}: the source is {message.source}, before it was {source}: split the "
                "file by source"
            )
        if message.frame in frames:
            raise DataError(f"{location}: frame {message.frame} is in the file twice")
        frames.add(message.frame)
        for row in np.flatnonzero(instances.track_ids != NOT_TRACKED).tolist():
            name = message.instances[row].class_name
            epoch_and_id = (message.epoch, int(instances.track_ids[row]))
            yield _Row(
                location,
                message.frame,
                new_ids.setdefault(epoch_and_id, len(new_ids)),
                classes.get(name, OTHER_CLASS) if classes else ANY_CLASS,
                name,
                box=tuple(instances.boxes[row].tolist()),
                mask=instances.masks[[row]],
            )


def _locate_lines(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield (file and line number, line) for each line that isn't blank."""
    return (
        (f"{path}: line {number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )


def _check_frame(frame: int, first: int, location: str) -> None:
    if frame < first:
        raise DataError(f"{location}: frame {frame}, but frames are counted from {first}")


def _parse_integer(text: bytes, location: str) -> int:
    number = _parse_number(text, location)
    if not number.is_integer() or abs(number) > 2**53:
        raise DataError(f"{location}: {_quote(text)} isn't an integer")
    return int(number)


def _parse_number(text: bytes, location: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise DataError(f"{location}: {_quote(text)} isn't a number") from None
    if not math.isfinite(number):
        raise DataError(f"{location}: {_quote(text)} isn't a finite number")
    return number


def _quote(text: bytes) -> str:
    return repr(text[:20].decode("utf-8", "replace"))
