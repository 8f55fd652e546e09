"""Keys: who a service is, and who may subscribe to it (CURVE, RFC 26 of ZeroMQ).

A pair is two files of one line each, ``NAME.key``, the secret, and ``NAME.pub``, which may be given
to anybody. A service has a folder::

    server.key  server.pub     its own pair
    allowed/NAME.pub           who may subscribe: taking a file away revokes that key

Folders are made with mode 0700 and files with 0600. A file appears complete or not at all, and
never takes the place of another. A secret that others can read is refused, and so is a folder that
others can write to: who can put a file there lets himself in.
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

KEY_CHARACTERS = 40
"""32 bytes in Z85."""
SERVER = "server"
"""What a service's own pair is called."""

_PUBLIC, _SECRET = "streamseg-public-key", "streamseg-secret-key"
_MAX_FILE_BYTES = 1024
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public and a secret key, 40 characters of Z85 each."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What is in a folder of public keys.

    Attributes:
        keys: by name.
        problems: a line for each file that lets nobody in because it isn't a public key.
    """

    keys: Mapping[str, str]
    problems: tuple[str, ...]


class KeyFolder:
    """A service's folder of keys.

    Args:
        path: the folder.

    Raises:
        KeyFileError: there is no service's pair in it, or others can write to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._allowed = path / "allowed"
        with _explained(path):
            if not (path / f"{SERVER}.key").exists():
                raise KeyFileError(
                    f"{path}: there is no {SERVER}.key: make it with "
                    f"`streamseg keys new {SERVER} --dir {path}`"
                )
            _check_closed(path)

    @property
    def pair(self) -> KeyPair:
        """The service's own; see :func:`read_pair` for what can be wrong with it."""
        return read_pair(self.path / f"{SERVER}.key")

    def allow(self, key: str, name: str) -> None:
        """Let the holder of a public key subscribe, from now on.

        Raises:
            KeyFileError: the name can't be one or is taken, or the key is allowed under another.
        """
        _check_name(name)
        allowed = self.allowed().keys
        if name in allowed:
            raise KeyFileError(f"{name} is allowed already: revoke it first, or take another name")
        for other, theirs in allowed.items():
            if theirs == key:
                raise KeyFileError(f"that key is allowed already, as {other}")
        with _explained(self._allowed):
            _make_folder(self._allowed)
        _write_new(self._allowed / f"{name}.pub", f"{_PUBLIC} {key}\n")

    def revoke(self, name: str) -> None:
        """Let the holder of the key of that name subscribe no more.

        Raises:
            KeyFileError: there is none of that name, or its file can't be taken away.
        """
        _check_name(name)
        path = self._allowed / f"{name}.pub"
        with _explained(path):
            try:
                path.unlink()
            except FileNotFoundError:
                known = ", ".join(sorted(file.stem for file in self._files())) or "nobody"
                raise KeyFileError(f"{name} isn't allowed; allowed is: {known}") from None
            _sync_folder(self._allowed)

    def allowed(self) -> Allowed:
        """Who may subscribe.

        Raises:
            KeyFileError: the folder can't be read, or others can write to it.
        """
        keys: dict[str, str] = {}
        problems: list[str] = []
        for path in self._files():
            try:
                keys[path.stem] = read_public(path)
            except KeyFileError as error:  # noqa: PERF203 - each has its own problem
                problems.append(str(error))
        return Allowed(keys, tuple(problems))

    def fingerprint(self) -> tuple[object, ...]:
        """Something that is another thing once a file of ``allowed`` has changed; cheap.

        So it is once a file, or the folder, has another owner or mode: what couldn't be read, or
        mustn't be used, may be good now.

        Raises:
            KeyFileError: the folder can't be read.
        """
        with _explained(self._allowed):
            if not self._allowed.exists():
                return ()
            with os.scandir(self._allowed) as entries:
                files = sorted((file.name, _state(file)) for file in entries if _is_key(file.name))
            return (_state(self._allowed), *files)

    def _files(self) -> list[Path]:
        with _explained(self._allowed):
            if not self._allowed.exists():
                return []
            _check_closed(self._allowed)
            return sorted(path for path in self._allowed.iterdir() if _is_key(path.name))


def new_pair(folder: Path, name: str) -> KeyPair:
    """A new pair, in ``NAME.key`` and ``NAME.pub`` of a folder, which is made if it isn't there.

    Raises:
        KeyFileError: one of the files is there already, or can't be written.
    """
    _check_name(name)
    public, secret = _generate()
    with _explained(folder):
        _make_folder(folder)
        for ending in ("key", "pub"):
            if (folder / f"{name}.{ending}").exists():
                raise KeyFileError(f"{folder / name}.{ending} is there already: it stays as it is")
    _write_new(folder / f"{name}.key", f"{_SECRET} {secret}\n")
    _write_new(folder / f"{name}.pub", f"{_PUBLIC} {public}\n")
    return KeyPair(public, secret)


def _generate() -> tuple[str, str]:
    """A public and a secret key; no public one looks like an option on a command line."""
    while True:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        if not public.startswith("-"):
            return public, secret


def read_pair(path: str | Path) -> KeyPair:
    """The pair of a secret's file, ``NAME.key``.

    Raises:
        KeyFileError: it can't be read, isn't a secret key, or others can read it.
    """
    path = Path(path)
    label, key, mode = _read(path)
    if label == _PUBLIC:
        raise KeyFileError(f"{path}: this is the public key: name the .key file beside it")
    if mode & _OTHERS:
        raise KeyFileError(
            f"{path}: others can read this secret (mode {mode:04o}): chmod 600 {path}, "
            "or better make a new one"
        )
    return KeyPair(zmq.curve_public(key.encode()).decode(), key)


def read_public(path: Path) -> str:
    """The key of a public key's file, ``NAME.pub``.

    Raises:
        KeyFileError: it can't be read, or isn't a public key.
    """
    label, key, _ = _read(path)
    if label == _SECRET:
        raise KeyFileError(f"{path}: this is a secret key: keep it, and name the .pub file")
    return key


def public_key(text: str | Path) -> str:
    """The public key that ``text`` is, or that is in the file of that name.

    Raises:
        KeyFileError: it is neither.
    """
    key = str(text)
    if os.path.exists(key):  # noqa: PTH110 - takes any text, where Path.exists raises
        return read_public(Path(text))
    if _SECRET in key:
        raise KeyFileError("this is a secret key: keep it, and give the .pub file or what is in it")
    if not _is_z85(key):
        raise KeyFileError(f"{key!r}: there is no such file, and it isn't a key of 40 characters")
    return key


def _read(path: Path) -> tuple[str, str, int]:
    """What kind of key is in a file, the key, and who may do what with the file."""
    with _explained(path):
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
        raise KeyFileError(f"{path}: isn't a key of streamseg: make one with `streamseg keys new`")
    if not _is_z85(key):
        raise KeyFileError(f"{path}: the key in it is damaged: copy the file again")
    return label, key, stat.S_IMODE(mode)


def _is_z85(key: str) -> bool:
    try:
        zmq.curve_public(key.encode())  # checks the length, the letters and that no group overflows
    except (zmq.ZMQError, ValueError):
        return False
    return len(key) == KEY_CHARACTERS


def _is_key(name: str) -> bool:
    return name.endswith(".pub") and SOURCE_NAME.fullmatch(name.removesuffix(".pub")) is not None


def _state(path: Path | os.DirEntry[str]) -> tuple[int, ...]:
    try:
        info = path.stat()
    except FileNotFoundError:  # taken away this moment, or a link that leads nowhere
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
            f"{name!r} can't be a name: use 1 to 64 letters, digits, dots, dashes and underscores"
        )


def _check_closed(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & _OTHERS_WRITE:
        raise KeyFileError(f"{folder}: others can write to it ({mode:04o}): chmod 700 {folder}")


def _make_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_closed(folder)


def _write_new(path: Path, text: str) -> None:
    """Write a file that nobody else can read; it has its name once it is complete."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with _explained(path):
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(part, path)  # unlike a renaming, this fails if there is a file of that name
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk: a key that was revoked must not come back."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the system refuses becomes one line that names the file."""
    try:
        yield
    except FileExistsError:
        raise KeyFileError(f"{path} is there already: it stays as it is") from None
    except FileNotFoundError:
        raise KeyFileError(f"{path}: there is no such file") from None
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror or error}") from None
