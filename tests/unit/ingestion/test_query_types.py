"""Every type of PostgreSQL and SQLite is read back equal, or the column is refused by name."""

from __future__ import annotations

import datetime as dt
import math
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perennial.core.errors import DatabaseError, DataError
from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion import query_feed
from perennial.spec.sources import QuerySource
from support.databases.postgres import Server

DAY = "2024-05-01"
DECLARED = ("string", "integer", "number", "boolean", "date", "timestamp")
#: A type of PostgreSQL, a value of it as SQL, and what it is read as, by declared type.
POSTGRESQL: list[tuple[str, str, dict[str, Any]]] = [
    ("smallint", "-3", {"integer": -3, "number": -3.0}),
    ("integer", "7", {"integer": 7, "number": 7.0}),
    ("bigint", "9223372036854775807", {"integer": 2**63 - 1, "number": float(2**63 - 1)}),
    ("numeric(20,2)", "12.25", {"number": 12.25}),
    ("numeric", "'NaN'", {"number": None}),
    ("real", "0.5", {"number": 0.5}),
    ("double precision", "0.1", {"number": 0.1}),
    ("boolean", "true", {"boolean": True}),
    ("text", "'a b'", {"string": "a b"}),
    ("varchar(5)", "''", {"string": ""}),
    ("char(3)", "'x'", {"string": "x"}),
    ("name", "'n'", {"string": "n"}),
    ("uuid", "'00000000-0000-0000-0000-000000000001'", {"string": "00000000-0000-0000-0000-000000000001"}),
    ("json", "'[1]'", {"string": "[1]"}),
    ("jsonb", "'[1]'", {"string": "[1]"}),
    ("mood", "'sad'", {"string": "sad"}),
    ("date", "'2024-02-29'", {"date": dt.date(2024, 2, 29)}),
    ("timestamp", "'2024-05-01 10:00:00.123456'", {"timestamp": dt.datetime(2024, 5, 1, 10, 0, 0, 123456)}),
    ("timestamptz", "'2024-05-01 10:00+02'", {"timestamp": dt.datetime(2024, 5, 1, 8)}),
    ("date", "'infinity'", {}),
    ("timestamp", "'-infinity'", {}),
    ("timestamptz", "'infinity'", {}),
    ("time", "'10:00'", {}),
    ("interval", "'1 day'", {}),
    ("bytea", "'\\x00'", {}),
    ("integer[]", "'{1}'", {}),
    ("inet", "'10.0.0.1'", {}),
    ("money", "5", {}),
    ("oid", "3000000000", {}),
    ("point", "'(1,2)'", {}),
    ("int4range", "'[1,2)'", {}),
    ("bit(2)", "B'10'", {}),
    ("tsvector", "'a'", {}),
]


def read(folder: Path, declared: str, sql: str) -> list[Any]:
    """The values of the column ``v`` of a query, as the copy has them."""
    feed = FeedSchema("toy", "rows", {"v": declared})
    source = QuerySource(sql=f"SELECT v FROM ({sql}) AS q WHERE {{start}} IS NOT NULL", connection="shop")
    with query_feed.QueryReader(feed, source) as reader:
        file = reader.fetch(DAY, folder)
    return [
        None if isinstance(v, float) and math.isnan(v) else v
        for v in pq.read_table(file.path)["v"].to_pylist()
    ]


@pytest.fixture(scope="module")
def types_database(postgres_server: Server) -> str:
    name = postgres_server.new_database()
    postgres_server.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')", database=name)
    return postgres_server.uri(name)


@pytest.mark.parametrize(("kind", "value", "expected"), POSTGRESQL, ids=lambda item: str(item)[:30])
def test_each_type_of_postgresql_is_read_or_refused(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types_database: str,
    kind: str, value: str, expected: dict[str, Any],
) -> None:  # fmt: skip
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", types_database)
    # a type that no declared type can have needs one try only: all take the same way
    for declared in DECLARED if expected else ("string", "timestamp" if "time" in kind else "date"):
        sql = f"SELECT {value}::{kind} AS v UNION ALL SELECT NULL"
        if declared in expected:
            assert sorted(read(tmp_path, declared, sql), key=str) == sorted(
                [expected[declared], None], key=str
            )
        else:
            with pytest.raises(DataError, match=r"column 'v'"):
                read(tmp_path, declared, sql)


CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), st.binary(max_size=4),
    st.dates().map(str), st.datetimes().map(str),
    st.sampled_from(["2024-05-01T10:00:00Z", "2024-05-01 10:00+02:00", "24:00", "now", "infinity"]),
)  # fmt: skip


def equal(declared: str, cell: Any, value: Any) -> bool:
    """Whether a cell of SQLite was read as what it says."""
    if cell is None or value is None:
        return cell is value
    if declared in ("string", "integer"):
        return bool(type(cell) is type(value) and cell == value)
    if declared == "number":
        return bool(float(cell) == value)
    if declared == "boolean":
        return bool(int(value) == cell)
    if declared == "date":
        return bool(value == dt.date.fromisoformat(cell.strip()))
    moment = dt.datetime.fromisoformat(cell.strip())
    return bool(value == (moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(declared=st.sampled_from(DECLARED), cells=st.lists(CELLS, min_size=1, max_size=4))
def test_any_cell_of_sqlite_is_read_or_refused(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: str, cells: list[Any]
) -> None:
    path = tmp_path / "cells.db"
    path.unlink(missing_ok=True)
    stored = [int(cell) if isinstance(cell, bool) else cell for cell in cells]
    with closing(sqlite3.connect(path)) as con, con:
        con.execute("CREATE TABLE t (v)")
        con.executemany("INSERT INTO t VALUES (?)", [(cell,) for cell in stored])
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", f"sqlite:///{path}")
    try:
        values = read(tmp_path, declared, "SELECT v FROM t")
    except DataError as error:
        assert "column 'v'" in error.cause
        return
    assert len(values) == len(stored)
    for value in values:
        assert any(equal(declared, cell, value) for cell in stored), (declared, stored, values)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.one_of(st.none(), st.decimals(allow_nan=False, allow_infinity=False, places=4,
                                                      min_value=-10**12, max_value=10**12)), min_size=1, max_size=6),
)  # fmt: skip
def test_decimals_of_postgresql_are_the_nearest_numbers(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types_database: str,
    numbers: list[Decimal | None],
) -> None:  # fmt: skip
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", types_database)
    rows = " UNION ALL ".join(f"SELECT {'NULL' if n is None else n}::numeric AS v" for n in numbers)
    expected = [None if n is None else float(n) for n in numbers]
    assert sorted(read(tmp_path, "number", rows), key=str) == sorted(expected, key=str)


def test_a_server_that_stops_is_worth_another_try(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial.core.errors import time_heals
    from support.databases import postgres

    if postgres.programs() is None:
        pytest.skip("there is no PostgreSQL server that the user nobody can run")
    with postgres.server() as server:
        monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", server.uri())
        assert len(read(tmp_path, "integer", "SELECT generate_series(1, 10) AS v")) == 10
        stopped: list[bool] = []
        real = query_feed._copy

        def copy(batches: Any, *arguments: Any) -> Any:
            def interrupted() -> Any:
                for batch in batches:
                    yield batch
                    if not stopped:
                        server.stop()
                        stopped.append(True)

            return real(interrupted(), *arguments)

        monkeypatch.setattr(query_feed, "_copy", copy)
        for _ in range(2):  # the connection breaks while rows are read; then it cannot be made
            with pytest.raises(DatabaseError) as caught:
                read(tmp_path, "integer", "SELECT generate_series(1, 300000) AS v")
            assert time_heals(caught.value) and postgres.PASSWORD not in str(caught.value)
        server.start()
        assert len(read(tmp_path, "integer", "SELECT generate_series(1, 300000) AS v")) == 300_000
