"""Standard output and error that never raise: a full disk or a closed pipe doesn't end the work.

What can't be written is dropped, and ``main`` reports the first failure once, at the end.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class GuardedStream:
    """Text stream whose first failure is kept; what is written after it is dropped.

    Args:
        stream: what is written to.

    Attributes:
        failure: the first error; a reader that left (``| head``) is none.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._ended = False
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._end(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _end(self, error: OSError) -> None:
        """Keep the failure, and send all that is still buffered to nowhere."""
        if self._ended:
            return
        self._ended = True
        if error.errno != errno.EPIPE:
            self.failure = error
        with suppress(OSError):  # of a stream that has no descriptor
            _redirect_to_null(self._stream.fileno())
            self._stream.flush()


@contextmanager
def guarded_output() -> Iterator[GuardedStream]:
    """Guard ``sys.stdout`` and ``sys.stderr`` inside; the former is given."""
    before = sys.stdout, sys.stderr
    _open_standard_descriptors()
    out, err = (GuardedStream(stream or _null()) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _open_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed: no file of ours may get one of these numbers."""
    for number in (0, 1, 2):
        if not _is_open(number):
            _redirect_to_null(number)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _redirect_to_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


def _null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - lives with the process
