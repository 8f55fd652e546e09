"""Classes of a training run: the categories of all its datasets, merged by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamseg.datasets import Dataset
from streamseg.errors import ConfigError
from streamseg.models.categories import Categories
from streamseg.models.layers.losses import Criterion
from streamseg.models.loading import has_stuff
from streamseg.structures.targets import MAX_STUFF_CLASSES


def merge_categories(datasets: Sequence[Dataset], model: str) -> Categories:
    """Return the categories of all datasets; each name keeps the id of its first dataset.

    Args:
        datasets: the training datasets.
        model: name of the model; for one without panoptic output, stuff is left out.

    Raises:
        ConfigError: an id has two names, a name is a thing in one dataset and stuff in another,
            or a panoptic model has no stuff to learn or more than fits.
    """
    things: dict[int, str] = {}
    for dataset in datasets:
        _add_categories(things, dataset.categories, dataset.name, {})
    if not has_stuff(model):
        return Categories(dict(sorted(things.items())))
    stuff: dict[int, str] = {}
    for dataset in datasets:
        _add_categories(stuff, dataset.stuff, dataset.name, things)
    if not stuff:
        raise ConfigError(
            f"{model} learns things and stuff, and data.train has no stuff: add a dataset of the "
            "format panoptic, or train another model"
        )
    if len(stuff) > MAX_STUFF_CLASSES:
        raise ConfigError(
            f"data.train has {len(stuff)} stuff classes, more than the maximum of "
            f"{MAX_STUFF_CLASSES}"
        )
    return Categories(dict(sorted(things.items())), dict(sorted(stuff.items())))


def check_complete_annotation(
    criterion: Criterion, datasets: Sequence[Dataset], categories: Categories
) -> None:
    """Check that a criterion without support for partial annotation gets complete datasets.

    It would treat objects of a class that a dataset doesn't annotate as background.

    Raises:
        ConfigError: a dataset doesn't annotate every class that the model learns.
    """
    if criterion.takes_partial_annotation:
        return
    for dataset in datasets:
        names = {dataset.categories[number] for number in dataset.annotated}
        missing = [name for name in categories.things.values() if name not in names]
        if missing:
            raise ConfigError(
                f"{dataset.name}: {', '.join(missing[:5])} isn't annotated, and this model would "
                "learn it as background: train it on datasets of the same classes"
            )


def _add_categories(
    known: dict[int, str], categories: Mapping[int, str], dataset: str, things: Mapping[int, str]
) -> None:
    """Add a dataset's categories with new names to ``known``.

    Args:
        known: categories of the datasets before, updated in place.
        categories: those of this dataset.
        dataset: its name, for errors.
        things: thing categories of all datasets, if ``categories`` is stuff.
    """
    names = {**things, **known}
    for number, name in categories.items():
        if name in things.values():
            raise ConfigError(f"{dataset}: {name!r} is stuff here and a thing in the training data")
        if name in known.values():
            continue
        if number in names:
            raise ConfigError(
                f"{dataset}: category {number} is {name!r} here and {names[number]!r} in "
                "another dataset: give one of them another id"
            )
        known[number] = name
