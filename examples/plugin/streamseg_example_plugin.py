"""Plug-ins for streamseg.

A model (`moving`), a source (`numbers://`), a tracker (`nearest`) and a sink (`lines`).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import cv2
import msgspec
import numpy as np

from streamseg import Frame, Instances, Masks, Result
from streamseg.errors import ConfigError


class MovingObjects:
    """Model: connected regions that differ from the background learned from earlier frames."""

    categories: Mapping[int, str] = {1: "moving"}

    def __init__(self) -> None:
        self.backgrounds: dict[tuple[str, int], cv2.BackgroundSubtractor] = {}

    def predict(self, frames: Sequence[Frame]) -> list[Instances]:
        """Return the moving objects of each frame."""
        return [self._segment(frame) for frame in frames]

    def _segment(self, frame: Frame) -> Instances:
        key = frame.source, frame.epoch
        if key not in self.backgrounds:  # the first frame is all foreground
            self.backgrounds[key] = cv2.createBackgroundSubtractorMOG2(detectShadows=False)
            self.backgrounds[key].apply(frame.image)
            return Instances.empty(frame.size, self.categories)
        foreground = cv2.medianBlur(self.backgrounds[key].apply(frame.image), 5)
        count, regions = cv2.connectedComponents(foreground)
        bitmaps = [regions == region for region in range(1, count)]
        large = [bitmap for bitmap in bitmaps if bitmap.sum() >= 100]
        masks = Masks.from_arrays(np.reshape(large, (-1, *frame.size)), frame.size)
        rows = len(masks)
        return Instances(
            boxes=masks.boxes,
            scores=np.ones(rows, np.float32),
            labels=np.ones(rows, np.int64),
            masks=masks,
            categories=self.categories,
        )


class Numbers:
    """Source: `numbers://COUNT` shows a number that moves to the right, at 25 frames per second."""

    live = False

    def __init__(self, url: str) -> None:
        count = url.removeprefix("numbers://")
        if not count.isdecimal():
            raise ConfigError(f"{url}: give the number of frames, as in numbers://100")
        self.count = int(count)

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the time and the image of each frame."""
        for index in range(self.count):
            image = np.zeros((120, 160, 3), np.uint8)
            position = 4 * index % 160, 80
            cv2.putText(image, str(index), position, cv2.FONT_HERSHEY_PLAIN, 4, (255,) * 3, 6)
            yield index / 25, image


class NearestBox:
    """Tracker: an instance gets the id of the nearest box of the frame before, within 40 pixels."""

    def __init__(self) -> None:
        self.centers = np.empty((0, 2))
        self.ids = np.empty(0, np.int64)
        self.new_ids = count()
        self.pts = 0.0

    def update(self, instances: Instances, pts: float) -> Instances:
        """Return the instances with track ids."""
        if pts - self.pts > 1:  # the boxes are too old
            self.centers, self.ids = self.centers[:0], self.ids[:0]
        centers = instances.boxes.reshape(-1, 2, 2).mean(axis=1)
        distances = np.linalg.norm(centers[:, None] - self.centers, axis=2)
        ids = np.full(len(instances), -1, np.int64)
        while distances.size and distances.min() < 40:
            row, earlier = np.unravel_index(distances.argmin(), distances.shape)
            ids[row] = self.ids[earlier]
            distances[row], distances[:, earlier] = np.inf, np.inf
        for row in np.flatnonzero(ids < 0):
            ids[row] = next(self.new_ids)
        self.centers, self.ids, self.pts = centers, ids, pts
        return instances.with_track_ids(ids)


class Lines:
    """Sink: one line per frame in a text file, with the track ids."""

    class Options(msgspec.Struct):
        """Options in the config."""

        path: str

    def __init__(self, options: Options) -> None:
        self.path = Path(options.path)

    def open(self) -> None:
        """Open the file; append, because `process` opens a sink once per input."""
        self.file = self.path.open("a", encoding="utf-8")

    def write(self, result: Result) -> None:
        """Write the line of one frame."""
        ids = " ".join(map(str, result.instances.track_ids))
        self.file.write(f"{result.source} {result.frame.index}: {ids}\n")

    def close(self) -> None:
        """Close the file."""
        self.file.close()
