"""Random access points: packets from which decoding gives the same frames as from the beginning.

A container's key frame flag doesn't guarantee that: recordings with periodic intra refresh set it
where the frame is still incomplete, and open groups of pictures start with frames that need the
group before them. So H.264 and HEVC are entered only at instantaneous decoder refreshes (IDR, ITU-T
H.264 and H.265, section 7.4), and codecs without inter prediction at any packet.
"""

from __future__ import annotations

from dataclasses import dataclass

from av.packet import Packet
from av.video.stream import VideoStream

_START_CODE = b"\0\0\1"
_DISPLAY_ORIENTATION = 47
"""SEI payload type of display orientation messages."""


@dataclass(frozen=True, slots=True)
class _NalSyntax:
    """NAL unit types of a codec, and the layout of its headers.

    Attributes:
        header_size: bytes of a NAL unit header.
        type_shift: bits by which the type is shifted in the first byte.
        type_mask: bit mask of the type after shifting.
        idr_types: types of IDR slices.
        parameter_types: types of parameter sets.
        sei_type: type of supplemental enhancement information (SEI) in front of a frame.
        length_size_at: byte of the decoder configuration record with the size of length fields.
    """

    header_size: int
    type_shift: int
    type_mask: int
    idr_types: frozenset[int]
    parameter_types: frozenset[int]
    sei_type: int
    length_size_at: int

    def read_type(self, unit: bytes) -> int:
        """Return a NAL unit's type."""
        return (unit[0] >> self.type_shift) & self.type_mask


_SYNTAX = {
    "h264": _NalSyntax(1, 0, 0x1F, frozenset({5}), frozenset({7, 8, 13, 15}), 6, 4),
    "hevc": _NalSyntax(2, 1, 0x3F, frozenset({19, 20}), frozenset({32, 33, 34}), 39, 21),
}


class RandomAccessFinder:
    """Search for random access points among all packets of a stream, in order.

    Attributes:
        is_exact: whether decoding from an access point gives the same frames, frame numbers and
            times as from the beginning, as far as the packets so far show.
    """

    def __init__(self, stream: VideoStream) -> None:
        context = stream.codec_context
        self._syntax = _SYNTAX.get(context.codec.canonical_name)
        self._is_intra_only = context.codec.intra_only
        self._has_b_frames = bool(context.has_b_frames)
        self._length_size = _read_length_size(self._syntax, context.extradata or b"")
        self._parameter_sets: frozenset[bytes] | None = None
        self._max_pts: int | None = None
        self.is_exact = self._is_intra_only or self._syntax is not None

    def add_packet(self, packet: Packet[VideoStream]) -> bool:
        """Add the next packet and return whether decoding may start with it."""
        is_refresh = self._is_intra_only or self._is_refresh(packet)
        pts, max_pts = packet.pts, self._max_pts
        if pts is None or packet.is_corrupt or packet.has_sidedata("new_extradata"):
            self.is_exact = False
        elif max_pts is None:
            self.is_exact &= is_refresh  # else the first frames may not be decodable
        elif pts <= max_pts:
            # Without a stated reorder depth, decoders determine it from the packets they decode.
            self.is_exact &= self._has_b_frames and not is_refresh
        self._max_pts = max(max_pts or 0, pts or 0) if max_pts is not None else pts
        return is_refresh and self.is_exact

    def _is_refresh(self, packet: Packet[VideoStream]) -> bool:
        """Return whether a packet is an IDR picture with the first packet's parameter sets."""
        if self._syntax is None:
            return False
        syntax = self._syntax
        units = self._split_units(bytes(packet))
        units = [unit for unit in units if len(unit) > syntax.header_size]
        types = {syntax.read_type(unit) for unit in units}
        parameter_sets = frozenset(
            unit for unit in units if syntax.read_type(unit) in syntax.parameter_types
        )
        if self._parameter_sets is None:
            self._parameter_sets = parameter_sets
        if parameter_sets and parameter_sets != self._parameter_sets:
            self.is_exact = False  # the frame size may change here
        if any(_has_display_orientation(unit, syntax) for unit in units):
            self.is_exact = False  # it may apply to later frames without being repeated
        return bool(types & syntax.idr_types) and parameter_sets == self._parameter_sets

    def _split_units(self, data: bytes) -> list[bytes]:
        """Return the NAL units of a packet."""
        if not self._length_size:
            return [unit.rstrip(b"\0") for unit in data.split(_START_CODE)[1:]]
        units, at = [], 0
        while at + self._length_size < len(data):
            start = at + self._length_size
            at = start + int.from_bytes(data[at:start], "big")
            units.append(data[start:at])
        return units


def _read_length_size(syntax: _NalSyntax | None, record: bytes) -> int:
    """Return the size of a NAL unit's length field in bytes; 0 if units begin with start codes.

    Args:
        syntax: NAL unit syntax of the codec; None if the codec has no NAL units.
        record: decoder configuration record; empty if there is none.
    """
    if syntax is None or len(record) <= syntax.length_size_at or record[0] != 1:
        return 0
    return (record[syntax.length_size_at] & 3) + 1


def _has_display_orientation(unit: bytes, syntax: _NalSyntax) -> bool:
    """Return whether a NAL unit holds a display orientation SEI message."""
    if syntax.read_type(unit) != syntax.sei_type:
        return False
    at = syntax.header_size
    while at + 2 < len(unit):
        payload_type, at = _read_sei_number(unit, at)
        size, at = _read_sei_number(unit, at)
        if payload_type == _DISPLAY_ORIENTATION:
            return True
        at += size
    return False


def _read_sei_number(unit: bytes, at: int) -> tuple[int, int]:
    """Return an SEI payload type or size, coded as a sum of bytes, and the position after it."""
    total = 0
    while at < len(unit):
        total += unit[at]
        at += 1
        if unit[at - 1] != 255:
            break
    return total, at
