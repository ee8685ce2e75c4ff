"""`perennial check` ends, whatever the SQL of a model does."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import duckdb
import pytest

from perennial.cli.check import _bounded, _sql_checks, preflight
from support import toys

#: Neither reads anything that it must not, and each would run for years, or need more memory than there is.
ENDLESS = {
    "cross joins": "SELECT id, (SELECT sum(a.x + b.x * c.x) FROM rows a, rows b, rows c, rows d, rows e, rows f) AS x "
    "FROM rows",
    "cross joins of lists": "WITH n AS (SELECT unnest(range(1000)) AS i) "
    "SELECT id, (SELECT count(*) FROM n a, n b, n c, n d "
    "WHERE a.i + b.i < c.i + d.i) AS x FROM rows",
    "text that grows": "WITH a AS (SELECT id, lpad('a', 1000, 'a') AS long FROM rows), "
    "b AS (SELECT id, replace(long, 'a', long) AS longer, long FROM a), "
    "c AS (SELECT id, replace(longer, 'a', long) AS longest FROM b) SELECT id, length(longest) AS x FROM c",
}


@pytest.mark.parametrize("sql", ENDLESS.values(), ids=ENDLESS)
def test_a_check_ends(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    monkeypatch.setattr(_sql_checks, "SECONDS", 1.0)
    monkeypatch.setattr(_sql_checks, "GRACE_SECONDS", 1.0)
    references = {"references": [], "categorical": []}
    # Imports reserve address space.
    assert preflight.check_model(
        toys.model(tmp_path / "models", "good", sql="SELECT id, x FROM rows", features=references)
    )
    monkeypatch.setattr(_bounded, "MEMORY_BYTES", 1 << 30)
    started = time.monotonic()
    report = preflight.check_model(toys.model(tmp_path / "models", "toy", sql=sql, features=references))
    assert time.monotonic() - started < 20
    assert not report.tried
    assert any("did not end within 1 seconds" in p or "Out of Memory" in p for p in report.problems)


def test_a_call_that_cannot_be_interrupted_is_left_behind() -> None:
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"more than 0\.1 seconds"):
        _bounded.run_bounded(release.wait, 0.1)
    assert time.monotonic() - started < 5
    release.set()
    assert _bounded.run_bounded(lambda: "result", 60) == "result"
    with pytest.raises(KeyError):
        _bounded.run_bounded(lambda: {}["missing"], 60)


def test_a_value_larger_than_memory_is_an_error() -> None:
    """DuckDB's own limit does not cover lists: this one takes 64 GiB."""
    con = duckdb.connect(config={"memory_limit": "256MiB"})
    with pytest.raises((duckdb.Error, MemoryError)):
        _bounded.run_bounded(lambda: con.execute("SELECT len(range(8000000000))").fetchall(), 60)
    assert con.execute("SELECT 1").fetchall() == [(1,)]
