"""Changes of the video's codec or PID within a transport stream, which FFmpeg doesn't follow.

A program map table (PMT, ISO/IEC 13818-1, section 2.4.4.8) lists the elementary streams of a
program. Where a later one gives the video's PID another codec, or lists other video instead, what
follows is a recording of its own and must be opened as one.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

_SYNC = 0x47
_PACKET_SIZES = (188, 192, 204)
_BYTES_IN_FRONT = {192: 4}
_PACKET_BYTES = 188
_ALIGNED_PACKETS = 5
"""Packets in a row that must begin with a sync byte."""
_ALIGN_BYTES = _ALIGNED_PACKETS * max(_PACKET_SIZES)
_CHUNK_BYTES = 4 * 2**20
_ASSOCIATION_PID = 0
_UNIT_START = 0x40
_MAP_TABLE = 2
_SECTION_HEADER = 8
_CRC = 4
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_VIDEO_TYPES = frozenset({0x01, 0x02, 0x10, 0x1B, 0x21, 0x24, 0x33, 0x42, 0xD1, 0xD2, 0xEA})


@dataclass(frozen=True, slots=True)
class Part:
    """Part of a transport stream that is a recording of its own.

    Attributes:
        begin: position of its first byte.
        end: position after its last byte; None is the file's end.
        association: packet with the program association table, to be read in front.
        following: the part behind it, None if there is none.
    """

    begin: int = 0
    end: int | None = None
    association: bytes = b""
    following: Part | None = None


class PartFile(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, path: Path, part: Part) -> None:
        self._file = path.open("rb")
        self._front = part.association
        self._offset = part.begin - len(part.association)
        self._size = (path.stat().st_size if part.end is None else part.end) - self._offset
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes from the current position."""
        rest = max(0, self._size - self._at)
        size = rest if size < 0 else min(size, rest)
        data = self._front[self._at : self._at + size]
        if len(data) < size:
            self._file.seek(self._offset + self._at + len(data))
            data += self._file.read(size - len(data))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the current position, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Return the current position."""
        return self._at

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def cut_part(path: Path, part: Part, pid: int, most: int | None = None) -> Part:
    """Return a part up to where the transport stream goes on with other video.

    Args:
        path: the file.
        part: where to look; it goes on to the file's end.
        pid: PID of the video that is read.
        most: how many bytes to look through, None for all.
    """
    program = _Program(pid)
    association = part.association
    if association:
        program.add(association[association.index(_SYNC) :][:_PACKET_BYTES])
    with path.open("rb") as file:
        for located in _table_packets(file, part.begin, program):
            if most is not None and located.position - part.begin > most:
                break
            if program.add(located.packet):
                following = Part(located.position, None, association)
                return replace(part, end=located.position, following=following)
            if _pid(located.packet) == _ASSOCIATION_PID:
                association = located.stored
    return part


@dataclass(frozen=True, slots=True)
class _Located:
    """A transport packet in a file.

    Attributes:
        position: of its first byte, that of what is stored in front of it.
        packet: its 188 bytes.
        stored: the packet and zeros for what the file stores in front of it and behind it.
    """

    position: int
    packet: bytes
    stored: bytes


class _Program:
    """The program that lists a PID as video, by the tables so far.

    Attributes:
        map_pids: PIDs of the program maps.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._kind: int | None = None
        self._map_pid: int | None = None
        self._sections: dict[int, bytes] = {}
        self.map_pids: set[int] = set()

    def add(self, packet: bytes) -> bool:
        """Return whether a packet completes a program map with other video in the PID's place."""
        pid = _pid(packet)
        section = self._section(pid, packet)
        if section is None:
            return False
        if pid == _ASSOCIATION_PID:
            self._associate(section)
            return False
        return section[0] == _MAP_TABLE and self._is_replaced(pid, _elementary_streams(section))

    def _section(self, pid: int, packet: bytes) -> bytes | None:
        """Return the section that a packet completes, if it is in force and undamaged."""
        payload = _payload(packet)
        if packet[1] & _UNIT_START and payload:
            self._sections[pid] = payload[1 + payload[0] :]
        elif pid in self._sections:
            self._sections[pid] += payload
        data = self._sections.get(pid, b"")
        if len(data) < 3:
            return None
        length = 3 + ((data[1] & 0x0F) << 8 | data[2])
        if len(data) < length:
            return None
        del self._sections[pid]
        section = data[:length]
        is_current = length > _SECTION_HEADER + _CRC and section[5] & 1
        return section if is_current and _is_intact(section) else None

    def _associate(self, section: bytes) -> None:
        entries = section[_SECTION_HEADER:-_CRC]
        self.map_pids = {
            (entries[at + 2] & 0x1F) << 8 | entries[at + 3]
            for at in range(0, len(entries) - 3, 4)
            if entries[at] or entries[at + 1]  # program 0 is the network's table
        }

    def _is_replaced(self, map_pid: int, streams: dict[int, int]) -> bool:
        kind = streams.get(self._pid)
        if self._kind is None or (kind == self._kind and self._map_pid not in self.map_pids):
            self._kind, self._map_pid = kind, map_pid if kind is not None else None
            return False
        is_ours = map_pid == self._map_pid or self._map_pid not in self.map_pids
        has_video = not _VIDEO_TYPES.isdisjoint(streams.values())
        return is_ours and kind != self._kind and has_video


def _table_packets(file: BinaryIO, begin: int, program: _Program) -> Iterator[_Located]:
    """Yield the packets that hold program tables."""
    at = begin
    while True:
        file.seek(at)
        data = file.read(_CHUNK_BYTES)
        packets, first = _split(data)
        if not len(packets):
            if len(data) < _CHUNK_BYTES:
                return
            at += len(data) - _ALIGN_BYTES  # nothing there is aligned
            continue
        size = packets.shape[1]
        head = _BYTES_IN_FRONT.get(size, 0)
        pids = (packets[:, 1] & 0x1F).astype(np.int32) << 8 | packets[:, 2]
        for number in _table_numbers(pids, program):
            packet = packets[number, :_PACKET_BYTES].tobytes()
            stored = bytes(head) + packet + bytes(size - head - _PACKET_BYTES)
            yield _Located(at + first + number * size - head, packet, stored)
        at += first + packets.size


def _table_numbers(pids: npt.NDArray[np.signedinteger], program: _Program) -> Iterator[int]:
    """Yield which packets hold program tables, while the program's map PIDs may change."""
    done = 0
    while done < len(pids):
        known = set(program.map_pids)
        for number in done + np.flatnonzero(np.isin(pids[done:], [_ASSOCIATION_PID, *known])):
            yield int(number)
            done = int(number) + 1
            if program.map_pids != known:
                break
        else:
            return


def _split(data: bytes) -> tuple[npt.NDArray[np.uint8], int]:
    """Return the packets in front of the first that isn't aligned, and where they begin.

    Packets are rows, uint8 (N, 188, 192 or 204), each from its sync byte on; none in what isn't a
    transport stream.
    """
    content = np.frombuffer(data, np.uint8)
    for size in _PACKET_SIZES:
        if _is_aligned(content[: _ALIGNED_PACKETS * size : size]):
            first = 0
            break
    else:
        first, size = min((_first_aligned(content, size), size) for size in _PACKET_SIZES)
    packets = content[first : first + (len(data) - first) // size * size].reshape(-1, size)
    lost = np.flatnonzero(packets[:, 0] != _SYNC)
    return (packets[: lost[0]] if lost.size else packets), first


def _is_aligned(bytes_: npt.NDArray[np.uint8]) -> bool:
    return len(bytes_) == _ALIGNED_PACKETS and bool((bytes_ == _SYNC).all())


def _first_aligned(content: npt.NDArray[np.uint8], size: int) -> int:
    """Return where packets of a size begin; the content's length if they don't."""
    count = max(0, len(content) - (_ALIGNED_PACKETS - 1) * size)
    is_sync = content == _SYNC
    aligned = np.logical_and.reduce(
        [is_sync[n * size : n * size + count] for n in range(_ALIGNED_PACKETS)]
    )
    found = np.flatnonzero(aligned)
    return int(found[0]) if found.size else len(content)


def _pid(packet: bytes) -> int:
    return (packet[1] & 0x1F) << 8 | packet[2]


def _payload(packet: bytes) -> bytes:
    """Return what a transport packet carries behind its header and adaptation field."""
    control = packet[3] >> 4 & 3
    if not control & 1:
        return b""
    return packet[5 + packet[4] :] if control & 2 else packet[4:]


def _elementary_streams(section: bytes) -> dict[int, int]:
    """Return the stream type of each PID that a program map lists."""
    streams = {}
    at = 12 + ((section[10] & 0x0F) << 8 | section[11])
    while at + 5 <= len(section) - _CRC:
        streams[(section[at + 1] & 0x1F) << 8 | section[at + 2]] = section[at]
        at += 5 + ((section[at + 3] & 0x0F) << 8 | section[at + 4])
    return streams


def _is_intact(section: bytes) -> bool:
    """Check a section's CRC, which is zlib's with the bits of all bytes reversed."""
    return zlib.crc32(section.translate(_REVERSED_BITS)) == 0xFFFFFFFF
