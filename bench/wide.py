"""Wide tables: a verdict on a hundred columns and ten million rows, and the data step on up to two thousand columns.

DuckDB generates the rows. Of the verdict: numbers with a thousand values each and, in the last columns, categories; the
label follows from two of the numbers. Of the data step: CSV files with columns of all types.
"""

from __future__ import annotations

import json
from pathlib import Path
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
                "arrives_after": "1 day",
            },
            "features": {"categorical": categories},
            "training": {"rounds": 30, "search": {"trials": 0}, "holdout": "14 days"},
            "monitoring": {"window": f"{WINDOW} days"},
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


def columns_spec(columns: int) -> Any:
    """The spec of a model whose CSV files have so many columns of all types; it has no folder."""
    from perennial.spec.model_spec import ModelSpec

    kinds = ("number", "number", "number", "integer", "boolean", "string", "date", "timestamp")
    typed = {f"c{i:04d}": kinds[i % len(kinds)] for i in range(columns - 3)}
    model = ModelSpec.model_validate(
        {
            "name": f"columns_{columns}",
            "task": "regression",
            "owner": "bench",
            "description": "Many columns.",
            "data": {
                "source": "{landing}/columns-" + str(columns) + "/{date}.csv",
                "key": ["id"],
                "event_time": "at",
                "columns": {"id": "string", "at": "timestamp", "y": "number", **typed},
            },
            "label": {"expression": "y"},
            "schedule": {"start": FIRST},
        }
    )
    model._sql = f"SELECT id, {', '.join(c for c, kind in typed.items() if kind == 'number')} FROM rows"
    model._suite = json.dumps({"name": "columns", "expectations": []})
    return model


def columns_land(columns: int, rows: int) -> dict[str, Any]:
    """Land one partition of a CSV file with so many columns; some cells are missing."""
    import duckdb
    import pyarrow.csv

    from perennial.storage import landing

    model = columns_spec(columns)
    cells = {
        "number": "(hash(i, {j}) % 100000) / 1000.0",
        "integer": "hash(i, {j}) % 1000",
        "boolean": "hash(i, {j}) % 2 = 0",
        "string": "'k' || hash(i, {j}) % 20",
        "date": "DATE '2023-01-01' + (hash(i, {j}) % 300)::INT",
        "timestamp": "TIMESTAMP '2023-01-01' + to_seconds((hash(i, {j}) % 1000000)::BIGINT)",
    }
    drawn = [f"'r' || i AS id, TIMESTAMP '{FIRST} 12:00:00' AS at"]
    for j, (name, kind) in enumerate(list(model.data.columns.items())[2:]):
        drawn.append(f"CASE WHEN hash(i, {j}, 'm') % 20 <> 0 THEN {cells[kind].format(j=j)} END AS {name}")
    path = Path(landing.source_uri(model.data.source, FIRST))
    path.parent.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect(config={"threads": 1})
    with path.open("wb") as file:
        for start in range(0, rows, 8192):
            part = f"SELECT {', '.join(drawn)} FROM range({start}, {min(rows, start + 8192)}) r(i)"
            options = pyarrow.csv.WriteOptions(include_header=start == 0)
            pyarrow.csv.write_csv(con.sql(part).to_arrow_table(), file, options)
    return {}


def columns_data(columns: int) -> dict[str, Any]:
    """Time the data step on that partition."""
    from bench.tasks import Clock, peak_mb, preload
    from perennial.steps import dispatch

    preload()
    import great_expectations  # noqa: F401

    clock = Clock()
    result = dispatch.run("data", columns_spec(columns), start=FIRST, force=True)
    return clock.read() | {"rows": result["rows_out"], "memory_mb": peak_mb()}
