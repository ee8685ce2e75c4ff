"""The result of the monitor step, and its storage in the table ``monitoring`` of the lake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, NotRequired, TypedDict

import pyarrow as pa

from perennial.core import dates
from perennial.core.sql import text_literal
from perennial.modeling import registry
from perennial.monitoring.drift_verdict import ColumnDrift, Verdict
from perennial.monitoring.signals import SignalResult
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

_TEXT_COLUMNS = ("role", "column", "status", "reason", "model_version", delta_tables.PARTITION)
_NUMBER_COLUMNS = (
    "value", "limit", "level", "attributed_loss", "psi", "threshold", "reference_nulls", "current_nulls", "importance",
    "drift_share", "evaluated_share", "loss", "loss_at_training",
)  # fmt: skip


class PerformanceMetrics(TypedDict):
    """The champion's predictions compared with the labels that have arrived.

    Attributes:
        metric: the gate's metric.
        metrics: metrics of the window's labelled rows, by name; empty if they cannot be computed.
        metrics_at_training: metrics of the held-out rows, by name.
        relative_change: change of the gate's metric since training; None if it cannot be computed.
        scored_rows: number of rows of the window that the champion scored.
        labelled_rows: number of scored rows whose label has arrived.
        labelled_share: labelled rows as a share of the scored rows.
        unscored_labels: number of labels without a prediction, on dates on which rows were scored.
        reason: the numbers in words, or why there are none.
    """

    metric: str
    metrics: dict[str, float]
    metrics_at_training: dict[str, float]
    relative_change: float | None
    scored_rows: int
    labelled_rows: int
    labelled_share: float
    unscored_labels: int
    reason: str


class PerformanceResult(TypedDict):
    """`PerformanceMetrics`, with the verdict of the signal ``performance``.

    Attributes:
        verdict: ``ok``, ``suspected``, ``dropped`` or ``undetermined``.
        degraded: whether the verdict is ``dropped``; None if it is undetermined.
    """

    verdict: str
    degraded: bool | None
    reason: str
    metric: NotRequired[str]
    metrics: NotRequired[dict[str, float]]
    metrics_at_training: NotRequired[dict[str, float]]
    relative_change: NotRequired[float | None]
    scored_rows: NotRequired[int]
    labelled_rows: NotRequired[int]
    labelled_share: NotRequired[float]
    unscored_labels: NotRequired[int]


class MonitoringResult(TypedDict):
    """The result of the monitor step, also stored in its manifest.

    Attributes:
        as_of: last partition date of the window.
        start: first partition date of the window.
        verdict: verdict on drift.
        reason: reason of the verdict.
        suspicious: whether this window alone counts as drifted; None if that is undetermined.
        drift_share: importance of the drifted features, as a share of the importance that could be evaluated.
        evaluated_share: importance that could be evaluated, 0 to 1.
        drifted: names of drifted columns, the most important first.
        columns: number of columns by status.
        model_version: version of the champion; None if there is none.
        champion_as_of: partition date as of which the champion was trained.
        performance: performance of the champion on labelled rows.
        signals: all signals, by name.
        trial: `lifecycle.trials.TrialEvaluation` of the challenger on trial; None if there is none.
        changed: which of ``spec`` and ``code`` differ from those that the champion was trained with.
        new_rows: rows since the champion's training, as a share of those that it was fitted to.
        report: URI of the report.
        status: ``monitored``, or ``unchanged`` if the same inputs were evaluated before.
    """

    as_of: str
    start: str
    verdict: Verdict
    reason: str
    suspicious: bool | None
    drift_share: float | None
    evaluated_share: float
    drifted: list[str]
    columns: dict[str, int]
    model_version: str | None
    champion_as_of: str | None
    performance: PerformanceResult
    signals: dict[str, SignalResult]
    trial: Mapping[str, Any] | None
    changed: NotRequired[list[str]]
    new_rows: NotRequired[float]
    report: str
    status: str


class PreviousVerdict(NamedTuple):
    """An earlier verdict: its date, and whether its window was suspicious (None: undetermined)."""

    day: str
    suspicious: bool | None


def previous_verdicts(
    spec: ModelSpec, champion: registry.ModelVersion | None, as_of: str
) -> list[PreviousVerdict]:
    """The verdicts on this champion before a date, latest first."""
    needed = spec.monitoring.persistence[1] - 1
    if champion is None or not needed:
        return []
    con = duckdb_session.connect()
    uri = delta_tables.table_uri("monitoring", spec.name)
    if not duckdb_session.create_view(con, "monitoring", uri, None, None, dates.add_days(as_of, -1)):
        return []
    # Undetermined windows are skipped by the verdict, so more than m - 1 rows may be needed.
    rows = con.execute(
        f"SELECT {delta_tables.PARTITION}, suspicious FROM monitoring "
        f"WHERE model_version = {text_literal(champion.version)} AND role = 'verdict' "
        f"ORDER BY 1 DESC LIMIT {4 * needed}"
    ).fetchall()
    return [PreviousVerdict(str(day), suspicious) for day, suspicious in rows]


def to_table(result: MonitoringResult, columns: Sequence[ColumnDrift]) -> pa.Table:
    """Compose the table's partition: rows for the verdict, performance, each signal and each column.

    Args:
        result: result of the monitor step.
        columns: all compared columns.
    """
    performance = result["performance"]
    metric = performance.get("metric", "")
    rows: list[dict[str, Any]] = [
        {
            "role": "verdict",
            "status": result["verdict"],
            **{k: result[k] for k in ("reason", "suspicious", "drift_share", "evaluated_share")},
        },
        {
            "role": "performance",
            "column": metric or None,
            "status": performance["verdict"],
            "reason": performance["reason"],
            "suspicious": performance["degraded"],
            "rows": performance.get("labelled_rows"),
            "loss": performance.get("metrics", {}).get(metric),
            "loss_at_training": performance.get("metrics_at_training", {}).get(metric),
        },
    ]
    for name, signal in result["signals"].items():
        numbers = {k: signal[k] for k in ("reason", "value", "limit", "level")}
        rows.append({"role": "signal", "column": name, "status": signal["state"], **numbers})
    rows += [asdict(column) for column in columns]
    fields: list[pa.Field[Any]] = [pa.field(n, pa.string()) for n in _TEXT_COLUMNS]
    fields += [pa.field(n, pa.float64()) for n in _NUMBER_COLUMNS]
    schema = pa.schema([*fields, pa.field("rows", pa.int64()), pa.field("suspicious", pa.bool_())])
    common = {delta_tables.PARTITION: result["as_of"], "model_version": result["model_version"]}
    return pa.Table.from_pylist([row | common for row in rows], schema)
