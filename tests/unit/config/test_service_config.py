"""Service config: validation messages, overrides, YAML limits, and names of sources."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.paths import ROOT

from streamseg import config
from streamseg.config import service, training
from streamseg.errors import ConfigError
from streamseg.structures.results import SOURCE_NAME

MINIMAL = {"sources": [{"url": "a.mp4"}]}


def validated(raw: dict) -> config.Config:
    return config.validate(raw, "x.yaml")


def test_minimal_config_has_one_source() -> None:
    assert validated(MINIMAL).sources[0].name == "a"


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
        ({"sources": [{"url": "a", "start": 2, "end": 2}]}, "end (2) must be after start (2)"),
        ({"sources": [{"url": "a", "stride": 0}]}, "sources[0].stride: Expected `int` >= 1"),
        ({"sources": [{"url": "a", "start": 3, "end": 2}]}, "end (2) must be after start (3)"),
        ({"sources": [{"url": "a", "stall_after": math.inf}]}, "stall_after: Expected `float` <="),
        ({"sources": [{"url": "a", "start": math.nan}]}, "start: Expected `float`"),
        ({**MINIMAL, "worker": {"max_batch": "8"}}, "worker.max_batch: Expected `int`, got `str`"),
        ({**MINIMAL, "workers": {}}, "workers: unknown key; did you mean 'worker'?"),
        ({**MINIMAL, "thresholds": {"score": 1.5}}, "thresholds.score: Expected `float` <= 1"),
        (
            {**MINIMAL, "thresholds": {"region": [[0, 0]]}},
            "thresholds: region needs at least three corners",
        ),
        (
            {**MINIMAL, "model": {"precision": "int4"}},
            "model.precision: Expected one of 'fp32', 'bf16', 'fp16'",
        ),
        ({**MINIMAL, "model": {"device": "gpu"}}, "model.device: Expected `str` matching regex"),
        (
            {"sources": [{"url": "a", "name": "x"}, {"url": "b", "name": "x"}]},
            "the name 'x' is used twice",
        ),
        (
            {"sources": [{"url": "a", "thresholds": {"colour": 1}}]},
            "sources[0].thresholds.colour: unknown key; known are score, ",
        ),
    ],
)
def test_invalid_value_is_reported_with_its_path(raw: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validated(raw)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_unique_source_names_are_derived_from_urls() -> None:
    urls = ["in/a b.mp4", "other/a b.mp4", "cam/*.jpg", "test:?size=64x48", "x.mp4"]
    raw = {"sources": [{"url": url} for url in urls] + [{"url": "y.mp4", "name": "x"}]}
    names = [source.name for source in validated(raw).sources]
    assert names == ["a-b", "a-b-2", "cam", "test", "x-2", "x"]


def test_overrides_change_sections_and_list_items() -> None:
    raw = {"sources": [{"url": "a.mp4"}]}
    config.override(
        raw, ["worker.max_batch=8", "sources.0.stride=3", "thresholds.classes=[person, car]"]
    )
    result = validated(raw)
    assert result.worker.max_batch == 8
    assert result.sources[0].stride == 3
    assert result.thresholds.classes == ("person", "car")


@pytest.mark.parametrize(
    "text", ["max_batch", "a..b=1", "sources.5.url=x", "sources.url.x=1", "a=["]
)
def test_invalid_overrides_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        config.override({"sources": [{"url": "a.mp4"}]}, [text])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "isn't YAML"),
        (b"- 1\n- 2\n", "a config must be a mapping"),
        (b"\xff\xfe\x00", "can't be read|isn't YAML"),
        (b"", "a config must be a mapping"),
        (b"!!python/object/apply:os.system ['true']", "isn't YAML"),
    ],
)
def test_files_without_a_mapping_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 20_000, "line 1, column 33: nested deeper than 32 levels"),
        ("a: " + "{b: " * 20_000, "nested deeper than 32 levels"),
        ("sources: " + "[" * 20_000 + "]" * 20_000, "nested deeper than 32 levels"),
        ("a: " + "- " * 20_000, "line 1, column 4"),
        ("a: &a [*a]", "line 1, column 8: an alias inside of its own anchor"),
        ("a: &a {x: *a}", "an alias inside of its own anchor"),
        (
            "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12)),
            "line 5, column .*: more than 100000 values",
        ),
        (
            "l0: &l0 {x: 1}\n"
            + "".join(f"l{n}: &l{n} {{<<: [{f'*l{n - 1}, ' * 10}]}}\n" for n in range(1, 12)),
            "more than 100000 values",
        ),
        ("sources: [{url: x}]\nmodel: {}\nsources: []", "line 3, column 1: duplicate key"),
        ("sources: [{url: x, url: y}]", "line 1, column 20: duplicate key"),
        ("a: 2001-13-45", "line 1, column 4: a value that does not fit its type"),
        ("a: !!int x", "a value that does not fit its type"),
        ("a: 0x_", "a value that does not fit its type"),
        ("a: 1" + ":1" * 200_000, "a number with too many digits"),
        ("a: " + "9" * 5000, "a number with too many digits"),
        ('a: "\\0"', "a control character or surrogate"),
        ('a: "\\ud800"', "a control character or surrogate"),
        ("a: \0", "line 1: a character that YAML doesn't allow"),
        ("a: %b", "line 1, column 4: found character '%' that cannot start any token; put values"),
        ("a: 1\n---\nb: 2", "line 2, column 1: found another document"),
        ("a: b\n\tc: d", "line 2, column 1: found character"),
        ("#" * (2**20 + 1), "is larger than 1048576 bytes"),
    ],
)
def test_hostile_files_are_refused_quickly(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    started_at = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        config.validate(config.load(file), str(file))
    assert time.process_time() - started_at < 3
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_aliases_and_merge_keys_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "sources:\n"
        "  - &yard {url: a.mp4, stall_after: 3, hosts: &hosts [b, c]}\n"
        "  - {<<: *yard, url: b.mp4, hosts: *hosts}\n",
        encoding="utf-8-sig",
    )
    first, second = config.validate(config.load(file), "x.yaml").sources
    assert (first.url, second.url) == ("a.mp4", "b.mp4")
    assert first.stall_after == second.stall_after == 3
    assert second.hosts == ("b", "c")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("ab0:-.,[]{}&*!|>'\"%@`#?\n \t\\<=~é"), max_size=60))
def test_random_file_is_a_mapping_or_refused_in_one_line(tmp_path, content) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content, encoding="utf-8")
    try:
        assert isinstance(config.load(file), dict)
    except ConfigError as caught:
        assert "\n" not in str(caught)  # noqa: PT017 - valid files are checked as well


@pytest.mark.parametrize(
    "name", [".", "..", "a/b", "../a", "/a", "a\\b", "a b", "a\n", "", "x" * 65]
)
def test_source_name_that_is_no_folder_name_is_refused(name: str) -> None:
    if not name:
        assert validated({"sources": [{"url": "a.mp4", "name": name}]}).sources[0].name == "a"
        return
    with pytest.raises(ConfigError, match=r"sources\[0\]: name: use 1 to 64 letters"):
        validated({"sources": [{"url": "a", "name": name}]})


@pytest.mark.parametrize(
    "url", ["..", ".", "../..", "/", "a/..", "*", "rtsp://h/..", "test:/../.."]
)
def test_derived_source_name_is_a_folder_below_the_output_folder(url: str) -> None:
    name = validated({"sources": [{"url": url}]}).sources[0].name
    assert (Path("out") / name).resolve().parent == Path("out").resolve()
    assert SOURCE_NAME.fullmatch(name)


def test_source_names_that_differ_only_in_case_are_refused_or_numbered() -> None:
    with pytest.raises(ConfigError, match="'Gate' and 'gate' differ only in case"):
        validated({"sources": [{"url": "a", "name": "Gate"}, {"url": "b", "name": "gate"}]})
    raw = {
        "sources": [{"url": "x/Gate.mp4"}, {"url": "y/gate.mp4"}, {"url": "b", "name": "GATE-2"}]
    }
    assert [source.name for source in validated(raw).sources] == ["Gate", "gate-3", "GATE-2"]


def test_nesting_of_overrides_is_limited() -> None:
    with pytest.raises(ConfigError, match="more than 32 nested keys"):
        config.override({}, [f"{'a.' * 20_000}b=1"])
    config.override({}, [f"{'a.' * 31}b=1"])
    with pytest.raises(ConfigError, match="more than 32 nested keys"):
        config.override({}, [f"{'a.' * 32}b=1"])
    with pytest.raises(ConfigError, match=r"--set a: isn't YAML: line 1, .* nested deeper"):
        config.override({}, ["a=" + "[" * 20_000])


def test_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: there is no such file"):
        config.load(tmp_path / "gone.yaml")


def test_every_attribute_of_every_section_is_documented() -> None:
    for section in config.Section.__subclasses__():
        if section is config.Config:
            continue
        for key in section.__struct_fields__:
            assert f"    {key}:" in (section.__doc__ or ""), f"{section.__name__}.{key}"


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/*.yaml")))
def test_example_configs_are_valid(file: Path) -> None:
    raw = yaml.safe_load(file.read_text())
    validated({"sources": [{"url": "a.mp4"}], **raw})


SECTIONS = {
    value.__name__: value
    for module in (service, training)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, config.Section)
}


@pytest.mark.parametrize("name", SECTIONS)
def test_section_is_immutable_and_takes_keywords_only(name: str) -> None:
    with pytest.raises(TypeError, match="positional arguments"):
        SECTIONS[name]("value")
    assert SECTIONS[name].__struct_config__.frozen
