"""An RTSP camera that tests control; run by Debian's Python, which has GStreamer's bindings.

Says ``ready`` once it listens. Then it reads words on stdin: ``kill`` exits at once, ``drop``
closes every connection, ``gone`` and ``back`` take the stream away and bring it back, and
``size WxH`` makes what is being streamed larger or smaller, within the connection.
"""

import argparse
import os
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
gi.require_version("GstRtsp", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - versions come first

PATH = "/cam"
USER = "user"


def raw(size: str, fps: int) -> str:
    """What the pictures are before they are encoded."""
    width, height = size.split("x")
    return f"video/x-raw,width={width},height={height},framerate={fps}/1,format=I420"


def factory(options: argparse.Namespace) -> GstRtspServer.RTSPMediaFactory:
    """A ball that moves about, encoded for little delay; one slice a frame, for the payloader puts
    a header before each, and that makes them frames of their own."""
    made = GstRtspServer.RTSPMediaFactory()
    encoded = {
        "h264": f"x264enc tune=zerolatency speed-preset=ultrafast threads=1 "
        f"key-int-max={options.gop} ! rtph264pay name=pay0 pt=96 config-interval=-1",
        "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
    }
    made.set_launch(
        f"( videotestsrc is-live=true pattern=ball num-buffers={options.frames} ! "
        f"capsfilter name=size caps={raw(options.size, options.fps)} ! {encoded[options.codec]} )"
    )
    made.set_shared(True)
    if options.password:
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role(USER, "media.factory.access", True)
        permissions.add_permission_for_role(USER, "media.factory.construct", True)
        made.set_permissions(permissions)
    return made


def login(password: str, *, digest: bool) -> GstRtspServer.RTSPAuth:
    """Only ``USER`` with this password may watch."""
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", USER)
    auth = GstRtspServer.RTSPAuth()
    if digest:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(USER, password, token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(USER, password), token)
    return auth


class Camera:
    """The server, and what tests tell it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._server = GstRtspServer.RTSPServer()
        self._server.set_address("127.0.0.1")
        self._server.set_service(options.port)
        if options.password:
            self._server.set_auth(login(options.password, digest=options.digest))
        self._mounts = self._server.get_mount_points()
        self._filters: list[Gst.Element] = []
        self.back()
        if self._server.attach(None) == 0:
            sys.exit(f"port {options.port} is taken")

    def drop(self) -> None:
        self._server.client_filter(lambda *_: GstRtspServer.RTSPFilterResult.REMOVE)

    def gone(self) -> None:
        self._mounts.remove_factory(PATH)
        self.drop()

    def back(self) -> None:
        made = factory(self._options)
        made.connect("media-configure", self._configured)
        self._mounts.add_factory(PATH, made)

    def size(self, size: str) -> None:
        caps = Gst.Caps.from_string(raw(size, self._options.fps))
        self._filters[-1].set_property("caps", caps)

    def _configured(self, _: object, media: GstRtspServer.RTSPMedia) -> None:
        self._filters.append(media.get_element().get_by_name("size"))


def obey(camera: Camera) -> None:
    """Read words; act on them in the server's own thread."""
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "kill":
            os._exit(9)
        does = {
            "drop": camera.drop,
            "gone": camera.gone,
            "back": camera.back,
            "size": camera.size,
        }
        GLib.idle_add(does[word], *rest)


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--gop", type=int, default=25)
    parser.add_argument("--frames", type=int, default=-1)
    parser.add_argument("--codec", choices=("h264", "mjpeg"), default="h264")
    parser.add_argument("--password")
    parser.add_argument("--digest", action="store_true")
    options = parser.parse_args()

    Gst.init(None)
    camera = Camera(options)
    threading.Thread(target=obey, args=(camera,), daemon=True).start()
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
