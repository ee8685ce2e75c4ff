"""Metrics of models, emitted as Airflow's own (OpenTelemetry or StatsD); none unless Airflow is configured for them.

A dashboard and alert rules that use them are in docker/grafana.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from perennial.alerting import incidents
from perennial.core.partitions import days_between
from perennial.storage import manifests, pages

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec
    from perennial.storage.manifests import Manifest

log = logging.getLogger("perennial")
#: Every metric, with its tags besides ``model``. All are gauges, as of the latest step or verdict.
METRICS: dict[str, tuple[str, ...]] = {
    "perennial.rows": ("step",),
    "perennial.quarantined": ("step",),
    "perennial.step_seconds": ("step",),
    "perennial.step_memory_mb": ("step",),
    "perennial.finished_at": ("step",),
    "perennial.drift_share": (),
    "perennial.loss": ("metric",),
    "perennial.loss_at_training": ("metric",),
    "perennial.champion_age_days": (),
    "perennial.open_incidents": ("severity",),
    "perennial.disk_bytes": ("table",),
}
#: Name, value, tags.
_Gauge = tuple[str, float, dict[str, str]]


def configured() -> bool:
    """Whether Airflow emits metrics."""
    from airflow.sdk.configuration import conf

    return any(
        conf.getboolean("metrics", option, fallback=False)
        for option in ("statsd_on", "otel_on", "statsd_datadog_enabled")
    )


def record_step(spec: ModelSpec, step: str, key: str) -> None:
    """Emit what the manifest of a finished step says: rows, quarantine, duration, memory; for `monitor` the verdict.

    Args:
        spec: the model.
        step: name of the step.
        key: its partition.
    """
    with _without_failing(spec):
        if configured() and (manifest := manifests.read(spec.name, step, key)):
            _emit(spec, _step_gauges(manifest))
            if step == "monitor":
                _emit(spec, _verdict_gauges(manifest.result, key))


def record_open_incidents(spec: ModelSpec) -> None:
    """Emit the number of open incidents, by severity."""
    with _without_failing(spec):
        if not configured():
            return
        severities = [i.severity for i in incidents.read_log(spec.name).open]
        counts = {severity: severities.count(severity) for severity in ("bad", "suspected")}
        _emit(spec, [("perennial.open_incidents", n, {"severity": s}) for s, n in counts.items()])


def record_disk_use(spec: ModelSpec, tables: Mapping[str, int]) -> None:
    """Emit the bytes that the tables of a model take, by table."""
    with _without_failing(spec):
        if configured():
            _emit(spec, [("perennial.disk_bytes", size, {"table": name}) for name, size in tables.items()])


@contextmanager
def _without_failing(spec: ModelSpec) -> Iterator[None]:
    """Log what fails in the block: no task depends on a metric."""
    try:
        yield
    except Exception as error:
        log.warning("the metrics of %s could not be emitted: %s", spec.name, pages.why(error))


def _step_gauges(manifest: Manifest) -> Iterator[_Gauge]:
    tags = {"step": manifest.step}
    if manifest.step in ("data", "score"):  # the other steps do not count the rows of a partition
        yield "perennial.rows", manifest.rows_out, tags
        yield "perennial.quarantined", manifest.quarantined, tags
    yield "perennial.step_seconds", manifest.duration, tags
    yield "perennial.step_memory_mb", manifest.memory_mb, tags
    if manifest.finished_at:
        yield "perennial.finished_at", datetime.fromisoformat(manifest.finished_at).timestamp(), tags


def _verdict_gauges(result: dict[str, Any], as_of: str) -> Iterator[_Gauge]:
    """Gauges of a monitor step's result; none for a value that it could not compute."""
    performance = result.get("performance") or {}
    metric = str(performance.get("metric") or "")
    if result.get("drift_share") is not None:
        yield "perennial.drift_share", result["drift_share"], {}
    for name, section in (
        ("perennial.loss", "metrics"),
        ("perennial.loss_at_training", "metrics_at_training"),
    ):
        value = (performance.get(section) or {}).get(metric)
        if value is not None:
            yield name, value, {"metric": metric}
    if trained := result.get("champion_as_of"):
        yield "perennial.champion_age_days", days_between(trained, as_of), {}


def _emit(spec: ModelSpec, gauges: Iterable[_Gauge]) -> None:
    from airflow.sdk.observability import stats

    for name, value, tags in gauges:
        stats.gauge(name, float(value), tags={"model": spec.name} | tags)
