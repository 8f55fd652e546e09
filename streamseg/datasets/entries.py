"""What COCO's instance and panoptic JSON share: the file, its images and its categories."""

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
from streamseg.datasets.categories import Category, read_categories
from streamseg.datasets.dataset import AnnotatedImage, Annotation, Dataset
from streamseg.datasets.filenames import FileFinder
from streamseg.datasets.findings import Fault, Findings, Id
from streamseg.datasets.schema import (
    Box,
    Entry,
    EntryId,
    FileName,
    convert_entry,
    fault_of_entry,
    ids_of_entry,
    readable_id,
)
from streamseg.datasets.spellings import as_written, canonical_entry, canonical_id, canonical_length
from streamseg.errors import ConfigError, DataError, TooLargeError
from streamseg.sources.base import BadImageError
from streamseg.sources.image_file import read_size
from streamseg.structures.masks import MAX_PIXELS, Size

Extent: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_PIXELS)]

SLACK = 0.5
"""How far boxes and polygons may reach out of their image, in pixels.

Tools round: COCO's own boxes do it by a hundredth, those that count pixels by their centres by a
half. What reaches further belongs to another image, or to another size of this one.
"""

_IMAGE_READERS = {
    "id": canonical_id,
    "file_name": as_written,
    "width": canonical_length,
    "height": canonical_length,
}


class ImageEntry(Entry, frozen=True, kw_only=True):
    """A member of ``images``; lengths in pixels, None where the file doesn't say them."""

    id: EntryId
    file_name: FileName
    width: Extent | None = None
    height: Extent | None = None


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that the annotation file names and that is there.

    Attributes:
        id: the dataset's.
        path: the file.
        size: (height, width), upright.
    """

    id: Id
    path: Path
    size: Size


@dataclass(frozen=True, slots=True, eq=False)
class AnnotationFile:
    """An annotation file whose images and categories are read.

    Attributes:
        images: the usable images, by id, ids ascending.
        categories: the class of each category id; ids of no class are missing.
        annotations: its annotations, not yet looked at.
        image_ids: of all images that it names, usable or not.
        category_ids: of all categories that it names, classes or not.
        aliases: other spellings of image ids.
    """

    images: dict[Id, ImageFile]
    categories: dict[Id, Category]
    annotations: list[Any]
    image_ids: frozenset[Id]
    category_ids: frozenset[Id]
    aliases: Mapping[Id, Id]

    def resolve_image(self, reference: Id) -> Id:
        """The id of the image that an annotation names by ``reference``."""
        return self.aliases.get(reference, reference)

    def image_faults(self, number: Id) -> Iterator[Fault]:
        """What is wrong with an annotation's image."""
        if number not in self.image_ids:
            yield Fault("there is no such image", f"there is no image {number}")

    def category_faults(self, number: Id) -> Iterator[Fault]:
        """What is wrong with an annotation's category."""
        if number not in self.category_ids:
            yield Fault("category isn't declared", f"category {number} isn't declared")

    def to_dataset(
        self,
        config: CocoData | PanopticData,
        name: str,
        annotations: Mapping[Id, Sequence[Annotation]],
    ) -> Dataset:
        """The dataset of the file's things, and of its stuff where it is a panoptic one.

        Args:
            config: what is annotated.
            name: how it is called.
            annotations: by the image's id.

        Raises:
            ConfigError: ``annotated`` names a thing that isn't there.
        """
        classes = sorted(set(self.categories.values()), key=lambda each: each.id)
        things = {each.id: each.name for each in classes if each.is_thing}
        stuff = {
            each.id: each.name
            for each in classes
            if not each.is_thing and isinstance(config, PanopticData)
        }
        return Dataset(
            name=name,
            images=tuple(
                AnnotatedImage(
                    id=image.id,
                    picture=image.path,
                    size=image.size,
                    annotations=_of(things, annotations.get(image.id, ())),
                    stuff=_of(stuff, annotations.get(image.id, ())),
                )
                for image in self.images.values()
            ),
            categories=things,
            annotated=_annotated_ids(config.annotated, things, name),
            repeat=config.repeat,
            stuff=stuff,
        )


def read_file(config: CocoData | PanopticData, root: Path, findings: Findings) -> AnnotationFile:
    """An annotation file, but for its annotations; no image is opened whose size the file says.

    Args:
        config: where it is.
        root: the folder that its paths are relative to.
        findings: where everything that is wrong with its images goes.

    Raises:
        DataError: the file can't be read, isn't JSON, or doesn't hold COCO's three lists; its
            categories contradict each other; or none of its images is there.
    """
    path = root / config.annotations
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise DataError(f"{path}: holds no object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(raw.get(key), list):
            raise DataError(f"{path}: {key} must be a list; is it an annotation file of COCO's?")
    image_ids = frozenset(_ids(raw["images"], "id"))
    segments = _members(raw["annotations"], "segments_info")
    used = frozenset(_ids((*raw["annotations"], *segments), "category_id"))
    return AnnotationFile(
        images=_read_images(raw["images"], root / config.images, root, findings),
        categories=read_categories(raw["categories"], used, path, findings),
        annotations=raw["annotations"],
        image_ids=image_ids,
        category_ids=frozenset(_ids(raw["categories"], "id")),
        aliases=_aliases(image_ids),
    )


def box_faults(box: Box, size: Size) -> Iterator[Fault]:
    """What is wrong with a box x, y, width, height in an image of ``size``, in pixels."""
    x, y, width, height = box
    text = f"the box [{x:g}, {y:g}, {width:g}, {height:g}]"
    if not all(math.isfinite(number) for number in box):
        yield Fault("box isn't finite", f"{text} has a number that isn't finite")
    elif width <= 0 or height <= 0:
        yield Fault("box has no area", f"{text} has no area")
    elif not is_within((x, x + width), size[1]) or not is_within((y, y + height), size[0]):
        what = f"{text} reaches out of the picture of {size[1]} x {size[0]}"
        yield Fault("box reaches out of the image", what)


def area_faults(area: float | None) -> Iterator[Fault]:
    """What is wrong with an area in pixels."""
    if area is not None and not 0 <= area < math.inf:
        yield Fault("area isn't a number of pixels", f"the area {area:g} isn't a number of pixels")


def to_corners(box: Box) -> Box:
    """x, y, width, height as x1, y1, x2, y2."""
    x, y, width, height = box
    return x, y, x + width, y + height


def is_within(numbers: Collection[float], limit: int) -> bool:
    """Whether coordinates lie in 0 to ``limit``, but for ``SLACK``."""
    return min(numbers) >= -SLACK and max(numbers) <= limit + SLACK


def _read_images(
    entries: list[Any], folder: Path, root: Path, findings: Findings
) -> dict[Id, ImageFile]:
    """The usable images, by id, ids ascending: numbers before text."""
    declared = _declared_images(entries, findings)
    files = FileFinder(folder, root).find(entry.file_name for entry in declared)
    if declared and not any(isinstance(found, Path) for found in files.values()):
        first = declared[0].file_name
        raise DataError(
            f"{findings.dataset}: none of its {len(declared)} images is in {folder}, the first is "
            f"{first!r}: set images and data.root so that it is there"
        )
    images = {}
    for entry in declared:
        image = _locate(entry, files[entry.file_name])
        if isinstance(image, Fault):
            findings.add(image, entry.id)
        else:
            images[entry.id] = image
    return dict(sorted(images.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _declared_images(entries: list[Any], findings: Findings) -> list[ImageEntry]:
    """The images that are declared once; copies of one entry are one, and one id is one image."""
    by_id: dict[Id, list[ImageEntry]] = defaultdict(list)
    for position, raw in enumerate(entries):
        entry = convert_entry(canonical_entry(raw, _IMAGE_READERS), ImageEntry)
        if isinstance(entry, str):
            findings.add(fault_of_entry("images", position, entry), *ids_of_entry(raw, "id"))
        elif entry not in by_id[entry.id]:
            by_id[entry.id].append(entry)
    for number, same in by_id.items():
        if len(same) > 1:
            what = f"the image id {number} is given twice"
            findings.add(Fault("image id is given twice", what), number)
    return [same[0] for same in by_id.values() if len(same) == 1]


def _locate(entry: ImageEntry, found: Path | Fault) -> ImageFile | Fault:
    """The image with its size, from its header where the entry doesn't say it."""
    if isinstance(found, Fault):
        return found
    if entry.width is None or entry.height is None:
        try:
            return ImageFile(entry.id, found, read_size(found, MAX_PIXELS))
        except BadImageError as error:
            return Fault("image can't be read", f"{found}: {error}")
        except TooLargeError as error:
            return Fault("image is too large", str(error))
    if entry.width * entry.height > MAX_PIXELS:
        what = f"{entry.width} x {entry.height} pixels are over {MAX_PIXELS}"
        return Fault("image is too large", what)
    return ImageFile(entry.id, found, (entry.height, entry.width))


def _aliases(ids: frozenset[Id]) -> dict[Id, Id]:
    """Ids as numbers for text ids with zeros in front, such as ``"000139"``, and the reverse."""
    padded: dict[int, list[str]] = defaultdict(list)
    for each in ids:
        if isinstance(each, str) and each.isascii() and each.isdigit():
            padded[int(each)].append(each)
    return {
        number: texts[0]
        for number, texts in padded.items()
        if len(texts) == 1 and number not in ids
    }


def _ids(entries: Iterable[Any], key: str) -> Iterator[Id]:
    """The ids at a key of the entries, whatever else may be wrong with them."""
    found = (readable_id(entry.get(key)) for entry in entries if isinstance(entry, dict))
    return (each for each in found if each is not None)


def _members(entries: Iterable[Any], key: str) -> Iterator[Any]:
    """The members of the lists at a key of the entries."""
    lists = (entry.get(key) for entry in entries if isinstance(entry, dict))
    return (member for each in lists if isinstance(each, list) for member in each)


def _of(categories: Mapping[int, str], annotations: Sequence[Annotation]) -> tuple[Annotation, ...]:
    """The annotations of some categories."""
    return tuple(each for each in annotations if each.category_id in categories)


def _annotated_ids(
    names: Collection[str], categories: Mapping[int, str], dataset: str
) -> frozenset[int]:
    """The ids of the categories called ``names``; all of them where there are no names.

    Raises:
        ConfigError: no category has such a name; the message lists near matches.
    """
    ids = {name: number for number, name in categories.items()}
    for name in names:
        if name not in ids:
            near = difflib.get_close_matches(name, ids, 3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else _some(ids)
            raise ConfigError(f"annotated: {dataset} has no category {name!r}; {hint}")
    return frozenset(ids[name] for name in names) if names else frozenset(categories)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it can't be read, or isn't JSON.
    """
    try:
        # The standard library's reader, because it takes NaN, as Python's writer writes it: that
        # is one annotation's fault and not the file's.
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: isn't JSON: {error}") from None


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:5])
    return f"there are {shown}, …" if len(names) > 5 else f"there are {shown or 'none'}"
