"""The parts of an annotation JSON that COCO's formats share: the file, its lists, their entries.

Each entry is converted by itself, so that a wrong one is a problem with its id, and the others are
still read.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from streamseg.data.dataset import AnnotatedImage, Annotation, Dataset
from streamseg.data.findings import Findings
from streamseg.errors import ConfigError, DataError
from streamseg.masks import MAX_PIXELS, Size
from streamseg.recipe import CocoData, PanopticData

Id: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Extent: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_PIXELS)]
Name: TypeAlias = Annotated[str, Meta(min_length=1)]
# No operating system opens a file that is called by a NUL or half a character; and messages name
# the file in one line.
FileName: TypeAlias = Annotated[
    str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+$")
]
Box: TypeAlias = tuple[float, float, float, float]
Flag: TypeAlias = bool | Annotated[int, Meta(ge=0, le=1)]

SLACK = 0.5
"""How far boxes and polygons may reach out of their picture, in pixels.

Tools round: COCO's own boxes do it by a hundredth, those that count pixels by their centres by a
half. What reaches further belongs to another picture, or to another size of this one.
"""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A member of one of the lists; keys that nobody here needs are left alone."""

    id: Id


class ImageEntry(Entry, frozen=True, kw_only=True):
    """A member of ``images``; lengths in pixels."""

    file_name: FileName
    width: Extent
    height: Extent

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.height, self.width


class CategoryEntry(Entry, frozen=True, kw_only=True):
    """A member of ``categories``; ``isthing`` is said in panoptic files only."""

    name: Name
    isthing: Flag = True


SchemaT = TypeVar("SchemaT", bound=msgspec.Struct)
EntryT = TypeVar("EntryT", bound=Entry)


@dataclass(frozen=True, slots=True, eq=False)
class AnnotationFile:
    """An annotation file whose pictures and categories are read.

    Attributes:
        images: the sound ones of its pictures, by id, ids ascending.
        categories: the sound ones of its categories, by id, ids ascending.
        annotations: what it annotates, not yet looked at.
        image_ids: of all pictures that it names, be they sound or not.
        category_ids: of all categories that it names, be they sound or not.
    """

    images: dict[int, ImageEntry]
    categories: dict[int, CategoryEntry]
    annotations: list[Any]
    image_ids: set[int]
    category_ids: set[int]

    def image_faults(self, number: int) -> Iterator[str]:
        """What is wrong with an annotation of a picture."""
        if number not in self.image_ids:
            yield f"there is no image {number}"

    def category_faults(self, number: int) -> Iterator[str]:
        """What is wrong with an annotation of a category."""
        if number not in self.category_ids:
            yield f"category {number} isn't declared"

    def to_dataset(
        self,
        config: CocoData | PanopticData,
        root: Path,
        name: str,
        annotations: Mapping[int, Sequence[Annotation]],
    ) -> Dataset:
        """The dataset of the file's things, and of its stuff where it is a panoptic one.

        Args:
            config: where the pictures are, and what is annotated.
            root: the folder that paths are relative to.
            name: how it is called.
            annotations: by the picture's id.

        Raises:
            ConfigError: ``annotated`` names a thing that there isn't.
        """
        things = {number: entry.name for number, entry in self.categories.items() if entry.isthing}
        stuff = {
            number: entry.name
            for number, entry in self.categories.items()
            if not entry.isthing and isinstance(config, PanopticData)
        }
        return Dataset(
            name=name,
            images=tuple(
                AnnotatedImage(
                    id=entry.id,
                    picture=root / config.images / entry.file_name,
                    size=entry.size,
                    annotations=_of(things, annotations.get(entry.id, ())),
                    stuff=_of(stuff, annotations.get(entry.id, ())),
                )
                for entry in self.images.values()
            ),
            categories=things,
            annotated=_annotated_ids(config.annotated, things, name),
            repeat=config.repeat,
            stuff=stuff,
        )


def read_file(path: Path, findings: Findings) -> AnnotationFile:
    """An annotation file, but for its annotations.

    Raises:
        DataError: the file can't be read, isn't JSON, or doesn't hold COCO's three lists.
    """
    raw = _read_json(path)
    if not isinstance(raw, dict):
        raise DataError(f"{path}: holds no object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(raw.get(key), list):
            raise DataError(f"{path}: {key} must be a list; is it an annotation file of COCO's?")
    return AnnotationFile(
        images=_read_images(raw["images"], findings),
        categories=_read_categories(raw["categories"], findings),
        annotations=raw["annotations"],
        image_ids=whole_numbers(raw["images"], "id"),
        category_ids=whole_numbers(raw["categories"], "id"),
    )


def convert_entries(
    entries: list[Any],
    where: str,
    schema: type[SchemaT],
    findings: Findings,
    image: int | None = None,
) -> Iterator[SchemaT]:
    """The members of a list that are what they should be; the others become problems.

    Args:
        entries: the list.
        where: what it is called in the file.
        schema: what its members should be.
        findings: where problems go.
        image: the id of the picture that all are about, where they don't say it themselves.
    """
    for position, entry in enumerate(entries):
        converted = _convert(entry, schema)
        if isinstance(converted, str):
            findings.add(f"{where}[{position}]{converted}", *_ids_of(entry, schema, image))
        else:
            yield converted


def unique(
    entries: Iterable[EntryT], kind: str, findings: Findings, image: int | None = None
) -> Iterator[EntryT]:
    """The entries whose id comes for the first time; the others become problems.

    Args:
        entries: all of them.
        kind: what they are.
        findings: where problems go.
        image: see :func:`convert_entries`.
    """
    seen: set[int] = set()
    for entry in entries:
        if entry.id in seen:
            own = msgspec.structs.asdict(entry)
            what = f"the {kind} id {entry.id} is given twice"
            findings.add(what, *_ids_of(own, type(entry), image))
        else:
            seen.add(entry.id)
            yield entry


def whole_numbers(entries: list[Any], key: str) -> set[int]:
    """The whole numbers at a key of the entries, whatever else may be wrong with them.

    For what is said to be missing: an entry that is there with a fault is not.
    """
    found = (_whole(entry.get(key)) for entry in entries if isinstance(entry, dict))
    return {number for number in found if number is not None}


def box_faults(box: Box, size: Size) -> Iterator[str]:
    """What is wrong with a box x, y, width, height in a picture of ``size``, in pixels."""
    x, y, width, height = box
    text = f"the box [{x:g}, {y:g}, {width:g}, {height:g}]"
    if not all(math.isfinite(number) for number in box):
        yield f"{text} has a number that isn't finite"
    elif width <= 0 or height <= 0:
        yield f"{text} has no area"
    elif not _within((x, x + width), size[1]) or not _within((y, y + height), size[0]):
        yield f"{text} reaches out of the picture of {size[1]} x {size[0]}"


def area_faults(area: float | None) -> Iterator[str]:
    """What is wrong with an area in pixels."""
    if area is not None and not 0 <= area < math.inf:
        yield f"the area {area:g} isn't a number of pixels"


def polygon_faults(polygon: list[float], size: Size) -> Iterator[str]:
    """What is wrong with a polygon x1, y1, x2, y2, … in a picture of ``size``."""
    if len(polygon) % 2:
        yield f"a polygon has an odd number of coordinates, {len(polygon)}"
    elif len(polygon) < 6:
        yield f"a polygon has fewer than three points, {len(polygon) // 2}"
    elif not all(math.isfinite(number) for number in polygon):
        yield "a polygon has a number that isn't finite"
    elif not _within(polygon[0::2], size[1]) or not _within(polygon[1::2], size[0]):
        # Not merely untidy: the rasteriser's memory grows with the length of the edges.
        yield f"a polygon reaches out of the picture of {size[1]} x {size[0]}"


def to_corners(box: Box) -> Box:
    """x, y, width, height as x1, y1, x2, y2."""
    x, y, width, height = box
    return x, y, x + width, y + height


def _within(numbers: Collection[float], limit: int) -> bool:
    return min(numbers) >= -SLACK and max(numbers) <= limit + SLACK


def _read_images(entries: list[Any], findings: Findings) -> dict[int, ImageEntry]:
    """The pictures that are declared, by id, ids ascending."""
    images = {}
    for entry in unique(
        convert_entries(entries, "images", ImageEntry, findings), "image", findings
    ):
        if entry.width * entry.height > MAX_PIXELS:
            findings.add(f"{entry.width} x {entry.height} pixels are over {MAX_PIXELS}", entry.id)
        else:
            images[entry.id] = entry
    return dict(sorted(images.items()))


def _read_categories(entries: list[Any], findings: Findings) -> dict[int, CategoryEntry]:
    """The categories that are declared, by id, ids ascending."""
    converted = convert_entries(entries, "categories", CategoryEntry, findings)
    categories: dict[int, CategoryEntry] = {}
    owners: dict[str, int] = {}
    for entry in unique(converted, "category", findings):
        if entry.name in owners:
            findings.add(f"categories {owners[entry.name]} and {entry.id} are both {entry.name!r}")
        else:
            owners[entry.name] = entry.id
            categories[entry.id] = entry
    return dict(sorted(categories.items()))


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


def _read_json(path: Path) -> Any:
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


def _convert(entry: Any, schema: type[SchemaT]) -> SchemaT | str:
    """The entry as it should be, or where in it something else is, and what was expected."""
    try:
        return msgspec.convert(entry, schema)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        return f"{at.rstrip('`')}: {what}"


def _ids_of(
    entry: Any, schema: type[msgspec.Struct], image: int | None
) -> tuple[int | None, int | None]:
    """The ids of image and annotation that an entry has, be it right or wrong."""
    given = entry if isinstance(entry, dict) else {}
    own = _whole(given.get("id"))
    if issubclass(schema, ImageEntry):
        return own, None
    if issubclass(schema, CategoryEntry):
        return None, None
    return _whole(given.get("image_id", image)), own


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:5])
    return f"there are {shown}, …" if len(names) > 5 else f"there are {shown or 'none'}"
