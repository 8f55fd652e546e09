"""A config is taken whole or refused with the path of what is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from streamseg import config
from streamseg.errors import ConfigError

ONE = {"sources": [{"url": "a.mp4"}]}


def checked(raw: dict) -> config.Config:
    return config.validate(raw, "x.yaml")


def test_the_smallest_config_names_one_source() -> None:
    assert checked(ONE).sources[0].name == "a"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "x.yaml: Object missing required field `sources`"),
        ({"sources": []}, "sources is empty: name at least one"),
        ({"sources": 3}, "sources: Expected `array`, got `int`"),
        ({"sources": [{"url": ""}]}, "sources[0]: url is empty"),
        ({"sources": [{"name": "a"}]}, "sources[0]: Object missing required field `url`"),
        ({"sources": [{"url": "a", "name": "a/b"}]}, "sources[0]: name: use 1 to 64"),
        ({"sources": [{"url": "a", "strid": 2}]}, "sources[0].strid: unknown key; did you mean"),
        ({"sources": [{"url": "a", "stride": 0}]}, "sources[0].stride: Expected `int` >= 1"),
        ({"sources": [{"url": "a", "start": 3, "end": 2}]}, "end (2) must be after start (3)"),
        ({"sources": [{"url": "a", "stall_after": math.inf}]}, "stall_after: Expected `float` <="),
        ({"sources": [{"url": "a", "start": math.nan}]}, "start: Expected `float`"),
        ({**ONE, "worker": {"max_batch": "8"}}, "worker.max_batch: Expected `int`, got `str`"),
        ({**ONE, "workers": {}}, "workers: unknown key; did you mean 'worker'?"),
        ({**ONE, "thresholds": {"score": 1.5}}, "thresholds.score: Expected `float` <= 1"),
        ({**ONE, "thresholds": {"region": [[0, 0]]}}, "thresholds: region needs three corners"),
        (
            {**ONE, "model": {"precision": "int4"}},
            "model.precision: Expected one of 'fp32', 'bf16', 'fp16'",
        ),
        ({**ONE, "model": {"device": "gpu"}}, "model.device: Expected `str` matching regex"),
        (
            {"sources": [{"url": "a", "name": "x"}, {"url": "b", "name": "x"}]},
            "two sources are called 'x'",
        ),
        (
            {"sources": [{"url": "a", "thresholds": {"colour": 1}}]},
            "sources[0].thresholds.colour: unknown key; known are score, ",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_path(raw: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(raw)
    assert message in str(refused.value)
    assert refused.value.exit_code == 2


def test_sources_get_names_from_their_urls_and_none_twice() -> None:
    urls = ["in/a b.mp4", "other/a b.mp4", "cam/*.jpg", "test:?size=64x48", "x.mp4"]
    raw = {"sources": [{"url": url} for url in urls] + [{"url": "y.mp4", "name": "x"}]}
    names = [source.name for source in checked(raw).sources]
    assert names == ["a-b", "a-b-2", "cam", "test", "x-2", "x"]


def test_overrides_reach_into_sections_and_lists() -> None:
    raw = {"sources": [{"url": "a.mp4"}]}
    config.override(
        raw, ["worker.max_batch=8", "sources.0.stride=3", "thresholds.classes=[person, car]"]
    )
    made = checked(raw)
    assert made.worker.max_batch == 8
    assert made.sources[0].stride == 3
    assert made.thresholds.classes == ("person", "car")


@pytest.mark.parametrize(
    "wrong", ["max_batch", "a..b=1", "sources.5.url=x", "sources.url.x=1", "a=["]
)
def test_overrides_that_lead_nowhere_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        config.override({"sources": [{"url": "a.mp4"}]}, [wrong])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "isn't YAML"),
        (b"- 1\n- 2\n", "a config is a mapping"),
        (b"\xff\xfe\x00", "can't be read|isn't YAML"),
        (b"", "a config is a mapping"),
        (b"!!python/object/apply:os.system ['true']", "isn't YAML"),
    ],
)
def test_files_that_are_no_config_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refused:
        config.load(file)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: there is no such file"):
        config.load(tmp_path / "gone.yaml")


def test_every_attribute_of_every_section_is_documented() -> None:
    for section in config.Section.__subclasses__():
        if section is config.Config:
            continue
        for key in section.__struct_fields__:
            assert f"    {key}:" in (section.__doc__ or ""), f"{section.__name__}.{key}"


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[1].glob("configs/*.yaml")))
def test_the_examples_are_valid(file: Path) -> None:
    raw = yaml.safe_load(file.read_text())
    checked({"sources": [{"url": "a.mp4"}], **raw})
