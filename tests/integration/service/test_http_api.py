"""HTTP API of a running service: requests, ``ctl``, access checks and limits."""

from __future__ import annotations

import contextlib
import gc
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from support.commands import Run

from streamseg import connect, load_model
from streamseg.config import Config, ControlConfig, PublishConfig, SourceConfig, WorkerConfig
from streamseg.errors import BindError, ConfigError
from streamseg.models.base import Segmenter
from streamseg.pipeline.metrics import Metrics
from streamseg.service import http_api
from streamseg.service.http_api import HttpApi, Reload
from streamseg.service.http_client import HttpApiClient
from streamseg.service.service import Service
from streamseg.service.source_set import Reloaded
from streamseg.service.supervisor import Supervisor

pytestmark = pytest.mark.timeout(60)
LIVE = "test:?live=1&size=160x120&fps=20"


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return load_model("nanomask", input_size=128, score=0.1)


def make_config(*sources: SourceConfig, **control: object) -> Config:
    return Config(
        sources=sources,
        worker=WorkerConfig(max_batch=2),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
        control=ControlConfig(bind="127.0.0.1:0", **control),  # type: ignore[arg-type]
    )


class RunningService:
    """Supervised service that runs in a thread."""

    def __init__(self, config: Config, model: Segmenter, load: object = None) -> None:
        self.service = Service(config, model)
        self.supervisor = Supervisor(self.service, config, load)  # type: ignore[arg-type]
        self.address = str(self.supervisor.http_api_address)
        self.thread = threading.Thread(target=self.supervisor.run)
        self.thread.start()

    def request(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, str]:
        port = int(self.address.rpartition(":")[2])
        headers = {"Content-Type": "application/json", **headers}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path, json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def state(self, name: str) -> str:
        return {f.name: f.condition.state for f in self.service.sources}.get(name, "gone")

    def wait_for_state(self, name: str, state: str) -> None:
        deadline = time.monotonic() + 15
        while self.state(name) != state:
            assert time.monotonic() < deadline, f"{name} is {self.state(name)}, not {state}"
            time.sleep(0.02)

    def close(self) -> None:
        self.supervisor.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def run_service(model: Segmenter) -> Iterator[RunningService]:
    running = RunningService(make_config(SourceConfig(url=LIVE, name="gate")), model)
    try:
        running.wait_for_state("gate", "live")
        yield running
    finally:
        running.close()
    for account in running.service.metrics.snapshots():
        assert account.balanced
        assert account.in_flight == 0


@pytest.fixture
def running(model: Segmenter) -> Iterator[RunningService]:
    with run_service(model) as running:
        yield running


@pytest.fixture(scope="module")
def unchanged(model: Segmenter) -> Iterator[RunningService]:
    """Service that no test changes."""
    with run_service(model) as running:
        yield running


def test_a_source_that_is_added_again_continues_with_the_next_epoch(
    running: RunningService,
) -> None:
    with connect(running.service.endpoints["masks"], ["yard"], timeout=20) as results:
        assert running.request("POST", "/v1/sources", {"url": LIVE, "name": "yard"})[0] == 201
        first = next(iter(results))
        assert running.request("DELETE", "/v1/sources/yard")[0] == 204
        for _ in results:
            pass
        assert results.ended, "it subscribes to this source only"
    running.wait_for_state("yard", "gone")
    with connect(running.service.endpoints["masks"], ["yard"], timeout=20) as results:
        assert running.request("POST", "/v1/sources", {"url": LIVE, "name": "yard"})[0] == 201
        again = next(iter(results))
    assert (first.epoch, again.epoch) == (0, 1)
    assert again.seq > first.seq
    running.wait_for_state("gate", "live")


def test_a_service_continues_after_its_last_source_was_removed(running: RunningService) -> None:
    running.request("DELETE", "/v1/sources/gate")
    running.wait_for_state("gate", "gone")
    time.sleep(0.5)
    assert running.thread.is_alive()
    assert running.request("POST", "/v1/sources", {"url": LIVE, "name": "gate"})[0] == 201
    running.wait_for_state("gate", "live")


def test_a_paused_source_delivers_no_frames_until_it_is_resumed(running: RunningService) -> None:
    assert running.request("POST", "/v1/sources/gate/pause")[0] == 204
    running.wait_for_state("gate", "waiting")
    time.sleep(0.3)
    before = running.service.metrics.account("gate").snapshot().decoded
    time.sleep(0.5)
    assert running.service.metrics.account("gate").snapshot().decoded == before
    assert running.request("POST", "/v1/sources/gate/resume")[0] == 204
    running.wait_for_state("gate", "live")


def test_new_thresholds_apply_to_later_frames(running: RunningService) -> None:
    def count_instances() -> int:
        """Return the number of instances in frames captured from now on."""
        now = time.time()
        with connect(running.service.endpoints["masks"], timeout=20) as results:
            later = (r for r in results if r.captured_at > now)
            return sum(len(r.instances) for r in itertools.islice(later, 20))

    assert running.request("PUT", "/v1/sources/gate/thresholds", {"score": 0.01})[0] == 200
    assert count_instances() > 0
    status, now = running.request("PUT", "/v1/sources/gate/thresholds", {"score": 1.0})
    assert (status, json.loads(now)["score"]) == (200, 1.0)
    assert count_instances() == 0
    running.request("PUT", "/v1/sources/gate/thresholds", None)
    assert running.service.sources.thresholds["gate"].score == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("GET", "/v1/sources/none", None, 404, "no source called"),
        ("DELETE", "/v1/sources/none", None, 404, "no source called"),
        ("POST", "/v1/sources", {"url": LIVE, "name": "gate"}, 400, "already"),
        ("POST", "/v1/sources", {"url": LIVE, "colour": 1}, 400, "colour"),
        ("POST", "/v1/sources", {"url": "/no/such.mp4"}, 400, "no such file"),
        ("POST", "/v1/sources", [1], 400, "object"),
        (
            "POST",
            "/v1/sources",
            {"url": "rtsp://h/x", "user": "a", "password_env": "PATH"},
            400,
            "only be named in the config file",
        ),
        ("PUT", "/v1/thresholds", {"score": 2}, 400, "score"),
        ("PUT", "/v1/thresholds", {"classes": ["unicorn"]}, 400, "unicorn"),
        ("PUT", "/v1/sources/gate/thresholds", {"score": "x" * 70000}, 413, "at most"),
        ("POST", "/v1/reload", None, 409, "config file"),
    ],
)
def test_an_invalid_request_is_refused_and_changes_nothing(
    unchanged: RunningService, method: str, path: str, body: object, status: int, reason: str
) -> None:
    response_status, text = unchanged.request(method, path, body)
    assert (response_status, reason in text) == (status, True), text
    assert [session.name for session in unchanged.service.sources] == ["gate"]
    assert unchanged.state("gate") == "live"


def test_unknown_hosts_and_foreign_origins_are_refused(unchanged: RunningService) -> None:
    assert unchanged.request("GET", "/healthz", None, Host="evil.example")[0] == 403
    foreign = {"Origin": "http://evil.example"}
    assert unchanged.request("DELETE", "/v1/sources/gate", None, **foreign)[0] == 403
    body = {"url": LIVE, "name": "x"}
    refused = unchanged.request("POST", "/v1/sources", body, **{"Content-Type": "text/plain"})
    assert refused[0] == 415
    assert unchanged.request("GET", "/healthz") == (200, "ok")
    assert unchanged.request("GET", "/readyz") == (200, "ready")


class HealthyService:
    """Stand-in for a service, for ``/healthz`` and ``/metrics``."""

    health_problem = ""
    metrics = Metrics()


@contextlib.contextmanager
def controlled(reload: Reload | None = None, **options: object) -> Iterator[HttpApi]:
    """HTTP API of a stand-in for a service."""
    control = HttpApi(
        cast(Service, HealthyService()),
        make_config(SourceConfig(url=LIVE, name="gate"), **options),
        reload,
    )
    control.start()
    try:
        yield control
    finally:
        control.stop()


def port_of(control: HttpApi) -> int:
    return int(control.address.rpartition(":")[2])


def health(control: HttpApi, host: str) -> int:
    address = ("127.0.0.1", port_of(control))
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=10)) as asking:
        asking.request("GET", "/healthz", headers={"Host": host})
        return asking.getresponse().status


def test_only_own_and_configured_host_names_are_accepted() -> None:
    with controlled(hosts=("cams.example", "Tunnel.example:9000")) as control:
        port = port_of(control)
        for known in ("localhost", "127.0.0.1", "[::1]", "cams.example", "CAMS.example"):
            assert health(control, f"{known}:{port}") == 200
        assert health(control, "tunnel.example:9000") == 200
        assert health(control, "cams.example") == 200
        for unknown in ("localhost:1", "tunnel.example", f"tunnel.example:{port}", "", "[::1]"):
            assert health(control, unknown) == 403
    with (
        pytest.raises(ConfigError, match=r"control\.hosts 'http://x'"),
        controlled(hosts=("http://x",)),
    ):
        pass


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost:%d\r\n"
POST = b"POST /v1/sources HTTP/1.1\r\nHost: localhost:%d\r\nContent-Length: 9\r\n"


@pytest.mark.parametrize(
    "request_part",
    [b"", REQUEST, REQUEST + b"\r\n" + REQUEST, POST + b"Content-Type: application/json\r\n\r\n{"],
    ids=["nothing", "half a request", "half a second one", "half a body"],
)
def test_a_connection_is_closed_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request_part: bytes
) -> None:
    monkeypatch.setattr(http_api, "CONNECTION_TIMEOUT", 0.5)
    with (
        controlled() as control,
        socket.create_connection(("127.0.0.1", port_of(control)), timeout=5) as peer,
    ):
        peer.sendall(request_part.replace(b"%d", b"%d" % port_of(control)))
        with contextlib.suppress(ConnectionResetError):
            while peer.recv(1000):
                pass
    assert not caplog.records, "clients can't fill the log"


@pytest.mark.parametrize(
    "request_part", [b"", REQUEST, POST + b"Content-Type: application/json\r\n\r\n{"]
)
def test_stopping_closes_the_connections_of_incomplete_requests(
    caplog: pytest.LogCaptureFixture, request_part: bytes
) -> None:
    with controlled() as control:
        peer = socket.create_connection(("127.0.0.1", port_of(control)), timeout=5)
        peer.sendall(request_part.replace(b"%d", b"%d" % port_of(control)))
        time.sleep(0.1)
    with peer, contextlib.suppress(ConnectionResetError):
        while peer.recv(1000):
            pass
    assert not caplog.records


def test_stopping_closes_the_connection_of_a_client_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_api, "generate_latest", lambda _registry: bytes(50_000_000))
    with controlled() as control:
        peer = socket.create_connection(("127.0.0.1", port_of(control)), timeout=5)
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % port_of(control))
        peer.recv(1)
    with peer, contextlib.suppress(ConnectionResetError):
        while peer.recv(100_000):  # the content of the system's buffers, then the end
            pass


def test_closed_connections_use_no_memory() -> None:
    def count_connections() -> int:
        gc.collect()
        return sum(type(thing).__name__ == "LimitedProtocol" for thing in gc.get_objects())

    with controlled() as control:
        for _ in range(10):
            assert health(control, f"localhost:{port_of(control)}") == 200
        deadline = time.monotonic() + 5
        while count_connections():
            assert time.monotonic() < deadline


def test_connections_beyond_the_limit_are_closed_until_others_leave() -> None:
    with controlled() as control, contextlib.ExitStack() as crowd:
        for _ in range(http_api.MAX_CONNECTIONS):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port_of(control))))
        with contextlib.suppress(ConnectionResetError):
            one_more = crowd.enter_context(
                socket.create_connection(("127.0.0.1", port_of(control)))
            )
            one_more.settimeout(5)
            assert one_more.recv(10) == b""
        crowd.close()
        deadline = time.monotonic() + 5
        while True:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                assert health(control, f"localhost:{port_of(control)}") == 200
                return
            assert time.monotonic() < deadline


def test_health_is_answered_while_every_worker_thread_is_busy() -> None:
    finished, in_progress = threading.Event(), threading.Semaphore(0)

    def reload() -> Reloaded:
        in_progress.release()
        finished.wait(40)
        return Reloaded((), (), (), ())

    with controlled(reload) as control, contextlib.ExitStack() as crowd:
        address = ("127.0.0.1", port_of(control))
        for _ in range(http_api.MAX_CONNECTIONS - 1):
            connection = http.client.HTTPConnection(*address)
            crowd.callback(connection.close)
            connection.request("POST", "/v1/reload")
        try:
            for _ in range(40):  # worker threads of starlette
                assert in_progress.acquire(timeout=10)
            assert health(control, f"localhost:{port_of(control)}") == 200
        finally:
            finished.set()


def test_a_configured_token_is_required(model: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    config = make_config(SourceConfig(url=LIVE, name="gate"), token_file=str(tmp_path / "token"))
    run = RunningService(config, model)
    try:
        assert run.request("GET", "/v1/sources")[0] == 401
        assert run.request("GET", "/metrics", None, Authorization="Bearer wrong")[0] == 401
        assert run.request("GET", "/metrics", None, Authorization="Bearer s3cret")[0] == 200
        assert run.request("GET", "/healthz")[0] == 200
    finally:
        run.close()


def test_an_address_beyond_loopback_requires_a_token(model: Segmenter) -> None:
    config = Config(
        sources=(SourceConfig(url=LIVE, name="gate"),),
        publish=PublishConfig(bind="tcp://127.0.0.1:*"),
    )
    service = Service(config, model)
    for control, error, message in (
        (ControlConfig(bind="0.0.0.0:0"), ConfigError, "token"),
        (ControlConfig(bind="127.0.0.1:0", token_env="NOT_SET_ANYWHERE"), ConfigError, "isn't set"),
        (ControlConfig(bind="127.0.0.1:99999"), BindError, "65535"),
    ):
        with pytest.raises(error, match=message):
            HttpApi(service, Config(sources=config.sources, control=control), None)
    service.close()


def test_malformed_requests_do_not_stop_the_server(unchanged: RunningService) -> None:
    host, port = "127.0.0.1", int(unchanged.address.rpartition(":")[2])
    for garbage in (
        b"\0" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/sources HTTP/1.1\r\n",
        b"A" * 100_000,
    ):
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(garbage)
    assert unchanged.request("GET", "/healthz") == (200, "ok")


def test_a_reload_changes_the_sources_and_an_invalid_config_changes_nothing(
    model: Segmenter,
) -> None:
    configs = [make_config(SourceConfig(url=LIVE, name="a"), SourceConfig(url=LIVE, name="b"))]

    def load() -> Config:
        if not configs:
            raise ConfigError("nonsense")
        return configs[0]

    run = RunningService(configs[0], model, load)
    try:
        run.wait_for_state("b", "live")
        faster = SourceConfig(url=LIVE + "&seed=2", name="b")
        configs[0] = make_config(faster, SourceConfig(url=LIVE, name="c"))
        status, body = run.request("POST", "/v1/reload")
        assert (status, json.loads(body)) == (
            200,
            {"added": ["c"], "removed": ["a"], "restarted": ["b"], "waits": []},
        )
        run.wait_for_state("c", "live")
        run.wait_for_state("b", "live")
        run.wait_for_state("a", "gone")
        configs.clear()
        assert run.request("POST", "/v1/reload")[0] == 400
        assert run.state("c") == "live"
    finally:
        run.close()


def test_ctl_lists_and_changes_sources(running: RunningService, streamseg: Run) -> None:
    at = ("--at", running.address)
    assert "gate" in streamseg("ctl", "list", *at).stdout
    assert streamseg("ctl", "add", LIVE, "--name", "yard", *at).stdout == "yard\n"
    changed = streamseg("ctl", "thresholds", "yard", "--set", "score=0.7", *at).stdout
    assert json.loads(changed)["score"] == 0.7
    assert streamseg("ctl", "remove", "yard", *at).returncode == 0
    missing = streamseg("ctl", "pause", "missing", *at)
    assert (missing.returncode, "no source called 'missing'" in missing.stderr) == (1, True)
    away = streamseg("ctl", "list", "--at", "http://127.0.0.1:9")
    assert (away.returncode, "is a service running there" in away.stderr) == (1, True)


def test_ctl_ignores_proxies_of_the_environment(
    running: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert [s["name"] for s in HttpApiClient(running.address, "token").sources()] == ["gate"]


def test_metrics_include_accounts_and_states(running: RunningService) -> None:
    with connect(running.service.endpoints["masks"], timeout=20) as results:
        next(iter(results))
    text = running.request("GET", "/metrics")[1]
    assert 'streamseg_source_state{source="gate",state="live"} 1.0' in text
    assert 'streamseg_decoded_frames_total{source="gate"}' in text
    assert 'streamseg_result_age_p99_seconds{source="gate"}' in text
