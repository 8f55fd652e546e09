"""``streamseg watch``: what its table says and when, and whose pictures a video is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import threading
import time
from collections.abc import Callable

import av
import msgspec
import pytest
from rich.console import Console
from support.commands import Run
from support.ports import free_port
from support.publishers import eventually, instances, jpeg, result, service
from support.subscribers import masks_json, status_json

import streamseg
from streamseg import protocol
from streamseg.cli import watch
from streamseg.cli.watch import Overview, Recording, Seen, Watch, recorded
from streamseg.client import Received
from streamseg.errors import OutputError
from streamseg.sinks.files.results import ResultsFile

BURST = 300
DRAWN = "age p50"
"""What every drawing of the table has once."""


@pytest.fixture
def screen(monkeypatch, capsys) -> Callable[[], str]:
    """A terminal for the live table, and what was drawn on it since it was last asked."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    return lambda: capsys.readouterr().err


@contextlib.contextmanager
def watching(at: str, **options):
    """A watch in a thread of its own."""
    with streamseg.connect(at, frames="annotated" if "save" in options else False) as subscriber:
        run = Watch(subscriber, **options)
        thread = threading.Thread(target=run.show)
        thread.start()
        try:
            yield run
        finally:
            run.stop()
            thread.join(10)
            assert not thread.is_alive()


def received(source="gate", *, names=(), published_at=1.0) -> Received:
    """A result, with as many instances as ``names``."""
    made = result(source=source, found=instances(len(names)))
    message = protocol.decode(
        masks_json(made=made, published_at=published_at), protocol.MasksMessage
    )
    named = [
        msgspec.structs.replace(one, class_name=name)
        for one, name in zip(message.instances, names, strict=True)
    ]
    message = msgspec.structs.replace(message, instances=named)
    return Received(message, protocol.decode_instances(message), None)


def status(state="live", seq=0, source="gate") -> protocol.StatusMessage:
    return protocol.decode(status_json(state, seq, source=source), protocol.StatusMessage)


def drawn(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def cells(table, column: str) -> list[str]:
    found = next(each for each in table.columns if each.header == column)
    return [str(cell) for cell in found.cells]


def test_a_camera_that_stalls_has_no_rate_any_more(screen, monkeypatch) -> None:
    monkeypatch.setattr(watch, "RATE_OVER", 1.0)
    with service() as running, watching(running.masks_at):
        running.wait_joined()
        running.put(*(result(i) for i in range(20)), every=0.02)
        eventually(lambda: " 20 " in screen())
        eventually(lambda: " 0.0 " in screen(), within=5)


def test_a_service_that_dies_is_said_to_be_silent(screen) -> None:
    with service() as running, watching(running.masks_at):
        running.wait_joined()
        running.publisher.set_state("gate", "live", "", 0)
        running.put(*(result(i) for i in range(5)))
        eventually(lambda: "live" in screen())
        running.kill()
        eventually(lambda: "no word for 3 s" in screen(), within=8)
        eventually(lambda: "silent" in screen())


def test_nothing_is_drawn_where_nobody_looks(capsys) -> None:
    with service() as running, watching(running.masks_at, limit=5):
        running.wait_joined()
        running.put_and_wait(*(result(i) for i in range(5)))
    said = capsys.readouterr()
    assert DRAWN not in said.err
    assert DRAWN in said.out


def test_a_burst_is_drawn_few_times_and_none_of_it_is_lost(screen, tmp_path) -> None:
    began = time.monotonic()
    with service() as running, watching(running.masks_at, jsonl=tmp_path / "out.jsonl"):
        running.wait_joined()
        running.put_and_wait(*(result(i) for i in range(BURST)))
        running.end()
        eventually((tmp_path / "out.jsonl").exists)
    most = (time.monotonic() - began) / watch.DRAW_EVERY + 3  # at the start, at the end, and one
    assert 0 < screen().count(DRAWN) <= most < BURST / 2
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == BURST


def test_rates_are_of_the_last_seconds_and_in_the_closing_table_of_all() -> None:
    seen = Seen()
    assert seen.fps_lately(100.0) == 0.0
    for i in range(101):
        clock = -3600 if i > 50 else 0  # the service's is set back by an hour
        seen.add(received(published_at=clock + i / 10), 100 + i / 10)
    assert seen.fps_lately(110.0) == pytest.approx(10, rel=0.03)
    assert seen.fps_lately(112.5) == pytest.approx(5, rel=0.05)
    assert seen.fps_lately(115.0) == 0.0
    assert seen.fps == pytest.approx(10)


def test_a_rate_may_be_higher_than_what_is_remembered() -> None:
    seen, came = Seen(), received()
    for i in range(4000):
        seen.add(came, i / 1000)
    assert seen.fps_lately(4.0) == pytest.approx(1000, rel=0.01)


def test_the_rate_right_after_the_start_is_of_what_has_passed() -> None:
    seen, came = Seen(), received()
    for i in range(11):
        seen.add(came, 50 + i / 10)
    assert seen.fps_lately(51.0) == pytest.approx(10)


def test_a_status_is_a_word_and_one_that_came_before_is_not() -> None:
    overview = Overview(0.0)
    overview.add(received(), 1.0)
    for second in range(1, 11):
        overview.hear({"gate": status(seq=second)}, {}, float(second))
        assert overview.table(second + 0.5).title is None
    overview.hear({"gate": status(seq=10)}, {}, 14.4)
    table = overview.table(14.4)
    assert table.title == "no word for 4 s"
    assert cells(table, "state") == ["silent"]
    overview.add(received(), 15.0)
    assert overview.table(15.0).title is None


def test_a_service_that_is_not_there_at_all_is_silent_too() -> None:
    assert Overview(10.0).table(12.0).title is None
    assert Overview(10.0).table(15.0).title == "no word for 5 s"


def test_a_source_that_has_ended_is_not_silent() -> None:
    overview = Overview(0.0)
    overview.hear({"gate": status("ended"), "yard": status("live", source="yard")}, {}, 0.0)
    assert cells(overview.table(9.0), "state") == ["ended", "silent"]


@pytest.mark.parametrize("name", ["cat [/x]", "sign [stop]", "[red]fox[/red]", ":smile:", "Füße"])
def test_what_comes_from_the_wire_is_no_markup(name) -> None:
    overview = Overview(0.0)
    overview.add(received(names=[name]), 0.0)
    assert f"1 {name}" in drawn(overview.table(0.0))


def test_the_terminal_obeys_nothing_that_comes_from_the_wire() -> None:
    overview = Overview(0.0)
    overview.add(received(names=["\x1b[2Jcat\r\n\x9b1A\u202edog"]), 0.0)
    assert r"1 \x1b[2Jcat\r\n\x9b1A\u202edog" in drawn(overview.table(0.0))


def test_a_video_is_of_the_source_that_comes_first(tmp_path, caplog) -> None:
    files = {"save": tmp_path / "out.mp4", "jsonl": tmp_path / "out.jsonl"}
    pictures = {"gate": jpeg(colour=(255, 0, 0)), "yard": jpeg(colour=(0, 255, 0))}
    with (
        caplog.at_level(logging.WARNING),
        service() as running,
        watching(running.masks_at, **files),
    ):
        eventually(lambda: running.publisher.wants("frames", "gate"))
        for i in range(6):
            for source, picture in pictures.items():
                running.show(result(i, source), picture)
                time.sleep(0.02)  # of pictures, the publisher keeps few
        running.end()
        eventually(files["jsonl"].exists)
    with av.open(str(files["save"])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    lines = files["jsonl"].read_bytes().splitlines()
    sources = [protocol.decode(line, protocol.RecordedMessage).source for line in lines]
    assert sources.count("yard") > 1
    assert len(frames) == sources.count("gate") > 1
    assert all((abs(frame.astype(int) - (255, 0, 0)) < 12).all() for frame in frames)
    assert caplog.messages == [
        "yard isn't saved: a video is of one source, here gate; name one with --source"
    ]


def test_a_file_that_fails_does_not_cost_the_other_and_is_said_at_the_end(tmp_path, monkeypatch):
    def full(*_):
        raise OutputError("out.jsonl: can't be written: the disk is full")

    monkeypatch.setattr(ResultsFile, "write_message", full)
    given = [dataclasses.replace(received(), jpeg=jpeg()) for _ in range(5)]
    with pytest.raises(OutputError, match=r"out\.jsonl: can't be written"):
        list(recorded(given, Recording(tmp_path / "out.jsonl", tmp_path / "out.mp4")))
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 5
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_cannot_be_opened_are_said_before_anything_is_received(tmp_path):
    with pytest.raises(OutputError, match=r"gone/a: .*no such folder.*; .*gone/b: "):
        Recording(tmp_path / "gone" / "a", tmp_path / "gone" / "b")


def test_a_video_of_two_sources_is_refused_before_anything_is_connected(streamseg: Run) -> None:
    nowhere = "tcp://127.0.0.1:99999"  # which connecting would complain about
    two = streamseg("watch", nowhere, "--save", "o.mp4", "--source", "a", "--source", "b")
    assert (two.returncode, len(two.stderr.splitlines())) == (2, 1)
    assert "--save o.mp4: a video is of one source: name one with --source" in two.stderr


def test_a_video_of_one_source_that_is_named_twice_is_no_mistake(streamseg: Run) -> None:
    at = f"tcp://127.0.0.1:{free_port()}"
    one = ("--save", "o.mp4", "--source", "a", "--source", "a", "--timeout", "0.3")
    result = streamseg("watch", at, *one)
    assert "no result in 0.3 s" in result.stderr
