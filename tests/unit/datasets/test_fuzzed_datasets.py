"""Fuzzed datasets: invalid JSON values and damaged files never raise an unexpected error."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.annotations import (
    find_dataset_problems,
    make_coco_content,
    make_panoptic_content,
    write_coco,
    write_instance_png,
    write_json,
    write_panoptic,
)

from streamseg.config.training import (
    CocoData,
    InstancePngData,
    PanopticData,
)
from streamseg.datasets import dataset_to_coco, load_sample, open_dataset
from streamseg.errors import StreamsegError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 3, 7, 16, 20, 90, 100, 2**31, 2**63, 10**400, -1])
    | st.floats()
    | st.text(st.characters(codec=None), max_size=6)
    | st.sampled_from(["a.png", "b.jpg", "../set.json", "cup", "/", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
RUNS = st.fixed_dictionaries(
    {"size": st.just([16, 20]) | JSON, "counts": st.lists(st.integers(), max_size=5) | st.text()}
)
POLYGONS = st.lists(st.lists(st.floats(-1, 21) | st.floats(), max_size=9), max_size=3)


def list_paths(content: Any, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value in a JSON value."""
    yield prefix
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from list_paths(content[key], (*prefix, key))


def replace_value(content: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a JSON value with another value at a path."""
    if not path:
        return value
    content = copy.copy(content)
    content[path[0]] = replace_value(content[path[0]], path[1:], value)
    return content


def use_dataset(config: CocoData | PanopticData | InstancePngData, folder: Path) -> None:
    """Check and open a dataset; load all samples if it has no problems.

    Every problem must be one line. Errors other than ``StreamsegError`` are raised.
    """
    problems = find_dataset_problems(config, folder)
    for problem in problems:
        assert len(str(problem).splitlines()) == 1
        str(problem).encode()
    if problems:
        with contextlib.suppress(StreamsegError):
            open_dataset(config, folder)
        return
    dataset = open_dataset(config, folder)
    json.dumps(dataset_to_coco(dataset), allow_nan=False)
    for image in dataset.images:
        load_sample(dataset, image, tuple(dataset.categories.values()), 0)


FUZZ_SETTINGS = settings(
    deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def coco_dataset(tmp_path_factory):
    """Return folder and config of a COCO dataset, whose JSON each example overwrites."""
    folder = tmp_path_factory.mktemp("coco")
    return folder, write_coco(folder)


@pytest.fixture(scope="module")
def panoptic_dataset(tmp_path_factory):
    """Return folder and config of a panoptic dataset, whose JSON each example overwrites."""
    folder = tmp_path_factory.mktemp("panoptic")
    return folder, write_panoptic(folder)


@given(data=st.data())
@FUZZ_SETTINGS
def test_any_value_in_a_coco_json(coco_dataset, data):
    folder, config = coco_dataset
    content = make_coco_content()
    paths = list(list_paths(content))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(paths))
        value = data.draw(RUNS | POLYGONS | JSON if path[-1:] == ("segmentation",) else JSON)
        try:
            content = replace_value(content, path, value)
        except (KeyError, IndexError, TypeError):
            continue  # the first replacement removed this path
    write_json(folder / "set.json", content)
    use_dataset(config, folder)


@given(data=st.data())
@FUZZ_SETTINGS
def test_any_value_in_a_panoptic_json(panoptic_dataset, data):
    folder, config = panoptic_dataset
    content = make_panoptic_content()
    path = data.draw(st.sampled_from(list(list_paths(content))))
    write_json(folder / "set.json", replace_value(content, path, data.draw(JSON)))
    use_dataset(config, folder)


@pytest.mark.parametrize("seed", range(40))
def test_any_bytes_in_any_file(tmp_path, seed):
    rng = random.Random(seed)
    write = rng.choice([write_coco, write_panoptic, write_instance_png])
    config = write(tmp_path)
    file = rng.choice(sorted(path for path in tmp_path.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 3, 30])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    file.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content) + 1)])])
    use_dataset(config, tmp_path)
