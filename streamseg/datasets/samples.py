"""Loading of images and masks: training samples, COCO ground truth and segment maps.

Images are read with the reader that the sources use, upright according to EXIF, and pattern frames
are rendered by the source: training, evaluation and service get the same pixels. An image whose
size differs from that of its annotations is an error, because no annotation would fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamseg.datasets.dataset import AnnotatedImage, Annotation, Dataset, PatternFrame, PngSegment
from streamseg.datasets.label_maps import LabelMap, load_label_map
from streamseg.datasets.rasterization import encode_segmentation
from streamseg.datasets.synthetic import open_pattern
from streamseg.errors import DataError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import TRANSPOSING_ORIENTATIONS, read_exif_orientation, read_image
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
    """Load an image with the targets for a model's classes.

    Args:
        dataset: dataset of the image.
        image: the image.
        classes: class names of the model, in its order; annotations of other categories are left
            out.
        seed: see :class:`~streamseg.structures.targets.Targets`.
        stuff: stuff class names of the model, in its order; at most ``MAX_STUFF_CLASSES``.

    Returns:
        The image with targets of N objects and C classes. Classes that the dataset doesn't have
        are not ``annotated``. The stuff map is None unless model and dataset both have stuff; in
        it, every annotated thing is a thing, even if its class is not one of the model's.

    Raises:
        DataError: the image or a PNG of masks can't be read or has another size.
        TooLargeError: the image has more pixels than the limit.
    """
    pixels = load_image(image)
    indices = {name: index for index, name in enumerate(classes)}
    chosen = [a for a in image.annotations if dataset.categories[a.category_id] in indices]
    annotated_names = {dataset.categories[number] for number in dataset.annotated}
    label_maps: dict[Path, LabelMap] = {}
    targets = Targets(
        image_id=image.id,
        seed=seed,
        boxes=torch.tensor([a.box for a in chosen], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(
            [indices[dataset.categories[a.category_id]] for a in chosen], dtype=torch.int64
        ),
        masks=_load_masks(image, chosen, label_maps),
        has_mask=torch.tensor([a.segmentation is not None for a in chosen], dtype=torch.bool),
        crowd=torch.tensor([a.crowd for a in chosen], dtype=torch.bool),
        annotated=torch.tensor([name in annotated_names for name in classes], dtype=torch.bool),
        stuff=_load_stuff(dataset, image, stuff, label_maps) if stuff and dataset.stuff else None,
    )
    return Sample(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), targets)


def load_image(image: AnnotatedImage) -> Image:
    """Load the upright pixels of an image, uint8 (H, W, 3) RGB.

    Raises:
        DataError: the image can't be read or doesn't have the size of its annotations.
        TooLargeError: the image has more pixels than the limit.
    """
    if isinstance(image.file, PatternFrame):
        return open_pattern(image.file.url).render(image.file.index)
    try:
        pixels = read_image(image.file, MAX_PIXELS)
        if pixels.shape[:2] == image.size:
            return pixels
        orientation = read_exif_orientation(image.file, MAX_PIXELS)
    except BadImageError as error:
        raise DataError(f"{image.file}: {error}") from None
    raise _make_size_error(image, image.file, pixels.shape, orientation)


def load_segment_ids(image: AnnotatedImage) -> LabelMap:
    """Load the segment id of each pixel of a panoptic image, int32 (H, W); 0 is void.

    Raises:
        DataError: the PNG can't be read or has another size than the image.
    """
    for annotation in (*image.annotations, *image.stuff):  # all have the same PNG
        assert isinstance(annotation.segmentation, PngSegment)
        return _load_label_map(image, annotation.segmentation.path)
    return np.zeros(image.size, np.int32)


def dataset_to_coco(dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    """Convert the dataset to COCO format, for ``pycocotools.coco.COCO`` or a JSON file.

    Masks are compressed run lengths; an annotation without a mask has no ``segmentation``.
    Annotations are numbered from 1, because pycocotools takes id 0 for no annotation, and ids in
    PNG formats are unique within an image only.

    Raises:
        DataError: a PNG of masks can't be read or has another size than its image.
    """
    rows = []
    for image in dataset.images:
        label_maps: dict[Path, LabelMap] = {}
        for annotation in image.annotations:
            x1, y1, x2, y2 = annotation.box
            row: dict[str, Any] = {
                "image_id": image.id,
                "category_id": annotation.category_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": annotation.area,
                "iscrowd": int(annotation.crowd),
            }
            if rle := _load_rle(image, annotation, label_maps):
                row["segmentation"] = rle
            rows.append(row)
    return {
        "images": [
            {"id": image.id, "height": image.size[0], "width": image.size[1]}
            for image in dataset.images
        ],
        "annotations": [{"id": number} | row for number, row in enumerate(rows, 1)],
        "categories": [{"id": number, "name": name} for number, name in dataset.categories.items()],
    }


def _load_masks(
    image: AnnotatedImage, annotations: Sequence[Annotation], label_maps: dict[Path, LabelMap]
) -> Tensor:
    """Return the masks of annotations, bool (N, H, W); zeros for those without a mask."""
    bitmaps = torch.zeros((len(annotations), *image.size), dtype=torch.bool)
    counts: dict[int, str] = {}
    for row, annotation in enumerate(annotations):
        segmentation = annotation.segmentation
        if isinstance(segmentation, PngSegment):
            bitmaps[row] = torch.from_numpy(_load_segment(image, segmentation, label_maps))
        elif segmentation is not None:
            counts[row] = encode_segmentation(segmentation, image.size)["counts"]
    if counts:
        masks = Masks.from_rle(list(counts.values()), image.size)
        bitmaps[list(counts)] = torch.from_numpy(masks.to_arrays())
    return bitmaps


def _load_rle(
    image: AnnotatedImage, annotation: Annotation, label_maps: dict[Path, LabelMap]
) -> RLE | None:
    """Return the mask of an annotation as run lengths, or None if it has no mask."""
    segmentation = annotation.segmentation
    if isinstance(segmentation, PngSegment):
        return Mask.from_array(_load_segment(image, segmentation, label_maps)).to_rle()
    return None if segmentation is None else encode_segmentation(segmentation, image.size)


def _load_stuff(
    dataset: Dataset,
    image: AnnotatedImage,
    names: Sequence[str],
    label_maps: dict[Path, LabelMap],
) -> Tensor:
    """Return the stuff map, uint8 (H, W), as in ``Targets.stuff``.

    Args:
        dataset: dataset of the image.
        image: the image.
        names: stuff class names of the model.
        label_maps: cache of the PNGs that have been read.
    """
    numbers = {name: number for number, name in enumerate(names, THING + 1)}
    stuff = np.full(image.size, UNKNOWN, np.uint8)
    for annotation in (*image.annotations, *image.stuff):
        name = dataset.stuff.get(annotation.category_id)
        number = THING if name is None else numbers.get(name, UNKNOWN)
        assert isinstance(annotation.segmentation, PngSegment)
        stuff[_load_segment(image, annotation.segmentation, label_maps)] = number
    return torch.from_numpy(stuff)


def _load_segment(
    image: AnnotatedImage, segment: PngSegment, label_maps: dict[Path, LabelMap]
) -> BoolArray:
    """Return the pixels of a segment, bool (H, W); ``label_maps`` caches the PNGs."""
    if segment.path not in label_maps:
        label_maps[segment.path] = _load_label_map(image, segment.path)
    pixels: BoolArray = label_maps[segment.path] == segment.value
    return pixels


def _load_label_map(image: AnnotatedImage, path: Path) -> LabelMap:
    """Return the label map of an image, int32 (H, W), after checking its size."""
    labels = load_label_map(path)
    if labels.shape != image.size:
        raise _make_size_error(image, path, labels.shape)
    return labels


def _make_size_error(
    image: AnnotatedImage, path: Path, shape: tuple[int, ...], orientation: int = 1
) -> DataError:
    """Return the error for a file that doesn't have the size of the image's annotations.

    Args:
        image: the image.
        path: the image file or PNG.
        shape: (height, width, …) of the pixels in the file.
        orientation: EXIF orientation of the file, 1 to 8.
    """
    height, width = shape[:2]
    message = f"it is {width} x {height}, its annotations are for {image.size[1]} x {image.size[0]}"
    if orientation in TRANSPOSING_ORIENTATIONS and (width, height) == image.size:
        message += (
            f", as it is before its EXIF orientation {orientation} turns it upright: turn the "
            "annotations, or take the orientation out of the file"
        )
    return DataError(f"{path}: {message}")
