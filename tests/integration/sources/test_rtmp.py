"""RTMP sources, with nginx and its RTMP module as server."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from support.live_sources import start_reader
from support.ports import free_port

from streamseg.sources.live import MAX_DELAY

MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
FPS = 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(60),
    pytest.mark.skipif(
        not MODULE.exists() or shutil.which("nginx") is None,
        reason="needs nginx with its RTMP module (Debian: nginx-light, libnginx-mod-rtmp)",
    ),
]


class Publisher:
    """Camera that publishes to the server until it is closed; ``silent`` pauses it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopped = threading.Event()
        self.silent = threading.Event()
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _publish(self) -> None:
        with (
            contextlib.suppress(av.error.FFmpegError),
            av.open(self._url, "w", format="flv") as container,
        ):
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            stream.options = {"preset": "ultrafast", "tune": "zerolatency"}
            stream.codec_context.gop_size = FPS
            for index in itertools.count():
                if self._stopped.wait(1 / FPS):
                    return
                if self.silent.is_set():
                    continue
                image = np.full((120, 160, 3), index % 250, np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))


class RtmpServer:
    """nginx with its configuration and files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"rtmp://127.0.0.1:{self.port}/live/cam"
        (folder / "nginx.conf").write_text(
            f"load_module {MODULE};\ndaemon off;\nmaster_process off;\n"
            f"pid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
            f"rtmp {{ server {{ listen 127.0.0.1:{self.port}; "
            "application live { live on; } } }\n"
        )
        self.start()

    def start(self) -> None:
        command = ["nginx", "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        raise TimeoutError((self._folder / "error.log").read_text())

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RtmpServer]:
    server = RtmpServer(tmp_path)
    yield server
    server.kill()


@contextlib.contextmanager
def run_publisher(url: str) -> Iterator[Publisher]:
    publisher = Publisher(url)
    try:
        yield publisher
    finally:
        publisher.close()


def test_source_reconnects_after_a_server_restart(server: RtmpServer) -> None:
    reader = start_reader(server.url)
    try:
        with run_publisher(server.url):
            reader.wait_until(lambda: reader.count_frames(0) >= 5)
            server.kill()
            reader.wait_until(
                lambda: reader.states()[-1] != "live" and len(reader.state_changes) > 1
            )
        server.start()
        with run_publisher(server.url):
            assert reader.wait_until(lambda: reader.count_frames(1) >= 1) < 5 + MAX_DELAY
    finally:
        reader.close()
    assert reader.received[0][1].size == (120, 160)


def test_silent_publisher_is_a_stall_and_a_new_publisher_is_read(
    server: RtmpServer,
) -> None:
    reader = start_reader(server.url)
    try:
        with run_publisher(server.url) as publisher:
            reader.wait_until(lambda: reader.count_frames(0) >= 5)
            publisher.silent.set()
            reader.wait_until(lambda: "stalled" in reader.states())
            stalled_at = next(at for at, state, _ in reader.state_changes if state == "stalled")
            assert stalled_at - reader.received[-1][0] < 2.5
        with run_publisher(server.url):
            assert reader.wait_until(lambda: reader.count_frames(1) >= 1) < 5 + MAX_DELAY
    finally:
        reader.close()
