"""Dataset, images and annotations, independent of the file format.

No pixels are held here: images are read on demand with the reader that the sources use, so that a
model is trained and evaluated on the same pixels that it gets in the service.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from streamseg.datasets.problems import Id, Problem
from streamseg.structures.masks import RLE, Polygon, Size


@dataclass(frozen=True, slots=True)
class PngSegment:
    """Mask given by the pixels of a PNG that have one value.

    Attributes:
        path: the PNG.
        value: R + 256 G + 65536 B, the gray value, or the palette index.
    """

    path: Path
    value: int


Segmentation: TypeAlias = tuple[Polygon, ...] | RLE | PngSegment


@dataclass(frozen=True, slots=True)
class PatternFrame:
    """Frame ``index`` of the synthetic test pattern with this ``url``, used as an image."""

    url: str
    index: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """Annotated object, crowd of objects, or stuff region.

    Attributes:
        id: id in the dataset.
        category_id: category id in the dataset, never renumbered.
        box: x1, y1, x2, y2 in pixels.
        segmentation: polygons, compressed run lengths, or pixels of a PNG; None if only the box
            is annotated.
        crowd: whether the annotation covers many objects (COCO's ``iscrowd``).
        area: area in pixels as given by the dataset; of the box if there is no mask.
    """

    id: Id
    category_id: int
    box: tuple[float, float, float, float]
    segmentation: Segmentation | None
    crowd: bool = False
    area: float = 0.0


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """Image of a dataset and its annotations.

    Attributes:
        id: id in the dataset.
        file: path of the image file, or a frame of the test pattern.
        size: (height, width) as given by the dataset.
        annotations: annotated things, crowds included.
        stuff: annotated stuff regions.
    """

    id: Id
    file: Path | PatternFrame
    size: Size
    annotations: tuple[Annotation, ...]
    stuff: tuple[Annotation, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Annotated images with their categories.

    Attributes:
        name: name used in reports.
        images: images, ordered by id.
        categories: name of each thing category by id, ordered by id.
        annotated: ids of the categories of which every object in every image is annotated.
        repeat: how many times each image is used per training epoch.
        stuff: name of each stuff category by id, ordered by id; empty unless the dataset is
            panoptic.
        skipped: problems of the images and annotations that were left out.
    """

    name: str
    images: tuple[AnnotatedImage, ...]
    categories: Mapping[int, str]
    annotated: frozenset[int]
    repeat: int = 1
    stuff: Mapping[int, str] = field(default_factory=dict)
    skipped: tuple[Problem, ...] = ()

    def without(self, problems: Sequence[Problem]) -> Dataset:
        """Return the dataset without the images and annotations that have ``problems``.

        A problem without an annotation id removes the whole image.
        """
        images = {each.image_id for each in problems if each.annotation_id is None}
        rows = {(each.image_id, each.annotation_id) for each in problems}

        def remove_rows(
            image: AnnotatedImage, annotations: Iterable[Annotation]
        ) -> tuple[Annotation, ...]:
            return tuple(each for each in annotations if (image.id, each.id) not in rows)

        kept = (
            replace(
                image,
                annotations=remove_rows(image, image.annotations),
                stuff=remove_rows(image, image.stuff),
            )
            for image in self.images
            if image.id not in images
        )
        return replace(self, images=tuple(kept), skipped=(*self.skipped, *problems))
