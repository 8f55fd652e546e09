"""Panoptic results in COCO's format: a PNG of segment ids for each frame, and a JSON for all.

Format: https://cocodataset.org/#format-results, "Panoptic Segmentation"; the JSON has ``images``
and ``categories`` besides, as a truth has. While frames come, ``panoptic.json.part`` grows and
``panoptic.part`` takes the PNGs; at the end both get their names, the JSON last: where there is a
``panoptic.json``, everything that it names is there.
"""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import Path, PurePath
from typing import Any

import cv2
import msgspec
import numpy as np

from streamseg.protocol.encoding import escape_undecodable
from streamseg.sinks.files.part_file import PartFile, PartFolder, part_of, write_whole, writing
from streamseg.sinks.files.results import OutputFile
from streamseg.structures.results import Frame, Result, Segment, SegmentMap, segment_map

_CHUNK = 1 << 20
_MAX_STEM_BYTES = 240
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class PanopticFiles(OutputFile):
    """A JSON, and the folder of PNGs that is called like it.

    A PNG is called like the frame's picture, or by the frame's number where it comes from a video.
    An image's id is the frame's number, as in ``results.jsonl``; a segment's id is the one that it
    has there. Memory grows by the names of pictures alone.

    Args:
        path: the JSON to be; one that is there already is replaced at the end, with its folder.
        things: the name of each category id of things.
        stuff: the name of each category id of stuff.
    """

    def __init__(self, path: Path, things: Mapping[int, str], stuff: Mapping[int, str]) -> None:
        super().__init__(path)
        self._taken: set[str] = set()
        self._between = b"\n"
        with writing(path.with_suffix("")):
            self._folder = PartFolder(path.with_suffix(""))
        with writing(path):
            self._file = PartFile(path)
            # A JSON has room for one list that grows: the other waits in a file without a name.
            self._images = tempfile.TemporaryFile(  # noqa: SIM115 - closed with this one
                buffering=0, dir=path.parent
            )
            categories = msgspec.json.encode(_categories(things, stuff))
            write_whole(self._file, b'{"categories": %b,\n"annotations": [' % categories)

    def write(self, frame: Frame, segments: Iterable[Segment]) -> None:
        """Add what a frame is divided into.

        Args:
            frame: of which neither number nor picture were here before.
            segments: its parts, which don't overlap.

        Raises:
            OutputError: it can't be written.
        """
        shown = [segment for segment in segments if segment.mask.area]
        picture, png = self._names(frame)
        ids = segment_map(shown, frame.size)
        with writing(part_of(self.path.with_suffix("")) / png):
            self._folder.write_file(png, _encode_png(ids))
        height, width = frame.size
        image = {"id": frame.index, "file_name": picture, "height": height, "width": width}
        parts = [_info(segment) for segment in shown]
        annotation = {"image_id": frame.index, "file_name": png, "segments_info": parts}
        with writing(self.path):
            for file, entry in ((self._images, image), (self._file, annotation)):
                write_whole(file, self._between + msgspec.json.encode(entry))
        self._between = b",\n"

    def add(self, result: Result) -> None:
        self.write(result.frame, result.segments or ())

    def _names(self, frame: Frame) -> tuple[str, str]:
        """What the picture and the PNG are called; two pictures may differ in their endings."""
        if frame.item is None:
            return (f"{frame.index:06}.png",) * 2
        picture = _CONTROLS.sub("_", escape_undecodable(frame.item))
        flat = picture.replace("/", "_")  # of images in several folders
        whole, stem = (_shortened(name) for name in (flat, PurePath(flat).stem))
        stems = chain((stem, whole), (f"{whole}-{n}" for n in count(2)))
        stem = next(stem for stem in stems if stem not in self._taken)
        self._taken.add(stem)
        return picture, f"{stem}.png"

    def _complete(self) -> None:
        write_whole(self._file, b'\n],\n"images": [')
        self._images.seek(0)
        while chunk := self._images.read(_CHUNK):
            write_whole(self._file, chunk)
        write_whole(self._file, b"\n]}\n")
        self._images.close()
        self.path.unlink(missing_ok=True)  # it names PNGs that are about to go
        self._folder.publish()
        self._file.publish()

    def _leave(self) -> None:
        self._folder.close()
        self._file.close()
        self._images.close()


def _shortened(name: str) -> str:
    """Cut a name that would be longer with an ending than file systems allow."""
    return name.encode()[:_MAX_STEM_BYTES].decode(errors="ignore")


def _encode_png(ids: SegmentMap) -> bytes:
    """A PNG of R + 256 G + 65536 B."""
    low_first = ids.astype("<i4").view(np.uint8).reshape(*ids.shape, 4)
    written, data = cv2.imencode(".png", np.ascontiguousarray(low_first[..., 2::-1]))
    if not written:
        raise OSError(errno.EINVAL, f"no PNG of {ids.shape[1]} x {ids.shape[0]} pixels")
    return data.tobytes()


def _info(segment: Segment) -> dict[str, Any]:
    """A member of ``segments_info``; the box is x, y, width, height."""
    x1, y1, x2, y2 = segment.mask.box.astype(int).tolist()
    return {
        "id": segment.id,
        "category_id": segment.label,
        "iscrowd": 0,
        "area": segment.mask.area,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }


def _categories(things: Mapping[int, str], stuff: Mapping[int, str]) -> list[dict[str, Any]]:
    """The members of ``categories``, ids ascending."""
    kinds = [(things, 1), (stuff, 0)]
    entries = [
        {"id": number, "name": name, "isthing": isthing}
        for names, isthing in kinds
        for number, name in names.items()
    ]
    return sorted(entries, key=lambda entry: int(entry["id"]))
