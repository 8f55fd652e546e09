"""MPEG transport streams: parts with different video, which FFmpeg doesn't follow.

A program map table (PMT, ISO/IEC 13818-1, section 2.4.4.8) lists the elementary streams of a
program. If a later PMT gives the video's PID another codec, or lists other video instead, the rest
is a recording of its own and must be opened as one.
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

_SYNC_BYTE = 0x47
_PACKET_BYTES = 188
_STORED_SIZES = (188, 192, 204)
"""Bytes per packet in a file: plain, with a time code in front (M2TS), with error correction."""
_TIME_CODE_BYTES = {192: 4}
_ALIGNED_PACKETS = 5
"""Consecutive packets that must start with a sync byte."""
_ALIGN_BYTES = _ALIGNED_PACKETS * max(_STORED_SIZES)
_CHUNK_BYTES = 4 * 2**20
_PAT_PID = 0
_PMT_TABLE_ID = 2
_PAYLOAD_UNIT_START = 0x40
_SECTION_HEADER_BYTES = 8
_CRC_BYTES = 4
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_VIDEO_STREAM_TYPES = frozenset({0x01, 0x02, 0x10, 0x1B, 0x21, 0x24, 0x33, 0x42, 0xD1, 0xD2, 0xEA})


@dataclass(frozen=True, slots=True)
class StreamPart:
    """Byte range of a transport stream that is a recording of its own.

    Attributes:
        start: position of its first byte.
        end: position after its last byte; None for the end of the file.
        pat: stored packet with the program association table, to be read in front; may be empty.
        following: the part after it; None if there is none.
    """

    start: int = 0
    end: int | None = None
    pat: bytes = b""
    following: StreamPart | None = None


class StreamPartFile(io.RawIOBase):
    """Read-only file with the content of one part of a transport stream.

    Args:
        path: file that holds the part.
        part: byte range to read.
    """

    def __init__(self, path: Path, part: StreamPart) -> None:
        self._file = path.open("rb")
        self._pat = part.pat
        self._offset = part.start - len(part.pat)
        self._size = (path.stat().st_size if part.end is None else part.end) - self._offset
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes from the current position; all if it is negative."""
        remaining = max(0, self._size - self._position)
        size = remaining if size < 0 else min(size, remaining)
        data = self._pat[self._position : self._position + size]
        if len(data) < size:
            self._file.seek(self._offset + self._position + len(data))
            data += self._file.read(size - len(data))
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the current position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the current position."""
        return self._position

    def close(self) -> None:
        """Close the underlying file."""
        self._file.close()
        super().close()


def trim_part(path: Path, part: StreamPart, pid: int, max_bytes: int | None = None) -> StreamPart:
    """Trim a part to end where the transport stream changes to other video.

    Args:
        path: transport stream.
        part: part with its start; the end is searched for up to the end of the file.
        pid: PID of the video.
        max_bytes: number of bytes to search; None for all.
    """
    tracker = _ProgramTracker(pid)
    pat = part.pat
    if pat:
        tracker.add_packet(pat[pat.index(_SYNC_BYTE) :][:_PACKET_BYTES])
    with path.open("rb") as file:
        for located in _table_packets(file, part.start, tracker):
            if max_bytes is not None and located.position - part.start > max_bytes:
                break
            if tracker.add_packet(located.packet):
                following = StreamPart(located.position, None, pat)
                return replace(part, end=located.position, following=following)
            if _read_pid(located.packet) == _PAT_PID:
                pat = located.stored
    return part


@dataclass(frozen=True, slots=True)
class _LocatedPacket:
    """Transport packet and its position in a file.

    Attributes:
        position: file offset of its first stored byte, which belongs to the time code if any.
        packet: its 188 bytes.
        stored: 188, 192 or 204 bytes: the packet, with zeros for time code and error correction.
    """

    position: int
    packet: bytes
    stored: bytes


class _ProgramTracker:
    """Detector of a change to other video in the program that contains a given PID.

    Attributes:
        pmt_pids: PIDs of the program map tables, from the latest program association table.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stream_type: int | None = None
        self._pmt_pid: int | None = None
        self._sections: dict[int, bytes] = {}
        self.pmt_pids: set[int] = set()

    def add_packet(self, packet: bytes) -> bool:
        """Add a packet; return whether it completes a PMT that lists other video instead."""
        pid = _read_pid(packet)
        section = self._complete_section(pid, packet)
        if section is None:
            return False
        if pid == _PAT_PID:
            entries = section[_SECTION_HEADER_BYTES:-_CRC_BYTES]
            self.pmt_pids = {
                (entries[at + 2] & 0x1F) << 8 | entries[at + 3]
                for at in range(0, len(entries) - 3, 4)
                if entries[at] or entries[at + 1]  # program 0 is the network information table
            }
            return False
        return section[0] == _PMT_TABLE_ID and self._is_replaced(pid, _read_stream_types(section))

    def _complete_section(self, pid: int, packet: bytes) -> bytes | None:
        """Return the section that a packet completes, if it is current and has a correct CRC."""
        payload = _read_payload(packet)
        if packet[1] & _PAYLOAD_UNIT_START and payload:
            self._sections[pid] = payload[1 + payload[0] :]
        elif pid in self._sections:
            self._sections[pid] += payload
        data = self._sections.get(pid, b"")
        if len(data) < 3:
            return None
        size = 3 + ((data[1] & 0x0F) << 8 | data[2])
        if len(data) < size:
            return None
        del self._sections[pid]
        section = data[:size]
        is_current = size > _SECTION_HEADER_BYTES + _CRC_BYTES and section[5] & 1
        # The CRC is zlib's with the bits of every byte reversed.
        is_intact = zlib.crc32(section.translate(_REVERSED_BITS)) == 0xFFFFFFFF
        return section if is_current and is_intact else None

    def _is_replaced(self, pmt_pid: int, stream_types: dict[int, int]) -> bool:
        """Return whether a PMT replaces the video; the first PMT that lists the PID defines it."""
        stream_type = stream_types.get(self._pid)
        is_orphaned = self._pmt_pid not in self.pmt_pids
        if self._stream_type is None or (stream_type == self._stream_type and is_orphaned):
            self._stream_type = stream_type
            self._pmt_pid = pmt_pid if stream_type is not None else None
            return False
        is_same_program = pmt_pid == self._pmt_pid or is_orphaned
        has_video = not _VIDEO_STREAM_TYPES.isdisjoint(stream_types.values())
        return is_same_program and stream_type != self._stream_type and has_video


def _table_packets(
    file: BinaryIO, start: int, tracker: _ProgramTracker
) -> Iterator[_LocatedPacket]:
    """Yield the packets that hold program tables."""
    at = start
    while True:
        file.seek(at)
        data = file.read(_CHUNK_BYTES)
        packets, first = _split_packets(data)
        if not len(packets):
            if len(data) < _CHUNK_BYTES:
                return
            at += len(data) - _ALIGN_BYTES  # no packets start before the last few bytes
            continue
        size = packets.shape[1]
        front = _TIME_CODE_BYTES.get(size, 0)
        pids = (packets[:, 1] & 0x1F).astype(np.int32) << 8 | packets[:, 2]
        for row in _table_rows(pids, tracker):
            packet = packets[row, :_PACKET_BYTES].tobytes()
            stored = bytes(front) + packet + bytes(size - front - _PACKET_BYTES)
            yield _LocatedPacket(at + first + row * size - front, packet, stored)
        at += first + packets.size


def _table_rows(pids: npt.NDArray[np.signedinteger], tracker: _ProgramTracker) -> Iterator[int]:
    """Yield the indices of packets with program tables; the PMT PIDs may change in between."""
    done = 0
    while done < len(pids):
        pmt_pids = set(tracker.pmt_pids)
        for row in done + np.flatnonzero(np.isin(pids[done:], [_PAT_PID, *pmt_pids])):
            yield int(row)
            done = int(row) + 1
            if tracker.pmt_pids != pmt_pids:
                break
        else:
            return


def _split_packets(data: bytes) -> tuple[npt.NDArray[np.uint8], int]:
    """Return consecutive packets, and the position of the first one.

    Packets are rows, uint8 (N, 188, 192 or 204), each starting with its sync byte; they end before
    the first one without a sync byte. N is 0 if no packets are found.
    """
    content = np.frombuffer(data, np.uint8)
    for size in _STORED_SIZES:
        sync_bytes = content[: _ALIGNED_PACKETS * size : size]
        if len(sync_bytes) == _ALIGNED_PACKETS and (sync_bytes == _SYNC_BYTE).all():
            first = 0
            break
    else:
        first, size = min((_find_first_packet(content, size), size) for size in _STORED_SIZES)
    packets = content[first : first + (len(data) - first) // size * size].reshape(-1, size)
    lost = np.flatnonzero(packets[:, 0] != _SYNC_BYTE)
    return (packets[: lost[0]] if lost.size else packets), first


def _find_first_packet(content: npt.NDArray[np.uint8], size: int) -> int:
    """Return the position of the first packet of ``size`` bytes; the content's length if none."""
    count = max(0, len(content) - (_ALIGNED_PACKETS - 1) * size)
    is_sync = content == _SYNC_BYTE
    is_aligned = np.logical_and.reduce(
        [is_sync[n * size : n * size + count] for n in range(_ALIGNED_PACKETS)]
    )
    starts = np.flatnonzero(is_aligned)
    return int(starts[0]) if starts.size else len(content)


def _read_pid(packet: bytes) -> int:
    return (packet[1] & 0x1F) << 8 | packet[2]


def _read_payload(packet: bytes) -> bytes:
    """Return the bytes after a transport packet's header and adaptation field."""
    control = packet[3] >> 4 & 3
    if not control & 1:
        return b""
    return packet[5 + packet[4] :] if control & 2 else packet[4:]


def _read_stream_types(section: bytes) -> dict[int, int]:
    """Return the stream type of each PID that a program map table lists."""
    stream_types = {}
    at = 12 + ((section[10] & 0x0F) << 8 | section[11])
    while at + 5 <= len(section) - _CRC_BYTES:
        stream_types[(section[at + 1] & 0x1F) << 8 | section[at + 2]] = section[at]
        at += 5 + ((section[at + 3] & 0x0F) << 8 | section[at + 4])
    return stream_types
