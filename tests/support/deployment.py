"""Helpers of deployment tests: checkers of config files, and a supervised service."""

from __future__ import annotations

import subprocess
import threading

from support.paths import ROOT

from streamseg import load_model
from streamseg.config import Config, ControlConfig, PublishConfig, SourceConfig
from streamseg.protocol.address import Address
from streamseg.service.http_api import PORT_OFFSET
from streamseg.service.service import Service
from streamseg.service.supervisor import Supervisor

DEPLOY = ROOT / "deploy"
PATTERN = "test:?live=1&size=160x120&fps=10"
CONTROL_PORT = Address.parse(PublishConfig().bind).port + PORT_OFFSET


def run_checker(*command: object) -> str:
    """Run a program that checks files; assert that it succeeds and return its output."""
    completed = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, timeout=60
    )
    output = completed.stdout + completed.stderr
    assert completed.returncode == 0, output
    return output


class supervised_service:  # noqa: N801 - a context manager
    """Context of a supervised service that runs in a thread."""

    def __init__(self, *sources: SourceConfig) -> None:
        config = Config(
            sources=sources,
            publish=PublishConfig(bind="tcp://127.0.0.1:*"),
            control=ControlConfig(bind="127.0.0.1:0"),
        )
        service = Service(config, load_model("nanomask", input_size=128))
        self._supervisor = Supervisor(service, config, None)
        self._thread = threading.Thread(target=self._supervisor.run)

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self._supervisor

    def __exit__(self, *_: object) -> None:
        self._supervisor.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()
