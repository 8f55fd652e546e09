"""Files of a dataset by the names that its JSON gives them, which may come from another system.

A name is first taken as it is, relative to the dataset's folder. Where nothing is called so, it is
compared with the files in that folder and below, whatever the separators (``/`` or Windows'
backslash), the Unicode normal form, upper or lower case, percent-encoding, and the folders in front
(``./``, or an absolute path of another machine). Among the files of that basename, the one whose
path agrees in the most trailing parts is meant. Two that agree equally, a file that another entry
names as it is, and a file that two different names would lead to are never guessed.

No file outside of the dataset's folder and ``data.root`` is opened, whatever a name says.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from streamseg.datasets.findings import Fault

_SEPARATORS = re.compile(r"[\\/]+|\?d=")  # Label Studio's local files are "/data/…/?d=PATH"
_DRIVE = re.compile(r"[a-z]:")
Parts: TypeAlias = tuple[str, ...]


class FileFinder:
    """Finds the files of one folder.

    Args:
        folder: what names are relative to.
        root: the data's root, which names may reach into.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder
        self._allowed = (_absolute(folder), _absolute(root))
        self._listings: dict[Path, frozenset[str]] = {}

    def find(self, names: Iterable[str]) -> Mapping[str, Path | Fault]:
        """The file of each name, or why there is none."""
        wanted = dict.fromkeys(names)
        named = {name: path for name in wanted if (path := self._named(name)) is not None}
        missing = [name for name in wanted if name not in named]
        if not missing:
            return named
        similar = self._similar(missing, {_absolute(path) for path in named.values()})
        claims = Counter(similar.values())
        return named | {
            name: _shared(name, found) if claims[found] > 1 else found
            for name, found in similar.items()
        }

    def _named(self, name: str) -> Path | None:
        """The file that is called exactly so, within what is allowed."""
        path = self._folder / name
        if not self._is_allowed(path):
            return None
        return path if path.name in self._listing(path.parent) else None

    def _is_allowed(self, path: Path) -> bool:
        absolute = _absolute(path)
        return any(os.path.commonpath((absolute, base)) == base for base in self._allowed)

    def _listing(self, folder: Path) -> frozenset[str]:
        if folder not in self._listings:
            try:
                names = frozenset(os.listdir(folder))  # noqa: PTH208 - names alone, quickly
            except (OSError, ValueError):  # there is no such folder, so there is no such file
                names = frozenset()
            self._listings[folder] = names
        return self._listings[folder]

    def _similar(self, names: list[str], taken: set[str]) -> dict[str, Path | Fault]:
        """For names that no file has as they are: the file that can be meant, or a fault."""
        by_basename: dict[str, list[tuple[Path, Parts]]] = defaultdict(list)
        for path in _walk(self._folder):
            if _absolute(path) not in taken:
                parts = _parts(str(path.relative_to(self._folder)))
                by_basename[parts[-1]].append((path, parts))
        return {name: self._most_similar(name, by_basename) for name in names}

    def _most_similar(
        self, name: str, by_basename: Mapping[str, list[tuple[Path, Parts]]]
    ) -> Path | Fault:
        for spelling in dict.fromkeys((name, unquote(name), name.split("?", 1)[0])):
            parts = _parts(spelling)
            candidates = by_basename.get(parts[-1], []) if parts else []
            ranks = [_rank(spelling, parts, path, own) for path, own in candidates]
            best = [
                path
                for (path, _), rank in zip(candidates, ranks, strict=True)
                if rank == max(ranks)
            ]
            if len(best) == 1:
                return best[0]
            if best:
                shown = " or ".join(str(path) for path in sorted(best)[:2])
                return Fault("file name fits several files", f"{name!r} may be {shown}")
        if not self._is_allowed(self._folder / name):
            return Fault(
                "file outside of the dataset's folder",
                f"{name!r} is outside of {self._folder}, and no file of that name is in it",
            )
        return Fault(
            "file is missing", f"{self._folder / name}: can't be read: No such file or directory"
        )


def _absolute(path: Path) -> str:
    """The path without ``..``; links stay, because data often lie behind them."""
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links


def _walk(folder: Path) -> Iterable[Path]:
    for base, _, files in os.walk(folder):
        yield from (Path(base) / name for name in files)


def _parts(name: str) -> Parts:
    """The folders and the basename of a path from any system, in one spelling."""
    same = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    parts = [part for part in _SEPARATORS.split(same) if part not in ("", ".", "..")]
    return tuple(parts[1:] if parts and _DRIVE.fullmatch(parts[0]) else parts)


def _rank(name: str, wanted: Parts, path: Path, parts: Parts) -> tuple[int, bool]:
    """How well a file agrees with a name: trailing parts in common, then upper and lower case."""
    common = 0
    for ours, theirs in zip(reversed(wanted), reversed(parts), strict=False):
        if ours != theirs:
            break
        common += 1
    basename = _SEPARATORS.split(unicodedata.normalize("NFC", name))[-1]
    return common, unicodedata.normalize("NFC", path.name) == basename


def _shared(name: str, found: Path | Fault) -> Path | Fault:
    """The fault of a name that isn't the only one to lead to a file."""
    if isinstance(found, Fault):
        return found
    what = f"{name!r} and another name may both be {found}"
    return Fault("several file names fit one file", what)
