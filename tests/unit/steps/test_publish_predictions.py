"""Predictions in a table of a database: idempotent by partition, in SQLite and in a real PostgreSQL server."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.core.errors import DatabaseError, DatabaseRequestError, DataError, SpecError, time_heals
from perennial.ingestion import table_definitions
from perennial.spec.model_spec import ModelSpec
from perennial.steps.publish_predictions import publish_predictions, replace_written
from perennial.storage import delta_tables, manifests
from support import toys

DAY = "2024-01-01"
NEXT = dates.add_days(DAY, 1)
Rows = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(params=["sqlite", "postgresql"])
def rows_of(
    request: pytest.FixtureRequest, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Rows:
    """Runs a query of the database of connection ``shop``; a statement without rows gives none."""
    if request.param == "sqlite":
        path = tmp_path / "shop.db"
        sqlite3.connect(path).close()
        monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", f"sqlite:///{path}")

        def run(sql: str) -> list[dict[str, Any]]:
            with closing(sqlite3.connect(path)) as con, con:
                cursor = con.execute(sql)
                return [
                    dict(zip([c[0] for c in cursor.description or ()], row, strict=True)) for row in cursor
                ]

        return run
    server = request.getfixturevalue("postgres_server")
    name = server.new_database()
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", server.uri(name))
    return lambda sql: (
        server.rows(sql, name) if sql.startswith("SELECT") else server.execute(sql, database=name) or []
    )


def scored(spec: ModelSpec, day: str, n: int = 5, first: float = 0.25) -> None:
    """Write predictions to the lake, as scoring does."""
    table = pa.table({
        "id": [f"{day}-{i}" for i in range(n)],
        "prediction": pa.array([first, *([0.5] * (n - 1))], pa.float32()),
        "probabilities": pa.array([[0.25, 0.75]] * n, pa.list_(pa.float32())),
        "model_version": ["3"] * n, "run_id": ["r"] * n,
        "scored_at": pa.array([0] * n, pa.timestamp("us", "UTC")), "partition_date": [day] * n,
    })  # fmt: skip
    table_definitions.writer_of(spec, "predictions").replace(table, day, day)
    manifest = manifests.Manifest(spec.name, "score", day, {}, {}, rows_in=n, rows_out=n)
    manifests.write_all([manifest], 0.0)


def made(tmp_path: Path, table: str = "Predictions of toys") -> ModelSpec:
    return toys.model(tmp_path / "models", "toy", predictions={"connection": "shop", "table": table})


def test_a_partition_is_written_once_and_replaced_whole(rows_of: Rows, tmp_path: Path) -> None:
    spec = made(tmp_path)
    scored(spec, DAY)
    scored(spec, NEXT)
    result = publish_predictions(spec, start=DAY, end=NEXT, run_id="r1")
    assert (result["partitions"], result["rows"], result["status"]) == ([DAY, NEXT], 10, "published")
    select = 'SELECT * FROM "Predictions of toys" ORDER BY id'
    written = rows_of(select)
    assert [row["id"] for row in written] == [f"{day}-{i}" for day in (DAY, NEXT) for i in range(5)]
    assert (written[0]["prediction"], written[0]["model_version"]) == (0.25, "3")
    assert json.loads(written[0]["probabilities"]) == [0.25, 0.75]
    assert str(written[0]["scored_at"]).startswith("1970-01-01 00:00:00")
    assert publish_predictions(spec, start=DAY, end=NEXT)["status"] == "unchanged"
    publish_predictions(spec, start=DAY, end=NEXT, force=True)
    assert rows_of(select) == written
    scored(spec, DAY, n=3, first=0.75)
    assert publish_predictions(spec, start=DAY)["status"] == "published"
    again = rows_of(select)
    assert len(again) == 8 and again[0]["prediction"] == 0.75 and again[3:] == written[5:]
    manifest = manifests.read("toy", "publish_predictions", DAY)
    assert manifest is not None and manifest.rows_out == 3
    assert "s3cret" not in json.dumps([manifest.inputs, manifest.result])


def test_catching_up_writes_what_was_scored_since(rows_of: Rows, tmp_path: Path) -> None:
    spec = made(tmp_path, "predictions")
    days = dates.dates(DAY, dates.add_days(DAY, 3))
    scored(spec, days[0])
    publish_predictions(spec, start=days[0], catch_up=True)
    for day in days[1:]:
        scored(spec, day)
    result = publish_predictions(spec, start=days[3], catch_up=True)
    assert (result["partitions"], result["late"]) == ([days[3]], [days[1], days[2]])
    assert rows_of("SELECT count(*) AS n FROM predictions")[0]["n"] == 20


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("id text, partition_date text", "column 'prediction' is missing"),
        ("partition_date text, id text, prediction double precision, probabilities text, model_version text, "
         "run_id text, scored_at timestamp with time zone, extra int", "column 'extra' is no column of predictions"),
    ],
)  # fmt: skip
def test_a_table_of_other_columns_is_refused_and_stays(
    rows_of: Rows, tmp_path: Path, definition: str, message: str
) -> None:
    spec = made(tmp_path, "predictions")
    scored(spec, DAY)
    rows_of(f"CREATE TABLE predictions ({definition})")
    rows_of(f"INSERT INTO predictions (id, partition_date) VALUES ('x', '{DAY}')")
    with pytest.raises(DatabaseRequestError, match=message):
        publish_predictions(spec, start=DAY)
    assert rows_of("SELECT count(*) AS n FROM predictions")[0]["n"] == 1
    assert manifests.read("toy", "publish_predictions", DAY) is None


def test_what_fails_leaves_the_earlier_rows(
    rows_of: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial.steps import publish_predictions as step

    spec = made(tmp_path, "predictions")
    scored(spec, DAY)
    publish_predictions(spec, start=DAY)
    real = step._batches

    def broken(*arguments: Any) -> Any:
        yield from real(*arguments)
        raise RuntimeError("the lake is gone")

    monkeypatch.setattr(step, "_batches", broken)
    with pytest.raises((RuntimeError, DatabaseError)):
        publish_predictions(spec, start=DAY, force=True)
    assert rows_of("SELECT count(*) AS n FROM predictions")[0]["n"] == 5


def test_a_database_that_is_down_is_worth_another_try(
    rows_of: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = made(tmp_path, "predictions")
    scored(spec, DAY)
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", "postgresql://ann:s3cret@127.0.0.1:1/shop")
    with pytest.raises(DatabaseError) as caught:
        publish_predictions(spec, start=DAY)
    assert time_heals(caught.value) and "s3cret" not in str(caught.value)
    assert caught.value.partition == DAY


def test_a_range_without_predictions_and_a_spec_without_a_table(empty_home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is scored"):
        publish_predictions(made(tmp_path), start=DAY)
    with pytest.raises(SpecError, match=r"predictions\.table"):
        publish_predictions(toys.model(tmp_path / "models", "toy"), start=DAY)


def test_what_was_erased_from_the_lake_leaves_the_table(rows_of: Rows, tmp_path: Path) -> None:
    spec = made(tmp_path, "predictions")
    unwritten = dates.add_days(DAY, 2)
    days = [DAY, NEXT, unwritten]
    for day in days:
        scored(spec, day)
    publish_predictions(spec, start=DAY, end=NEXT)
    delta_tables.remove_rows(delta_tables.table_uri("predictions", spec.name), days)
    replaced, left = replace_written(spec, days, emptied=[DAY, unwritten])
    assert replaced == [DAY], "the last was never written"
    (text,) = left
    assert text.startswith(f"table predictions of the database, {NEXT}: delete there")
    kept = rows_of("SELECT partition_date FROM predictions")
    assert [row["partition_date"] for row in kept] == [NEXT] * 5, "only the lake's retention deleted them"
