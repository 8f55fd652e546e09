"""Instance PNG datasets: a folder of images and a folder of PNG label maps, 0 for background.

This is the layout of PennFudan. Images are numbered from 1 in the order of their names. Boxes and
areas are computed from the PNGs, so every PNG is read when the dataset is opened; the size of an
image is that of its PNG.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path

from streamseg.config.training import InstancePngData
from streamseg.datasets.dataset import AnnotatedImage, Annotation, Dataset, PngSegment
from streamseg.datasets.label_maps import find_regions, load_label_map
from streamseg.datasets.problems import Fault, ProblemReport
from streamseg.errors import DataError
from streamseg.sources.image_file import IMAGE_EXTENSIONS

CATEGORY_ID = 1
"""Id of the only category."""


def read_instance_png(config: InstancePngData, root: Path, report: ProblemReport) -> Dataset:
    """Read a dataset of instance PNGs, without the images with problems; no image is opened.

    Args:
        config: section of the config with the paths.
        root: the folder that the paths are relative to.
        report: collects the problems.

    Raises:
        DataError: a folder can't be read or contains no images.
    """
    paths = _list_files(root / config.images, IMAGE_EXTENSIONS)
    if not paths:
        raise DataError(f"{root / config.images}: there are no images in it")
    stem_counts = Counter(path.stem for path in paths)
    masks = _find_masks(root / config.masks, stem_counts)
    images = []
    for number, path in enumerate(paths, 1):
        if stem_counts[path.stem] > 1:
            message = f"there are {stem_counts[path.stem]} images called {path.stem}"
            report.add(Fault("several images have one name", message), number)
        elif image := _read_image(number, path, masks.get(path.stem, []), report):
            images.append(image)
    orphans = [m for stem, pngs in masks.items() if stem not in stem_counts for m in pngs]
    for orphan in sorted(orphans):
        message = f"{orphan} belongs to no image in {root / config.images}"
        report.add(Fault("PNG of masks has no image", message))
    categories = {CATEGORY_ID: config.category}
    return Dataset(
        name=report.dataset,
        images=tuple(images),
        categories=categories,
        annotated=frozenset(categories),
        repeat=config.repeat,
    )


def _read_image(
    number: int, path: Path, masks: list[Path], report: ProblemReport
) -> AnnotatedImage | None:
    """Return an image with its instances; report a problem if it doesn't have exactly one PNG."""
    if len(masks) != 1:
        names = ", ".join(mask.name for mask in masks)
        message = f"{path} has {f'{len(masks)} masks, {names}' if masks else 'no mask'}"
        report.add(Fault("image hasn't exactly one PNG of masks", message), number)
        return None
    try:
        labels = load_label_map(masks[0])
    except DataError as error:
        report.add(Fault("PNG of masks can't be read", str(error)), number)
        return None
    annotations = tuple(
        Annotation(
            id=int(value),
            category_id=CATEGORY_ID,
            box=(float(x1), float(y1), float(x2), float(y2)),
            segmentation=PngSegment(masks[0], int(value)),
            area=float(area),
        )
        for value, (x1, y1, x2, y2), area in zip(*find_regions(labels), strict=True)
    )
    height, width = labels.shape
    return AnnotatedImage(number, path, (height, width), annotations)


def _find_masks(folder: Path, stems: Collection[str]) -> dict[str, list[Path]]:
    """Return the PNGs of each image by its stem ``X``: ``X_mask.png`` and ``X.png``."""
    masks: defaultdict[str, list[Path]] = defaultdict(list)
    for path in _list_files(folder, (".png",)):
        # The stem of an image may itself end in _mask.
        stem = path.stem if path.stem in stems else path.stem.removesuffix("_mask")
        masks[stem].append(path)
    return dict(masks)


def _list_files(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    """Return the files with these extensions, without hidden ones, sorted by name."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: can't be read: {error.strerror}") from None
    return [f for f in files if f.suffix.lower() in extensions and not f.name.startswith(".")]
