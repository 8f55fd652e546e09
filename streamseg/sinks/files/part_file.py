"""Output files that are written as ``<name>.part`` and renamed when they are complete.

A file without ``.part`` in its name is always complete. No link that another user has placed is
followed: an existing ``.part`` is removed, never opened, the new file is created exclusively, and
all later operations use the descriptors of the file and of its folder.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from streamseg.errors import OutputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

PART = ".part"

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_ADVICE = {
    errno.ENOENT: "there is no such folder: make it first",
    errno.ENOTDIR: "a part of its path isn't a folder",
    errno.EACCES: "no permission to write there: choose another folder",
    errno.EPERM: "no permission to write there: choose another folder",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.EISDIR: "there is a folder of that name: choose another name",
    errno.ELOOP: "there is a link of that name, and links are not followed: remove it",
    errno.ENOSPC: "the disk is full: make room and run again",
    errno.EDQUOT: "the disk quota is used up: make room and run again",
    errno.EFBIG: "the file would be larger than it may be",
}


class PartFile(io.RawIOBase):
    """Unbuffered file that is renamed to its final name by ``publish``; readable and seekable.

    Data is in the file when ``write`` returns, so that no error is delayed until the end.

    Args:
        path: final name; ``publish`` replaces a regular file or link of that name.
        suffix: suffix of the name until then.

    Raises:
        OSError: the file can't be created, or ``path`` is a folder, device or pipe.
    """

    def __init__(self, path: Path, suffix: str = PART) -> None:
        super().__init__()
        self._name = path.name
        self._part = path.name + suffix
        self._folder = os.open(path.parent, _FOLDER)
        try:
            self._check_target()
            self._file = self._create()
        except OSError:
            os.close(self._folder)
            raise

    def write(self, data: Buffer) -> int:
        """Write all of ``data``; if that fails, truncate the file to its previous size."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            write_whole(self._file, data)
        except OSError:
            self._file.truncate(size)
            raise
        return memoryview(data).nbytes

    def readinto(self, buffer: Buffer) -> int | None:
        """Read into ``buffer``."""
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset``."""
        return self._file.seek(offset, whence)

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def reopen(self) -> io.FileIO:
        """Return a second, independent reader of the same file, at its beginning.

        Raises:
            OSError: the file is no longer there.
        """
        descriptor = os.open(self._part, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._folder)
        reader = io.FileIO(descriptor, "rb")
        if not os.path.samestat(os.fstat(descriptor), os.fstat(self._file.fileno())):
            reader.close()
            raise _replaced()
        return reader

    def publish(self) -> None:
        """Rename the file to its final name once its content is on the disk, and close it.

        Raises:
            OSError: that failed; the ``.part`` stays.
        """
        with self:  # closes the file in any case
            os.fsync(self._file.fileno())
            now = os.stat(self._part, dir_fd=self._folder, follow_symlinks=False)
            if not os.path.samestat(now, os.fstat(self._file.fileno())):
                raise _replaced()
            os.replace(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)

    def discard(self) -> None:
        """Remove the ``.part`` and close the file."""
        if not self.closed:
            with suppress(FileNotFoundError):
                os.unlink(self._part, dir_fd=self._folder)
            self.close()

    def close(self) -> None:
        """Close the file; unless it was published, the ``.part`` stays."""
        if not self.closed:
            super().close()
            if hasattr(self, "_file"):  # else the constructor failed
                self._file.close()
                os.close(self._folder)

    def _check_target(self) -> None:
        """Raise errors now that ``publish`` would raise at the end of a long run."""
        try:
            mode = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise FileExistsError(errno.EEXIST, "it is a device or pipe: choose another name")

    def _create(self) -> io.FileIO:
        with suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=self._folder)  # left by an earlier run, or a link
        return io.FileIO(os.open(self._part, _CREATE, 0o666, dir_fd=self._folder), "r+b")


class PartFolder:
    """Folder of files that is renamed to its final name by ``publish``.

    Args:
        path: final name; ``publish`` replaces a folder or link of that name.

    Raises:
        OSError: the folder can't be made, or ``path`` is a file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = part_path(path)
        if not path.is_symlink() and path.exists() and not path.is_dir():
            raise FileExistsError(
                errno.EEXIST, "there is a file of that name: choose another folder"
            )
        _remove(self._part)  # left by an earlier run, or a link
        self._part.mkdir()
        self._folder = os.open(self._part, _FOLDER | os.O_NOFOLLOW)

    def write_file(self, name: str, data: Buffer) -> None:
        """Write a new file into the folder; it is on the disk when this returns.

        Raises:
            OSError: it can't be written, or it exists.
        """
        descriptor = os.open(name, _CREATE, 0o666, dir_fd=self._folder)
        with io.FileIO(descriptor, "r+b") as file:
            write_whole(file, data)
            os.fsync(descriptor)

    def publish(self) -> None:
        """Rename the folder to its final name once its content is on the disk, and close it."""
        os.fsync(self._folder)
        self.close()
        _remove(self._path)
        os.replace(self._part, self._path)  # noqa: PTH105 - as a PartFile is renamed

    def close(self) -> None:
        """Close the folder; unless it was published, the ``.part`` stays."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def part_path(path: Path) -> Path:
    """Return the path of a file or folder until it is complete."""
    return path.with_name(path.name + PART)


def make_folder(folder: Path) -> None:
    """Create the output folder that the user chose, with its parents; it may exist.

    Raises:
        OutputError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't make this folder: {error.strerror}") from None


def make_subfolder(out: Path, folder: PurePath) -> None:
    """Create ``out / folder``; the parts of ``folder`` may exist, but not as links.

    Args:
        out: output folder that the user chose.
        folder: path relative to it.

    Raises:
        OutputError: it can't be made.
    """
    for part in folder.parts:
        out /= part
        make_folder(out)
        if out.is_symlink():
            raise OutputError(
                f"{out}: is a link, and links inside the output folder are not followed: remove it"
            )


def append_bytes(path: Path, data: bytes) -> None:
    """Append ``data`` to a file, which is not a link; it is on the disk afterwards.

    Raises:
        OSError: it can't be written.
    """
    with io.FileIO(os.open(path, _APPEND, 0o666), "ab") as file:
        write_whole(file, data)
        os.fsync(file.fileno())


def write_whole(file: io.RawIOBase, data: Buffer) -> None:
    """Write all of ``data`` to an unbuffered file."""
    rest = memoryview(data).cast("B")
    while rest:  # on a full disk, the first call writes a part and only the next one fails
        rest = rest[file.write(rest) or 0 :]


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` inside into an ``OutputError`` of one line with the remedy.

    Raises:
        OutputError: ``path`` can't be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {describe_os_error(error)}") from error


def describe_os_error(error: OSError) -> str:
    """Return the reason why something can't be written, and the remedy."""
    return _ADVICE.get(error.errno or 0, error.strerror or str(error))


def _remove(path: Path) -> None:
    """Remove a folder with its content, a file or a link; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replaced() -> OSError:
    return FileExistsError(
        errno.EEXIST,
        "another program replaced it while it was written: choose a folder that no other one uses",
    )
