"""Dataset validation: problems of datasets and files, and checks for usable annotations.

The files are decoded with the reader that training uses, so a dataset without problems can be
trained on. Images are compared with their annotations in upright orientation. If a file's EXIF
orientation rotates it and the annotations are for the stored image, the sizes differ, which is
reported; if the size stays the same (mirrored, upside down, square), this can't be detected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from streamseg.config.training import DataConfig, DatasetConfig
from streamseg.datasets.dataset import AnnotatedImage, Dataset, PngSegment
from streamseg.datasets.formats import get_dataset_location, get_dataset_name, read_dataset
from streamseg.datasets.label_maps import find_regions, load_label_map
from streamseg.datasets.problems import Fault, Id, Problem, ProblemReport
from streamseg.datasets.samples import load_image
from streamseg.errors import ConfigError, DataError, TooLargeError


def find_problems(config: DataConfig, folder: Path) -> list[Problem]:
    """Open all datasets of a config and every image in them; return all problems.

    A dataset that can't be read counts as one problem, and the others are still checked. If
    several datasets have the same name, their problems include the file or folder.

    Args:
        config: the datasets.
        folder: folder of the config file, which ``root`` is relative to.
    """
    root = folder / config.root
    sections = list(dict.fromkeys((*config.train, *config.val)))
    name_counts = Counter(get_dataset_name(section) for section in sections)
    problems = []
    for section in sections:
        name = get_dataset_name(section)
        if name_counts[name] > 1:
            name = f"{name} ({get_dataset_location(section)})"
        problems += _check_dataset(section, root, name)
    return problems


def find_file_problems(dataset: Dataset) -> list[Problem]:
    """Open every image and PNG of a dataset and return their problems.

    A problem without an annotation id affects the whole image.
    """
    report = ProblemReport(dataset.name)
    skipped_ids: dict[Id, set[Id]] = {}
    for problem in dataset.skipped:
        if problem.image_id is not None and problem.annotation_id is not None:
            skipped_ids.setdefault(problem.image_id, set()).add(problem.annotation_id)
    for image in dataset.images:
        _check_png(image, skipped_ids.get(image.id, set()), report)
        try:
            load_image(image)
        except DataError as error:
            report.add(Fault("image can't be used", str(error)), image.id)
        except TooLargeError as error:
            report.add(Fault("image is too large", str(error)), image.id)
    return report.problems


def check_trainable(datasets: Sequence[Dataset], *, stuff: bool) -> None:
    """Raise an error if a model can't be trained on the datasets.

    A dataset without any annotations is allowed if others have some: its images are background.

    Args:
        datasets: the training datasets.
        stuff: whether the model is trained on stuff, too.

    Raises:
        DataError: a dataset has annotations but none is usable, or no dataset has any.
    """
    reasons = [_explain_unusable(dataset, stuff=stuff) for dataset in datasets]
    for dataset, reason in zip(datasets, reasons, strict=True):
        has_annotations = any(image.annotations or image.stuff for image in dataset.images)
        if reason and (dataset.skipped or has_annotations):
            raise DataError(f"{dataset.name}: there is nothing to learn from: {reason}")
    if all(reasons):
        names = ", ".join(dataset.name for dataset in datasets)
        raise DataError(f"{names}: there is nothing to learn from: {reasons[0]}")


def check_evaluable(dataset: Dataset, *, stuff: bool) -> None:
    """Raise an error if a model can't be evaluated on the dataset.

    Args:
        dataset: the evaluation dataset.
        stuff: whether stuff is evaluated, too.

    Raises:
        DataError: the dataset has no usable annotations.
    """
    if reason := _explain_unusable(dataset, stuff=stuff):
        raise DataError(f"{dataset.name}: there is nothing to measure with: {reason}")


def _check_dataset(config: DatasetConfig, root: Path, name: str) -> list[Problem]:
    """Return the problems of one dataset, under ``name``."""
    report = ProblemReport(name)
    try:
        dataset = read_dataset(config, root, report)
    except (ConfigError, DataError, TooLargeError) as error:
        report.add(Fault("dataset can't be read", str(error)))
        return report.problems
    if not dataset.images and not report.problems:
        report.add(Fault("dataset is empty", "there are no images in it"))
    file_problems = find_file_problems(replace(dataset, skipped=tuple(report.problems)))
    return report.problems + [replace(problem, dataset=name) for problem in file_problems]


def _check_png(image: AnnotatedImage, skipped_ids: Collection[Id], report: ProblemReport) -> None:
    """Compare the values in a panoptic PNG with the segments in the JSON.

    Args:
        image: image with its annotations.
        skipped_ids: ids of the image's segments that were left out; their values are ignored.
        report: collects the problems.
    """
    segments = [
        each.segmentation
        for each in (*image.annotations, *image.stuff)
        if isinstance(each.segmentation, PngSegment)
    ]
    if not segments:
        return
    png = segments[0].path  # the same for all segments of an image
    try:
        labels = load_label_map(png)
    except DataError as error:
        report.add(Fault("PNG of segments can't be read", str(error)), image.id)
        return
    if labels.shape != image.size:
        (height, width), (png_height, png_width) = image.size, labels.shape
        message = f"{png} is {png_width} x {png_height}, the image {width} x {height}"
        report.add(Fault("PNG of segments is of another size", message), image.id)
    png_values = set(find_regions(labels).values.tolist())
    json_values = {segment.value for segment in segments}
    for value in sorted(png_values - json_values - set(skipped_ids)):
        message = f"{png} has pixels of {value}, which no segment is"
        report.add(Fault("PNG has pixels of no segment", message), image.id)
    for value in sorted(json_values - png_values):
        message = f"the segment has no pixels in {png}"
        report.add(Fault("segment has no pixels", message), image.id, value)


def _explain_unusable(dataset: Dataset, *, stuff: bool) -> str:
    """Return why a dataset has no usable annotation, or an empty text if it has one."""
    things = [each for image in dataset.images for each in image.annotations]
    if any(not each.crowd for each in things):
        return ""
    if stuff and any(not each.crowd for image in dataset.images for each in image.stuff):
        return ""
    if things:
        return (
            f"all of its {len(things)} annotations are marked as a crowd (iscrowd: 1), which "
            "stands for many objects: set iscrowd to 0 where a mask is of one object"
        )
    if dataset.skipped:
        return f"every annotation has a problem, the first: {dataset.skipped[0].description}"
    if not dataset.categories:
        return "it has no categories"
    return f"its {len(dataset.images)} images have no annotations"
