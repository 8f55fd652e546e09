"""Reconnection of every kind of subscriber after a pause or restart of the service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from support.commands import command, environment
from support.ports import free_port
from support.publishers import encode_solid_jpeg, instances, result, service, wait_until
from support.subscribers import TcpProxy
from support.viewers import open_client, source_view, viewer

import streamseg
from streamseg.cli.recorder import Recorder
from streamseg.cli.watch import Watch
from streamseg.errors import ReceiveTimeout

STARTS = 2


class Reader:
    """Subscriber that reads in a thread and records its results.

    Attributes:
        indices: frame index of each result.
        services: service id of each result.
        sources: source of each result.
    """

    def __init__(self, address: str, kind: str, folder: Path) -> None:
        self.indices: list[int] = []
        self.services: list[str] = []
        self.sources: list[str] = []
        self._stop = threading.Event()
        options: dict[str, object] = {}
        if kind == "images":
            options["frames"] = "plain"
        if kind in ("newest", "newest images"):
            options |= {"newest": True, "frames": "plain" if "images" in kind else False}
        self._subscriber = streamseg.connect(address, **options)
        self._folder = folder
        self._watch = Watch(self._subscriber, timeout=30)
        run = {"async": self._run_async, "watch": self._run_watch}.get(kind, self._run)
        self._thread = threading.Thread(target=run)
        self._thread.start()

    def _record(self, received) -> None:
        self.indices.append(received.index)
        self.services.append(received.service)
        self.sources.append(received.source)

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(ReceiveTimeout):
                received = self._subscriber.receive(timeout=0.2)
                if received is None:
                    return
                self._record(received)

    def _run_async(self) -> None:
        async def read() -> None:
            while not self._stop.is_set():
                with contextlib.suppress(ReceiveTimeout):
                    received = await self._subscriber.receive_async(timeout=0.2)
                    if received is None:
                        return
                    self._record(received)

        asyncio.run(read())

    def _run_watch(self) -> None:
        with Recorder(self._folder / "out.jsonl", None) as recording:
            for received in recording.record(self._watch._messages()):
                self._record(received)

    def close(self) -> None:
        self._stop.set()
        self._watch.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._subscriber.close()


@contextlib.contextmanager
def run_reader(*arguments):
    reader = Reader(*arguments)
    try:
        yield reader
    finally:
        reader.close()


@pytest.mark.parametrize("kind", ["sync", "async", "watch", "newest"])
def test_masks_resume_after_each_restart(kind, tmp_path) -> None:
    bind = f"tcp://127.0.0.1:{free_port()}"
    with run_reader(bind, kind, tmp_path) as reader:
        for start in range(STARTS):
            with service(bind=bind) as running:
                running.wait_for_subscribers()
                for i in range(4):
                    running.put_and_wait(result(i))
                    wait_until(lambda due=4 * start + i + 1: len(reader.indices) == due)
                running.kill()
        assert reader._subscriber.gaps == {"gate": 0}
    assert reader.indices == [0, 1, 2, 3] * STARTS
    assert len(set(reader.services)) == STARTS
    if kind == "watch":
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert [json.loads(line)["frame"] for line in lines] == reader.indices


@pytest.mark.parametrize("kind", ["images", "newest images"])
def test_images_resume_after_a_restart_at_another_port(kind, tmp_path) -> None:
    bind = f"tcp://127.0.0.1:{free_port()}"
    with run_reader(bind, kind, tmp_path) as reader:
        for start in range(STARTS):
            with service(bind=bind, bind_frames="tcp://127.0.0.1:*") as running:
                wait_until(lambda r=running: r.publisher.has_image_subscribers("video", "gate"))
                running.put_images(result(start), None, encode_solid_jpeg())
                wait_until(lambda due=start + 1: len(reader.indices) == due)
                running.kill()
    assert reader.indices == list(range(STARTS))


def test_viewer_resumes_after_each_restart(tmp_path) -> None:
    bind = f"tcp://127.0.0.1:{free_port()}"
    with viewer(bind) as shown, open_client(shown, visible_sources=("gate",)) as client:
        for start in range(2):
            with service(bind=bind) as running:
                running.publisher.set_state("gate", "live", "", 0)
                wait_until(
                    lambda r=running: r.publisher.has_image_subscribers("video", "gate"), within=15
                )
                client.wait_for_dashboard(lambda b: source_view(b).get("state") == "live")
                running.put_and_wait(result(start))
                running.put_images(result(start), None, encode_solid_jpeg())
                message = client.frame()[0]
                while message["frame"] != start:
                    message = client.frame()[0]
                assert message["service"] == running.publisher.service
                running.kill()


@pytest.mark.parametrize("kind", ["sync", "async", "watch"])
def test_short_disconnection_loses_no_results(kind, tmp_path) -> None:
    """Includes a source that ends during the disconnection; the replay socket stays reachable."""
    with service() as running:
        proxy = TcpProxy(running.masks_endpoint)
        with run_reader(proxy.endpoint, kind, tmp_path) as reader:
            running.wait_for_subscribers()
            running.put_and_wait(result(0), result(0, "yard"))
            wait_until(lambda: len(reader.indices) == 2)
            proxy.disconnect()
            wait_until(lambda: not running.publisher._has_subscribers())
            running.put_and_wait(*[result(i) for i in range(1, 200)])
            running.put_and_wait(*[result(i, "yard") for i in range(1, 50)])
            running.publisher.set_state("yard", "ended", "end of stream", 0)
            proxy.reconnect()
            running.wait_for_subscribers()
            running.put_and_wait(*[result(i) for i in range(200, 210)])
            wait_until(lambda: len(reader.indices) == 210 + 50)
            assert reader._subscriber.gaps == {"gate": 0, "yard": 0}
        proxy.close()
    for name, count in (("gate", 210), ("yard", 50)):
        received = zip(reader.indices, reader.sources, strict=True)
        assert [index for index, source in received if source == name] == list(range(count))


def test_slow_reader_gets_all_queued_results() -> None:
    found, count = instances(100, (1080, 1920)), 700  # more than socket buffers hold
    with service() as running, streamseg.connect(running.masks_endpoint, timeout=10) as sub:
        running.wait_for_subscribers()
        running.publisher.set_state("gate", "live", "", 0)
        running.put_and_wait(*[result(i, found=found) for i in range(count)])
        assert [sub.receive().index for _ in range(count)] == list(range(count))
        assert sub.gaps == {"gate": 0}


@pytest.mark.slow
def test_every_subscriber_resumes_after_a_killed_service_restarts(tmp_path) -> None:
    bind = f"tcp://127.0.0.1:{free_port()}"
    live = "test:?live=1&size=320x240&fps=10"
    kinds = ("sync", "async", "watch", "newest", "images", "newest images")
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(run_reader(bind, kind, tmp_path)) for kind in kinds]
        client = stack.enter_context(
            open_client(stack.enter_context(viewer(bind)), visible_sources=("gate",))
        )
        service_ids = set()
        for start in range(2):
            arguments = ("serve", "--source", live, "--set", "sources.0.name=gate", "--bind", bind)
            with subprocess.Popen(
                command(*arguments, "--set", "model.input_size=128"),
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as serving:
                try:
                    wait_until(
                        lambda due=start + 1: all(len(set(r.services)) == due for r in readers),
                        within=60,
                    )
                    while (service_id := client.frame(within=30)[0]["service"]) in service_ids:
                        continue
                    service_ids.add(service_id)
                finally:
                    serving.send_signal(signal.SIGKILL)
    assert all(len(set(r.services)) == 2 for r in readers)
