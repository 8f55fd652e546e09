"""Configs of Prometheus and Grafana: every metric exists, every alert and query is valid.

Prometheus' own programs check and run them; Grafana isn't installed here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.cameras import require_program
from support.deployment import CONTROL_PORT, DEPLOY, PATTERN, ROOT, run_checker, supervised_service
from support.paths import TESTS
from support.ports import free_port
from support.publishers import wait_until

from streamseg.config import SourceConfig
from streamseg.pipeline.metrics import Metrics
from streamseg.service.supervisor import Supervisor

FIXTURES = TESTS / "fixtures" / "deploy"
METRIC = re.compile(r"\b(?:streamseg_\w+|process_\w+)")
VARIABLES = {"$instance": ".*", "$source": ".*", "$__rate_interval": "1m"}


def known_metrics() -> set[str]:
    """Return the names of all series of a service."""
    names = set()
    for family in Metrics().registry.collect():
        kinds = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        names |= {family.name + ending for ending in kinds.get(family.type, [""])}
    return names


def dashboard() -> dict:
    return json.loads((DEPLOY / "grafana.json").read_text())


def panel_queries() -> list[str]:
    """Return every expression of the dashboard, with values for its variables."""
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    for variable, value in VARIABLES.items():
        queries = [query.replace(variable, value) for query in queries]
    return queries


def rules() -> list[dict]:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    return group["rules"]


def test_dashboard_and_alerts_use_existing_metrics_only() -> None:
    known = known_metrics()
    variables = [v.get("definition", "") for v in dashboard()["templating"]["list"]]
    for text in (*panel_queries(), *variables, *(rule["expr"] for rule in rules())):
        assert set(METRIC.findall(text)) <= known, text


def test_the_dashboard_covers_the_main_metrics() -> None:
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


def test_the_dashboard_works_with_any_prometheus_data_source() -> None:
    board = dashboard()
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        assert panel["description"]
        for query in (panel, *panel["targets"]):
            assert query["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    used = {name for query in _raw_queries(board) for name in re.findall(r"\$(\w+)", query)}
    assert used - {"__rate_interval"} <= set(variables)


def _raw_queries(board: dict) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_panels_of_the_dashboard_do_not_overlap() -> None:
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
    require_program("promtool", is_installed=shutil.which("promtool") is not None)
    return run_checker("promtool", *arguments)


def test_promtool_accepts_the_config_and_the_alerts() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", DEPLOY / "alerts.yaml")
    promtool("check", "config", DEPLOY / "prometheus.yaml")


def test_promtool_accepts_the_query_of_every_panel(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{number}", "expr": query}
        for number, query in enumerate(panel_queries(), 1)
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    assert f"{len(recorded)} rules found" in promtool("check", "rules", file)


@pytest.mark.slow
def test_each_alert_fires_under_its_condition_only() -> None:
    promtool("test", "rules", FIXTURES / "alerts_test.yaml")
    tests = (FIXTURES / "alerts_test.yaml").read_text()
    for rule in rules():
        name = rule["alert"]
        cases = re.findall(rf"alertname: {name}\n\s+exp_alerts:", tests)
        assert cases, f"{name} has no test in which it fires"
        assert re.search(rf"{{eval_time: \w+, alertname: {name}}}", tests), name


def test_every_alert_is_documented() -> None:
    documentation = (ROOT / "docs" / "operations.md").read_text()
    for rule in rules():
        assert f"`{rule['alert']}`" in documentation


def test_the_prometheus_target_is_the_address_of_the_http_api() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{CONTROL_PORT}"]}]
    assert all(f'job="{job["job_name"]}"' in rule["expr"] for rule in rules() if "up" in rule)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[Supervisor, str]]:
    """Run a service and a Prometheus server that scrapes it every second."""
    require_program("prometheus", is_installed=shutil.which("prometheus") is not None)
    with supervised_service(
        *(SourceConfig(url=PATTERN, name=name) for name in ("gate", "yard"))
    ) as supervisor:
        config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
        target = str(supervisor.http_api_address).removeprefix("http://")
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
            yield supervisor, f"http://{address}"
        finally:
            process.terminate()
            process.wait(20)


def query_prometheus(prometheus: str, query: str) -> list[dict]:
    path = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(path, timeout=10) as response:
            return json.load(response)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return []  # Prometheus is still starting


@pytest.mark.slow
def test_every_panel_shows_data_of_a_running_service(prometheus) -> None:
    supervisor, address = prometheus
    metrics = supervisor._service.metrics
    # Nothing is dropped or fails here, so create the series of these counters.
    metrics.dropped.labels("gate", "too_old")
    metrics.failed.labels("gate", "corrupt")
    metrics.messages_dropped.labels("masks")
    metrics.refused.labels("key")
    for source in ("gate", "yard"):
        metrics.images.labels(source)
        metrics.images_dropped.labels(source)
    wait_until(
        lambda: query_prometheus(address, "rate(streamseg_published_frames_total[5s]) > 0"), 30
    )
    time.sleep(3)  # rates need two samples of every series
    for query in panel_queries():
        samples = query_prometheus(address, query)
        assert samples, query
        assert all(sample["value"][1] != "NaN" for sample in samples), query
    state = next(query for query in panel_queries() if "6 * streamseg_source_state" in query)
    values = {s["metric"]["source"]: s["value"][1] for s in query_prometheus(address, state)}
    assert values == {"gate": "1", "yard": "1"}
    assert query_prometheus(address, "ALERTS") == []
