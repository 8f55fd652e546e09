"""What lies behind a path: which files are images, which are videos, and in which order.

Names decide, by their endings: a folder isn't opened file by file to find out what it holds.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from streamseg.errors import NoFramesError, redact_address
from streamseg.sources.imagefile import IMAGE_ENDINGS

VIDEO_ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
    *(".vob", ".flv", ".wmv", ".asf", ".3gp", ".ogv", ".mxf", ".nut", ".ivf", ".y4m", ".gif"),
    *(".h264", ".264", ".h265", ".265", ".hevc", ".mjpeg", ".mjpg", ".mpjpeg"),
)
"""Of the files that a folder's videos are; a file that is named is tried whatever its ending."""


_URL = re.compile(r"test:|[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """Whether ``text`` is an address (or the test pattern's) and no path on this machine."""
    return bool(_URL.match(text))


def find_images(url: str) -> list[Path]:
    """The images that a file, folder or glob stands for, in natural order; [] if none."""
    return [file for file in _behind(url) if _is_image(file)]


def expand_inputs(path: str) -> list[str]:
    """The sources that one argument of a command stands for.

    A file is itself, and so is a url. A folder or a glob is each of its videos, and
    then, if it has images, the folder or glob itself as one source of images.

    Raises:
        NoFramesError: a folder or glob without any media.
    """
    place = Path(path)
    many = place.is_dir() or (glob.has_magic(path) and not place.is_file())
    if is_url(path) or not many:
        return [path]
    found = _behind(path)
    inputs = [str(file) for file in found if file.suffix.lower() in VIDEO_ENDINGS]
    inputs += [path] if any(_is_image(file) for file in found) else []
    if not inputs:
        known = ", ".join((*VIDEO_ENDINGS, *IMAGE_ENDINGS))
        raise NoFramesError(f"{redact_address(path)}: there is no media in it; known are {known}")
    return inputs


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts ``frame2`` before ``frame10``, whatever the case."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts)


def _behind(url: str) -> list[Path]:
    """The files that a path or glob stands for, in natural order."""
    place = Path(url)
    if place.is_file():
        return [place]
    if place.is_dir():
        return _sorted(file for file in place.iterdir() if file.is_file())
    if glob.has_magic(url):
        matches = map(Path, glob.glob(url, recursive=True))  # noqa: PTH207  # it may be absolute
        return _sorted(match for match in matches if match.is_file())
    return []


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith(".")


def _sorted(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: (natural_key(str(file)), str(file)))
