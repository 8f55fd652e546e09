"""An RTSP camera that tests control; run by Debian's Python, which has GStreamer's bindings.

Says ``ready`` once it listens. Then it reads words on stdin: ``kill`` exits at once, ``drop``
closes every connection, ``gone`` and ``back`` take the stream away and bring it back.
"""

import argparse
import os
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - versions come first

PATH = "/cam"
USER = "user"


def factory(options: argparse.Namespace) -> GstRtspServer.RTSPMediaFactory:
    """A ball that moves about, encoded for little delay."""
    made = GstRtspServer.RTSPMediaFactory()
    width, height = options.size.split("x")
    made.set_launch(
        f"( videotestsrc is-live=true pattern=ball num-buffers={options.frames} ! "
        f"video/x-raw,width={width},height={height},framerate={options.fps}/1,format=I420 ! "
        f"x264enc tune=zerolatency speed-preset=ultrafast key-int-max={options.gop} ! "
        "rtph264pay name=pay0 pt=96 config-interval=-1 )"
    )
    made.set_shared(True)
    if options.password:
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role(USER, "media.factory.access", True)
        permissions.add_permission_for_role(USER, "media.factory.construct", True)
        made.set_permissions(permissions)
    return made


def login(password: str) -> GstRtspServer.RTSPAuth:
    """Only ``USER`` with this password may watch."""
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", USER)
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(USER, password), token)
    return auth


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--gop", type=int, default=25)
    parser.add_argument("--frames", type=int, default=-1)
    parser.add_argument("--password")
    options = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    if options.password:
        server.set_auth(login(options.password))
    mounts = server.get_mount_points()
    mounts.add_factory(PATH, factory(options))
    if server.attach(None) == 0:
        sys.exit(f"port {options.port} is taken")

    def drop() -> bool:
        server.client_filter(lambda *_: GstRtspServer.RTSPFilterResult.REMOVE)
        return False

    def gone() -> bool:
        mounts.remove_factory(PATH)
        return drop()

    def back() -> bool:
        mounts.add_factory(PATH, factory(options))
        return False

    def obey() -> None:
        for word in sys.stdin:
            if word.strip() == "kill":
                os._exit(9)
            GLib.idle_add({"drop": drop, "gone": gone, "back": back}[word.strip()])

    threading.Thread(target=obey, daemon=True).start()
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
