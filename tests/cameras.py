"""Cameras for tests: a real RTSP server that can be told to misbehave, and MJPEG over HTTP."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

SERVER = Path(__file__).parent / "rtsp_server.py"
SYSTEM_PYTHON = "/usr/bin/python3"
"""GStreamer's bindings are Debian's, and so is the Python that they are for."""


def needs(found: bool, what: str) -> None:
    """Skip a test whose program isn't installed; in CI, which installs it, fail."""
    if not found:
        assert not os.environ.get("CI"), f"{what} isn't installed"
        pytest.skip(f"{what} isn't installed: see .ci/run")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class RtspCamera:
    """A camera that tests control; ``tell`` what its server reads: kill, drop, gone, back."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"rtsp://127.0.0.1:{self.port}/cam"
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(SERVER), "--port", str(self.port), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "ready\n", line

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def rtsp_camera(*options: str, port: int | None = None) -> Iterator[RtspCamera]:
    has_server = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import gi; gi.require_version('GstRtspServer', '1.0')"],
        check=False,
        stderr=subprocess.DEVNULL,
    )
    needs(has_server.returncode == 0, "the RTSP server of GStreamer")
    camera = RtspCamera(*options, port=port)
    try:
        yield camera
    finally:
        camera.close()


def jpeg(grey: int = 128, size: tuple[int, int] = (64, 48)) -> bytes:
    into = io.BytesIO()
    Pillow.new("RGB", size, (grey, grey, grey)).save(into, "JPEG")
    return into.getvalue()


class _Mjpeg(http.server.BaseHTTPRequestHandler):
    """``/cam``: pictures for ever; ``/away/HOST``: a redirection; else 404."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, HttpCamera)
        server.asked.append(self.path)
        if self.path in server.pages:
            kind, body = server.pages[self.path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)
        elif self.path.startswith("/away/"):
            self.send_response(302)
            self.send_header("Location", server.leads_to)
            self.end_headers()
        elif self.path == "/cam":
            self._stream(server)
        else:
            self.send_error(404)

    def _stream(self, server: HttpCamera) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):
            while not server.silent.is_set():
                picture = jpeg()
                head = (
                    f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                )
                self.wfile.write(head.encode() + picture + b"\r\n")
                time.sleep(1 / server.fps)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class HttpCamera(http.server.ThreadingHTTPServer):
    """MJPEG at ``/cam``, and what a test puts into ``pages``: path to (type, body)."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, fps: float = 20) -> None:
        super().__init__(("127.0.0.1", 0), _Mjpeg)
        self.fps = fps
        self.silent = threading.Event()
        self.asked: list[str] = []
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.leads_to = ""
        self.root = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A reader that leaves is no error; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            raise  # noqa: PLE0704 - socketserver calls this while it handles an exception


@contextlib.contextmanager
def http_camera(fps: float = 20) -> Iterator[HttpCamera]:
    with HttpCamera(fps) as camera:
        thread = threading.Thread(target=camera.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield camera
        finally:
            camera.silent.set()
            camera.shutdown()
            thread.join()
