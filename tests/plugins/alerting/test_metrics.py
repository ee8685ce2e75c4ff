"""Metrics over a real StatsD socket; and that the dashboard and the rules use what is emitted."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from perennial.alerting import incidents
from perennial.alerting.incidents import SignalObservation
from perennial.core.settings import ROOT
from perennial.spec.model_spec import ModelSpec
from perennial.storage import manifests
from perennial.storage.manifests import Manifest, write
from perennial_airflow.alerting import alerts, metrics

GRAFANA = ROOT / "docker" / "grafana"
NIGHT = "2013-02-01"


COLLECT = """
import os, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
got = []
class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        got.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
server = HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(AIRFLOW__METRICS__OTEL_ON="True", OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
                  OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils
from opentelemetry import metrics as otel
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from perennial.spec.catalog import load_model_by_name
from perennial_airflow.alerting import metrics
stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
metrics.record_open_incidents(load_model_by_name("flight_late"))
otel.get_meter_provider().force_flush()
for body in got:
    for scope in ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics:
        for metric in scope.metrics:
            for point in metric.gauge.data_points:
                tags = {a.key: a.value.string_value for a in point.attributes}
                print(metric.name, repr(metric.unit), point.as_double, tags)
"""


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A StatsD server that Airflow is configured for, as docker/grafana/statsd.yaml says."""
    from airflow.sdk.observability import stats
    from airflow.sdk.observability.metrics import stats_utils

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.5)
        settings = {
            "STATSD_ON": "True",
            "STATSD_HOST": "127.0.0.1",
            "STATSD_PORT": str(server.getsockname()[1]),
        }
        mapping = (GRAFANA / "statsd.yaml").read_text()
        settings |= dict(
            re.findall(r"AIRFLOW__METRICS__(STATSD_INFLUXDB_ENABLED|LEGACY_NAMES_ON)=(\w+)", mapping)
        )
        assert len(settings) == 5
        for name, value in settings.items():
            monkeypatch.setenv(f"AIRFLOW__METRICS__{name}", value)
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
        yield server
    monkeypatch.undo()
    stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)


def got(server: socket.socket) -> dict[str, float]:
    """Everything that was sent: name and tags, and the value."""
    found = {}
    while True:
        try:
            name, value, kind = re.fullmatch(r"(.*):([-\d.]+)\|(\w+)", server.recv(4096).decode()).groups()  # type: ignore[union-attr]
        except TimeoutError:
            return found
        assert kind == "g"
        found[name] = float(value)


def done(spec: ModelSpec, step: str, result: dict[str, Any], kind: str = "scheduled", **counts: int) -> None:
    write(Manifest(spec.name, step, NIGHT, {}, result, **counts), 0)
    instance = SimpleNamespace(dag_id=f"{spec.name}.{step}", task_id=step, run_id="r", map_index=-1)
    run = SimpleNamespace(partition_key=NIGHT, run_type=kind)
    alerts.on_success(spec)({"task_instance": instance, "dag_run": run})


VERDICT = {
    "drift_share": 0.25, "champion_as_of": "2013-01-02", "verdict": "drifted", "reason": "",
    "performance": {"metric": "log_loss", "metrics": {"log_loss": 0.5}, "metrics_at_training": {"log_loss": 0.4}},
}  # fmt: skip


def test_what_is_sent(statsd: socket.socket, spec: ModelSpec) -> None:
    done(spec, "data", {}, rows_in=10, rows_out=9, quarantined=1)
    first = got(statsd)
    data = "model=flight_late,step=data"
    assert first[f"airflow.perennial.rows,{data}"] == 9
    assert first[f"airflow.perennial.quarantined,{data}"] == 1
    assert first[f"airflow.perennial.step_seconds,{data}"] > 0
    done(spec, "monitor", VERDICT)
    incidents.record_signals(spec, NIGHT, {"drift": SignalObservation("bad")})
    metrics.record_open_incidents(spec)
    metrics.record_disk_use(spec, {"published": 12_000})
    second = got(statsd)
    assert second["airflow.perennial.disk_bytes,model=flight_late,table=published"] == 12_000
    assert second["airflow.perennial.drift_share,model=flight_late"] == 0.25
    assert second["airflow.perennial.loss,model=flight_late,metric=log_loss"] == 0.5
    assert second["airflow.perennial.loss_at_training,model=flight_late,metric=log_loss"] == 0.4
    assert second["airflow.perennial.champion_age_days,model=flight_late"] == 30
    assert second["airflow.perennial.open_incidents,model=flight_late,severity=bad"] == 1
    assert second["airflow.perennial.open_incidents,model=flight_late,severity=suspected"] == 0
    sent = {name.split(",")[0].removeprefix("airflow."): name.split(",")[1:] for name in (*first, *second)}
    assert set(sent) == set(metrics.METRICS)
    for name, tags in sent.items():
        assert tuple(t.split("=")[0] for t in tags) == ("model", *metrics.METRICS[name])


def test_what_could_not_be_found_is_not_sent(statsd: socket.socket, spec: ModelSpec) -> None:
    done(
        spec,
        "monitor",
        {"drift_share": None, "champion_as_of": None, "performance": {"verdict": "undetermined"}},
    )
    assert {n.split(",")[0] for n in got(statsd)} == {
        "airflow.perennial.step_seconds", "airflow.perennial.step_memory_mb", "airflow.perennial.finished_at",
    }  # fmt: skip


def test_a_backfill_does_not_look_like_today(statsd: socket.socket, spec: ModelSpec) -> None:
    done(spec, "data", {}, kind="backfill", rows_in=10, rows_out=10)
    assert got(statsd) == {}


def test_a_metric_that_cannot_be_read_fails_nothing(statsd: socket.socket, spec: ModelSpec) -> None:
    for file in (manifests.uri(spec.name, "data", NIGHT), incidents.log_uri(spec.name)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("{damaged")
    metrics.record_step(spec, "data", NIGHT)
    metrics.record_open_incidents(spec)
    assert got(statsd) == {}


def test_the_names_are_the_same_by_opentelemetry(tmp_path: Path) -> None:
    """Against a collector's HTTP endpoint, in a process of its own: OpenTelemetry is set up once in a process."""
    environ = os.environ | {"PYTHONPATH": f"{ROOT}/include:{ROOT}/plugins", "PERENNIAL_HOME": str(tmp_path)}
    lines = subprocess.run(
        [sys.executable, "-c", COLLECT], env=environ, capture_output=True, text=True, timeout=120, check=True
    ).stdout.splitlines()
    labels = {"model": "flight_late", "severity": "bad"}
    assert f"airflow.perennial.open_incidents {''!r} 0.0 {labels}" in lines, lines


def test_nothing_is_looked_up_unless_configured(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_emit", lambda *_: pytest.fail("something was sent"))
    done(spec, "data", {}, rows_in=1, rows_out=1)
    metrics.record_open_incidents(spec)


# --- dashboard, rules, mapping


def board() -> dict[str, Any]:
    return dict(json.loads((GRAFANA / "dashboard.json").read_text()))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((GRAFANA / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    panels = [t["expr"] for p in board()["panels"] for t in p["targets"]]
    variables = [v["query"] for v in board()["templating"]["list"] if v["type"] == "query"]
    return panels + variables + [r["expr"] for r in rules()]


def emitted() -> dict[str, set[str]]:
    """Prometheus's name of every metric, and its labels: Perennial's, and those of Airflow's own registry."""
    from airflow.sdk._shared.observability.metrics.metrics_registry import MetricsRegistry

    ours = {name: {"model", *tags} for name, tags in metrics.METRICS.items()}
    theirs = {name: set() for name in MetricsRegistry()._metrics}
    return {"airflow_" + name.replace(".", "_"): tags for name, tags in (theirs | ours).items()}


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_used_is_emitted(expression: str) -> None:
    used = re.findall(r"\b(airflow_\w+)(?:\{([^}]*)\})?", expression)
    assert used, expression
    known = emitted()
    for name, selector in used:
        assert name in known, name
        labels = set(re.findall(r"(\w+)\s*[=!]", selector or ""))
        assert labels <= known[name], f"{name}: {labels}"


def test_every_metric_has_its_panel() -> None:
    shown = " ".join(t["expr"] for p in board()["panels"] for t in p["targets"])
    for name in metrics.METRICS:
        assert re.search(rf"\bairflow_{name.replace('.', '_')}\b", shown), name


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    found = board()
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= set(found)
    ids = [p["id"] for p in found["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        assert panel["type"] in ("stat", "timeseries")
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        mine = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & mine and max(x for x, _ in mine) < 24, panel["title"]
        cells |= mine
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= {
                "model",
                "step",
                "metric",
                "table",
            }


def test_the_mapping_gives_the_names_that_are_used() -> None:
    (mapping,) = yaml.safe_load((GRAFANA / "statsd.yaml").read_text())["mappings"]
    for name in metrics.METRICS:
        match = re.fullmatch(mapping["match"], f"airflow.{name}")
        assert match
        assert mapping["name"].replace("$1", match[1]) in emitted()


PROMTOOL = shutil.which("promtool")
TESTS = """
rule_files: [rules.yaml]
evaluation_interval: 1h
tests:
  - interval: 1h
    input_series:
      - {series: 'airflow_perennial_finished_at{model="m", step="data"}', values: '0+0x60'}
      - {series: 'airflow_perennial_finished_at{model="n", step="data"}', values: '0+3600x60'}
      - {series: 'airflow_perennial_quarantined{model="m", step="data"}', values: '5+0x60'}
      - {series: 'airflow_perennial_rows{model="m", step="data"}', values: '95+0x60'}
    alert_rule_test:
      - {eval_time: 35h, alertname: PerennialNoData, exp_alerts: []}
      - eval_time: 37h
        alertname: PerennialNoData
        exp_alerts:
          - exp_labels: {severity: page, model: m, step: data}
            exp_annotations:
              summary: "m: no partition was published for 1d 13h 0m 0s"
              description: "The DAG m.data is paused, fails, or Airflow does not run. Models that are fed less often
                than every night need a separate threshold."
      - eval_time: 2h
        alertname: PerennialQuarantine
        exp_alerts:
          - exp_labels: {severity: ticket, model: m, step: data}
            exp_annotations:
              summary: "m: 5% of the last partition is in quarantine"
              description: "The data task's report says which expectations the rows broke."
"""


@pytest.mark.skipif(
    not PROMTOOL, reason="no promtool on PATH: the alert rules are not evaluated (apt-get install prometheus)"
)
def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    shutil.copy(GRAFANA / "rules.yaml", tmp_path)
    (tmp_path / "tests.yaml").write_text(TESTS)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        done = subprocess.run(
            [str(PROMTOOL), *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
