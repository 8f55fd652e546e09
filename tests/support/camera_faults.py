"""What goes wrong with cameras, one class each: real servers, and the moment it begins and ends.

``tools/faults.py`` measures with them, ``test_faults.py`` tests with them.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import ClassVar

from support.cameras import HttpCamera, RtspCamera, http_camera, rtsp_camera
from support.chaos_proxy import ChaosProxy

FPS = 10
USUAL = ("--fps", str(FPS), "--gop", "10")
STALL_AFTER, OPEN_TIMEOUT = 1.5, 5.0
LOST = 10
"""Of a hundred packets."""


class Fault(ABC):
    """A camera, and what will be wrong with it from ``begin`` to ``end``.

    Attributes:
        name: what it is called on the command line and in the table.
        reason: a regular expression for what the service says meanwhile; empty if it isn't to
            notice.
        stalls: whether the connection stays open, so that only the silence tells.
        reconnects: whether the camera is to come back in a new epoch.
        privileged: whether it needs a network namespace of its own.
        options: the source's, beside its url.
    """

    name: ClassVar[str]
    reason: ClassVar[str] = ""
    stalls: ClassVar[bool] = False
    reconnects: ClassVar[bool] = True
    privileged: ClassVar[bool] = False

    def __init__(self) -> None:
        self.url = ""
        self.options: dict[str, object] = {
            "stall_after": STALL_AFTER,
            "open_timeout": OPEN_TIMEOUT,
        }
        self._held = ExitStack()
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Start the camera, and set ``url``."""

    @abstractmethod
    def begin(self) -> None:
        """From now on it is wrong."""

    @abstractmethod
    def end(self) -> None:
        """From now on it is right again."""

    def close(self) -> None:
        """Let go of everything."""
        self._held.close()

    def _rtsp(self, *options: str, port: int | None = None) -> RtspCamera:
        camera = self._held.enter_context(rtsp_camera(*USUAL, *options, port=port))
        self.url = camera.url
        return camera


class Killed(Fault):
    """The server is killed in the middle of its stream, and started again."""

    name = "killed"
    reason = "ended|refused"

    def prepare(self) -> None:
        self._camera = self._rtsp()

    def begin(self) -> None:
        self._camera.tell("kill")

    def end(self) -> None:
        self._camera = self._rtsp(port=self._camera.port)


class Frozen(Fault):
    """The server is stopped with its sockets open."""

    name = "frozen"
    reason = "no frame for"
    stalls = True

    def prepare(self) -> None:
        self._camera = self._rtsp()
        self._held.callback(self._camera.thaw)

    def begin(self) -> None:
        self._camera.freeze()

    def end(self) -> None:
        self._camera.thaw()


class Gone(Fault):
    """The server is there, and the stream isn't."""

    name = "gone"
    reason = "404"

    def prepare(self) -> None:
        self._camera = self._rtsp()

    def begin(self) -> None:
        self._camera.tell("gone")

    def end(self) -> None:
        self._camera.tell("back")


class Refused(Fault):
    """Somebody changes the camera's password, and changes it back."""

    name = "refused-credentials"
    reason = "401"

    def prepare(self) -> None:
        self._camera = self._rtsp("--password", "right")
        self.url = self.url.replace("//", "//user:right@")

    def begin(self) -> None:
        self._restart("other")

    def end(self) -> None:
        self._restart("right")

    def _restart(self, password: str) -> None:
        url = self.url
        self._camera.close()
        self._camera = self._rtsp("--password", password, port=self._camera.port)
        self.url = url


class Resolution(Fault):
    """The camera's pictures become larger within the connection, and small again."""

    name = "resolution"

    def prepare(self) -> None:
        self._camera = self._rtsp()

    def begin(self) -> None:
        self._camera.tell("size 480x360")

    def end(self) -> None:
        self._camera.tell("size 320x240")


class Proxied(Fault):
    """What the proxy before a camera does."""

    def prepare(self) -> None:
        self._proxy = ChaosProxy(self._rtsp().port)
        self._held.callback(self._proxy.close)
        self.url = f"rtsp://127.0.0.1:{self._proxy.port}/cam"


class ClosedPort(Proxied):
    """Connections are cut and the port is closed."""

    name = "refused-port"
    reason = "refused"

    def begin(self) -> None:
        self._proxy.refuse()

    def end(self) -> None:
        self._proxy.listen()


class Reset(Proxied):
    """Each connection is reset after some 40 kB, in the middle of a frame."""

    name = "reset"
    reason = "ended|read on|reset"

    def begin(self) -> None:
        self._proxy.cut_after = 40_000
        self._proxy.reset()

    def end(self) -> None:
        self._proxy.cut_after = None
        self._proxy.reset()


class Delay(Proxied):
    """Everything comes half a second late, more or less."""

    name = "delay"
    reconnects = False

    def begin(self) -> None:
        self._proxy.latency, self._proxy.jitter = 0.1, 0.3

    def end(self) -> None:
        self._proxy.latency = self._proxy.jitter = 0.0


class Rate(Proxied):
    """The line carries a tenth of what the camera sends."""

    name = "rate-limit"
    reason = "no frame"
    stalls = True

    def begin(self) -> None:
        self._proxy.rate = 500

    def end(self) -> None:
        self._proxy.rate = None
        self._proxy.reset()  # what has piled up on such a line isn't waited for


class HalfGop(Fault):
    """The stream is cut in the middle of a GOP, and begins in the middle of one."""

    name = "half-gop"
    reason = "ended"

    def prepare(self) -> None:
        self._page: HttpCamera = self._held.enter_context(http_camera(FPS))
        self.url = f"{self._page.root}/ts"

    def begin(self) -> None:
        self._page.begins_at = 7
        self._page.cuts += 1

    def end(self) -> None:
        self._page.begins_at = 13
        self._page.cuts += 1


class Firewalled(Fault):
    """What nftables does to packets in a network namespace of our own."""

    privileged = True
    share: ClassVar[int]
    transport: ClassVar[str]

    def prepare(self) -> None:
        self._camera = self._rtsp()
        self.options["transport"] = self.transport

    def begin(self) -> None:
        port = self._camera.port
        drop = "drop" if self.share == 100 else f"numgen random mod 100 < {self.share} drop"
        rules = {
            "tcp": [f"tcp sport {port} {drop}", f"tcp dport {port} {drop}"],
            "udp": [f"meta l4proto udp {drop}"],
        }[self.transport]
        nft("add table inet faults")
        nft("add chain inet faults in { type filter hook input priority 0; }")
        for rule in rules:
            nft(f"add rule inet faults in {rule}")

    def end(self) -> None:
        nft("delete table inet faults")


class LossUdp(Firewalled):
    """One packet in ten is lost, and RTP doesn't send it again."""

    name = "loss-udp"
    transport = "udp"
    share = LOST
    reconnects = False


class LossTcp(Firewalled):
    """One packet in ten is lost, and TCP sends it again."""

    name = "loss-tcp"
    transport = "tcp"
    share = LOST
    reconnects = False


class BlackUdp(Firewalled):
    """No media come any more, while the control connection stays."""

    name = "black-udp"
    transport = "udp"
    share = 100
    reason = "no frame for"
    stalls = True


class BlackTcp(Firewalled):
    """Nothing comes any more, not even a refusal."""

    name = "black-tcp"
    transport = "tcp"
    share = 100
    reason = "no frame for"
    stalls = True


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        *(Killed, Frozen, Gone, Refused, ClosedPort, Reset, Delay, Rate, HalfGop, Resolution),
        *(LossUdp, LossTcp, BlackUdp, BlackTcp),
    )
}


def nft(rule: str) -> None:
    """Change the firewall of this namespace."""
    subprocess.run(["nft", rule], check=True)
