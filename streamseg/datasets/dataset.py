"""What an annotated dataset is, whatever format it came in: the nouns of training and measuring.

Nothing here holds pixels: a picture is read when it is asked for, with the reader that the sources
use, so that a model is trained and measured on what it will be served.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from streamseg.datasets.findings import Id, Problem
from streamseg.structures.masks import RLE, Polygon, Size


@dataclass(frozen=True, slots=True)
class PngSegment:
    """A mask that is the pixels of one value in a PNG.

    The value is R + 256 G + 65536 B, the grey value, or the palette's index.
    """

    path: Path
    value: int


Segmentation: TypeAlias = tuple[Polygon, ...] | RLE | PngSegment


@dataclass(frozen=True, slots=True)
class PatternFrame:
    """A picture that is a frame of the synthetic pattern at ``url``."""

    url: str
    index: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated object, crowd of objects, or patch of stuff.

    Attributes:
        id: the dataset's.
        category_id: the dataset's, never renumbered.
        box: x1, y1, x2, y2, pixels.
        segmentation: polygons, run lengths (compressed), the pixels of a PNG, or None where only
            the box is annotated.
        crowd: whether it stands for many objects.
        area: of the mask in pixels, as the dataset says; of the box where there is no mask.
    """

    id: Id
    category_id: int
    box: tuple[float, float, float, float]
    segmentation: Segmentation | None
    crowd: bool = False
    area: float = 0.0


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One picture and what is annotated in it.

    Attributes:
        id: the dataset's.
        picture: the file, or the frame of the pattern, that it is.
        size: (height, width), as the dataset says.
        annotations: the objects that are annotated in it, crowds included.
        stuff: the patches of stuff that are annotated in it.
    """

    id: Id
    picture: Path | PatternFrame
    size: Size
    annotations: tuple[Annotation, ...]
    stuff: tuple[Annotation, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Annotated pictures.

    Attributes:
        name: for reports.
        images: the pictures, ids ascending.
        categories: the name of each category id, ids ascending.
        annotated: the category ids of which every object in every picture is annotated.
        repeat: how often each picture is seen in an epoch of training.
        stuff: the name of each id of a category of stuff, ids ascending; panoptic datasets alone
            have any.
        skipped: the problems of what was left out.
    """

    name: str
    images: tuple[AnnotatedImage, ...]
    categories: Mapping[int, str]
    annotated: frozenset[int]
    repeat: int = 1
    stuff: Mapping[int, str] = field(default_factory=dict)
    skipped: tuple[Problem, ...] = ()

    def without(self, problems: Sequence[Problem]) -> Dataset:
        """The dataset without the images, or single annotations, that have one of ``problems``."""
        images = {each.image_id for each in problems if each.annotation_id is None}
        rows = {(each.image_id, each.annotation_id) for each in problems}

        def sound(
            image: AnnotatedImage, annotations: Iterable[Annotation]
        ) -> tuple[Annotation, ...]:
            return tuple(each for each in annotations if (image.id, each.id) not in rows)

        kept = (
            replace(
                image, annotations=sound(image, image.annotations), stuff=sound(image, image.stuff)
            )
            for image in self.images
            if image.id not in images
        )
        return replace(self, images=tuple(kept), skipped=(*self.skipped, *problems))
