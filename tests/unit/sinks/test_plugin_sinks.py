"""Plug-in sinks: entry points, their options, and running one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from support.plugins import install_plugin

from streamseg.errors import ConfigError, OutputError
from streamseg.sinks.base import run_sink
from streamseg.sinks.plugin import load_sinks

MODULE = """
import msgspec

class Lines:
    class Options(msgspec.Struct, frozen=True):
        path: str
        limit: int = 100

    capacity = 7

    def __init__(self, options):
        self.options = options
        self.calls = []

    def open(self):
        self.calls.append("open")

    def write(self, result):
        if len(self.calls) > self.options.limit:
            raise RuntimeError(f"limit of {self.options.limit}\\nreached")
        self.calls.append(result)

    def close(self):
        self.calls.append("close")

class Bare:
    def open(self): pass
    def write(self, result): pass
    def close(self): pass

class Refusing(Bare):
    class Options(msgspec.Struct):
        port: int = 1

    def __init__(self, options):
        raise ValueError(f"port {options.port} is odd")

class Strange(Bare):
    Options = dict

class Incomplete:
    def open(self): pass
    def write(self, result): pass
"""
ENTRY_POINTS = {
    "streamseg.sinks": {
        "lines": "demo_plugin:Lines",
        "bare": "demo_plugin:Bare",
        "refusing": "demo_plugin:Refusing",
        "strange": "demo_plugin:Strange",
        "incomplete": "demo_plugin:Incomplete",
        "broken": "demo_plugin_that_is_gone:Nothing",
    }
}


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path, monkeypatch, ENTRY_POINTS, demo_plugin=MODULE)


def test_a_sink_is_created_with_its_validated_options() -> None:
    first, second = load_sinks(
        [{"type": "lines", "path": "a"}, {"type": "lines", "path": "b", "limit": 3}], "block"
    )
    assert (first.name, second.name) == ("lines", "lines-2")
    assert (first.policy, first.capacity) == ("block", 7)
    assert second.writer.options == sys.modules["demo_plugin"].Lines.Options("b", 3)


def test_a_sink_without_options_takes_none() -> None:
    (sink,) = load_sinks([{"type": "bare"}], "drop_oldest")
    assert (sink.policy, sink.capacity) == ("drop_oldest", 16)
    with pytest.raises(ConfigError, match=r"^sinks\[0\]\.path: unknown key"):
        load_sinks([{"type": "bare", "path": "a"}], "block")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "lines"}, "sinks[1]: Object missing required field `path`"),
        ({"type": "lines", "path": 5}, "sinks[1].path: Expected `str`, got `int`"),
        ({"type": "lines", "pth": "a"}, "sinks[1].pth: unknown key; did you mean 'path'?"),
        ({"type": "refusing"}, "'refusing' of demo-plugin 1.0: ValueError: port 1 is odd"),
        ({"type": "incomplete"}, "demo-plugin 1.0: its object has no method close()"),
        ({"type": "strange"}, "'strange' of demo-plugin 1.0: its Options is no msgspec.Struct"),
        (
            {"type": "broken"},
            "plug-in 'broken' of demo-plugin 1.0 can't be imported (ModuleNotFoundError",
        ),
        (
            {"type": "line"},
            "sinks[1].type: 'line' isn't installed; installed sink plug-ins: bare, broken, ",
        ),
        ({"path": "a"}, "sinks[1].type: is missing; installed sink plug-ins: "),
    ],
)
def test_a_wrong_section_is_refused_in_one_line(section: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        load_sinks([{"type": "bare"}, section], "block")
    assert "\n" not in str(refused.value)


def test_running_a_sink_opens_writes_and_closes() -> None:
    (sink,) = load_sinks([{"type": "lines", "path": "a"}], "block")
    assert list(run_sink(sink, ["one", "two"])) == ["one", "two"]
    assert sink.writer.calls == ["open", "one", "two", "close"]


def test_a_failing_sink_is_closed_and_named() -> None:
    (sink,) = load_sinks([{"type": "lines", "path": "a", "limit": 1}], "block")
    written = run_sink(sink, ["one", "two"])
    assert next(written) == "one"
    with pytest.raises(OutputError, match=r"^sink lines: RuntimeError: limit of 1 reached$"):
        next(written)
    assert sink.writer.calls == ["open", "one", "close"]
