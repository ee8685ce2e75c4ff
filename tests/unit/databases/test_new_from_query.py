"""`perennial new` from a table: the folder names the query, and its partitions are published by it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.spec import catalog
from perennial.spec.sources import QuerySource
from perennial.steps.data import data
from support.databases.postgres import Server

DAYS = ["2024-05-01", "2024-05-02", "2024-05-03"]


def rows() -> list[tuple[Any, ...]]:
    return [
        (i, f"{DAYS[i % 3]} {i % 24:02d}:30:00", i * 0.5, None if i % 7 == 0 else i % 5, "abc"[i % 3], i % 2)
        for i in range(120)
    ]


def new(tmp_path: Path, *options: str) -> Any:
    command = ["new", "orders", "--label", "late", "--into", str(tmp_path / "models"), "--yes", *options]
    return CliRunner().invoke(app, command)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    columns = (
        '"order" integer, "at" timestamp, amount double precision, "n items" integer, kind text, late integer'
    )
    if request.param == "sqlite":
        path = tmp_path / "shop.db"
        with closing(sqlite3.connect(path)) as con, con:
            con.execute(f"CREATE TABLE orders ({columns})")
            con.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)", rows())
        monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", f"sqlite:///{path}")
    else:
        server: Server = request.getfixturevalue("postgres_server")
        name = server.new_database()
        values = ", ".join(f"({', '.join('NULL' if v is None else repr(v) for v in row)})" for row in rows())
        server.execute(
            f"CREATE TABLE orders ({columns})", f"INSERT INTO orders VALUES {values}", database=name
        )
        monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", server.uri(name))
    return str(request.param)


@pytest.mark.parametrize(
    "options",
    [("--table", "orders"), ("--sql", 'SELECT "order", "at", amount, "n items", kind, late FROM orders; ')],
)
def test_a_table_becomes_a_model(database: str, tmp_path: Path, options: tuple[str, str]) -> None:
    result = new(tmp_path, "--connection", "shop", *options)
    assert result.exit_code == 0, result.output
    assert "s3cret" not in result.output
    spec = catalog.load_model(tmp_path / "models" / "orders")
    assert isinstance(spec.data.source, QuerySource) and spec.data.source.connection == "shop"
    assert spec.data.event_time == "at" and str(spec.schedule.start) == DAYS[0]
    assert spec.data.columns["n items"] == "integer" and spec.data.columns["kind"] == "string"
    published = data(spec, start=DAYS[0], end=DAYS[-1])
    assert (published["rows_out"], published["quarantined"]) == (120, 0)
    assert not list((tmp_path / "home" / "tmp").glob("perennial-sample-*"))


def test_the_partition_that_has_not_ended_is_left_to_its_own_run(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as con, con:
        con.execute("CREATE TABLE orders (id integer, at text, amount real, late integer)")
        values = [(i, f"{now - timedelta(days=i % 4):%Y-%m-%d} 00:00:00", i / 2, i % 2) for i in range(120)]
        con.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", values)
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", f"sqlite:///{path}")
    result = new(tmp_path, "--connection", "shop", "--table", "orders")
    assert result.exit_code == 0, result.output
    first, last = (f"{now - timedelta(days=n):%Y-%m-%d}" for n in (3, 1))
    assert f"--start {first} --end {last}" in result.output
    assert data(catalog.load_model(tmp_path / "models" / "orders"), start=first, end=last)["rows_out"] == 90


def test_rows_without_a_time_and_options_that_do_not_fit_are_refused(database: str, tmp_path: Path) -> None:
    result = new(tmp_path, "--connection", "shop", "--sql", "SELECT amount, kind, late FROM orders")
    assert "need a time" in str(result.exception)
    result = new(tmp_path, "--connection", "shop", "--table", "nowhere")
    assert "nowhere" in str(result.exception)
    result = new(tmp_path, "--connection", "shop")
    assert "either --table or --sql" in str(result.exception)
    result = new(tmp_path, "--connection", "postgresql://ann:secret@db/shop", "--table", "orders")
    assert "no name of a connection" in str(result.exception) and "secret" not in str(result.exception)
    assert not (tmp_path / "models" / "orders").exists()
