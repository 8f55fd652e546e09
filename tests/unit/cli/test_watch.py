"""``streamseg watch``: table, frame rates and recorded files."""

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
from support.publishers import encode_solid_jpeg, instances, result, service, wait_until
from support.subscribers import masks_json, status_json

import streamseg
from streamseg import protocol
from streamseg.cli import watch
from streamseg.cli.recorder import Recorder
from streamseg.cli.watch import Overview, SourceStatistics, Watch
from streamseg.client import Received
from streamseg.errors import OutputError
from streamseg.sinks.files.results import ResultsFile

BURST = 300
TABLE_MARK = "age p50"
"""Text that occurs once in each drawing of the table."""


@pytest.fixture
def screen(monkeypatch, capsys) -> Callable[[], str]:
    """Emulate a terminal; return a function that gives the output since its last call."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    return lambda: capsys.readouterr().err


@contextlib.contextmanager
def run_watch(at: str, **options):
    """Run ``Watch`` in a thread."""
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


def create_received(source="gate", *, names=(), published_at=1.0) -> Received:
    """Return a received result with one instance for each name."""
    tracked_result = result(source=source, found=instances(len(names)))
    message = protocol.decode(
        masks_json(item=tracked_result, published_at=published_at), protocol.MasksMessage
    )
    named_instances = [
        msgspec.structs.replace(one, class_name=name)
        for one, name in zip(message.instances, names, strict=True)
    ]
    message = msgspec.structs.replace(message, instances=named_instances)
    return Received(message, protocol.decode_instances(message), None)


def create_status(state="live", seq=0, source="gate") -> protocol.StatusMessage:
    return protocol.decode(status_json(state, seq, source=source), protocol.StatusMessage)


def render(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def get_column_cells(table, column: str) -> list[str]:
    column_of_table = next(each for each in table.columns if each.header == column)
    return [str(cell) for cell in column_of_table.cells]


def test_rate_of_a_stalled_source_drops_to_zero(screen, monkeypatch) -> None:
    monkeypatch.setattr(watch, "RATE_WINDOW", 1.0)
    with service() as running, run_watch(running.masks_endpoint):
        running.wait_for_subscribers()
        running.put(*(result(i) for i in range(20)), every=0.02)
        wait_until(lambda: " 20 " in screen())
        wait_until(lambda: " 0.0 " in screen(), within=5)


@pytest.mark.slow
def test_killed_service_is_shown_as_silent(screen) -> None:
    with service() as running, run_watch(running.masks_endpoint):
        running.wait_for_subscribers()
        running.publisher.set_state("gate", "live", "", 0)
        running.put(*(result(i) for i in range(5)))
        wait_until(lambda: "live" in screen())
        running.kill()
        wait_until(lambda: "no message for 3 s" in screen(), within=8)
        wait_until(lambda: "silent" in screen())


def test_only_the_closing_table_is_printed_without_a_terminal(capsys) -> None:
    with service() as running, run_watch(running.masks_endpoint, limit=5):
        running.wait_for_subscribers()
        running.put_and_wait(*(result(i) for i in range(5)))
    output = capsys.readouterr()
    assert TABLE_MARK not in output.err
    assert TABLE_MARK in output.out


def test_burst_is_recorded_completely_and_drawn_rarely(screen, tmp_path) -> None:
    started_at = time.monotonic()
    with service() as running, run_watch(running.masks_endpoint, jsonl=tmp_path / "out.jsonl"):
        running.wait_for_subscribers()
        running.put_and_wait(*(result(i) for i in range(BURST)))
        running.end()
        wait_until((tmp_path / "out.jsonl").exists)
    max_drawings = (time.monotonic() - started_at) / watch.DRAW_INTERVAL + 3
    assert 0 < screen().count(TABLE_MARK) <= max_drawings < BURST / 2
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == BURST


def test_recent_rate_and_overall_rate_use_the_receivers_clock() -> None:
    statistics = SourceStatistics()
    assert statistics.recent_fps(100.0) == 0.0
    for i in range(101):
        clock = -3600 if i > 50 else 0  # the clock of the service is set back by an hour
        statistics.add(create_received(published_at=clock + i / 10), 100 + i / 10)
    assert statistics.recent_fps(110.0) == pytest.approx(10, rel=0.03)
    assert statistics.recent_fps(112.5) == pytest.approx(5, rel=0.05)
    assert statistics.recent_fps(115.0) == 0.0
    assert statistics.fps == pytest.approx(10)


def test_rate_may_exceed_the_number_of_stored_samples() -> None:
    statistics, message = SourceStatistics(), create_received()
    for i in range(4000):
        statistics.add(message, i / 1000)
    assert statistics.recent_fps(4.0) == pytest.approx(1000, rel=0.01)


def test_rate_right_after_the_start_uses_the_elapsed_time() -> None:
    statistics, message = SourceStatistics(), create_received()
    for i in range(11):
        statistics.add(message, 50 + i / 10)
    assert statistics.recent_fps(51.0) == pytest.approx(10)


def test_only_new_status_messages_end_the_silence() -> None:
    overview = Overview(0.0)
    overview.add(create_received(), 1.0)
    for second in range(1, 11):
        overview.update_statuses({"gate": create_status(seq=second)}, {}, float(second))
        assert overview.table(second + 0.5).title is None
    overview.update_statuses({"gate": create_status(seq=10)}, {}, 14.4)
    table = overview.table(14.4)
    assert table.title == "no message for 4 s"
    assert get_column_cells(table, "state") == ["silent"]
    overview.add(create_received(), 15.0)
    assert overview.table(15.0).title is None


def test_missing_service_is_shown_as_silent() -> None:
    assert Overview(10.0).table(12.0).title is None
    assert Overview(10.0).table(15.0).title == "no message for 5 s"


def test_ended_source_is_not_shown_as_silent() -> None:
    overview = Overview(0.0)
    overview.update_statuses(
        {"gate": create_status("ended"), "yard": create_status("live", source="yard")}, {}, 0.0
    )
    assert get_column_cells(overview.table(9.0), "state") == ["ended", "silent"]


@pytest.mark.parametrize("name", ["cat [/x]", "sign [stop]", "[red]fox[/red]", ":smile:", "Füße"])
def test_received_names_are_not_interpreted_as_markup(name) -> None:
    overview = Overview(0.0)
    overview.add(create_received(names=[name]), 0.0)
    assert f"1 {name}" in render(overview.table(0.0))


def test_received_names_can_not_control_the_terminal() -> None:
    overview = Overview(0.0)
    overview.add(create_received(names=["\x1b[2Jcat\r\n\x9b1A\u202edog"]), 0.0)
    assert r"1 \x1b[2Jcat\r\n\x9b1A\u202edog" in render(overview.table(0.0))


def test_video_holds_the_source_of_the_first_message(tmp_path, caplog) -> None:
    files = {"save": tmp_path / "out.mp4", "jsonl": tmp_path / "out.jsonl"}
    images = {
        "gate": encode_solid_jpeg(color=(255, 0, 0)),
        "yard": encode_solid_jpeg(color=(0, 255, 0)),
    }
    with (
        caplog.at_level(logging.WARNING),
        service() as running,
        run_watch(running.masks_endpoint, **files),
    ):
        wait_until(lambda: running.publisher.has_image_subscribers("frames", "gate"))
        for i in range(6):
            for source, image in images.items():
                running.put_images(result(i, source), image)
                time.sleep(0.02)  # the publisher queues few images
        running.end()
        wait_until(files["jsonl"].exists)
    with av.open(str(files["save"])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    lines = files["jsonl"].read_bytes().splitlines()
    sources = [protocol.decode(line, protocol.RecordedMessage).source for line in lines]
    assert sources.count("yard") > 1
    assert len(frames) == sources.count("gate") > 1
    assert all((abs(frame.astype(int) - (255, 0, 0)) < 12).all() for frame in frames)
    assert caplog.messages == [
        "yard is not saved: a video holds one source, here gate; name it with --source"
    ]


def test_failed_file_does_not_affect_the_other_file(tmp_path, monkeypatch):
    def raise_disk_full(*_):
        raise OutputError("out.jsonl: can't be written: the disk is full")

    monkeypatch.setattr(ResultsFile, "write_message", raise_disk_full)
    messages = [dataclasses.replace(create_received(), jpeg=encode_solid_jpeg()) for _ in range(5)]
    with (
        pytest.raises(OutputError, match=r"out\.jsonl: can't be written"),
        Recorder(tmp_path / "out.jsonl", tmp_path / "out.mp4") as recorder,
    ):
        list(recorder.record(messages))
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 5
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_can_not_be_opened_are_reported_at_the_start(tmp_path):
    with pytest.raises(OutputError, match=r"gone/a: .*no such folder.*; .*gone/b: "):
        Recorder(tmp_path / "gone" / "a", tmp_path / "gone" / "b")


def test_video_of_two_sources_is_refused_before_connecting(streamseg: Run) -> None:
    invalid_address = "tcp://127.0.0.1:99999"  # connecting would raise an error
    process = streamseg(
        "watch", invalid_address, "--save", "o.mp4", "--source", "a", "--source", "b"
    )
    assert (process.returncode, len(process.stderr.splitlines())) == (2, 1)
    assert "--save o.mp4: a video holds one source: name it with --source" in process.stderr


def test_video_of_a_source_named_twice_is_accepted(streamseg: Run) -> None:
    at = f"tcp://127.0.0.1:{free_port()}"
    options = ("--save", "o.mp4", "--source", "a", "--source", "a", "--timeout", "0.3")
    result = streamseg("watch", at, *options)
    assert "no result in 0.3 s" in result.stderr
