"""Mutations: random changes of binary and text inputs, reproducible from a seeded generator."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random

MAX_INPUT_BYTES = 1 << 20
"""Largest mutated input, in bytes."""
MAX_STACKED = 8
"""Largest number of changes in one input."""

_INTERESTING = (0, 1, -1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)
_NUMBERS = (
    *("0", "-1", "1", "1e999", "nan", "inf", "-0.0", "4294967296", "9223372036854775808"),
    *("1" * 400, "0x10", "1_0", "٣"),
)
_FORMATS = ("B", ">H", "<H", ">I", "<I", ">Q", "<Q")


def mutate_bytes(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return ``data`` with one to ``MAX_STACKED`` binary changes.

    Args:
        random: source of all choices.
        data: the input.
        others: inputs of the same kind, for splicing.
    """
    for _ in range(random.randint(1, MAX_STACKED)):
        data = random.choice(_BYTE_CHANGES)(random, data, others)[:MAX_INPUT_BYTES]
    return data


def mutate_text(
    random: Random, data: bytes, others: Sequence[bytes], tokens: Sequence[bytes]
) -> bytes:
    """Return ``data`` with one to ``MAX_STACKED`` changes of lines, numbers and tokens.

    Args:
        random: source of all choices.
        data: the input.
        others: inputs of the same kind, for splicing.
        tokens: words of the input's language to insert.
    """
    for _ in range(random.randint(1, MAX_STACKED)):
        kind = random.randrange(8)
        if kind == 0:
            data = mutate_bytes(random, data, others)
        elif kind <= 3:
            data = _insert_token(random, data, tokens)
        elif kind <= 5:
            data = _change_line(random, data)
        else:
            data = _replace_number(random, data)
        data = data[:MAX_INPUT_BYTES]
    return data


def _position(random: Random, data: bytes) -> int:
    """Choose a position, half of the time near an end, where headers and indexes are."""
    place = random.random()
    if place < 0.35:
        return random.randrange(min(len(data), 512) + 1)
    if place < 0.5:
        return len(data) - random.randrange(min(len(data), 512) + 1)
    return random.randrange(len(data) + 1)


def _flip_bit(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = min(_position(random, data), len(data) - 1)
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _write_integer(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    layout = random.choice(_FORMATS)
    size = struct.calcsize(layout)
    value = random.choice(_INTERESTING) if random.random() < 0.8 else random.getrandbits(64)
    at = _position(random, data)
    return data[:at] + struct.pack(layout, value % (1 << 8 * size)) + data[at + size :]


def _delete(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _position(random, data)
    return data[:at] + data[at + random.choice((1, 2, 4, 16, 188, 1000)) :]


def _repeat(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _position(random, data)
    chunk = data[at : at + random.choice((1, 4, 16, 188, 1000))]
    return data[:at] + chunk * random.choice((2, 3, 50)) + data[at + len(chunk) :]


def _insert_noise(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _position(random, data)
    return data[:at] + random.randbytes(random.choice((1, 4, 64, 1000))) + data[at:]


def _truncate(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: _position(random, data)]


def _splice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if not others:
        return data
    other = random.choice(others)
    return data[: _position(random, data)] + other[_position(random, other) :]


_BYTE_CHANGES: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    *(_flip_bit, _flip_bit, _flip_bit, _write_integer, _write_integer, _write_integer),
    *(_delete, _repeat, _insert_noise, _truncate, _splice),
)


def _insert_token(random: Random, data: bytes, tokens: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    token = random.choice(tokens) * (1 if random.random() < 0.95 else random.choice((2, 100, 5000)))
    if random.random() < 0.5:
        lines.insert(at, token)
    else:
        line = lines[at]
        column = random.randrange(len(line) + 1)
        lines[at] = line[:column] + token + line[column:]
    return b"\n".join(lines)


def _change_line(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    kind = random.randrange(5)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        other = random.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at] *= random.choice((2, 1000))
    else:
        lines[at] = lines[at].swapcase()
    return b"\n".join(lines)


def _replace_number(random: Random, data: bytes) -> bytes:
    starts = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if not starts:
        return data
    at = end = random.choice(starts)
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    return data[:at] + random.choice(_NUMBERS).encode() + data[end:]
