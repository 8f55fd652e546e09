"""Random access points: packets from which decoding gives the very frames of the whole recording.

A container's key frame flag promises less than that: recordings that are refreshed by columns
carry it where the picture is still incomplete, and open groups of pictures begin with frames that
need the group before. So H.264 and HEVC are entered at instantaneous decoder refreshes (IDR) only,
ITU-T H.264 and H.265, section 7.4, and codecs without prediction between frames anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from av.packet import Packet
from av.video.stream import VideoStream

_START_CODE = b"\0\0\1"
_DISPLAY_ORIENTATION = 47


@dataclass(frozen=True, slots=True)
class _Syntax:
    """NAL unit types of a codec, and where its header and configuration record keep what is read.

    Attributes:
        header: bytes of a NAL unit header.
        shift: of the type in the first byte.
        mask: of the type, once shifted.
        idr: types of slices of a refresh after which nothing needs what was before.
        parameters: types of parameter sets.
        sei: type of supplemental information in front of a frame.
        length_at: byte of the configuration record that holds the size of lengths.
    """

    header: int
    shift: int
    mask: int
    idr: frozenset[int]
    parameters: frozenset[int]
    sei: int
    length_at: int

    def type_of(self, unit: bytes) -> int:
        """Return a NAL unit's type."""
        return (unit[0] >> self.shift) & self.mask


_SYNTAX = {
    "h264": _Syntax(1, 0, 0x1F, frozenset({5}), frozenset({7, 8, 13, 15}), 6, 4),
    "hevc": _Syntax(2, 1, 0x3F, frozenset({19, 20}), frozenset({32, 33, 34}), 39, 21),
}


class AccessPoints:
    """Search for random access points among the packets of a stream, from its first.

    Attributes:
        is_exact: no packet so far has made it doubtful whether frames, their number and their
            times are the same wherever decoding begins.
    """

    def __init__(self, stream: VideoStream) -> None:
        context = stream.codec_context
        self._syntax = _SYNTAX.get(context.codec.canonical_name)
        self._is_intra_only = context.codec.intra_only
        self._reorders = bool(context.has_b_frames)
        self._length_size = _length_size(self._syntax, context.extradata or b"")
        self._parameters: frozenset[bytes] | None = None
        self._latest: int | None = None
        self.is_exact = self._is_intra_only or self._syntax is not None

    def examine(self, packet: Packet[VideoStream]) -> bool:
        """Return whether decoding may begin with this packet; call it for each one, in order."""
        is_refresh = self._is_intra_only or self._is_refresh(packet)
        pts, latest = packet.pts, self._latest
        if pts is None or packet.is_corrupt or packet.has_sidedata("new_extradata"):
            self.is_exact = False
        elif latest is None:
            self.is_exact &= is_refresh  # or the first frames may never come
        elif pts <= latest:
            # Decoders learn on the way how many frames they must hold, if nothing says so.
            self.is_exact &= self._reorders and not is_refresh
        self._latest = max(latest or 0, pts or 0) if latest is not None else pts
        return is_refresh and self.is_exact

    def _is_refresh(self, packet: Packet[VideoStream]) -> bool:
        if self._syntax is None:
            return False
        syntax = self._syntax
        units = [unit for unit in self._units(bytes(packet)) if len(unit) > syntax.header]
        types = {syntax.type_of(unit) for unit in units}
        parameters = frozenset(u for u in units if syntax.type_of(u) in syntax.parameters)
        if self._parameters is None:
            self._parameters = parameters
        if parameters and parameters != self._parameters:
            self.is_exact = False  # frames may have another size from here on
        if any(_turns(unit, syntax) for unit in units):
            self.is_exact = False  # it may hold for later frames, which don't repeat it
        return bool(types & syntax.idr) and parameters == self._parameters

    def _units(self, data: bytes) -> list[bytes]:
        """Return a packet's NAL units."""
        if not self._length_size:
            return [unit.rstrip(b"\0") for unit in data.split(_START_CODE)[1:]]
        units, at = [], 0
        while at + self._length_size < len(data):
            begin = at + self._length_size
            at = begin + int.from_bytes(data[at:begin], "big")
            units.append(data[begin:at])
        return units


def _length_size(syntax: _Syntax | None, record: bytes) -> int:
    """Return the bytes of a NAL unit's length; 0 where start codes separate the units."""
    if syntax is None or len(record) <= syntax.length_at or record[0] != 1:
        return 0
    return (record[syntax.length_at] & 3) + 1


def _turns(unit: bytes, syntax: _Syntax) -> bool:
    """Return whether a NAL unit holds a display orientation (SEI payload type 47)."""
    if syntax.type_of(unit) != syntax.sei:
        return False
    at = syntax.header
    while at + 2 < len(unit):
        kind, at = _sei_number(unit, at)
        size, at = _sei_number(unit, at)
        if kind == _DISPLAY_ORIENTATION:
            return True
        at += size
    return False


def _sei_number(unit: bytes, at: int) -> tuple[int, int]:
    """Return a number that is a sum of bytes, up to the first below 255, and where it ends."""
    total = 0
    while at < len(unit):
        total += unit[at]
        at += 1
        if unit[at - 1] != 255:
            break
    return total, at
