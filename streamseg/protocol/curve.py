"""CURVE keys of a service and of its subscribers (RFC 26 of ZeroMQ), stored in files.

A key pair is stored in two files of one line each: ``NAME.key`` is secret, ``NAME.pub`` is public.
A service has a key folder::

    server.key  server.pub     key pair of the service
    allowed/NAME.pub           keys that may subscribe; deleting a file revokes the key

Folders are created with mode 0700 and files with 0600. Files are created atomically and never
replaced. A secret that other users can read is refused, and so is a folder that other users can
write to, because they could add keys.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from streamseg.errors import KeyFileError
from streamseg.structures.results import SOURCE_NAME

KEY_LENGTH = 40
"""Length of a key in Z85, in characters (32 bytes)."""
SERVER = "server"
"""Name of the key pair of a service."""

_PUBLIC, _SECRET = "streamseg-public-key", "streamseg-secret-key"
_MAX_FILE_BYTES = 1024
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Public and secret key, 40 characters of Z85 each."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AllowedKeys:
    """Public keys that may subscribe.

    Attributes:
        keys: public keys by name.
        problems: one line for each file that is not a valid public key.
    """

    keys: Mapping[str, str]
    problems: tuple[str, ...]


class KeyFolder:
    """Key folder of a service.

    Args:
        path: path of the folder.

    Raises:
        KeyFileError: the folder has no server.key, or other users can write to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._allowed = path / "allowed"
        with _converted_errors(path):
            if not (path / f"{SERVER}.key").exists():
                raise KeyFileError(
                    f"{path}: there is no {SERVER}.key: create it with "
                    f"`streamseg keys new {SERVER} --dir {path}`"
                )
            _check_permissions(path)

    @property
    def pair(self) -> KeyPair:
        """Key pair of the service; raises the errors of :func:`read_pair`."""
        return read_pair(self.path / f"{SERVER}.key")

    def allow(self, key: str, name: str) -> None:
        """Allow a public key to subscribe; running services apply it immediately.

        Raises:
            KeyFileError: the name is invalid or taken, or the key is allowed under another name.
        """
        _check_name(name)
        allowed = self.allowed().keys
        if name in allowed:
            raise KeyFileError(f"{name} is already allowed: revoke it first, or use another name")
        for other_name, other_key in allowed.items():
            if other_key == key:
                raise KeyFileError(f"this key is already allowed, as {other_name}")
        with _converted_errors(self._allowed):
            _make_folder(self._allowed)
        _write_new(self._allowed / f"{name}.pub", f"{_PUBLIC} {key}\n")

    def revoke(self, name: str) -> None:
        """Revoke a key; running services close its connections.

        Raises:
            KeyFileError: the name is not allowed, or its file can't be deleted.
        """
        _check_name(name)
        path = self._allowed / f"{name}.pub"
        with _converted_errors(path):
            try:
                path.unlink()
            except FileNotFoundError:
                names = ", ".join(sorted(file.stem for file in self._files())) or "none"
                raise KeyFileError(f"{name} isn't allowed; allowed keys: {names}") from None
            _sync_folder(self._allowed)

    def allowed(self) -> AllowedKeys:
        """Read the keys that may subscribe.

        Raises:
            KeyFileError: the folder can't be read, or other users can write to it.
        """
        keys: dict[str, str] = {}
        problems: list[str] = []
        for path in self._files():
            try:
                keys[path.stem] = read_public(path)
            except KeyFileError as error:  # noqa: PERF203 - each file has its own error
                problems.append(str(error))
        return AllowedKeys(keys, tuple(problems))

    def fingerprint(self) -> tuple[object, ...]:
        """Return a value that changes with the files, owners and modes in ``allowed``; cheap.

        Raises:
            KeyFileError: the folder can't be read.
        """
        with _converted_errors(self._allowed):
            if not self._allowed.exists():
                return ()
            with os.scandir(self._allowed) as entries:
                key_files = [file for file in entries if _is_key_file(file.name)]
            files = sorted((file.name, _stat_values(file)) for file in key_files)
            return (_stat_values(self._allowed), *files)

    def _files(self) -> list[Path]:
        with _converted_errors(self._allowed):
            if not self._allowed.exists():
                return []
            _check_permissions(self._allowed)
            return sorted(path for path in self._allowed.iterdir() if _is_key_file(path.name))


def create_pair(folder: Path, name: str) -> KeyPair:
    """Create a key pair in ``NAME.key`` and ``NAME.pub``; the folder is created if missing.

    Raises:
        KeyFileError: a file exists already, or can't be written.
    """
    _check_name(name)
    public, secret = _generate()
    with _converted_errors(folder):
        _make_folder(folder)
        for suffix in ("key", "pub"):
            if (folder / f"{name}.{suffix}").exists():
                raise KeyFileError(f"{folder / name}.{suffix} exists already and is not replaced")
    _write_new(folder / f"{name}.key", f"{_SECRET} {secret}\n")
    _write_new(folder / f"{name}.pub", f"{_PUBLIC} {public}\n")
    return KeyPair(public, secret)


def _generate() -> tuple[str, str]:
    """Generate a public and a secret key; the public key does not look like an option."""
    while True:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        if not public.startswith("-"):
            return public, secret


def read_pair(path: str | Path) -> KeyPair:
    """Read a key pair from the file of its secret key, ``NAME.key``.

    Raises:
        KeyFileError: the file can't be read, is not a secret key, or is readable by other users.
    """
    path = Path(path)
    label, key, mode = _read(path)
    if label == _PUBLIC:
        raise KeyFileError(f"{path}: this is the public key: name the .key file in the same folder")
    if mode & _OTHERS:
        raise KeyFileError(
            f"{path}: other users can read this secret (mode {mode:04o}): chmod 600 {path}, "
            "or better create a new one"
        )
    return KeyPair(zmq.curve_public(key.encode()).decode(), key)


def read_public(path: Path) -> str:
    """Read a public key from its file, ``NAME.pub``.

    Raises:
        KeyFileError: the file can't be read, or is not a public key.
    """
    label, key, _ = _read(path)
    if label == _SECRET:
        raise KeyFileError(f"{path}: this is a secret key: keep it private, and name the .pub file")
    return key


def parse_public_key(text: str | Path) -> str:
    """Return a public key that is given as text or as the path of its file.

    Raises:
        KeyFileError: the text is neither.
    """
    key = str(text)
    if os.path.exists(key):  # noqa: PTH110 - Path.exists raises for some texts
        return read_public(Path(text))
    if _SECRET in key:
        raise KeyFileError("this is a secret key: keep it private, and give the .pub file")
    if not _is_z85(key):
        raise KeyFileError(f"{key!r}: is neither a file nor a key of 40 characters")
    return key


def _read(path: Path) -> tuple[str, str, int]:
    """Return the label, the key and the mode of a key file."""
    with _converted_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise KeyFileError(f"{path}: isn't a file")
            raw = os.read(descriptor, _MAX_FILE_BYTES)
        finally:
            os.close(descriptor)
    label, _, key = raw.decode("ascii", "replace").rstrip("\r\n").partition(" ")
    if label not in (_PUBLIC, _SECRET):
        raise KeyFileError(f"{path}: not a key of streamseg: create one with `streamseg keys new`")
    if not _is_z85(key):
        raise KeyFileError(f"{path}: the key is damaged: copy the file again")
    return label, key, stat.S_IMODE(mode)


def _is_z85(key: str) -> bool:
    try:
        zmq.curve_public(key.encode())  # checks length, alphabet and overflow
    except (zmq.ZMQError, ValueError):
        return False
    return len(key) == KEY_LENGTH


def _is_key_file(name: str) -> bool:
    return name.endswith(".pub") and SOURCE_NAME.fullmatch(name.removesuffix(".pub")) is not None


def _stat_values(path: Path | os.DirEntry[str]) -> tuple[int, ...]:
    try:
        info = path.stat()
    except FileNotFoundError:  # just deleted, or a broken link
        return ()
    return (
        info.st_ino,
        info.st_mode,
        info.st_uid,
        info.st_size,
        info.st_mtime_ns,
        info.st_ctime_ns,
    )


def _check_name(name: str) -> None:
    if not SOURCE_NAME.fullmatch(name):
        raise KeyFileError(
            f"invalid name {name!r}: use 1 to 64 letters, digits, dots, dashes and underscores"
        )


def _check_permissions(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & _OTHERS_WRITE:
        raise KeyFileError(f"{folder}: others can write to it ({mode:04o}): chmod 700 {folder}")


def _make_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_permissions(folder)


def _write_new(path: Path, text: str) -> None:
    """Create a file that other users can't read, atomically."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with _converted_errors(path):
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(part, path)  # unlike renaming, this fails if the file exists
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder to the disk: a revoked key must not return after a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _converted_errors(path: Path) -> Iterator[None]:
    """Convert operating system errors to a KeyFileError that names the file."""
    try:
        yield
    except FileExistsError:
        raise KeyFileError(f"{path} exists already and is not replaced") from None
    except FileNotFoundError:
        raise KeyFileError(f"{path}: there is no such file") from None
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror or error}") from None
