"""RTSP and HTTP cameras: servers whose faults, credentials and redirections tests control."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import av
import numpy as np
import pytest
from PIL import Image as Pillow
from support.paths import TESTS
from support.ports import free_port

SERVER = TESTS / "support" / "rtsp_server.py"
NONCE = "0123456789abcdef"
SYSTEM_PYTHON = "/usr/bin/python3"
"""Debian's Python, because its GStreamer bindings are installed for no other interpreter."""


def require_program(name: str, *, is_installed: bool) -> None:
    """Skip a test whose program isn't installed; in CI, which installs it, fail."""
    if not is_installed:
        assert not os.environ.get("CI"), f"{name} isn't installed"
        pytest.skip(f"{name} isn't installed: see .ci/run")


class PortTakenError(Exception):
    """Another process has bound the port."""


class RtspCamera:
    """RTSP camera in a process of its own; ``rtsp_server.py`` documents its commands."""

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
        if self._process.stdout.readline() != "ready\n":
            self.close()
            raise PortTakenError(self.port)

    def send_command(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _start_rtsp_camera(options: tuple[str, ...], port: int | None) -> RtspCamera:
    for _ in range(4):
        with contextlib.suppress(PortTakenError):
            return RtspCamera(*options, port=port)
        time.sleep(0.1)
    return RtspCamera(*options, port=port)


@contextlib.contextmanager
def rtsp_camera(*options: str, port: int | None = None) -> Iterator[RtspCamera]:
    has_server = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import gi; gi.require_version('GstRtspServer', '1.0')"],
        check=False,
        stderr=subprocess.DEVNULL,
    )
    require_program("the RTSP server of GStreamer", is_installed=has_server.returncode == 0)
    camera = _start_rtsp_camera(options, port)
    try:
        yield camera
    finally:
        camera.close()


def encode_gray_jpeg(level: int = 128, size: tuple[int, int] = (64, 48)) -> bytes:
    """Encode a gray image of a size (width, height)."""
    file = io.BytesIO()
    Pillow.new("RGB", size, (level, level, level)).save(file, "JPEG")
    return file.getvalue()


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@functools.cache
def encode_transport_stream(seconds: int = 60, fps: int = 10, gop: int = 20) -> tuple[bytes, ...]:
    """Return an MPEG transport stream of a moving square in H.264, in one piece per frame."""
    file = io.BytesIO()
    pieces: list[bytes] = []
    with av.open(file, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "scenecut=0"}
        stream.codec_context.gop_size = gop
        for index in range(seconds * fps):
            image = np.full((240, 320, 3), 60, np.uint8)
            image[100:140, index % 280 : index % 280 + 40] = 200
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            before = file.tell()
            container.mux(stream.encode(frame))
            pieces.append(file.getvalue()[before:])
    return tuple(pieces)


class _RequestHandler(http.server.BaseHTTPRequestHandler):
    """Serve MJPEG at ``/cam``, a transport stream at ``/ts`` and redirections at ``/away/…``."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, HttpCamera)
        server.requested_paths.append(self.path)
        if server.login is not None and not self._is_authorized(server.login):
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'{server.scheme} realm="cam", nonce="{NONCE}"')
            self.end_headers()
        elif self.path in server.response_factories:
            self._send(*server.response_factories[self.path]())
        elif self.path in server.responses:
            self._send(*server.responses[self.path])
        elif self.path.startswith("/away/"):
            self.send_response(302)
            self.send_header("Location", server.redirect_target)
            self.end_headers()
        elif self.path == "/cam":
            self._send_mjpeg(server)
        elif self.path == "/ts":
            self._send_transport_stream(server)
        else:
            self.send_error(404)

    def _send(self, content_type: str, body: bytes) -> None:
        """Send a response, or the byte range of it that the request names."""
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if requested and self.server.supports_ranges:
            first, last = int(requested[1]), int(requested[2])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            body = body[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        self.wfile.write(body)

    def _is_authorized(self, login: tuple[str, str]) -> bool:
        """Return whether the request has the user name and password, in Basic or Digest."""
        scheme, _, rest = self.headers.get("Authorization", "").partition(" ")
        self.server.credentials.append(scheme)
        if scheme == "Basic":
            return base64.b64decode(rest).decode() == ":".join(login)
        fields = dict(re.findall(r'(\w+)="?([^",]*)', rest))
        parts = md5(f"{login[0]}:cam:{login[1]}"), NONCE, md5(f"GET:{self.path}")
        return fields.get("response") == md5(":".join(parts))

    def _send_mjpeg(self, server: HttpCamera) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):
            while not server.silent.is_set():
                image = encode_gray_jpeg()
                head = (
                    f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
                )
                server.send_times.append(time.monotonic())
                self.wfile.write(head.encode() + image + b"\r\n")
                time.sleep(1 / server.fps)

    def _send_transport_stream(self, server: HttpCamera) -> None:
        """Send the stream from ``server.first_frame`` on, until ``server.generation`` changes."""
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        generation = server.generation
        with contextlib.suppress(OSError):
            for piece in itertools.islice(encode_transport_stream(), server.first_frame, None):
                if server.silent.is_set() or server.generation != generation:
                    return
                self.wfile.write(piece)
                time.sleep(1 / server.fps)

    def log_message(self, *_: object) -> None:
        """Discard log messages."""


class HttpCamera(http.server.ThreadingHTTPServer):
    """HTTP server with MJPEG at ``/cam``, a transport stream at ``/ts`` and other responses.

    Attributes:
        fps: frames per second of the streams.
        silent: set to end the streams before their next frame.
        first_frame: index of the first frame of ``/ts``.
        generation: connections to ``/ts`` are closed when this changes.
        login: required user name and password; None allows every request.
        scheme: requested authentication scheme, ``Basic`` or ``Digest``.
        credentials: authentication scheme of each request; empty for none.
        requested_paths: path of each request.
        send_times: time at which each MJPEG frame was sent, in monotonic seconds.
        responses: content type and body, by path.
        response_factories: functions that return content type and body, by path.
        supports_ranges: whether range requests get a partial response.
        redirect_target: location that ``/away/…`` redirects to.
        root: URL of the server, without a path.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, fps: float = 20) -> None:
        super().__init__(("127.0.0.1", 0), _RequestHandler)
        self.fps = fps
        self.silent = threading.Event()
        self.first_frame = self.generation = 0
        self.login: tuple[str, str] | None = None
        self.scheme = "Basic"
        self.credentials: list[str] = []
        self.requested_paths: list[str] = []
        self.send_times: list[float] = []
        self.responses: dict[str, tuple[str, bytes]] = {}
        self.response_factories: dict[str, Callable[[], tuple[str, bytes]]] = {}
        self.supports_ranges = True
        self.redirect_target = ""
        self.root = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect; raise any other error."""
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


@contextlib.contextmanager
def raw_camera(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve requests with ``answer(connection)``, then close the connection; yield the URL."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if connection.recv(65536):  # empty if the client only probed the port
                answer(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/cam"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
