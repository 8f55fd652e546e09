"""Cameras for tests: a real RTSP server that can be told to misbehave, and HTTP: MJPEG, and
transport streams that are always in the middle of something."""

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
"""GStreamer's bindings are Debian's, and so is the Python that they are for."""


def needs(found: bool, what: str) -> None:
    """Skip a test whose program isn't installed; in CI, which installs it, fail."""
    if not found:
        assert not os.environ.get("CI"), f"{what} isn't installed"
        pytest.skip(f"{what} isn't installed: see .ci/run")


class PortTakenError(Exception):
    """Somebody was quicker."""


class RtspCamera:
    """A camera that tests control; ``tell`` what its server reads: kill, drop, gone, back, size."""

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


def _started(options: tuple[str, ...], port: int | None) -> RtspCamera:
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
    needs(has_server.returncode == 0, "the RTSP server of GStreamer")
    camera = _started(options, port)
    try:
        yield camera
    finally:
        camera.close()


def jpeg(grey: int = 128, size: tuple[int, int] = (64, 48)) -> bytes:
    into = io.BytesIO()
    Pillow.new("RGB", size, (grey, grey, grey)).save(into, "JPEG")
    return into.getvalue()


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@functools.cache
def recorded_ts(seconds: int = 60, fps: int = 10, gop: int = 20) -> tuple[bytes, ...]:
    """A moving square as H.264 in a transport stream, cut into what belongs to each frame."""
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
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = index
            before = file.tell()
            container.mux(stream.encode(picture))
            pieces.append(file.getvalue()[before:])
    return tuple(pieces)


class _Mjpeg(http.server.BaseHTTPRequestHandler):
    """``/cam``: pictures for ever; ``/ts``: a transport stream; ``/away/HOST``: a redirection."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, HttpCamera)
        server.asked.append(self.path)
        if server.login is not None and not self._may(server.login):
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'{server.scheme} realm="cam", nonce="{NONCE}"')
            self.end_headers()
        elif self.path in server.makes:
            self._send(*server.makes[self.path]())
        elif self.path in server.pages:
            self._send(*server.pages[self.path])
        elif self.path.startswith("/away/"):
            self.send_response(302)
            self.send_header("Location", server.leads_to)
            self.end_headers()
        elif self.path == "/cam":
            self._stream(server)
        elif self.path == "/ts":
            self._transport(server)
        else:
            self.send_error(404)

    def _send(self, kind: str, body: bytes) -> None:
        """A page, or the part of it that is asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.server.has_ranges:
            first, last = int(wanted[1]), int(wanted[2])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            body = body[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def _may(self, login: tuple[str, str]) -> bool:
        """Whether the request is of that user with that password, by either scheme."""
        scheme, _, rest = self.headers.get("Authorization", "").partition(" ")
        self.server.credentials.append(scheme)
        if scheme == "Basic":
            return base64.b64decode(rest).decode() == ":".join(login)
        said = dict(re.findall(r'(\w+)="?([^",]*)', rest))
        known = md5(f"{login[0]}:cam:{login[1]}"), NONCE, md5(f"GET:{self.path}")
        return said.get("response") == md5(":".join(known))

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
                server.sent.append(time.monotonic())
                self.wfile.write(head.encode() + picture + b"\r\n")
                time.sleep(1 / server.fps)

    def _transport(self, server: HttpCamera) -> None:
        """From where a camera is by now, which is in the middle of a GOP."""
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        cuts = server.cuts
        with contextlib.suppress(OSError):
            for piece in itertools.islice(recorded_ts(), server.begins_at, None):
                if server.silent.is_set() or server.cuts != cuts:
                    return
                self.wfile.write(piece)
                time.sleep(1 / server.fps)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class HttpCamera(http.server.ThreadingHTTPServer):
    """MJPEG at ``/cam``, ``recorded_ts`` at ``/ts``, what a test puts into ``pages``: path to
    (type, body), or into ``makes``: path to what makes these.

    Attributes:
        has_ranges: whether a request for a part of a page gets that part.
        login: who may ask, user and password; None is everybody.
        scheme: how they are asked for, ``Basic`` or ``Digest``.
        credentials: the scheme of each request, or nothing.
        begins_at: the frame that ``/ts`` begins with.
        cuts: what streams by ``/ts`` ends when this changes.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, fps: float = 20) -> None:
        super().__init__(("127.0.0.1", 0), _Mjpeg)
        self.fps = fps
        self.silent = threading.Event()
        self.begins_at = self.cuts = 0
        self.login: tuple[str, str] | None = None
        self.scheme = "Basic"
        self.credentials: list[str] = []
        self.asked: list[str] = []
        self.sent: list[float] = []
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.makes: dict[str, Callable[[], tuple[str, bytes]]] = {}
        self.has_ranges = True
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


@contextlib.contextmanager
def raw_camera(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A camera that answers each request by ``answer(connection)``, and then hangs up; its URL."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if connection.recv(65536):  # else it was only knocked at
                answer(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = door.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as door:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}/cam"
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()
