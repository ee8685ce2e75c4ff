"""Metrics of models, through Airflow's own metrics (OpenTelemetry or StatsD); none unless Airflow's are configured.

A dashboard and alert rules that use them are in docker/grafana.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from perennial.alerting import incidents
from perennial.storage import manifests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perennial.spec.model_spec import ModelSpec
    from perennial.storage.manifests import Manifest

#: What is measured, and by which tags beside ``model``. All are gauges, as of the latest step or verdict.
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
}
_Gauge = tuple[str, float, dict[str, str]]


def configured() -> bool:
    """Whether Airflow emits metrics."""
    from airflow.sdk.configuration import conf

    return any(conf.getboolean("metrics", f"{way}_on", fallback=False) for way in ("statsd", "otel")) or bool(
        conf.getboolean("metrics", "statsd_datadog_enabled", fallback=False)
    )


def step_done(spec: ModelSpec, step: str, key: str) -> None:
    """Tell of a step that is done, by its manifest: rows, quarantine, seconds, memory, when; a verdict, too."""
    if configured() and (found := manifests.read(spec.name, step, key)):
        _emit(spec, _of_step(found))
        if step == "monitor":
            _emit(spec, _of_verdict(found.result, key))


def incidents_open(spec: ModelSpec) -> None:
    """Tell how many incidents are open."""
    if configured():
        found = [i.severity for i in incidents.read(spec.name).open]
        _emit(
            spec,
            (("perennial.open_incidents", found.count(s), {"severity": s}) for s in ("bad", "suspected")),
        )


def _of_step(found: Manifest) -> Iterator[_Gauge]:
    tags = {"step": found.step}
    if found.step in ("data", "score"):  # the others count something else than a partition's rows
        yield "perennial.rows", found.rows_out, tags
        yield "perennial.quarantined", found.quarantined, tags
    yield "perennial.step_seconds", found.duration, tags
    yield "perennial.step_memory_mb", found.memory_mb, tags
    if found.finished_at:
        yield "perennial.finished_at", datetime.fromisoformat(found.finished_at).timestamp(), tags


def _of_verdict(result: dict[str, Any], as_of: str) -> Iterator[_Gauge]:
    """What the monitor step found; nothing is told of what it could not find."""
    performance = result.get("performance") or {}
    metric = performance.get("metric")
    if result.get("drift_share") is not None:
        yield "perennial.drift_share", result["drift_share"], {}
    for name, where in (("perennial.loss", "metrics"), ("perennial.loss_at_training", "held_out")):
        value = (performance.get(where) or {}).get(metric)
        if value is not None:
            yield name, value, {"metric": metric}
    if trained := result.get("champion_as_of"):
        age = date.fromisoformat(as_of) - date.fromisoformat(trained)
        yield "perennial.champion_age_days", age.days, {}


def _emit(spec: ModelSpec, gauges: Iterator[_Gauge] | Any) -> None:
    from airflow.sdk.observability import stats

    for name, value, tags in gauges:
        stats.gauge(name, float(value), tags={"model": spec.name} | tags)
