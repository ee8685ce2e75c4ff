"""Feature tables: one night of a long history, against one query over the same files, and twice the history.

DuckDB generates payments of a hundred thousand cards. Each night is one partition; the table's lookback is 30 of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bench.figures import Figure

if TYPE_CHECKING:
    from bench.workspace import Workspace

FIRST, LOOKBACK, CARDS = "2024-01-01", 30, 100_000
MODEL = "payments"
SQL = """
SELECT card, paid_at AS valid_from, count(*) OVER last_day AS paid_24h, sum(amount) OVER last_week AS amount_7d,
       avg(amount) OVER last_month AS mean_30d
FROM history
WINDOW last_day AS (PARTITION BY card ORDER BY paid_at RANGE BETWEEN INTERVAL 24 HOURS PRECEDING AND CURRENT ROW),
       last_week AS (PARTITION BY card ORDER BY paid_at RANGE BETWEEN INTERVAL 7 DAYS PRECEDING AND CURRENT ROW),
       last_month AS (PARTITION BY card ORDER BY paid_at RANGE BETWEEN INTERVAL 30 DAYS PRECEDING AND CURRENT ROW)
"""


def figures(workspace: Workspace) -> list[Figure]:
    """Measure a night of ten million rows of lookback (a tenth with --quick), also after twice as long a history."""
    rows = 1_000_000 if workspace.quick else 10_000_000
    measured = []
    for days in (LOOKBACK + 1, 2 * LOOKBACK + 1):
        env = {"PERENNIAL_LAKE": str(workspace.folder / f"lake-history-{rows}-{days}")}
        workspace.measure("history_make", env=env, rows=rows, days=days)
        measured.append(workspace.measure("history_night", env=env, days=days))
    once, twice = measured
    detail = f"{once['rows']:,} rows of the night; {once['wall']:.1f} s; {twice['cpu']:.0f} s after twice the history"
    return [
        Figure("features", f"CPU of a night, {rows:,} rows of lookback, {CARDS:,} entities", once["cpu"], "s", 60,
               detail=detail),
        Figure("features", "CPU after twice the history", twice["cpu"] / once["cpu"], "×", 1.2),
        Figure("features", "peak memory of a night", once.memory_mb, "MiB", 2048),
    ]  # fmt: skip


def _table() -> Any:
    """The feature table over the payments; neither has a folder."""
    from perennial.spec.feature_table import FeatureTable
    from perennial.spec.model_spec import ModelSpec

    model = ModelSpec.model_validate({
        "name": MODEL, "task": "regression", "owner": "bench", "description": "Payments.",
        "data": {"source": "{landing}/payments/{date}.parquet", "key": ["id"], "event_time": "paid_at",
                 "columns": {"id": "integer", "paid_at": "timestamp", "card": "integer", "amount": "number"}},
        "label": {"expression": "amount"}, "schedule": {"start": FIRST},
    })  # fmt: skip
    table = {
        "name": "cards", "owner": "bench", "description": "What was paid by a card before.",
        "sources": [{"model": MODEL, "label": "amount"}], "entity": {"card": "integer"}, "lookback": f"{LOOKBACK} days",
        "features": {"paid_24h": "integer", "amount_7d": "number", "mean_30d": "number"},
    }  # fmt: skip
    return FeatureTable.from_parts(table, SQL, (model,))


def history_make(rows: int, days: int) -> dict[str, Any]:
    """Publish ``days`` partitions, of which those of the lookback have ``rows`` rows."""
    from perennial.core import dates
    from perennial.storage import delta_tables, duckdb_session

    uri = delta_tables.table_uri("published", MODEL)
    if delta_tables.version(uri) is not None:
        return {}
    writer, count = delta_tables.Writer(uri), rows // LOOKBACK
    with duckdb_session.connect() as con:
        for n in range(days):
            day = dates.add_days(FIRST, n)
            query = (
                f"SELECT {n * count} + i AS id, TIMESTAMP '{day}' + to_microseconds(i * {86_400_000_000 // count}) AS "
                f"paid_at, CAST(hash({n * count} + i) % {CARDS} AS BIGINT) AS card, CAST(hash(i * 7 + {n}) % 1000 AS "
                f"DOUBLE) AS amount, '{day}' AS partition_date FROM range({count}) __t(i)"
            )
            writer.replace(con.sql(query).to_arrow_table(), day)
    return {}


def history_night(days: int) -> dict[str, Any]:
    """Compute the last partition of a table that exists: before its first one, its SQL is tried several times."""
    from perennial.core import dates
    from perennial.features import feature_tables

    feature_tables.compute(_table(), [dates.add_days(FIRST, 1)])
    began, cpu = time.monotonic(), time.process_time()
    done = feature_tables.compute(_table(), [dates.add_days(FIRST, days - 1)], force=True)
    return {
        "rows": sum(done.values()), "wall": time.monotonic() - began, "cpu": time.process_time() - cpu,
    }  # fmt: skip
