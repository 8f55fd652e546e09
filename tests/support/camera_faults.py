"""Camera faults, one class per fault: a real server, and methods that start and end the fault.

They are used by ``tools/faults.py`` and by ``test_faults.py``.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import ClassVar

from support.cameras import HttpCamera, RtspCamera, http_camera, rtsp_camera
from support.chaos_proxy import ChaosProxy

FPS = 10
DEFAULT_OPTIONS = ("--fps", str(FPS), "--gop", "10")
STALL_AFTER, OPEN_TIMEOUT = 1.5, 5.0
LOSS_PERCENT = 10
"""Share of packets that the loss faults drop, in percent."""


class Fault(ABC):
    """Camera that has a fault from ``begin`` to ``end``.

    Attributes:
        name: name on the command line and in the table.
        reason: regular expression of the reason that the service must publish during the fault;
            empty if the service must not detect it.
        stalls: whether the connection stays open, so that the fault is detected by a timeout.
        reconnects: whether the source must continue in a new epoch.
        privileged: whether the fault needs a network namespace of its own.
        url: address of the camera.
        options: further options of the source.
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
        self._resources = ExitStack()
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Start the camera and set ``url``."""

    @abstractmethod
    def begin(self) -> None:
        """Start the fault."""

    @abstractmethod
    def end(self) -> None:
        """End the fault."""

    def close(self) -> None:
        """Stop the camera and release all resources."""
        self._resources.close()

    def _start_camera(self, *options: str, port: int | None = None) -> RtspCamera:
        camera = self._resources.enter_context(rtsp_camera(*DEFAULT_OPTIONS, *options, port=port))
        self.url = camera.url
        return camera


class ServerKilled(Fault):
    """The server is killed while it streams, and started again."""

    name = "killed"
    reason = "ended|refused"

    def prepare(self) -> None:
        self._camera = self._start_camera()

    def begin(self) -> None:
        self._camera.send_command("kill")

    def end(self) -> None:
        self._camera = self._start_camera(port=self._camera.port)


class ServerFrozen(Fault):
    """The server process is suspended (SIGSTOP); its sockets stay open."""

    name = "frozen"
    reason = "no frame for"
    stalls = True

    def prepare(self) -> None:
        self._camera = self._start_camera()
        self._resources.callback(self._camera.thaw)

    def begin(self) -> None:
        self._camera.freeze()

    def end(self) -> None:
        self._camera.thaw()


class StreamRemoved(Fault):
    """The server runs without the stream."""

    name = "gone"
    reason = "404"

    def prepare(self) -> None:
        self._camera = self._start_camera()

    def begin(self) -> None:
        self._camera.send_command("remove")

    def end(self) -> None:
        self._camera.send_command("restore")


class CredentialsRefused(Fault):
    """The password of the camera is changed, and changed back."""

    name = "refused-credentials"
    reason = "401"

    def prepare(self) -> None:
        self._camera = self._start_camera("--password", "right")
        self.url = self.url.replace("//", "//user:right@")

    def begin(self) -> None:
        self._restart("other")

    def end(self) -> None:
        self._restart("right")

    def _restart(self, password: str) -> None:
        url = self.url
        self._camera.close()
        self._camera = self._start_camera("--password", password, port=self._camera.port)
        self.url = url


class ResolutionChange(Fault):
    """The frames become larger within the connection, and smaller again."""

    name = "resolution"

    def prepare(self) -> None:
        self._camera = self._start_camera()

    def begin(self) -> None:
        self._camera.send_command("resize 480x360")

    def end(self) -> None:
        self._camera.send_command("resize 320x240")


class ProxyFault(Fault):
    """Fault of a proxy between service and camera."""

    def prepare(self) -> None:
        self._proxy = ChaosProxy(self._start_camera().port)
        self._resources.callback(self._proxy.close)
        self.url = f"rtsp://127.0.0.1:{self._proxy.port}/cam"


class ClosedPort(ProxyFault):
    """Connections are reset and the port is closed."""

    name = "refused-port"
    reason = "refused"

    def begin(self) -> None:
        self._proxy.refuse()

    def end(self) -> None:
        self._proxy.listen()


class ConnectionReset(ProxyFault):
    """Each connection is reset after about 40 kB, in the middle of a frame."""

    name = "reset"
    reason = "ended|read on|reset"

    def begin(self) -> None:
        self._proxy.reset_after = 40_000
        self._proxy.reset()

    def end(self) -> None:
        self._proxy.reset_after = None
        self._proxy.reset()


class Delay(ProxyFault):
    """All data are delayed by 0.1 to 0.4 s."""

    name = "delay"
    reconnects = False

    def begin(self) -> None:
        self._proxy.latency, self._proxy.jitter = 0.1, 0.3

    def end(self) -> None:
        self._proxy.latency = self._proxy.jitter = 0.0


class RateLimit(ProxyFault):
    """The connection carries a tenth of the camera's bit rate."""

    name = "rate-limit"
    reason = "no frame"
    stalls = True

    def begin(self) -> None:
        self._proxy.rate = 500

    def end(self) -> None:
        self._proxy.rate = None
        self._proxy.reset()  # discards the backlog of the slow connection


class HalfGop(Fault):
    """The stream ends in the middle of a GOP, and continues in the middle of another."""

    name = "half-gop"
    reason = "ended"

    def prepare(self) -> None:
        self._server: HttpCamera = self._resources.enter_context(http_camera(FPS))
        self.url = f"{self._server.root}/ts"

    def begin(self) -> None:
        self._server.first_frame = 7
        self._server.generation += 1

    def end(self) -> None:
        self._server.first_frame = 13
        self._server.generation += 1


class PacketLoss(Fault):
    """Packets are dropped by nftables in a separate network namespace."""

    privileged = True
    loss_percent: ClassVar[int]
    transport: ClassVar[str]

    def prepare(self) -> None:
        self._camera = self._start_camera()
        self.options["transport"] = self.transport

    def begin(self) -> None:
        port = self._camera.port
        drop = (
            "drop"
            if self.loss_percent == 100
            else f"numgen random mod 100 < {self.loss_percent} drop"
        )
        rules = {
            "tcp": [f"tcp sport {port} {drop}", f"tcp dport {port} {drop}"],
            "udp": [f"meta l4proto udp {drop}"],
        }[self.transport]
        run_nft("add table inet faults")
        run_nft("add chain inet faults in { type filter hook input priority 0; }")
        for rule in rules:
            run_nft(f"add rule inet faults in {rule}")

    def end(self) -> None:
        run_nft("delete table inet faults")


class UdpPacketLoss(PacketLoss):
    """One packet in ten is lost, and RTP does not retransmit it."""

    name = "loss-udp"
    transport = "udp"
    loss_percent = LOSS_PERCENT
    reconnects = False


class TcpPacketLoss(PacketLoss):
    """One packet in ten is lost, and TCP retransmits it."""

    name = "loss-tcp"
    transport = "tcp"
    loss_percent = LOSS_PERCENT
    reconnects = False


class UdpBlackHole(PacketLoss):
    """All RTP packets are dropped; the control connection stays open."""

    name = "black-udp"
    transport = "udp"
    loss_percent = 100
    reason = "no frame for"
    stalls = True


class TcpBlackHole(PacketLoss):
    """All packets are dropped, without a reset."""

    name = "black-tcp"
    transport = "tcp"
    loss_percent = 100
    reason = "no frame for"
    stalls = True


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        *(ServerKilled, ServerFrozen, StreamRemoved, CredentialsRefused, ClosedPort),
        *(ConnectionReset, Delay, RateLimit, HalfGop, ResolutionChange),
        *(UdpPacketLoss, TcpPacketLoss, UdpBlackHole, TcpBlackHole),
    )
}


def run_nft(command: str) -> None:
    """Run a command of nftables in this network namespace."""
    subprocess.run(["nft", command], check=True)
