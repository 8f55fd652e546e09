"""Whether datasets hold anything to learn from, or to measure with."""

from __future__ import annotations

from collections.abc import Sequence

from streamseg.datasets.dataset import Dataset
from streamseg.errors import DataError


def check_learnable(datasets: Sequence[Dataset], *, stuff: bool) -> None:
    """Refuse datasets that a model can learn nothing from.

    A dataset whose images have no annotations at all is allowed beside others: it shows what
    background looks like.

    Args:
        datasets: what is to be learnt from.
        stuff: whether the model learns stuff, too.

    Raises:
        DataError: a dataset has annotations and none that can be learnt from, or none has any.
    """
    reasons = [_nothing_in(dataset, stuff=stuff) for dataset in datasets]
    for dataset, reason in zip(datasets, reasons, strict=True):
        if reason and (dataset.skipped or _annotations(dataset)):
            raise DataError(f"{dataset.name}: there is nothing to learn from: {reason}")
    if all(reasons):
        names = ", ".join(dataset.name for dataset in datasets)
        raise DataError(f"{names}: there is nothing to learn from: {reasons[0]}")


def check_measurable(dataset: Dataset, *, stuff: bool) -> None:
    """Refuse a dataset that nothing can be measured with.

    Args:
        dataset: what is to be measured on.
        stuff: whether stuff is measured, too.

    Raises:
        DataError: it has no object that could be found.
    """
    if reason := _nothing_in(dataset, stuff=stuff):
        raise DataError(f"{dataset.name}: there is nothing to measure with: {reason}")


def _nothing_in(dataset: Dataset, *, stuff: bool) -> str:
    """Why no annotation can be used; empty where one can."""
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
        return f"every annotation has a problem, the first: {dataset.skipped[0].located}"
    if not dataset.categories:
        return "it has no categories"
    return f"its {len(dataset.images)} images have no annotations"


def _annotations(dataset: Dataset) -> int:
    return sum(len(image.annotations) + len(image.stuff) for image in dataset.images)
