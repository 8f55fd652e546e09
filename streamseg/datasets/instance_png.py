"""Folders of pictures and of PNGs that number the instances, 0 for background: PennFudan's layout.

Pictures are numbered from 1 in the order of their names. Boxes and areas are those of the pixels,
so every PNG is read when the dataset is opened; the size of a picture is that of its PNG.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path

from streamseg.config.training import InstancePngData
from streamseg.datasets.dataset import AnnotatedImage, Annotation, Dataset, PngSegment
from streamseg.datasets.findings import Fault, Findings
from streamseg.datasets.labels import load_labels, regions
from streamseg.errors import DataError
from streamseg.sources.image_file import IMAGE_ENDINGS

CATEGORY = 1
"""The id of the only category."""


def read_instance_png(config: InstancePngData, root: Path, findings: Findings) -> Dataset:
    """What can be read of folders of pictures and instance PNGs; no picture is opened.

    Args:
        config: where they are.
        root: the folder that their paths are relative to.
        findings: where everything that is wrong with them goes.

    Raises:
        DataError: a folder can't be read, or there is no picture in it.
    """
    pictures = _files(root / config.images, IMAGE_ENDINGS)
    if not pictures:
        raise DataError(f"{root / config.images}: there are no pictures in it")
    stems = Counter(picture.stem for picture in pictures)
    masks = _masks_by_stem(root / config.masks, stems)
    images = []
    for number, picture in enumerate(pictures, 1):
        if stems[picture.stem] > 1:
            what = f"there are {stems[picture.stem]} pictures called {picture.stem}"
            findings.add(Fault("several images have one name", what), number)
        elif image := _read_image(number, picture, masks.get(picture.stem, []), findings):
            images.append(image)
    for orphan in sorted(m for stem, found in masks.items() if stem not in stems for m in found):
        what = f"{orphan} belongs to no picture in {root / config.images}"
        findings.add(Fault("PNG of masks has no image", what))
    categories = {CATEGORY: config.category}
    return Dataset(
        name=findings.dataset,
        images=tuple(images),
        categories=categories,
        annotated=frozenset(categories),
        repeat=config.repeat,
    )


def _read_image(
    number: int, picture: Path, masks: list[Path], findings: Findings
) -> AnnotatedImage | None:
    """A picture with its instances; None, with a problem, where it hasn't exactly one PNG."""
    if len(masks) != 1:
        names = ", ".join(mask.name for mask in masks)
        found = f"{len(masks)} masks, {names}" if masks else "no mask"
        what = f"{picture} has {found}"
        findings.add(Fault("image hasn't exactly one PNG of masks", what), number)
        return None
    try:
        labels = load_labels(masks[0])
    except DataError as error:
        findings.add(Fault("PNG of masks can't be read", str(error)), number)
        return None
    annotations = tuple(
        Annotation(
            id=int(value),
            category_id=CATEGORY,
            box=(float(x1), float(y1), float(x2), float(y2)),
            segmentation=PngSegment(masks[0], int(value)),
            area=float(area),
        )
        for value, (x1, y1, x2, y2), area in zip(*regions(labels), strict=True)
    )
    height, width = labels.shape
    return AnnotatedImage(number, picture, (height, width), annotations)


def _masks_by_stem(folder: Path, pictures: Collection[str]) -> dict[str, list[Path]]:
    """The PNGs by the picture that they belong to: ``X`` for ``X_mask.png`` and for ``X.png``."""
    masks: defaultdict[str, list[Path]] = defaultdict(list)
    for path in _files(folder, (".png",)):
        own = path.stem in pictures  # a picture may itself be called so
        masks[path.stem if own else path.stem.removesuffix("_mask")].append(path)
    return dict(masks)


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files of a folder that end so, hidden ones left out, in the order of their names."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: can't be read: {error.strerror}") from None
    return [f for f in files if f.suffix.lower() in endings and not f.name.startswith(".")]
