"""First models of wide files, from ``perennial new`` to a verdict: each step in a process of its own.

A file has some columns of each type, an event time over forty days and a number as the label, which follows from two
of the columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FIRST, DAYS = "2024-01-01", 40
#: Steps after ``new`` and ``data``, in their order.
STEPS = ("train", "promote", "score", "monitor")
_KINDS = ("number", "number", "number", "integer", "boolean", "string", "date", "timestamp")
_CELLS = {
    "number": "(hash(i, {j}) % 100000) / 1000.0",
    "integer": "(hash(i, {j}) % 1000)::INTEGER",
    "boolean": "hash(i, {j}) % 2 = 0",
    "string": "'k' || hash(i, {j}) % 20",
    "date": "DATE '2023-01-01' + (hash(i, {j}) % 300)::INTEGER",
    "timestamp": "TIMESTAMP '2023-01-01' + to_seconds((hash(i, {j}) % 1000000)::BIGINT)",
}


def sample_path(columns: int, rows: int, ending: str) -> Path:
    """The file of so many columns and rows."""
    from perennial.core.settings import settings

    return settings().home / f"wide-{columns}-{rows}.{ending}"


def model_name(columns: int, rows: int, ending: str) -> str:
    """The name of the model of a file."""
    return f"wide_{columns}_{rows}_{ending}"


def wide_sample(columns: int, rows: int, ending: str) -> dict[str, Any]:
    """Write the file, as ``csv`` or ``parquet``; every twentieth cell is missing."""
    import duckdb
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    drawn = [
        "'r' || i AS id",
        f"TIMESTAMP '{FIRST}' + to_seconds((i * {DAYS * 86_400} // {rows})::BIGINT) AS at",
        "(hash(i, 0) % 100000) / 1000.0 + (hash(i, 1) % 100000) / 500.0 + (hash(i, 'y') % 100) AS y",
    ]
    for j in range(columns - len(drawn)):
        cell = _CELLS[_KINDS[j % len(_KINDS)]].format(j=j)
        drawn.append(f"CASE WHEN hash(i, {j}, 'm') % 20 <> 0 THEN {cell} END AS c{j:04d}")
    path = sample_path(columns, rows, ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    con, some = duckdb.connect(config={"threads": 1}), max(1, 8_000_000 // columns)
    query = f"SELECT {', '.join(drawn)} FROM range($start, $stop) r(i)"
    writer: Any = None
    with path.open("wb") as file:
        for start in range(0, rows, some):
            parameters = {"start": start, "stop": min(rows, start + some)}
            table: Any = con.execute(query, parameters).to_arrow_table()
            if writer is None:
                writer = (pq.ParquetWriter if ending == "parquet" else pc.CSVWriter)(file, table.schema)
            writer.write_table(table)
        writer.close()
    return {}


def wide_new(columns: int, rows: int, ending: str) -> dict[str, Any]:
    """Time ``perennial new`` on the file."""
    from bench.tasks import Clock, peak_mb, preload
    from perennial.cli.new.wizard import GivenAnswers, create_model_folder
    from perennial.core.settings import settings

    preload()
    clock = Clock()
    created = create_model_folder(
        model_name(columns, rows, ending), [sample_path(columns, rows, ending)],
        GivenAnswers(label="y", task="regression", owner="bench", land=True), settings().models[-1], ask=False,
    )  # fmt: skip
    return clock.read() | {"first": created.first, "last": created.last, "memory_mb": peak_mb()}


def wide_step(step: str, columns: int, rows: int, ending: str, first: str, last: str) -> dict[str, Any]:
    """Time a step of the model of the file: all partitions, and the last one of a score or a verdict."""
    from bench.tasks import Clock, peak_mb, preload
    from perennial.spec import catalog
    from perennial.steps import dispatch

    preload()
    arguments: dict[str, Any] = {
        "data": {"start": first, "end": last},
        "score": {"start": first, "end": last},
        "promote": {"as_of": last, "actor": "bench"},
    }.get(step, {"as_of": last})
    clock = Clock()
    dispatch.run(step, catalog.load_model_by_name(model_name(columns, rows, ending)), **arguments)
    return clock.read() | {"memory_mb": peak_mb()}
