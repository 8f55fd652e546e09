"""What lies behind a path: which files are images, which are videos, and in which order.

In a folder, names decide by their endings, so that it isn't opened file by file; what is left out
is counted. A file that is named is tried whatever its ending, by its content.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from streamseg.config import source_names
from streamseg.errors import NoFramesError, SourceError, redact_address
from streamseg.sources.image_file import IMAGE_ENDINGS, is_heif, is_image

VIDEO_ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".f4v", ".3gp", ".3g2", ".mj2", ".mkv", ".webm", ".avi"),
    *(".divx", ".ts", ".tp", ".trp", ".m2t", ".mts", ".m2ts", ".mpg", ".mpeg", ".mpe", ".m1v"),
    *(".m2v", ".mpv", ".mod", ".tod", ".vob", ".flv", ".wmv", ".asf", ".wtv", ".rm", ".rmvb"),
    *(".ogv", ".ogm", ".mxf", ".dv", ".dav", ".nut", ".ivf", ".obu", ".y4m", ".gif"),
    *(".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".h266", ".266", ".vvc"),
    *(".mjpeg", ".mjpg", ".mpjpeg"),
)
"""Of the files that a folder's videos are; a file that is named is tried whatever its ending."""

_HIDDEN = "hidden"
_NO_ENDING = "without an ending"
_FOLDER = "sub-folder"
_LINKED_FOLDER = "linked folder"
_NO_FILE = "neither file nor folder"
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini"))
_LONGEST_ENDING = 10
_MAX_KINDS = 12
"""Kinds of left-out files that are named in a line."""

_HERE = PurePath()

_URL = re.compile(r"test:|[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Input:
    """One source of a recorded run.

    Attributes:
        url: of the source.
        folder: where its outputs go, relative to the output folder; for those in sub-folders, the
            folder that it lies in until ``place_outputs`` has named it.
        remark: what was left out beside it, in one line; empty if nothing.
    """

    url: str
    folder: PurePath = _HERE
    remark: str = ""


def is_url(text: str) -> bool:
    """Whether ``text`` is an address (or the test pattern's) and no path on this machine."""
    return bool(_URL.match(text))


def find_images(url: str) -> list[Path]:
    """The images that a file, folder or glob stands for, in natural order; [] if none."""
    place = Path(url)
    if place.is_file():
        return [place] if _is_still(place) else []
    return [file for file in _behind(url) if _kind(file) in IMAGE_ENDINGS]


def expand_inputs(path: str) -> list[str]:
    """The sources that one argument of a command stands for; see ``find_inputs``.

    Raises:
        NoFramesError: a folder or glob without any media.
        SourceError: a folder that can't be read.
    """
    return [found.url for found in find_inputs(path)]


def find_inputs(path: str, *, recursive: bool = False, output: Path | None = None) -> list[Input]:
    """Return the inputs that one argument of a command stands for.

    A file is itself, and so is a url. A folder or a glob is each of its videos, and
    then, if it has images, the folder or glob itself as one source of images.

    Args:
        path: of a file or folder, a glob, or a url.
        recursive: go into sub-folders, each of which is taken as the folder itself.
        output: a folder that is passed over, because the run writes there.

    Raises:
        NoFramesError: a folder or glob without any media.
        SourceError: a folder that can't be read.
    """
    place = Path(path)
    many = place.is_dir() or (glob.has_magic(path) and not place.is_file())
    if is_url(path) or not many:
        return [Input(path)]
    left_out: Counter[str] = Counter()
    found = list(_search(path, _HERE, left_out, recursive=recursive, output=output))
    remark = _describe_left_out(path, left_out)
    if not found:
        known = ", ".join((*VIDEO_ENDINGS, *IMAGE_ENDINGS))
        raise NoFramesError(
            f"{redact_address(path)}: there is no media in it; known are {known}"
            + (f"; {remark.partition(': ')[2]}" if remark else "")
        )
    return [replace(each, remark=remark) for each in found]


def place_outputs(inputs: Sequence[Input], names: Sequence[str]) -> list[Input]:
    """Return the inputs with the output folder of each, no two alike or one within the other.

    Letter case makes no difference: the outputs may go to a file system that ignores it.

    Args:
        inputs: as found.
        names: the name of each as a source.
    """
    taken = {
        str(above).casefold() for each in inputs for above in (each.folder, *each.folder.parents)
    }
    placed = []
    for each, name in zip(inputs, names, strict=True):
        is_nested = each.folder != _HERE
        leaf = source_names([("", each.url)])[0] if is_nested else name
        folder, number = each.folder / leaf, 1
        while str(folder).casefold() in taken:
            number += 1
            folder = each.folder / f"{leaf}-{number}"
        taken.add(str(folder).casefold())
        placed.append(replace(each, folder=folder))
    return placed


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts ``frame2`` before ``frame10``, whatever the case."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts)


def _search(
    path: str, folder: PurePath, left_out: Counter[str], *, recursive: bool, output: Path | None
) -> Iterator[Input]:
    """Yield the inputs of a folder or glob, and of its sub-folders if that is asked for."""
    entries = _behind(path)
    for file in entries:
        if _kind(file) in VIDEO_ENDINGS:
            yield Input(str(file), folder)
    if any(_kind(file) in IMAGE_ENDINGS for file in entries):
        yield Input(path, folder)
    for entry in entries:
        kind = _kind(entry)
        if kind == _FOLDER and output is not None and entry.resolve() == output.resolve():
            continue
        if kind == _FOLDER and recursive:
            below = folder / entry.name
            yield from _search(str(entry), below, left_out, recursive=True, output=output)
        elif kind not in VIDEO_ENDINGS and kind not in IMAGE_ENDINGS:
            left_out[kind] += 1


def _behind(url: str) -> list[Path]:
    """The files and folders that a folder or glob stands for, in natural order."""
    place = Path(url)
    try:
        if place.is_dir():
            return _sorted(place.iterdir())
    except OSError as error:
        raise SourceError(f"{redact_address(url)}: can't be read: {error.strerror}") from None
    if glob.has_magic(url):
        return _sorted(map(Path, glob.glob(url, recursive=True)))  # noqa: PTH207  # may be absolute
    return []


def _kind(entry: Path) -> str:
    """Return the lower-case ending of a file, or what kind of entry it is that has no say."""
    if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM_FILES:
        return _HIDDEN
    if entry.is_dir():
        return _LINKED_FOLDER if entry.is_symlink() else _FOLDER
    if not entry.is_file():
        return _NO_FILE
    ending = entry.suffix.lower()
    return ending if 1 < len(ending) <= _LONGEST_ENDING else _NO_ENDING


def _is_still(file: Path) -> bool:
    """Return whether a file that is named is read as an image.

    A video's ending doesn't make a HEIF file a video: FFmpeg takes each tile of it for one.
    """
    ending = file.suffix.lower()
    if ending in IMAGE_ENDINGS:
        return True
    try:
        return is_heif(file) if ending in VIDEO_ENDINGS else is_image(file)
    except OSError:
        return False  # opening it as a video says why it can't be read


def _describe_left_out(path: str, left_out: Counter[str]) -> str:
    """Return how many entries of which kind were left out, in one line; empty if none."""
    if not left_out:
        return ""
    named = left_out.most_common(_MAX_KINDS)
    parts = [f"{count} {kind}{'s' * (kind == _FOLDER and count > 1)}" for kind, count in named]
    others = left_out.total() - sum(count for _, count in named)
    parts += [f"{others} others"] if others else []
    hint = " (--recursive goes into them)" if left_out[_FOLDER] else ""
    return f"{redact_address(path)}: left out: {', '.join(parts)}{hint}"


def _sorted(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: (natural_key(str(file)), str(file)))
