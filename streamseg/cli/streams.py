"""Guarded standard output and error: a full disk or a closed pipe does not stop the work.

Text that can't be written is dropped; the first failure is reported once, at the end.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class GuardedStream:
    """Text stream that keeps its first write error and drops all text after it.

    Args:
        stream: the underlying stream.

    Attributes:
        failure: first error; None for a closed pipe (``| head``).
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._failed = False
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write ``text``; drop it after a failure."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush the buffer; drop it after a failure."""
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fail(self, error: OSError) -> None:
        """Store the failure and discard the buffered text."""
        if self._failed:
            return
        self._failed = True
        if error.errno != errno.EPIPE:
            self.failure = error
        with suppress(OSError):  # the stream has no descriptor
            _redirect_to_null(self._stream.fileno())
            self._stream.flush()


@contextmanager
def guarded_output() -> Iterator[GuardedStream]:
    """Guard ``sys.stdout`` and ``sys.stderr`` in this context; yield the guarded stdout."""
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
    """Open closed descriptors 0, 1 and 2, so that no other file gets one of these numbers."""
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
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - open until the process ends
