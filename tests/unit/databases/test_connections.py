"""What `perennial check` and `perennial doctor` say of queries and connections."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.cli.check import preflight
from perennial.cli.doctor import environment
from perennial.cli.doctor.finding import Finding
from perennial.spec.model_spec import ModelSpec
from support import toys
from support.databases.postgres import Server

SQL = "SELECT * FROM events WHERE seen_at >= {start} AND seen_at < {end}"
COLUMNS = "id text, seen_at timestamp, x float, z float, k text, place text"


@pytest.fixture
def database(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as con, con:
        con.execute(f"CREATE TABLE events ({COLUMNS})")
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", f"sqlite:///{path}")
    for name in ("PERENNIAL_PROFILE", "PERENNIAL_COMPUTE"):
        monkeypatch.delenv(name, raising=False)
    return path


def queried(tmp_path: Path, sql: str = SQL, **changes: Any) -> ModelSpec:
    source = {"source": {"sql": sql, "connection": "shop"}}
    return toys.model(tmp_path / "models", "queried", data=source, **changes)


def connection_findings() -> list[Finding]:
    return [item for item in environment._connections() if item.what.startswith("connection")]


def test_check_compares_the_columns_of_a_query(database: Path, tmp_path: Path) -> None:
    assert not [p for p in preflight.check_model(queried(tmp_path)).problems if "source" in p]
    (problem,) = preflight.check_model(queried(tmp_path, SQL.replace("*", "id, seen_at, x, z, k"))).problems
    assert "model.yaml" in problem and "column 'place' (string) is missing" in problem
    (problem,) = preflight.check_model(queried(tmp_path, SQL.replace("events", "nowhere"))).problems
    assert "no such table: nowhere" in problem


def test_check_compares_the_types_of_a_query(
    database: Path, tmp_path: Path, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres_server.new_database()
    postgres_server.execute(f"CREATE TABLE events ({COLUMNS.replace('x float', 'x text')})", database=name)
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", postgres_server.uri(name))
    (problem,) = preflight.check_model(queried(tmp_path)).problems
    assert "column 'x' is declared number; the query gives text" in problem
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", postgres_server.uri(name, password="wrong-password"))
    (problem,) = preflight.check_model(queried(tmp_path)).problems
    assert "password authentication failed" in problem and "wrong-password" not in problem


def test_check_notes_a_database_that_it_cannot_reach(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", "postgresql://ann:secret@127.0.0.1:1/shop")
    report = preflight.check_model(queried(tmp_path))
    assert not report.problems
    assert any("127.0.0.1:1/shop" in note and "secret" not in note for note in report.notes)
    monkeypatch.delenv("PERENNIAL_CONNECTION_SHOP")
    report = preflight.check_model(queried(tmp_path))
    assert not report.problems
    assert any("PERENNIAL_CONNECTION_SHOP" in note for note in report.notes)


def test_doctor_connects(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection_findings() == []
    queried(tmp_path)
    (item,) = connection_findings()
    assert (item.what, item.state) == ("connection shop", "ok") and "queried.data" in item.detail
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", "postgresql://ann:secret@127.0.0.1:1/shop")
    (item,) = connection_findings()
    assert item.state == "missing" and "cannot be reached" in item.detail and "secret" not in str(item)
    monkeypatch.delenv("PERENNIAL_CONNECTION_SHOP")
    (item,) = connection_findings()
    assert item.state == "warning" and "PERENNIAL_CONNECTION_SHOP" in item.remedy


def test_doctor_names_pods_that_do_not_get_a_connection(
    database: Path, remote_lake: Path, tmp_path: Path
) -> None:
    (remote_lake / "pods.yaml").write_text(yaml.safe_dump({"name": "pods", "kind": "kubernetes"}))
    queried(tmp_path, compute={"data": "pods"})
    _, item = connection_findings()
    assert item.state == "missing" and item.what == "connection shop: profile pods"
