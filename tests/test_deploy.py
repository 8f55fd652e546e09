"""What an operator installs: the unit, the image, the dashboard, the alerts and the example.

None of it is run as it will be, by systemd, Docker or Grafana. Their own checkers read it here,
and every name in it is one that the service knows.
"""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cameras import free_port, http_camera, needs, rtsp_camera
from publishing import eventually

from streamseg import connect, load_model, notify
from streamseg.config import Config, ControlConfig, PublishConfig, SourceConfig, load, validate
from streamseg.control import AFTER_MASKS
from streamseg.control import STOP_WITHIN as CONTROL_STOPS_WITHIN
from streamseg.metrics import Metrics
from streamseg.operate import TELL_EVERY, Operation
from streamseg.pipeline import LATE_AFTER
from streamseg.serve import STOP_WITHIN, Service
from streamseg.wire import Address

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
FIXTURES = Path(__file__).parent / "fixtures" / "deploy"
PATTERN = "test:?live=1&size=160x120&fps=10"
METRIC = re.compile(r"\b(?:streamseg_\w+|process_\w+)")
VARIABLES = {"$instance": ".*", "$source": ".*", "$__rate_interval": "1m"}


def checked(*command: object) -> str:
    """What a checker says that finds nothing wrong."""
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


# systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that is there."""
    needs(shutil.which("systemd-analyze") is not None, "systemd-analyze")
    text = (DEPLOY / "streamseg.service").read_text()
    assert text.count("/opt/streamseg/bin/streamseg") == 1
    there = tmp_path / "streamseg.service"
    there.write_text(text.replace("/opt/streamseg/bin/streamseg", sys.executable))
    return there


def settings() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "streamseg.service")
    return dict(parser["Service"])


def seconds(span: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(min)?", span).groups()  # type: ignore[union-attr]
    return float(number) * (60 if unit else 1)


def test_systemd_takes_the_unit_and_finds_it_tight(unit: Path) -> None:
    assert checked("systemd-analyze", "verify", unit) == ""
    tight = ("--offline=true", "--threshold=20", "--no-pager")
    assert "Overall exposure level" in checked("systemd-analyze", "security", *tight, unit)


def test_a_wrong_unit_would_be_found(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("WatchdogSec=30", "WatchdogSec=soon"))
    assert "ignoring: soon" in checked("systemd-analyze", "verify", unit)


def test_the_unit_waits_for_as_long_as_the_service_may_take() -> None:
    told = settings()
    assert told["Type"] == "notify"
    stopping = STOP_WITHIN + LATE_AFTER + CONTROL_STOPS_WITHIN
    assert stopping + 5 <= seconds(told["TimeoutStopSec"]) <= 60
    assert seconds(told["WatchdogSec"]) >= 2 * TELL_EVERY
    assert told["RestartPreventExitStatus"] == "2"


def test_the_command_of_the_unit_is_one_that_exists(streamseg, tmp_path: Path) -> None:
    program, *arguments = settings()["ExecStart"].split()
    assert Path(program).name == "streamseg"
    arguments[arguments.index("/etc/streamseg/live.yaml")] = str(tmp_path / "none.yaml")
    ended = streamseg(*arguments)
    assert ended.returncode == 2
    assert "there is no such file" in json.loads(ended.stderr)["message"]


# Docker


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    program = Path(sys.executable).with_name("hadolint")
    needs(program.exists(), "hadolint")
    assert checked(program, "--no-color", DEPLOY / "Dockerfile") == ""


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_s_health_is_that_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very program of HEALTHCHECK, asking a service that runs here."""
    (check,) = [rest for word, rest in dockerfile() if word == "HEALTHCHECK"]
    *program, asks = json.loads(check.partition("CMD ")[2])
    assert program == ["python", "-c"]
    default = Address.parse(PublishConfig().bind).port + AFTER_MASKS
    assert f"127.0.0.1:{default}/healthz" in asks
    with served(SourceConfig(url=PATTERN, name="gate")) as operation:
        port = str(operation.control_address).rpartition(":")[2]
        here = asks.replace(str(default), port)
        checked(sys.executable, "-c", here)
        monkeypatch.setattr(Service, "ailment", "the model hangs")
        refused = subprocess.run(
            [sys.executable, "-c", here], check=False, capture_output=True, timeout=30
        )
    assert refused.returncode == 1
    assert b"503" in refused.stderr


def test_the_image_holds_what_is_installed_and_runs_without_rights() -> None:
    words = dockerfile()
    assert [rest for word, rest in words if word == "USER"] == ["10001:10001"]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    assert all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text()
    for needed in ("pyproject.toml", "streamseg", *re.findall(r'"(LICENSE|NOTICE)"', project)):
        assert needed in kept
    stages = [rest.split(" AS ")[-1] for word, rest in words if word == "FROM"]
    assert {"torch-cpu", "torch-cuda"} <= set(stages)
    assert ("ARG", "TORCH=cpu") in words


def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_all_that_the_compose_file_refers_to_is_there() -> None:
    made = compose()
    assert set(made) == {"name", "services", "configs"}
    services = made["services"]
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        for other in service.get("depends_on", []):
            assert other in services
        network = service.get("network_mode", "service:streamseg")
        assert network.partition(":")[2] in services
        for config in service.get("configs", []):
            assert config["source"] in made["configs"]
        for volume in service.get("volumes", []):
            assert (DEPLOY / volume.split(":")[0]).is_file()
    build = services["streamseg"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    watching = {name for name, each in services.items() if each.get("profiles") == ["watch"]}
    assert watching == {"prometheus", "grafana"}


def test_the_compose_file_s_ports_are_the_service_s_and_only_for_this_machine() -> None:
    published = [port.split(":") for port in compose()["services"]["streamseg"]["ports"]]
    assert {host for host, *_ in published} == {"127.0.0.1"}
    assert {"5555", "5556"} <= {inside for *_, inside in published}


def test_the_compose_file_s_service_sees_the_cameras_that_are_simulated() -> None:
    contents = {name: yaml.safe_load(c["content"]) for name, c in compose()["configs"].items()}
    config = validate(contents["live"], "compose.yaml")
    simulated = contents["cameras"]["paths"]
    urls = [source.url for source in config.sources]
    assert urls == [f"rtsp://cameras:8554/{name}" for name in simulated]
    for name, path in simulated.items():
        program, *_, address = path["runOnInit"].split()
        assert (program, address) == ("ffmpeg", f"rtsp://127.0.0.1:8554/{name}")
    assert contents["datasources"]["datasources"][0]["url"] == "http://127.0.0.1:9090"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg's command isn't installed")
@pytest.mark.parametrize("name", ["gate", "yard"])
def test_the_simulated_cameras_can_be_encoded(name: str, tmp_path: Path) -> None:
    cameras = yaml.safe_load(compose()["configs"]["cameras"]["content"])
    *command, _, _, _ = cameras["paths"][name]["runOnInit"].split()
    command.remove("-re")
    checked(*command, "-t", "1", "-f", "mp4", tmp_path / "camera.mp4")
    assert (tmp_path / "camera.mp4").stat().st_size > 1000


# Prometheus and Grafana


def known_metrics() -> set[str]:
    """The names of all series that a service has."""
    names = set()
    for family in Metrics().registry.collect():
        kinds = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        names |= {family.name + ending for ending in kinds.get(family.type, [""])}
    return names


def dashboard() -> dict:
    return json.loads((DEPLOY / "grafana.json").read_text())


def panel_queries() -> list[str]:
    """Every expression of the dashboard, its variables filled in."""
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    for variable, value in VARIABLES.items():
        queries = [query.replace(variable, value) for query in queries]
    return queries


def rules() -> list[dict]:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    return group["rules"]


def test_dashboard_and_alerts_only_speak_of_metrics_that_exist() -> None:
    known = known_metrics()
    variables = [v.get("definition", "") for v in dashboard()["templating"]["list"]]
    for text in (*panel_queries(), *variables, *(rule["expr"] for rule in rules())):
        assert set(METRIC.findall(text)) <= known, text


def test_the_dashboard_shows_what_an_operator_asks_about() -> None:
    shown = {name for query in panel_queries() for name in METRIC.findall(query)}
    assert shown >= {
        "streamseg_published_frames_total",
        "streamseg_result_age_seconds_bucket",
        "streamseg_result_age_p99_seconds",
        "streamseg_dropped_frames_total",
        "streamseg_failed_frames_total",
        "streamseg_source_state",
        "streamseg_reconnects_total",
        "streamseg_stalls_total",
        "streamseg_subscribers",
        "streamseg_well",
        "process_resident_memory_bytes",
    }


def test_the_dashboard_takes_whatever_prometheus_there_is() -> None:
    board = dashboard()
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        assert panel["description"]
        for asks in (panel, *panel["targets"]):
            assert asks["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    used = {name for query in _raw_queries(board) for name in re.findall(r"\$(\w+)", query)}
    assert used - {"__rate_interval"} <= set(variables)


def _raw_queries(board: dict) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def promtool(*arguments: object) -> str:
    needs(shutil.which("promtool") is not None, "promtool")
    return checked("promtool", *arguments)


def test_prometheus_takes_its_config_and_the_alerts() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", DEPLOY / "alerts.yaml")
    promtool("check", "config", DEPLOY / "prometheus.yaml")


def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{number}", "expr": query}
        for number, query in enumerate(panel_queries(), 1)
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    assert f"{len(recorded)} rules found" in promtool("check", "rules", file)


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    promtool("test", "rules", FIXTURES / "alerts_test.yaml")
    tried = (FIXTURES / "alerts_test.yaml").read_text()
    for rule in rules():
        name = rule["alert"]
        cases = re.findall(rf"alertname: {name}\n\s+exp_alerts:", tried)
        assert cases, f"{name} is never seen to fire"
        assert re.search(rf"{{eval_time: \w+, alertname: {name}}}", tried), name


def test_every_alert_is_explained() -> None:
    told = (ROOT / "docs" / "operations.md").read_text()
    for rule in rules():
        assert f"`{rule['alert']}`" in told


def test_prometheus_looks_where_control_is() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    default = Address.parse(PublishConfig().bind).port + AFTER_MASKS
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{default}"]}]
    assert all(f'job="{job["job_name"]}"' in rule["expr"] for rule in rules() if "up" in rule)


class served:  # noqa: N801 - a context manager
    """A service that runs in a thread."""

    def __init__(self, *sources: SourceConfig) -> None:
        config = Config(
            sources=sources,
            publish=PublishConfig(bind="tcp://127.0.0.1:*"),
            control=ControlConfig(bind="127.0.0.1:0"),
        )
        service = Service(config, load_model("nanomask", input_size=128))
        self._operation = Operation(service, config, None)
        self._thread = threading.Thread(target=self._operation.run)

    def __enter__(self) -> Operation:
        self._thread.start()
        return self._operation

    def __exit__(self, *_: object) -> None:
        self._operation.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[Operation, str]]:
    """A service, and a real Prometheus that asks it every second."""
    needs(shutil.which("prometheus") is not None, "prometheus")
    with served(*(SourceConfig(url=PATTERN, name=name) for name in ("gate", "yard"))) as operation:
        config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
        target = str(operation.control_address).removeprefix("http://")
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        config["global"]["scrape_interval"] = "1s"
        config["rule_files"] = [str(DEPLOY / "alerts.yaml")]
        (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yaml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
                "--log.level=error",
            ]
        )
        try:
            yield operation, f"http://{address}"
        finally:
            process.terminate()
            process.wait(20)


def asked(prometheus: str, query: str) -> list[dict]:
    path = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(path, timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return []  # it begins


@pytest.mark.slow
def test_every_panel_shows_something_of_a_service_that_runs(prometheus) -> None:
    operation, address = prometheus
    metrics = operation._service.metrics
    # Nothing is dropped or fails here; the series are those that would be.
    metrics.dropped.labels("gate", "too_old")
    metrics.failed.labels("gate", "corrupt")
    metrics.messages_dropped.labels("masks")
    for source in ("gate", "yard"):
        metrics.pictures.labels(source)
        metrics.pictures_dropped.labels(source)
    eventually(lambda: asked(address, "rate(streamseg_published_frames_total[5s]) > 0"), 30)
    time.sleep(3)  # rates need two samples of every series
    for query in panel_queries():
        found = asked(address, query)
        assert found, query
        assert all(sample["value"][1] != "NaN" for sample in found), query
    state = next(query for query in panel_queries() if "6 * streamseg_source_state" in query)
    told = {s["metric"]["source"]: s["value"][1] for s in asked(address, state)}
    assert told == {"gate": "1", "yard": "1"}
    assert asked(address, "ALERTS") == []


# The example


def test_the_example_for_cameras_serves_cameras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is, but that the cameras are at other addresses; there is no /dev/video0."""
    (tmp_path / "yard").write_text("swordfish\n")
    monkeypatch.setenv("GATE_PASSWORD", "swordfish")
    monkeypatch.setattr(notify, "SOCKET", "NO_SYSTEMD")
    with rtsp_camera("--password", "swordfish", "--fps", "10") as camera, http_camera(10) as http:
        raw = load(ROOT / "configs" / "live.yaml")
        gate, yard, hall, desk = raw["sources"]
        gate |= {"url": camera.url, "user": "user"}
        yard |= {"url": camera.url, "user": "user", "password_file": str(tmp_path / "yard")}
        hall |= {"url": f"{http.root}/cam"}
        desk |= {"url": "/dev/video99"}
        raw["publish"]["bind"] = "tcp://127.0.0.1:*"
        raw["control"]["bind"] = "127.0.0.1:0"
        config = validate(raw, "live.yaml")
        service = Service(config)
        operation = Operation(service, config, None)
        thread = threading.Thread(target=operation.run)
        thread.start()
        try:
            wanted = {"gate", "yard", "hall"}
            with connect(service.endpoints["masks"], timeout=30) as results:
                for result in results:
                    wanted.discard(result.source)
                    if not wanted:
                        break
            states = {feed.name: feed.condition for feed in service.feeds()}
        finally:
            operation.stop()
            thread.join(30)
    assert {states[name].state for name in ("gate", "yard", "hall")} == {"live"}
    assert states["desk"].state in ("waiting", "connecting")
    assert service.thresholds_of("yard").score == 0.6
