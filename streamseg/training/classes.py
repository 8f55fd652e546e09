"""What a model learns to tell apart: the classes of all its training data, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamseg.datasets import Dataset
from streamseg.errors import ConfigError
from streamseg.models.categories import Categories
from streamseg.models.layers.losses import Criterion
from streamseg.models.loading import has_stuff
from streamseg.structures.targets import MAX_STUFF_CLASSES


def classes_of(datasets: Sequence[Dataset], model: str) -> Categories:
    """What a model of these datasets knows, by the first dataset's id of each name.

    Args:
        datasets: what it learns from.
        model: its name; one that has no panoptic results doesn't know any stuff.

    Raises:
        ConfigError: one id has two names, a thing of one dataset is stuff in another, there is no
            stuff for a model that divides pictures into things and stuff, or too much of it.
    """
    things: dict[int, str] = {}
    for dataset in datasets:
        _add(things, dataset.categories, dataset.name, {})
    if not has_stuff(model):
        return Categories(dict(sorted(things.items())))
    stuff: dict[int, str] = {}
    for dataset in datasets:
        _add(stuff, dataset.stuff, dataset.name, things)
    _check_stuff(stuff, model)
    return Categories(dict(sorted(things.items())), dict(sorted(stuff.items())))


def check_annotation(
    criterion: Criterion, datasets: Sequence[Dataset], categories: Categories
) -> None:
    """Refuse to teach that what isn't annotated isn't there.

    Raises:
        ConfigError: a dataset doesn't annotate everywhere what the model is to learn.
    """
    if criterion.takes_partial_annotation:
        return
    for dataset in datasets:
        names = {dataset.categories[number] for number in dataset.annotated}
        missing = [name for name in categories.things.values() if name not in names]
        if missing:
            raise ConfigError(
                f"{dataset.name}: {', '.join(missing[:5])} isn't annotated there, which this "
                "model would take for background: train it on datasets of the same classes"
            )


def _add(
    known: dict[int, str], categories: Mapping[int, str], dataset: str, things: Mapping[int, str]
) -> None:
    """Add those of ``categories`` whose names aren't ``known``; of stuff, beside ``things``."""
    taken = {**things, **known}
    for number, name in categories.items():
        if name in things.values():
            raise ConfigError(f"{dataset}: {name!r} is stuff here and a thing in the training data")
        if name in known.values():
            continue
        if number in taken:
            raise ConfigError(
                f"{dataset}: category {number} is {name!r} here and {taken[number]!r} in "
                "another dataset: give one of them another id"
            )
        known[number] = name


def _check_stuff(stuff: Mapping[int, str], model: str) -> None:
    if not stuff:
        raise ConfigError(
            f"{model} learns things and stuff, and no stuff is annotated in data.train: give it "
            "a dataset of the format panoptic, or train another model"
        )
    if len(stuff) > MAX_STUFF_CLASSES:
        raise ConfigError(
            f"data.train has {len(stuff)} classes of stuff, more than the {MAX_STUFF_CLASSES} that "
            "there is room for"
        )
