"""The result of the monitor step, and its storage in the table ``monitoring`` of the lake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, NotRequired, TypedDict

import pyarrow as pa

from perennial.core.sql import text_literal
from perennial.modeling import registry
from perennial.modeling.coverage import CoverageResult
from perennial.monitoring.drift_verdict import ColumnDrift, Verdict
from perennial.monitoring.signals import Signal, SignalResult
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

_TEXT_COLUMNS = ("role", "column", "status", "reason", "model_version", delta_tables.PARTITION)
_NUMBER_COLUMNS = (
    "value", "limit", "level", "attributed_loss", "psi", "threshold", "reference_nulls", "current_nulls", "importance",
    "drift_share", "evaluated_share", "loss", "loss_at_training", "evaluated", "partitions",
)  # fmt: skip


#: Earlier windows that are read for each that the verdict needs: it skips undetermined ones.
MAX_PREVIOUS = 4


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
        coverage: how many of the champion's scored rows the metrics rest on, and why the others are left out.
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
    coverage: CoverageResult
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
    coverage: NotRequired[CoverageResult]


class MonitoringResult(TypedDict):
    """The result of the monitor step, also stored in its manifest.

    Attributes:
        as_of: last partition date of the window.
        start: first partition date of the window.
        verdict: verdict on drift; ``ok`` only if no recent partition is missing and some signal says how well the model
            does (`drift_verdict.reason_not_ok`).
        reason: reason of the verdict.
        suspicious: whether the columns of this window alone count as drifted; None if that is undetermined.
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


def undetermined_result(start: str, as_of: str, reason: str = "") -> MonitoringResult:
    """The result for a window of which nothing is known.

    Args:
        start: first partition date of the window.
        as_of: last partition date of the window.
        reason: why nothing is known.
    """
    return {
        "as_of": as_of,
        "start": start,
        "verdict": "undetermined",
        "reason": reason,
        "drift_share": None,
        "evaluated_share": 0.0,
        "drifted": [],
        "columns": {},
        "model_version": None,
        "champion_as_of": None,
        "suspicious": None,
        "performance": {"verdict": "undetermined", "reason": "there is nothing to measure", "degraded": None},
        "signals": {},
        "trial": None,
        "report": "",
        "status": "monitored",
    }


def performance_result(measured: PerformanceMetrics, signal: Signal) -> PerformanceResult:
    """The measured performance, with the verdict of its signal.

    Args:
        measured: metrics of the labelled rows.
        signal: the signal ``performance``.
    """
    reason = "; ".join(r for r in (measured["reason"], signal.reason) if r)
    degraded = None if signal.state == "undetermined" else signal.state == "bad"
    return {
        **measured,
        "reason": reason,
        "verdict": "dropped" if degraded else signal.state,
        "degraded": degraded,
    }


class SignalRecord(NamedTuple):
    """A signal in an earlier window, as of `signals.Signal`."""

    state: str
    value: float | None
    limit: float | None
    level: float | None


@dataclass(frozen=True)
class WindowRecord:
    """What monitoring stored about one window.

    Attributes:
        as_of: last partition date of the window.
        version: version of the champion; empty if there was none.
        verdict: verdict on drift.
        drift_share: drifted share of the importance.
        performance: verdict on the performance.
        loss: the gate's metric on the labelled rows.
        loss_at_training: the same on the held-out rows at training.
        signals: the signals by name.
    """

    as_of: str
    version: str = ""
    verdict: str = ""
    drift_share: float | None = None
    performance: str = ""
    loss: float | None = None
    loss_at_training: float | None = None
    signals: Mapping[str, SignalRecord] = field(default_factory=dict)

    @classmethod
    def of_result(cls, result: MonitoringResult) -> WindowRecord:
        """The record of a result that is not stored yet."""
        performance = result["performance"]
        metric = performance.get("metric", "")
        return cls(
            result["as_of"],
            result["model_version"] or "",
            result["verdict"],
            result["drift_share"],
            performance["verdict"],
            performance.get("metrics", {}).get(metric),
            performance.get("metrics_at_training", {}).get(metric),
            {
                name: SignalRecord(s["state"], s["value"], s["limit"], s["level"])
                for name, s in result["signals"].items()
            },
        )


def window_history(spec: ModelSpec, as_of: str, windows: int) -> list[WindowRecord]:
    """What is stored about the latest windows before a date, in order.

    Args:
        spec: the model.
        as_of: the partition date.
        windows: most windows that are read.
    """
    con = duckdb_session.connect()
    uri = delta_tables.table_uri("monitoring", spec.name)
    if not duckdb_session.create_view(con, "__monitoring", uri, None, None, spec.cadence.shift(as_of, -1)):
        return []
    day = delta_tables.PARTITION
    rows = con.execute(
        f"WITH __latest AS (SELECT DISTINCT {day} FROM __monitoring ORDER BY 1 DESC LIMIT {int(windows)}) "
        f'SELECT {day}, role, "column", status, model_version, value, "limit", level, drift_share, loss, '
        f"loss_at_training FROM __monitoring SEMI JOIN __latest USING ({day}) "
        f"WHERE role IN ('verdict', 'performance', 'signal') ORDER BY 1"
    ).fetchall()
    records: dict[str, dict[str, Any]] = {}
    for key, role, name, status, version, value, limit, level, drift_share, loss, before in rows:
        record = records.setdefault(str(key), {"signals": {}})
        if role == "verdict":
            record |= {"verdict": status, "drift_share": drift_share, "version": version or ""}
        elif role == "performance":
            record |= {"performance": status, "loss": loss, "loss_at_training": before}
        else:
            record["signals"][name] = SignalRecord(status, value, limit, level)
    return [WindowRecord(as_of=key, **record) for key, record in records.items()]


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
    if not duckdb_session.create_view(con, "__monitoring", uri, None, None, spec.cadence.shift(as_of, -1)):
        return []
    rows = con.execute(
        f"SELECT {delta_tables.PARTITION}, suspicious FROM __monitoring "
        f"WHERE model_version = {text_literal(champion.version)} AND role = 'verdict' "
        f"ORDER BY 1 DESC LIMIT {MAX_PREVIOUS * needed}"
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
        numbers = {k: signal[k] for k in ("reason", "value", "limit", "level", "evaluated", "partitions")}
        rows.append({"role": "signal", "column": name, "status": signal["state"], **numbers})
    rows += [asdict(column) for column in columns]
    fields: list[pa.Field[Any]] = [pa.field(n, pa.string()) for n in _TEXT_COLUMNS]
    fields += [pa.field(n, pa.float64()) for n in _NUMBER_COLUMNS]
    schema = pa.schema([*fields, pa.field("rows", pa.int64()), pa.field("suspicious", pa.bool_())])
    common = {delta_tables.PARTITION: result["as_of"], "model_version": result["model_version"]}
    return pa.Table.from_pylist([row | common for row in rows], schema)
