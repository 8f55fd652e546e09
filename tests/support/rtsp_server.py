"""RTSP server that tests control; run by Debian's Python, which has GStreamer's bindings.

It prints ``ready`` when it accepts connections. Then it reads commands from stdin: ``kill`` exits
at once, ``disconnect`` closes all connections, ``remove`` and ``restore`` unmount and mount the
stream, and ``resize WxH`` changes the frame size within the connection.
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


def raw_caps(size: str, fps: int) -> str:
    """Return the caps of the frames before they are encoded."""
    width, height = size.split("x")
    return f"video/x-raw,width={width},height={height},framerate={fps}/1,format=I420"


def create_factory(options: argparse.Namespace) -> GstRtspServer.RTSPMediaFactory:
    """Create a low-latency stream of a moving ball.

    One encoder thread makes one slice per frame. The payloader writes a header before each slice,
    so that decoders would take several slices for several frames.
    """
    factory = GstRtspServer.RTSPMediaFactory()
    encoders = {
        "h264": f"x264enc tune=zerolatency speed-preset=ultrafast threads=1 "
        f"key-int-max={options.gop} ! rtph264pay name=pay0 pt=96 config-interval=-1",
        "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
    }
    factory.set_launch(
        f"( videotestsrc is-live=true pattern=ball num-buffers={options.frames} ! "
        f"capsfilter name=size caps={raw_caps(options.size, options.fps)} ! "
        f"{encoders[options.codec]} )"
    )
    factory.set_shared(True)
    if options.password:
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role(USER, "media.factory.access", True)
        permissions.add_permission_for_role(USER, "media.factory.construct", True)
        factory.set_permissions(permissions)
    return factory


def create_auth(password: str, *, digest: bool) -> GstRtspServer.RTSPAuth:
    """Create an authentication that allows ``USER`` with this password only."""
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
    """RTSP server; each public method is a command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._server = GstRtspServer.RTSPServer()
        self._server.set_address("127.0.0.1")
        self._server.set_service(options.port)
        if options.password:
            self._server.set_auth(create_auth(options.password, digest=options.digest))
        self._mounts = self._server.get_mount_points()
        self._filters: list[Gst.Element] = []
        self.restore()
        if self._server.attach(None) == 0:
            sys.exit(f"port {options.port} is taken")

    def disconnect(self) -> None:
        self._server.client_filter(lambda *_: GstRtspServer.RTSPFilterResult.REMOVE)

    def remove(self) -> None:
        self._mounts.remove_factory(PATH)
        self.disconnect()

    def restore(self) -> None:
        factory = create_factory(self._options)
        factory.connect("media-configure", self._add_filter)
        self._mounts.add_factory(PATH, factory)

    def resize(self, size: str) -> None:
        caps = Gst.Caps.from_string(raw_caps(size, self._options.fps))
        self._filters[-1].set_property("caps", caps)

    def _add_filter(self, _: object, media: GstRtspServer.RTSPMedia) -> None:
        self._filters.append(media.get_element().get_by_name("size"))


def read_commands(camera: Camera) -> None:
    """Read commands from stdin and run them in the server's thread."""
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "kill":
            os._exit(9)
        methods = {
            "disconnect": camera.disconnect,
            "remove": camera.remove,
            "restore": camera.restore,
            "resize": camera.resize,
        }
        GLib.idle_add(methods[command], *arguments)


def main() -> None:
    """Serve until the process is killed."""
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
    threading.Thread(target=read_commands, args=(camera,), daemon=True).start()
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
