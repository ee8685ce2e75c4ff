"""A verdict on a wide table: a hundred columns, ten million rows within the window.

DuckDB generates the rows: numbers with a thousand values each and, in the last columns, categories. The label follows
from two of the numbers.
"""

from __future__ import annotations

from typing import Any

COLUMNS, CATEGORIES = 100, 10
FIRST, TRAINED, LAST = "2024-01-01", "2024-02-11", "2024-03-10"
#: Partitions of the window, and rows of each partition before it.
WINDOW, BEFORE = 28, 5_000


def spec(rows: int) -> Any:
    """The spec of a model whose window has ``rows`` rows; it has no folder."""
    from perennial.spec.model_spec import ModelSpec

    numbers, categories = _names()
    columns = dict.fromkeys(numbers, "number") | dict.fromkeys(categories, "string")
    model = ModelSpec.model_validate(
        {
            "name": f"wide_{rows}",
            "task": "binary",
            "owner": "bench",
            "description": "A hundred columns.",
            "data": {
                "source": "{landing}/wide/{date}.parquet",
                "key": ["id"],
                "event_time": "at",
                "columns": {"id": "string", "at": "timestamp", **columns},
            },
            "label": {
                "source": "{landing}/wide-labels/{date}.parquet",
                "columns": {"id": "string", "y": "integer"},
                "expression": "y",
                "arrives_after_days": 1,
            },
            "features": {"categorical": categories},
            "training": {"rounds": 30, "search": {"trials": 0}, "holdout_days": 14},
            "monitoring": {"window_days": WINDOW},
            "schedule": {"start": FIRST},
        }
    )
    model._sql, model._suite = f"SELECT id, {', '.join(columns)} FROM rows", "{}"
    return model


def _names() -> tuple[list[str], list[str]]:
    return [f"f{i:02d}" for i in range(COLUMNS - CATEGORIES)], [f"c{i:02d}" for i in range(CATEGORIES)]


def wide_make(rows: int) -> dict[str, Any]:
    """Publish rows and labels, train and promote a champion, and score the window, which has ``rows`` rows."""
    from perennial.core import dates
    from perennial.steps import dispatch
    from perennial.storage import delta_tables, duckdb_session

    model = spec(rows)
    numbers, categories = _names()
    con = duckdb_session.connect(memory_share=0.5)
    drawn = [f"(hash(i, night, {j}) % 1000) / 1000.0 AS {c}" for j, c in enumerate(numbers)]
    drawn += [f"'k' || (hash(i, night, {j}, 'c') % 20) AS {c}" for j, c in enumerate(categories)]
    known = f"(f00 + f01 + (hash(id) % 1000) / 1000.0 > 1.5)::INT AS label, {delta_tables.PARTITION}"
    for n, day in enumerate(dates.dates(FIRST, LAST)):
        size = rows // WINDOW if day > TRAINED else BEFORE
        query = (
            f"SELECT '{day}-' || i AS id, TIMESTAMP '{day} 12:00:00' AS at, "
            f"{', '.join(drawn)}, '{day}' AS {delta_tables.PARTITION} "
            f"FROM (SELECT i, {n} AS night FROM range({size}) r(i))"
        )
        for kind, sql in (("published", query), ("labels", f"SELECT id, {known} FROM ({query})")):

            def batches(sql: str = sql) -> Any:
                return con.sql(sql).to_arrow_reader(65_536)

            delta_tables.replace(delta_tables.table_uri(kind, model.name), batches, day, day)
    dispatch.run("train", model, as_of=TRAINED)
    if not dispatch.run("promote", model, as_of=TRAINED, actor="bench")["promoted"]:
        raise RuntimeError("no champion")
    dispatch.run("score", model, start=dates.add_days(TRAINED, 1), end=LAST)
    return {}


def wide_verdict(rows: int) -> dict[str, Any]:
    """Time the monitor step on the last partition."""
    from bench.tasks import Clock, peak_mb, preload
    from perennial.steps import dispatch

    preload()
    import evidently  # noqa: F401

    clock = Clock()
    result = dispatch.run("monitor", spec(rows), as_of=LAST, force=True)
    states = {name: signal["state"] for name, signal in result["signals"].items()}
    return clock.read() | {"verdict": result["verdict"], "signals": states, "memory_mb": peak_mb()}
