"""Expansion of files, folders, globs and URLs to sources, and assignment of output folders.

In a folder, the file name extension decides whether a file is a video or an image, so that files
need not be opened; others are left out and counted. A file that is named explicitly is recognized
by its content.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from streamseg.config import assign_source_names
from streamseg.errors import NoFramesError, SourceError, redact_address
from streamseg.sources.image_file import IMAGE_EXTENSIONS, is_heif, is_image

VIDEO_EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".f4v", ".3gp", ".3g2", ".mj2", ".mkv", ".webm", ".avi"),
    *(".divx", ".ts", ".tp", ".trp", ".m2t", ".mts", ".m2ts", ".mpg", ".mpeg", ".mpe", ".m1v"),
    *(".m2v", ".mpv", ".mod", ".tod", ".vob", ".flv", ".wmv", ".asf", ".wtv", ".rm", ".rmvb"),
    *(".ogv", ".ogm", ".mxf", ".dv", ".dav", ".nut", ".ivf", ".obu", ".y4m", ".gif"),
    *(".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".h266", ".266", ".vvc"),
    *(".mjpeg", ".mjpg", ".mpjpeg"),
)
"""File name extensions of videos in folders."""

_HIDDEN = "hidden"
_NO_EXTENSION = "without an extension"
_FOLDER = "sub-folder"
_LINKED_FOLDER = "linked folder"
_SPECIAL_FILE = "neither file nor folder"
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini"))
_MAX_EXTENSION_LENGTH = 10
_MAX_LISTED_KINDS = 12
"""Maximum number of kinds of left-out files that are listed in a line."""
_ROOT = PurePath()
_URL = re.compile(r"test:|[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Input:
    """Input of a recorded run: a video, a URL, or images in a folder or glob.

    Attributes:
        url: URL or path of the source.
        folder: output folder, relative to that of the run; before ``assign_output_folders``, the
            sub-folder in which the source was found.
        remark: summary of the files that were left out of the same folder; empty if none.
    """

    url: str
    folder: PurePath = _ROOT
    remark: str = ""


def is_url(text: str) -> bool:
    """Return whether ``text`` is a URL (including ``test:``) and not a path."""
    return bool(_URL.match(text))


def find_images(url: str) -> list[Path]:
    """Return the images of a file, folder or glob in natural order; [] if there are none."""
    path = Path(url)
    if path.is_file():
        return [path] if _is_image_file(path) else []
    return [entry for entry in _list_entries(url) if _kind(entry) in IMAGE_EXTENSIONS]


def find_inputs(path: str, *, recursive: bool = False, output: Path | None = None) -> list[Input]:
    """Expand one command argument to inputs.

    A file or URL is one input. Each video in a folder or glob is an input; if there are images, the
    folder or glob itself follows as one source of images.

    Args:
        path: path of a file or folder, a glob, or a URL.
        recursive: whether each sub-folder is expanded like the folder itself.
        output: output folder of the run, which is left out.

    Raises:
        NoFramesError: the folder or glob has no media.
        SourceError: a folder can't be read.
    """
    is_file = Path(path).is_file()
    is_expandable = Path(path).is_dir() or (glob.has_magic(path) and not is_file)
    if is_url(path) or not is_expandable:
        return [Input(path)]
    left_out: Counter[str] = Counter()
    inputs = list(_search(path, _ROOT, left_out, recursive=recursive, output=output))
    remark = _describe_left_out(path, left_out)
    if not inputs:
        extensions = ", ".join((*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS))
        raise NoFramesError(
            f"{redact_address(path)}: no media found; known are {extensions}"
            + (f"; {remark.partition(': ')[2]}" if remark else "")
        )
    return [replace(each, remark=remark) for each in inputs]


def expand_inputs(path: str) -> list[str]:
    """Return the URLs and paths of the inputs that one command argument expands to.

    Raises:
        NoFramesError: the folder or glob has no media.
        SourceError: a folder can't be read.
    """
    return [each.url for each in find_inputs(path)]


def assign_output_folders(inputs: Sequence[Input], names: Sequence[str]) -> list[Input]:
    """Assign an output folder to each input; none equals or contains another.

    Names that differ only in case count as equal, for file systems that ignore case.

    Args:
        inputs: inputs as found.
        names: source name of each input.
    """
    taken = {
        str(parent).casefold() for each in inputs for parent in (each.folder, *each.folder.parents)
    }
    placed = []
    for each, name in zip(inputs, names, strict=True):
        is_nested = each.folder != _ROOT
        leaf = assign_source_names([("", each.url)])[0] if is_nested else name
        folder, number = each.folder / leaf, 1
        while str(folder).casefold() in taken:
            number += 1
            folder = each.folder / f"{leaf}-{number}"
        taken.add(str(folder).casefold())
        placed.append(replace(each, folder=folder))
    return placed


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts ``frame2`` before ``frame10`` and ignores case."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts)


def _search(
    path: str, folder: PurePath, left_out: Counter[str], *, recursive: bool, output: Path | None
) -> Iterator[Input]:
    """Yield the inputs of a folder or glob, and count the entries left out in ``left_out``."""
    entries = _list_entries(path)
    for entry in entries:
        if _kind(entry) in VIDEO_EXTENSIONS:
            yield Input(str(entry), folder)
    if any(_kind(entry) in IMAGE_EXTENSIONS for entry in entries):
        yield Input(path, folder)
    for entry in entries:
        kind = _kind(entry)
        if kind == _FOLDER and output is not None and entry.resolve() == output.resolve():
            continue
        if kind == _FOLDER and recursive:
            nested = folder / entry.name
            yield from _search(str(entry), nested, left_out, recursive=True, output=output)
        elif kind not in VIDEO_EXTENSIONS and kind not in IMAGE_EXTENSIONS:
            left_out[kind] += 1


def _list_entries(url: str) -> list[Path]:
    """Return the files and folders in a folder or glob, in natural order."""
    path = Path(url)
    try:
        if path.is_dir():
            return _sort_naturally(path.iterdir())
    except OSError as error:
        raise SourceError(f"{redact_address(url)}: can't be read: {error.strerror}") from None
    if glob.has_magic(url):
        matches = glob.glob(url, recursive=True)  # noqa: PTH207  # may be absolute
        return _sort_naturally(map(Path, matches))
    return []


def _sort_naturally(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (natural_key(str(path)), str(path)))


def _kind(entry: Path) -> str:
    """Return the lower-case extension of a file, or why an entry is not read."""
    if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM_FILES:
        return _HIDDEN
    if entry.is_dir():
        return _LINKED_FOLDER if entry.is_symlink() else _FOLDER
    if not entry.is_file():
        return _SPECIAL_FILE
    extension = entry.suffix.lower()
    return extension if 1 < len(extension) <= _MAX_EXTENSION_LENGTH else _NO_EXTENSION


def _is_image_file(file: Path) -> bool:
    """Return whether an explicitly named file is read as an image.

    A HEIF file with a video's extension is an image: FFmpeg would read each tile as a video.
    """
    extension = file.suffix.lower()
    if extension in IMAGE_EXTENSIONS:
        return True
    try:
        return is_heif(file) if extension in VIDEO_EXTENSIONS else is_image(file)
    except OSError:
        return False  # the error is reported when the file is opened as a video


def _describe_left_out(path: str, left_out: Counter[str]) -> str:
    """Return the number of left-out entries of each kind in one line; empty if none."""
    if not left_out:
        return ""
    listed = left_out.most_common(_MAX_LISTED_KINDS)
    parts = [f"{count} {kind}{'s' * (kind == _FOLDER and count > 1)}" for kind, count in listed]
    others = left_out.total() - sum(count for _, count in listed)
    parts += [f"{others} others"] if others else []
    hint = " (--recursive includes them)" if left_out[_FOLDER] else ""
    return f"{redact_address(path)}: left out: {', '.join(parts)}{hint}"
