"""Pixels and masks of an annotated picture, when they are asked for: to learn from, to measure on.

Pictures come from the reader that the sources use, upright as EXIF says, and patterns from the
source itself: what a model learns from and is measured on is what it will be served. A picture of
another size than its annotations say is refused, since nothing in them would be where they say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamseg.datasets.dataset import AnnotatedImage, Annotation, Dataset, PatternFrame, PngSegment
from streamseg.datasets.labels import Labels, load_labels
from streamseg.datasets.polygons import rasterise
from streamseg.datasets.test_pattern import open_pattern
from streamseg.errors import DataError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import TURNED, read_image, read_orientation
from streamseg.structures.masks import MAX_PIXELS, RLE, BoolArray, Mask, Masks
from streamseg.structures.results import Image
from streamseg.structures.targets import THING, UNKNOWN, Sample, Targets


def load_sample(
    dataset: Dataset,
    image: AnnotatedImage,
    classes: Sequence[str],
    seed: int,
    stuff: Sequence[str] = (),
) -> Sample:
    """A picture with what is annotated in it of a model's classes.

    Args:
        dataset: what the picture is of.
        image: the picture.
        classes: the names of the model's classes, in its order; what else is annotated is left
            out.
        seed: see :class:`~streamseg.structures.targets.Targets`.
        stuff: the names of the model's classes of stuff, in its order; at most
            ``MAX_STUFF_CLASSES``.

    Returns:
        The picture with targets of N objects and C classes. A class that the dataset doesn't
        know is not ``annotated``. There is a map of stuff where both model and dataset have any;
        every thing that is annotated is a thing in it, be it of the model's classes or not.

    Raises:
        DataError: the picture or a PNG of masks can't be read or has another size.
        TooLargeError: the picture has more pixels than the limit.
    """
    picture = load_image(image)
    indices = {name: index for index, name in enumerate(classes)}
    chosen = [a for a in image.annotations if dataset.categories[a.category_id] in indices]
    names = {dataset.categories[number] for number in dataset.annotated}
    labels: dict[Path, Labels] = {}
    targets = Targets(
        image_id=image.id,
        seed=seed,
        boxes=torch.tensor([a.box for a in chosen], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(
            [indices[dataset.categories[a.category_id]] for a in chosen], dtype=torch.int64
        ),
        masks=_bitmaps(image, chosen, labels),
        has_mask=_flags([a.segmentation is not None for a in chosen]),
        crowd=_flags([a.crowd for a in chosen]),
        annotated=_flags([name in names for name in classes]),
        stuff=_stuff_map(dataset, image, stuff, labels) if stuff and dataset.stuff else None,
    )
    return Sample(torch.from_numpy(picture).permute(2, 0, 1).contiguous(), targets)


def load_image(image: AnnotatedImage) -> Image:
    """The pixels of a picture, uint8 (H, W, 3) RGB, upright.

    Raises:
        DataError: it can't be read, or isn't of the size that its annotations are for.
        TooLargeError: it has more pixels than the limit.
    """
    if isinstance(image.picture, PatternFrame):
        return open_pattern(image.picture.url).render(image.picture.index)
    try:
        picture = read_image(image.picture, MAX_PIXELS)
        fits = picture.shape[:2] == image.size
        orientation = 1 if fits else read_orientation(image.picture, MAX_PIXELS)
    except BadImageError as error:
        raise DataError(f"{image.picture}: {error}") from None
    if not fits:
        raise _wrong_size(image, image.picture, picture.shape, orientation)
    return picture


def load_segment_ids(image: AnnotatedImage) -> Labels:
    """Which segment each pixel of a panoptic dataset's picture is of, int32 (H, W); 0 is void.

    Raises:
        DataError: the PNG can't be read or has another size than the picture.
    """
    for annotation in (*image.annotations, *image.stuff):  # all are of one PNG
        assert isinstance(annotation.segmentation, PngSegment)
        return _load_labels(image, annotation.segmentation.path)
    return np.zeros(image.size, np.int32)


def coco_truth(dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    """The dataset in COCO's format, as ``pycocotools.coco.COCO`` takes it and JSON can hold it.

    Masks are compressed run lengths; an annotation without one has no ``segmentation``.
    Annotations are numbered from 1: pycocotools takes the id 0 for no annotation, and the ids of
    PNG formats are unique in their picture only.

    Raises:
        DataError: a PNG of masks can't be read or has another size than its picture.
    """
    found = [
        {
            "image_id": image.id,
            "category_id": annotation.category_id,
            "bbox": _to_coco_box(annotation.box),
            "area": annotation.area,
            "iscrowd": int(annotation.crowd),
        }
        | ({} if rle is None else {"segmentation": rle})
        for image in dataset.images
        for annotation, rle in zip(image.annotations, _run_lengths(image), strict=True)
    ]
    return {
        "images": [
            {"id": image.id, "height": image.size[0], "width": image.size[1]}
            for image in dataset.images
        ],
        "annotations": [{"id": number} | row for number, row in enumerate(found, 1)],
        "categories": [{"id": number, "name": name} for number, name in dataset.categories.items()],
    }


def _stuff_map(
    dataset: Dataset, image: AnnotatedImage, names: Sequence[str], labels: dict[Path, Labels]
) -> Tensor:
    """See :attr:`~streamseg.structures.targets.Targets.stuff`."""
    numbers = {name: number for number, name in enumerate(names, THING + 1)}
    found = np.full(image.size, UNKNOWN, np.uint8)
    for annotation in (*image.annotations, *image.stuff):
        name = dataset.stuff.get(annotation.category_id)
        number = THING if name is None else numbers.get(name, UNKNOWN)
        assert isinstance(annotation.segmentation, PngSegment)
        found[_pixels(image, annotation.segmentation, labels)] = number
    return torch.from_numpy(found)


def _bitmaps(
    image: AnnotatedImage, annotations: Sequence[Annotation], labels: dict[Path, Labels]
) -> Tensor:
    """The masks of some of a picture's annotations, bool (N, H, W); zeros where there is none."""
    bitmaps = torch.zeros((len(annotations), *image.size), dtype=torch.bool)
    counts: dict[int, str] = {}
    for row, annotation in enumerate(annotations):
        segmentation = annotation.segmentation
        if isinstance(segmentation, PngSegment):
            bitmaps[row] = torch.from_numpy(_pixels(image, segmentation, labels))
        elif segmentation is not None:
            counts[row] = rasterise(segmentation, image.size)["counts"]
    if counts:
        masks = Masks.from_rle(list(counts.values()), image.size)
        bitmaps[list(counts)] = torch.from_numpy(masks.to_arrays())
    return bitmaps


def _run_lengths(image: AnnotatedImage) -> Iterator[RLE | None]:
    """The mask of each of a picture's annotations; None where there is none."""
    labels: dict[Path, Labels] = {}
    for annotation in image.annotations:
        segmentation = annotation.segmentation
        if isinstance(segmentation, PngSegment):
            yield Mask.from_array(_pixels(image, segmentation, labels)).to_rle()
        else:
            yield None if segmentation is None else rasterise(segmentation, image.size)


def _pixels(image: AnnotatedImage, segment: PngSegment, labels: dict[Path, Labels]) -> BoolArray:
    """The pixels of a segment, bool (H, W); ``labels`` keeps the PNGs that were read."""
    if segment.path not in labels:
        labels[segment.path] = _load_labels(image, segment.path)
    pixels: BoolArray = labels[segment.path] == segment.value
    return pixels


def _load_labels(image: AnnotatedImage, path: Path) -> Labels:
    """What a PNG says of a picture, int32 (H, W)."""
    labels = load_labels(path)
    if labels.shape != image.size:
        raise _wrong_size(image, path, labels.shape)
    return labels


def _flags(values: Sequence[bool]) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def _to_coco_box(box: tuple[float, float, float, float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def _wrong_size(
    image: AnnotatedImage, path: Path, found: tuple[int, ...], orientation: int = 1
) -> DataError:
    height, width = found[:2]
    what = f"{width} x {height}, its annotations are for {image.size[1]} x {image.size[0]}"
    if orientation in TURNED and (width, height) == image.size:
        what += (
            f", as it is before its EXIF orientation {orientation} turns it upright: turn the "
            "annotations, or take the orientation out of the file"
        )
    return DataError(f"{path}: it is {what}")
