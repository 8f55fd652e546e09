"""Resolution of file names in a dataset's JSON, which may have been written on another system.

A name is first used as it is, relative to the dataset's folder. If no such file exists, the name is
compared with the files in that folder and below, ignoring differences in separators (``/`` or
Windows' backslash), Unicode normal form, case, percent-encoding and leading folders (``./``, or an
absolute path of another machine). Among the files with that basename, the one whose path has the
most trailing parts in common is used. A name is not resolved if two files match equally well, if
another name in the JSON is exactly that file, or if two different names lead to the same file.

Names never lead outside of the dataset's folder and ``data.root``.
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

from streamseg.datasets.problems import Fault

_SEPARATORS = re.compile(r"[\\/]+|\?d=")  # Label Studio's local files are "/data/…/?d=PATH"
_DRIVE = re.compile(r"[a-z]:")
PathParts: TypeAlias = tuple[str, ...]


class FileFinder:
    """Lookup of the files of one folder by the names in a dataset's JSON.

    Args:
        folder: the folder that names are relative to.
        root: root folder of the data; names may lead to any file below it.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder
        self._allowed_folders = (_absolute(folder), _absolute(root))
        self._listings: dict[Path, frozenset[str]] = {}

    def find(self, names: Iterable[str]) -> Mapping[str, Path | Fault]:
        """Return the path of each name, or the fault if it has none."""
        unique = dict.fromkeys(names)
        exact = {name: path for name in unique if (path := self._find_exact(name)) is not None}
        missing = [name for name in unique if name not in exact]
        if not missing:
            return exact
        similar = self._find_similar(missing, {_absolute(path) for path in exact.values()})
        uses = Counter(similar.values())
        return exact | {
            name: (
                Fault(
                    "several file names fit one file",
                    f"{name!r} and another name may both be {found}",
                )
                if isinstance(found, Path) and uses[found] > 1
                else found
            )
            for name, found in similar.items()
        }

    def _find_exact(self, name: str) -> Path | None:
        """Return the file with exactly this name, or None."""
        path = self._folder / name
        if not self._is_allowed(path):
            return None
        return path if path.name in self._list_folder(path.parent) else None

    def _is_allowed(self, path: Path) -> bool:
        absolute = _absolute(path)
        return any(os.path.commonpath((absolute, base)) == base for base in self._allowed_folders)

    def _list_folder(self, folder: Path) -> frozenset[str]:
        if folder not in self._listings:
            try:
                names = frozenset(os.listdir(folder))  # noqa: PTH208 - names alone, quickly
            except (OSError, ValueError):  # no such folder, so no such file
                names = frozenset()
            self._listings[folder] = names
        return self._listings[folder]

    def _find_similar(self, names: list[str], excluded_paths: set[str]) -> dict[str, Path | Fault]:
        """Return the best match, or a fault, for each name that no file has exactly."""
        by_basename: dict[str, list[tuple[Path, PathParts]]] = defaultdict(list)
        for folder, _, files in os.walk(self._folder):
            for file in files:
                path = Path(folder) / file
                if _absolute(path) not in excluded_paths:
                    parts = _split_path(str(path.relative_to(self._folder)))
                    by_basename[parts[-1]].append((path, parts))
        return {name: self._find_best_match(name, by_basename) for name in names}

    def _find_best_match(
        self, name: str, by_basename: Mapping[str, list[tuple[Path, PathParts]]]
    ) -> Path | Fault:
        """Return the file with the highest rank, or a fault if there is none or a tie."""
        for variant in dict.fromkeys((name, unquote(name), name.split("?", 1)[0])):
            name_parts = _split_path(variant)
            candidates = by_basename.get(name_parts[-1], []) if name_parts else []
            ranks = [_rank(variant, name_parts, path, parts) for path, parts in candidates]
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
    """Return the absolute path without ``..``; links are kept, because data often lie behind."""
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links


def _split_path(name: str) -> PathParts:
    """Split a path of any system into folders and basename, in NFC and case-folded."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    parts = [part for part in _SEPARATORS.split(folded) if part not in ("", ".", "..")]
    return tuple(parts[1:] if parts and _DRIVE.fullmatch(parts[0]) else parts)


def _rank(name: str, name_parts: PathParts, path: Path, path_parts: PathParts) -> tuple[int, bool]:
    """Return the number of trailing parts in common, and whether the basename's case matches."""
    common = 0
    for one, other in zip(reversed(name_parts), reversed(path_parts), strict=False):
        if one != other:
            break
        common += 1
    basename = _SEPARATORS.split(unicodedata.normalize("NFC", name))[-1]
    return common, unicodedata.normalize("NFC", path.name) == basename
