"""COCO annotation files: images, categories and box checks that all COCO formats share."""

from __future__ import annotations

import difflib
import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from streamseg.config.training import CocoData, PanopticData
from streamseg.datasets.coco_categories import Category, read_categories
from streamseg.datasets.dataset import AnnotatedImage, Annotation, Dataset
from streamseg.datasets.filenames import FileFinder
from streamseg.datasets.normalization import (
    keep_value,
    normalize_entry,
    normalize_id,
    normalize_side,
)
from streamseg.datasets.problems import Fault, Id, ProblemReport
from streamseg.datasets.schema import (
    Box,
    Entry,
    EntryId,
    FileName,
    convert_entry,
    make_entry_fault,
    parse_id,
    read_entry_ids,
)
from streamseg.errors import ConfigError, DataError, TooLargeError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_image_size
from streamseg.structures.masks import MAX_PIXELS, Size

Side: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_PIXELS)]

BOUNDS_TOLERANCE = 0.5
"""Maximum distance that boxes and polygons may extend beyond their image, in pixels.

Annotation tools round: COCO's own boxes exceed the image by a hundredth, tools with coordinates at
pixel centers by a half. A larger excess means another image, or another size of this one.
"""

_NORMALIZERS = {
    "id": normalize_id,
    "file_name": keep_value,
    "width": normalize_side,
    "height": normalize_side,
}


class ImageEntry(Entry, frozen=True, kw_only=True):
    """Entry of ``images``; width and height in pixels, None if the file doesn't give them."""

    id: EntryId
    file_name: FileName
    width: Side | None = None
    height: Side | None = None


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Existing image file that the annotation file refers to.

    Attributes:
        id: image id in the dataset.
        path: the image file.
        size: (height, width) of the upright image.
    """

    id: Id
    path: Path
    size: Size


@dataclass(frozen=True, slots=True, eq=False)
class AnnotationFile:
    """Annotation file with its images and categories read, and raw annotations.

    Attributes:
        images: valid images by id, ordered by id.
        categories: class of each category id; ids that are not classes are missing.
        annotations: raw entries of ``annotations``.
        image_ids: ids of all entries of ``images``, valid or not.
        category_ids: ids of all entries of ``categories``, classes or not.
        aliases: text image id with leading zeros by its integer, such as 139 to "000139".
    """

    images: dict[Id, ImageFile]
    categories: dict[Id, Category]
    annotations: list[Any]
    image_ids: frozenset[Id]
    category_ids: frozenset[Id]
    aliases: Mapping[Id, Id]

    def resolve_image_id(self, image_id: Id) -> Id:
        """Return the id of the image that an annotation refers to as ``image_id``."""
        return self.aliases.get(image_id, image_id)

    def check_image_id(self, image_id: Id) -> Iterator[Fault]:
        """Yield a fault if the file has no image with this id."""
        if image_id not in self.image_ids:
            yield Fault("there is no such image", f"there is no image {image_id}")

    def check_category_id(self, category_id: Id) -> Iterator[Fault]:
        """Yield a fault if the file has no category with this id."""
        if category_id not in self.category_ids:
            yield Fault("category isn't declared", f"category {category_id} isn't declared")

    def to_dataset(
        self,
        config: CocoData | PanopticData,
        name: str,
        annotations: Mapping[Id, Sequence[Annotation]],
    ) -> Dataset:
        """Return the dataset with the given annotations; stuff is kept in panoptic datasets only.

        Args:
            config: section of the config.
            name: name of the dataset.
            annotations: annotations by image id.

        Raises:
            ConfigError: ``annotated`` contains a name that is not a thing category.
        """
        classes = sorted(set(self.categories.values()), key=lambda category: category.id)
        things = {each.id: each.name for each in classes if each.is_thing}
        stuff = {
            each.id: each.name
            for each in classes
            if not each.is_thing and isinstance(config, PanopticData)
        }

        def select_annotations(
            image_id: Id, categories: Mapping[int, str]
        ) -> tuple[Annotation, ...]:
            rows = annotations.get(image_id, ())
            return tuple(each for each in rows if each.category_id in categories)

        return Dataset(
            name=name,
            images=tuple(
                AnnotatedImage(
                    id=image.id,
                    file=image.path,
                    size=image.size,
                    annotations=select_annotations(image.id, things),
                    stuff=select_annotations(image.id, stuff),
                )
                for image in self.images.values()
            ),
            categories=things,
            annotated=_find_category_ids(config.annotated, things, name),
            repeat=config.repeat,
            stuff=stuff,
        )


def read_annotation_file(
    config: CocoData | PanopticData, root: Path, report: ProblemReport
) -> AnnotationFile:
    """Read the images and categories of an annotation file.

    Image files are opened only if the annotation file doesn't give their size.

    Args:
        config: section of the config with the paths.
        root: the folder that the paths are relative to.
        report: collects the problems of images and categories.

    Raises:
        DataError: the file can't be read, isn't JSON or lacks one of COCO's three lists; its
            categories contradict each other; or none of its images exists.
    """
    path = root / config.annotations
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{path}: {key} must be a list; is it an annotation file of COCO's?")
    image_ids = frozenset(_collect_ids(content["images"], "id"))
    annotations = content["annotations"]
    segment_lists = [each.get("segments_info") for each in annotations if isinstance(each, dict)]
    segments = [each for items in segment_lists if isinstance(items, list) for each in items]
    used_ids = frozenset(_collect_ids((*annotations, *segments), "category_id"))
    return AnnotationFile(
        images=_read_images(content["images"], root / config.images, root, report),
        categories=read_categories(content["categories"], used_ids, path, report),
        annotations=annotations,
        image_ids=image_ids,
        category_ids=frozenset(_collect_ids(content["categories"], "id")),
        aliases=_find_aliases(image_ids),
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file can't be read or isn't JSON.
    """
    try:
        # The standard library accepts NaN, which Python's own JSON writer produces: that should
        # be a problem of one annotation, not of the whole file.
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: isn't JSON: {error}") from None


def check_box(box: Box, size: Size) -> Iterator[Fault]:
    """Yield a fault if a box (x, y, width, height) is invalid in an image of ``size``."""
    x, y, width, height = box
    shown = f"the box [{x:g}, {y:g}, {width:g}, {height:g}]"
    if not all(math.isfinite(number) for number in box):
        yield Fault("box isn't finite", f"{shown} has a number that isn't finite")
    elif width <= 0 or height <= 0:
        yield Fault("box has no area", f"{shown} has no area")
    elif not is_within((x, x + width), size[1]) or not is_within((y, y + height), size[0]):
        message = f"{shown} reaches out of the image of {size[1]} x {size[0]}"
        yield Fault("box reaches out of the image", message)


def check_area(area: float | None) -> Iterator[Fault]:
    """Yield a fault if an area in pixels is negative or not finite."""
    if area is not None and not 0 <= area < math.inf:
        yield Fault("area isn't a number of pixels", f"the area {area:g} isn't a number of pixels")


def xywh_to_xyxy(box: Box) -> Box:
    """Convert a box from (x, y, width, height) to (x1, y1, x2, y2)."""
    x, y, width, height = box
    return x, y, x + width, y + height


def is_within(coordinates: Collection[float], limit: int) -> bool:
    """Return whether all coordinates are within 0 to ``limit`` ± ``BOUNDS_TOLERANCE``."""
    return min(coordinates) >= -BOUNDS_TOLERANCE and max(coordinates) <= limit + BOUNDS_TOLERANCE


def _read_images(
    entries: list[Any], folder: Path, root: Path, report: ProblemReport
) -> dict[Id, ImageFile]:
    """Return the valid images by id, ordered by id, integers before text."""
    declared = _convert_entries(entries, report)
    files = FileFinder(folder, root).find(entry.file_name for entry in declared)
    if declared and not any(isinstance(file, Path) for file in files.values()):
        first = declared[0].file_name
        raise DataError(
            f"{report.dataset}: none of its {len(declared)} images is in {folder}, the first is "
            f"{first!r}: set images and data.root so that it is there"
        )
    images = {}
    for entry in declared:
        image = _locate_image(entry, files[entry.file_name])
        if isinstance(image, Fault):
            report.add(image, entry.id)
        else:
            images[entry.id] = image
    return dict(sorted(images.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _convert_entries(entries: list[Any], report: ProblemReport) -> list[ImageEntry]:
    """Return the valid entries of ``images``.

    Identical copies of an entry count once; different entries with the same id are a problem.
    """
    by_id: dict[Id, list[ImageEntry]] = defaultdict(list)
    for index, raw in enumerate(entries):
        entry = convert_entry(normalize_entry(raw, _NORMALIZERS), ImageEntry)
        if isinstance(entry, str):
            report.add(make_entry_fault("images", index, entry), *read_entry_ids(raw, "id"))
        elif entry not in by_id[entry.id]:
            by_id[entry.id].append(entry)
    for image_id, duplicates in by_id.items():
        if len(duplicates) > 1:
            message = f"the image id {image_id} is given twice"
            report.add(Fault("image id is given twice", message), image_id)
    return [duplicates[0] for duplicates in by_id.values() if len(duplicates) == 1]


def _locate_image(entry: ImageEntry, path: Path | Fault) -> ImageFile | Fault:
    """Return the image with its size, from the file's header if the entry doesn't give it."""
    if isinstance(path, Fault):
        return path
    if entry.width is None or entry.height is None:
        try:
            return ImageFile(entry.id, path, read_image_size(path, MAX_PIXELS))
        except BadImageError as error:
            return Fault("image can't be read", f"{path}: {error}")
        except TooLargeError as error:
            return Fault("image is too large", str(error))
    if entry.width * entry.height > MAX_PIXELS:
        message = f"{entry.width} x {entry.height} pixels are over {MAX_PIXELS}"
        return Fault("image is too large", message)
    return ImageFile(entry.id, path, (entry.height, entry.width))


def _find_aliases(ids: frozenset[Id]) -> dict[Id, Id]:
    """Map integers to the text ids with leading zeros that they stand for: 139 to "000139"."""
    padded: dict[int, list[str]] = defaultdict(list)
    for each in ids:
        if isinstance(each, str) and each.isascii() and each.isdigit():
            padded[int(each)].append(each)
    return {
        number: texts[0]
        for number, texts in padded.items()
        if len(texts) == 1 and number not in ids
    }


def _collect_ids(entries: Iterable[Any], key: str) -> Iterator[Id]:
    """Yield the ids under ``key`` of raw entries; invalid ids and entries are skipped."""
    ids = (parse_id(entry.get(key)) for entry in entries if isinstance(entry, dict))
    return (each for each in ids if each is not None)


def _find_category_ids(
    names: Collection[str], categories: Mapping[int, str], dataset: str
) -> frozenset[int]:
    """Return the ids of the categories with these names, or all ids if there are no names.

    Raises:
        ConfigError: no category has such a name; the message lists close matches.
    """
    ids = {name: number for number, name in categories.items()}
    for name in names:
        if name not in ids:
            if close := difflib.get_close_matches(name, ids, 3):
                hint = f"did you mean {' or '.join(map(repr, close))}?"
            else:
                hint = f"there are {', '.join(list(ids)[:5]) or 'none'}"
                hint += ", …" if len(ids) > 5 else ""
            raise ConfigError(f"annotated: {dataset} has no category {name!r}; {hint}")
    return frozenset(ids[name] for name in names) if names else frozenset(categories)
