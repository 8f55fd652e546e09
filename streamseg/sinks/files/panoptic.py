"""File sink for panoptic results in COCO's format: one PNG per frame, and one JSON file.

Format: https://cocodataset.org/#format-results, "Panoptic Segmentation"; the JSON file also has
``images`` and ``categories``, as ground truth has. During a run, ``panoptic.json.part`` grows and
``panoptic.part`` receives the PNGs. At the end both are renamed, the JSON file last: if there is a
``panoptic.json``, every file that it refers to is there.
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
from streamseg.sinks.files.part_file import (
    PartFile,
    PartFolder,
    output_errors,
    part_path,
    write_whole,
)
from streamseg.sinks.files.results import OutputFile
from streamseg.structures.results import Frame, Result, Segment, SegmentMap, draw_segment_map

_CHUNK = 1 << 20
_MAX_STEM_BYTES = 240
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class PanopticFiles(OutputFile):
    """JSON file, and a folder of PNGs of the same name.

    A PNG has the name of the frame's image file, or the frame's index if it comes from a video. An
    image's id is the frame's index, as in ``results.jsonl``; segment ids are the same as there.
    Memory grows with the names of image files only.

    Args:
        path: path of the JSON file; ``close`` replaces an existing one and its folder.
        things: name of each category id of things.
        stuff: name of each category id of stuff.
    """

    def __init__(self, path: Path, things: Mapping[int, str], stuff: Mapping[int, str]) -> None:
        super().__init__(path)
        self._categories = _categories(things, stuff)
        self._used_stems: set[str] = set()
        self._separator = b"\n"

    def write(self, result: Result) -> None:
        self.write_segments(result.frame, result.segments or ())

    def write_segments(self, frame: Frame, segments: Iterable[Segment]) -> None:
        """Write the segments of a frame.

        Args:
            frame: frame whose index and image file weren't written before.
            segments: its segments, which don't overlap.

        Raises:
            OutputError: they can't be written.
        """
        visible = [segment for segment in segments if segment.mask.area]
        image_name, segment_png_name = self._name_files(frame)
        ids = draw_segment_map(visible, frame.size)
        with output_errors(part_path(self.path.with_suffix("")) / segment_png_name):
            self._folder.write_file(segment_png_name, _encode_png(ids))
        height, width = frame.size
        image = {"id": frame.index, "file_name": image_name, "height": height, "width": width}
        segments_info = [_segment_info(segment) for segment in visible]
        annotation = {
            "image_id": frame.index,
            "file_name": segment_png_name,
            "segments_info": segments_info,
        }
        with output_errors(self.path):
            for file, entry in ((self._images, image), (self._file, annotation)):
                write_whole(file, self._separator + msgspec.json.encode(entry))
        self._separator = b",\n"

    def _create(self) -> None:
        with output_errors(self.path.with_suffix("")):
            self._folder = PartFolder(self.path.with_suffix(""))
        with output_errors(self.path):
            self._file = PartFile(self.path)
            # Only one list of a JSON file can grow: the other one waits in a file without a name.
            self._images = tempfile.TemporaryFile(  # noqa: SIM115 - closed with the JSON file
                buffering=0, dir=self.path.parent
            )
            categories = msgspec.json.encode(self._categories)
            write_whole(self._file, b'{"categories": %b,\n"annotations": [' % categories)

    def _name_files(self, frame: Frame) -> tuple[str, str]:
        """Return the names of a frame's image and PNG; two images may differ in their suffixes."""
        if frame.item is None:
            return (f"{frame.index:06}.png",) * 2
        image_name = _CONTROLS.sub("_", escape_undecodable(frame.item))
        flat = image_name.replace("/", "_")  # images may lie in several folders
        # Room is left for a number and a suffix: file systems limit names to 255 bytes.
        full_name, stem = (
            name.encode()[:_MAX_STEM_BYTES].decode(errors="ignore")
            for name in (flat, PurePath(flat).stem)
        )
        stems = chain((stem, full_name), (f"{full_name}-{n}" for n in count(2)))
        stem = next(stem for stem in stems if stem not in self._used_stems)
        self._used_stems.add(stem)
        return image_name, f"{stem}.png"

    def _complete(self) -> None:
        write_whole(self._file, b'\n],\n"images": [')
        self._images.seek(0)
        while chunk := self._images.read(_CHUNK):
            write_whole(self._file, chunk)
        write_whole(self._file, b"\n]}\n")
        self._images.close()
        self.path.unlink(missing_ok=True)  # it refers to PNGs that are about to be replaced
        self._folder.publish()
        self._file.publish()

    def _leave(self) -> None:
        self._folder.close()
        self._file.close()
        self._images.close()


def _encode_png(ids: SegmentMap) -> bytes:
    """Return a PNG whose pixels are R + 256 G + 65536 B = segment id."""
    low_first = ids.astype("<i4").view(np.uint8).reshape(*ids.shape, 4)
    written, data = cv2.imencode(".png", np.ascontiguousarray(low_first[..., 2::-1]))
    if not written:
        raise OSError(errno.EINVAL, f"no PNG of {ids.shape[1]} x {ids.shape[0]} pixels")
    return data.tobytes()


def _segment_info(segment: Segment) -> dict[str, Any]:
    """Return a member of ``segments_info``; the box is x, y, width, height."""
    x1, y1, x2, y2 = segment.mask.box.astype(int).tolist()
    return {
        "id": segment.id,
        "category_id": segment.label,
        "iscrowd": 0,
        "area": segment.mask.area,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }


def _categories(things: Mapping[int, str], stuff: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return the members of ``categories``, ids ascending."""
    kinds = [(things, 1), (stuff, 0)]
    entries = [
        {"id": number, "name": name, "isthing": isthing}
        for names, isthing in kinds
        for number, name in names.items()
    ]
    return sorted(entries, key=lambda entry: int(entry["id"]))
