"""Deployment files: the systemd unit, the image, the compose file and the example config.

They are checked by the tools of their formats, and the commands in them are run.
"""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from support.cameras import http_camera, require_program, rtsp_camera
from support.deployment import CONTROL_PORT, DEPLOY, PATTERN, ROOT, run_checker, supervised_service

from streamseg import connect
from streamseg.config import SourceConfig, load, validate
from streamseg.pipeline.runner import LATE_AFTER
from streamseg.service import systemd
from streamseg.service.http_api import STOP_WITHIN as CONTROL_STOPS_WITHIN
from streamseg.service.service import STOP_WITHIN, Service
from streamseg.service.supervisor import REPORT_EVERY, Supervisor

# systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Return the path of a unit whose program exists on this machine."""
    require_program("systemd-analyze", is_installed=shutil.which("systemd-analyze") is not None)
    text = (DEPLOY / "streamseg.service").read_text()
    assert text.count("/opt/streamseg/bin/streamseg") == 1
    file = tmp_path / "streamseg.service"
    file.write_text(text.replace("/opt/streamseg/bin/streamseg", sys.executable))
    return file


def settings() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "streamseg.service")
    return dict(parser["Service"])


def seconds(span: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(min)?", span).groups()  # type: ignore[union-attr]
    return float(number) * (60 if unit else 1)


def test_systemd_analyze_accepts_the_unit_and_its_sandboxing(unit: Path) -> None:
    assert run_checker("systemd-analyze", "verify", unit) == ""
    options = ("--offline=true", "--threshold=20", "--no-pager")
    assert "Overall exposure level" in run_checker("systemd-analyze", "security", *options, unit)


def test_systemd_analyze_finds_an_invalid_unit(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("WatchdogSec=30", "WatchdogSec=soon"))
    assert "ignoring: soon" in run_checker("systemd-analyze", "verify", unit)


def test_the_stop_timeout_of_the_unit_covers_that_of_the_service() -> None:
    unit = settings()
    assert unit["Type"] == "notify"
    stopping = STOP_WITHIN + LATE_AFTER + CONTROL_STOPS_WITHIN
    assert stopping + 5 <= seconds(unit["TimeoutStopSec"]) <= 60
    assert seconds(unit["WatchdogSec"]) >= 2 * REPORT_EVERY
    assert unit["RestartPreventExitStatus"] == "2"


def test_the_command_of_the_unit_exists(streamseg, tmp_path: Path) -> None:
    program, *arguments = settings()["ExecStart"].split()
    assert Path(program).name == "streamseg"
    arguments[arguments.index("/etc/streamseg/live.yaml")] = str(tmp_path / "none.yaml")
    ended = streamseg(*arguments)
    assert ended.returncode == 2
    assert "there is no such file" in json.loads(ended.stderr)["message"]


# Docker


def test_hadolint_accepts_the_dockerfile() -> None:
    program = Path(sys.executable).with_name("hadolint")
    require_program("hadolint", is_installed=program.exists())
    assert run_checker(program, "--no-color", DEPLOY / "Dockerfile") == ""


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_health_check_of_the_image_follows_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of HEALTHCHECK is run against a service on this machine."""
    (check,) = [rest for word, rest in dockerfile() if word == "HEALTHCHECK"]
    *program, code = json.loads(check.partition("CMD ")[2])
    assert program == ["python", "-c"]
    assert f"127.0.0.1:{CONTROL_PORT}/healthz" in code
    with supervised_service(SourceConfig(url=PATTERN, name="gate")) as supervisor:
        port = str(supervisor.http_api_address).rpartition(":")[2]
        code = code.replace(str(CONTROL_PORT), port)
        run_checker(sys.executable, "-c", code)
        monkeypatch.setattr(Service, "health_problem", "the model hangs")
        refused = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, timeout=30
        )
    assert refused.returncode == 1
    assert b"503" in refused.stderr


def test_the_image_contains_the_package_and_runs_unprivileged() -> None:
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


def test_every_reference_in_the_compose_file_exists() -> None:
    content = compose()
    assert set(content) == {"name", "services", "configs"}
    services = content["services"]
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        for other in service.get("depends_on", []):
            assert other in services
        network = service.get("network_mode", "service:streamseg")
        assert network.partition(":")[2] in services
        for config in service.get("configs", []):
            assert config["source"] in content["configs"]
        for volume in service.get("volumes", []):
            assert (DEPLOY / volume.split(":")[0]).is_file()
    build = services["streamseg"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    watch_profile = {name for name, each in services.items() if each.get("profiles") == ["watch"]}
    assert watch_profile == {"prometheus", "grafana"}


def test_the_compose_file_publishes_the_service_s_ports_on_loopback_only() -> None:
    published = [port.split(":") for port in compose()["services"]["streamseg"]["ports"]]
    assert {host for host, *_ in published} == {"127.0.0.1"}
    assert {"5555", "5556"} <= {inside for *_, inside in published}


def test_the_compose_file_s_service_reads_the_simulated_cameras() -> None:
    contents = {name: yaml.safe_load(c["content"]) for name, c in compose()["configs"].items()}
    config = validate(contents["live"], "compose.yaml")
    simulated = contents["cameras"]["paths"]
    urls = [source.url for source in config.sources]
    assert urls == [f"rtsp://cameras:8554/{name}" for name in simulated]
    for name, path in simulated.items():
        program, *_, address = path["runOnInit"].split()
        assert (program, address) == ("ffmpeg", f"rtsp://127.0.0.1:8554/{name}")
    assert contents["datasources"]["datasources"][0]["url"] == "http://127.0.0.1:9090"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program isn't installed")
@pytest.mark.parametrize("name", ["gate", "yard"])
def test_the_simulated_cameras_can_be_encoded(name: str, tmp_path: Path) -> None:
    cameras = yaml.safe_load(compose()["configs"]["cameras"]["content"])
    *command, _, _, _ = cameras["paths"][name]["runOnInit"].split()
    command.remove("-re")
    run_checker(*command, "-t", "1", "-f", "mp4", tmp_path / "camera.mp4")
    assert (tmp_path / "camera.mp4").stat().st_size > 1000


# The example


@pytest.mark.slow
def test_the_live_example_config_serves_cameras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the addresses of the cameras are replaced; /dev/video99 doesn't exist."""
    (tmp_path / "yard").write_text("swordfish\n")
    monkeypatch.setenv("GATE_PASSWORD", "swordfish")
    monkeypatch.setattr(systemd, "SOCKET", "NO_SYSTEMD")
    options = ("--password", "swordfish", "--fps", "10")
    with (
        rtsp_camera(*options) as gate_camera,
        rtsp_camera(*options) as yard_camera,
        http_camera(10) as http,
    ):
        raw = load(ROOT / "configs" / "live.yaml")
        gate, yard, hall, desk = raw["sources"]
        gate |= {"url": gate_camera.url, "user": "user"}
        yard |= {"url": yard_camera.url, "user": "user", "password_file": str(tmp_path / "yard")}
        hall |= {"url": f"{http.root}/cam"}
        desk |= {"url": "/dev/video99"}
        raw["publish"]["bind"] = "tcp://127.0.0.1:*"
        raw["control"]["bind"] = "127.0.0.1:0"
        config = validate(raw, "live.yaml")
        service = Service(config)
        supervisor = Supervisor(service, config, None)
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        try:
            missing = {"gate", "yard", "hall"}
            with connect(service.endpoints["masks"], timeout=30) as results:
                for result in results:
                    missing.discard(result.source)
                    if not missing:
                        break
            states = {session.name: session.condition for session in service.sources}
        finally:
            supervisor.stop()
            thread.join(30)
    assert {states[name].state for name in ("gate", "yard", "hall")} == {"live"}
    assert states["desk"].state in ("waiting", "connecting")
    assert service.sources.thresholds["yard"].score == 0.6
