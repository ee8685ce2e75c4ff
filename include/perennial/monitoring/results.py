"""Past verdicts: the lake's table ``monitoring``, one partition a date that was monitored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perennial.core import dates
from perennial.core.sql import text_literal
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    import pyarrow as pa

    from perennial.monitoring.drift_verdict import ColumnDrift

_TEXTS = ("role", "column", "status", "reason", "model_version", delta_tables.PARTITION)
_NUMBERS = ("value", "limit", "level", "effect",
            "psi", "threshold", "reference_nulls", "current_nulls", "weight", "drift_share", "judged_share", "loss",
            "loss_at_training")  # fmt: skip


def previous_verdicts(
    spec: ModelSpec, champion: registry.ModelVersion | None, as_of: str
) -> list[tuple[str, bool | None]]:
    """Date, and whether drift was suspected: this champion's verdicts, latest first."""
    wanted = spec.monitoring.persistence[1] - 1
    if champion is None or not wanted:
        return []
    con = duckdb_session.connect()
    if not duckdb_session.create_view(
        con,
        "monitoring",
        delta_tables.table_uri("monitoring", spec.name),
        None,
        None,
        dates.add_days(as_of, -1),
    ):
        return []
    # Windows that could not be judged are passed over, so more than m - 1 rows may have to be looked at.
    found = con.execute(
        "SELECT partition_date, suspicious FROM monitoring "
        f"WHERE model_version = {text_literal(champion.version)} AND role = 'verdict' "
        f"ORDER BY 1 DESC LIMIT {4 * wanted}"
    ).fetchall()
    return [(str(day), suspicious) for day, suspicious in found]


def to_table(as_of: str, result: dict[str, Any], findings: Sequence[ColumnDrift]) -> pa.Table:
    """The partition of one date: a row for the verdict, one for performance, one a signal, one a column."""
    import pyarrow as pa

    performance = result["performance"]
    metric = performance.get("metric")
    found: list[dict[str, Any]] = [
        {
            "role": "verdict",
            "status": result["verdict"],
            "reason": result["reason"],
            "suspicious": result["suspicious"],
            "drift_share": result["drift_share"],
            "judged_share": result["judged_share"],
        },
        {
            "role": "performance",
            "column": metric,
            "status": performance["verdict"],
            "reason": performance["reason"],
            "suspicious": performance["degraded"],
            "rows": performance.get("matured"),
            "loss": performance.get("metrics", {}).get(metric),
            "loss_at_training": performance.get("held_out", {}).get(metric),
        },
    ]
    for name, signal in result["signals"].items():
        told = {k: signal[k] for k in ("reason", "value", "limit", "level")}
        found.append({"role": "signal", "column": name, "status": signal["state"], **told})
    for f in findings:
        found.append(
            {
                "role": f.role,
                "column": f.column,
                "status": f.status,
                "reason": f.reason,
                "psi": f.psi,
                "threshold": f.threshold,
                "reference_nulls": f.reference_nulls,
                "current_nulls": f.current_nulls,
                "rows": f.rows,
                "weight": f.weight,
                "effect": f.effect,
            }
        )
    fields = [pa.field(n, pa.string()) for n in _TEXTS] + [pa.field(n, pa.float64()) for n in _NUMBERS]
    schema = pa.schema([*fields, pa.field("rows", pa.int64()), pa.field("suspicious", pa.bool_())])
    same = {delta_tables.PARTITION: as_of, "model_version": result["model_version"]}
    return pa.Table.from_pylist([f | same for f in found], schema)
