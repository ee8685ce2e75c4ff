"""Known attacks against the checker and the lock of SQL that people wrote."""

from __future__ import annotations

import functools
import gc
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from perennial.core.errors import DataError, SpecError
from perennial.features import author_sql, lineage
from perennial.features.engine import FeatureQuery
from perennial.spec import catalog
from perennial.storage import duckdb_session
from support import toys

CANARY = "the content of a file that nobody gave away"


@pytest.fixture
def con() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


#: SQL that DuckDB can parse, by why it is refused.
ATTACKS: dict[str, list[str]] = {
    "is not one of the functions that this SQL may use": [
        "SELECT id, x FROM rows, sniff_csv('/etc/passwd')",
        "SELECT id, x FROM rows, query(CASE WHEN current_setting('enable_external_access') THEN 'SELECT 1' END)",
        "SELECT id, (SELECT content FROM read_text('/etc/passwd')) AS x FROM rows",
        "SELECT id, x FROM rows, duckdb_settings()",
        "SELECT id, \"query\"('SELECT 1') AS x FROM rows",
        "SELECT id, list_aggregate([x], 'reservoir_quantile') AS x FROM rows",
        "SELECT id, x FROM rows LIMIT (SELECT count(*) FROM glob('/*'))",
        "SELECT id, repeat('x', 1000000000) AS x FROM rows",
        "SELECT id, error('v' || id) AS x FROM rows",
    ],
    "is not a table of this model; there are: places, rows": [
        "SELECT id, x FROM rows, '/etc/passwd'",
        "SELECT id, x FROM rows, \"/etc/passwd\" p",
        "SELECT id, x FROM rows, information_schema.tables",
        "SELECT id, x FROM rows, pg_catalog.pg_class",
        "SELECT id, x FROM rows, duckdb_tables",
        "SELECT id, x FROM rows, __published",
        "SELECT id, x FROM temp.main.rows",
        "SELECT id, x FROM (WITH t AS (FROM rows) FROM t), t",
    ],
    "DESCRIBE, SHOW or SUMMARIZE is not allowed here": [
        "SELECT id, x FROM (DESCRIBE rows)",
        "SELECT id, x FROM (SHOW ALL TABLES)",
        "SELECT id, x FROM (SUMMARIZE rows)",
    ],
    "PIVOT or UNPIVOT is not allowed here": [
        "SELECT id, x FROM rows, (PIVOT rows ON x IN (1) USING count(*))",
    ],
    "POSITIONAL JOIN is not deterministic": [
        "SELECT id, x FROM rows POSITIONAL JOIN places",
    ],
    "a sample is not deterministic": [
        "SELECT id, x FROM rows TABLESAMPLE 10%",
    ],
    "WITH RECURSIVE is not allowed here": [
        "WITH RECURSIVE t AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM t) SELECT id, x FROM rows, t",
    ],
    "a parameter is not allowed here": [
        "SELECT id, ? AS x FROM rows",
        "SELECT id, $a AS x FROM rows",
    ],
    "is not deterministic: it depends on the moment, the session or chance": [
        "SELECT id, main.random() AS x FROM rows",
        "SELECT id, x.system.main.random() AS x FROM rows",
        "SELECT id, list_filter([x], lambda i: random() > i) AS x FROM rows",
        "SELECT id, COLUMNS(lambda c: c <> getvariable('files')) FROM rows",
        "SELECT id, first(x) OVER (ORDER BY random()) AS x FROM rows",
        "SELECT id, x FROM rows ORDER BY random()",
        "SELECT DISTINCT ON (random()) id, x FROM rows",
        "FROM (VALUES (random())) t(x)",
        "SELECT id, count(*) FILTER (WHERE random() > x) AS x FROM rows GROUP BY id",
        "SELECT id, user AS x FROM rows",
        "SELECT id, current_setting('home_directory') AS x FROM rows",
    ],
    "may be as long as whole numbers say that stand in the SQL": [
        "SELECT id, range(1, 1001) AS x FROM rows",
        "SELECT id, range(x) AS x FROM rows",
        "SELECT id, x.range() AS x FROM rows",
        "SELECT id, id.lpad(100000000, 'x') AS x FROM rows",
        "SELECT id, list_transform([x], lambda i: range(1000)) AS x FROM rows",
    ],
    "names that begin with __ are reserved": [
        "SELECT id, x AS __rows FROM rows",
        "WITH __published AS (FROM rows) FROM __published",
    ],
    "Only SELECT statements can be serialized": [
        "INSERT INTO rows VALUES (1)",
        "ATTACH '/tmp/x.db'",
        "CALL query('SELECT 1')",
        "EXPLAIN SELECT id FROM rows",
    ],
    "2 statements; one SELECT is needed": [
        "SELECT id, x FROM rows; SELECT 1",
    ],
    "it reads tables more than 1000 times": [
        "SELECT *, * FROM (" * 12 + "FROM rows" + ")" * 12,
    ],
}  # fmt: skip
#: What DuckDB cannot parse, by its words.
NO_SQL: dict[str, list[str]] = {
    "Expected a constant as type modifier": [
        "SELECT id, x::DECIMAL(random(), 2) AS x FROM rows",
    ],
    "syntax error at or near": [
        "SELECT id, x FROM rows) UNION ALL (SELECT id, x FROM __published",
    ],
    "unterminated /* comment": [
        "SELECT id, x FROM rows /*",
    ],
    "it is not valid text": [
        "SELECT id, x\ud800 FROM rows",
    ],
    "Max expression depth limit of 1000 exceeded": [
        "SELECT " + "(" * 3000 + "x" + ")" * 3000 + " FROM rows",
        "SELECT " + "+".join(["x"] * 3000) + " FROM rows",
    ],
}  # fmt: skip


def cases(by_reason: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(sql, reason) for reason, statements in by_reason.items() for sql in statements]


@pytest.mark.parametrize(("sql", "reason"), cases(ATTACKS))
def test_attacks_are_refused(sql: str, reason: str, con: duckdb.DuckDBPyConnection) -> None:
    assert con.extract_statements(sql), "an attack that cannot be parsed tries nothing"
    problem = author_sql.check_query(con, sql, ["places"], ["id", "x"])
    assert problem
    assert reason in problem.message


@pytest.mark.parametrize(("sql", "reason"), cases(NO_SQL))
def test_what_cannot_be_parsed_is_refused(sql: str, reason: str, con: duckdb.DuckDBPyConnection) -> None:
    problem = author_sql.check_query(con, sql, ["places"], ["id", "x"])
    assert problem
    assert reason in problem.message


@pytest.mark.parametrize(
    "sql",
    [
        toys.SQL,
        "FROM rows",
        "SELECT id, x FROM Rows; ",
        "SELECT id, x FROM rows -- the end",
        "WITH a AS (FROM rows), b AS (FROM a) SELECT b.*, places.size FROM b LEFT JOIN places USING (place)",
        "SELECT *, COLUMNS('^p.*') * 2, "
        "COLUMNS(c -> c LIKE 'x%') FROM (SELECT * EXCLUDE (id) REPLACE (x + 1 AS x) FROM rows)",
        "SELECT id, count(*) FILTER (WHERE x > 1), sum(x ORDER BY y DESC), "
        "mode() WITHIN GROUP (ORDER BY x) FROM places GROUP BY ALL",
        "SELECT id, [i * 2 for i in l if i > 1], l[1:2], s.a, m['k'], js->>'$.a', list_sum(l), lambda_value FROM rows",
        "SELECT id, EXTRACT(year FROM t), t - INTERVAL 2 HOURS, "
        "t AT TIME ZONE 'UTC' AT TIME ZONE 'Europe/Berlin', age(t, born), "
        "DATE '2024-01-01' FROM rows",
        "SELECT id, x IN (SELECT y FROM places), EXISTS (FROM places), ARRAY(SELECT y FROM places), "
        "x = ANY (SELECT 1) FROM rows",
        "SELECT id, lpad(k, 8, '0'), x FROM rows, unnest(range(0, 24, 1)) h(hour) ORDER BY ALL",
        "SELECT id, k SIMILAR TO 'a.*', k ~ 'a', k NOT ILIKE 'b' ESCAPE '!', k GLOB '*', "
        "k COLLATE NOCASE = 'a' FROM rows",
        "SELECT id, "
        "rank() OVER (PARTITION BY place ORDER BY y ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM places QUALIFY true",
        "SELECT id, TRY_CAST(k AS DECIMAL(10, 2)), CASE x WHEN 1 THEN 2 END, x BETWEEN 1 AND 2, "
        "NOT x IS NULL FROM rows",
        "(SELECT id FROM rows EXCEPT SELECT id FROM places) UNION ALL BY NAME SELECT id FROM rows LIMIT 10 OFFSET 2",
        'SELECT id, "user", "current_date" FROM rows',
        "SELECT id, x FROM rows SEMI JOIN places USING (place), LATERAL (SELECT x + 1)",
        "SELECT " + " + ".join(f"p{i}" for i in range(64)) + " AS total FROM rows",
    ],
)  # fmt: skip
def test_ordinary_sql_is_allowed(sql: str, con: duckdb.DuckDBPyConnection) -> None:
    assert author_sql.check_query(con, sql, ["places"], ["id", "x", "user", "current_date"]) is None


def test_the_models_of_the_bundle_are_allowed(con: duckdb.DuckDBPyConnection) -> None:
    models, errors = catalog.load_models()
    assert models
    assert not errors
    for spec in models.values():
        author_sql.check_model(con, spec)
        if spec.label.source:
            assert author_sql.check_expression(con, spec.label.expression, spec.label.columns) is None


#: Labels that DuckDB can parse in the place of an expression, by why they are refused.
LABEL_ATTACKS: dict[str, list[str]] = {
    "syntax error at or near": [
        "y) FROM __published UNION ALL SELECT (y",
        "y), (y",
    ],
    "it is not one expression": [
        "y, y",
        "y -- )\n, y",
    ],
    "a star is not allowed here": [
        "*",
        "COLUMNS(*)",
    ],
    "an expression of type POSITIONAL_REFERENCE is not allowed here": [
        "#1",
    ],
    "a parameter is not allowed here": [
        "?",
    ],
    "SELECT clause without selection list": [
        "",
        "-- y",
    ],
    "a subquery is not allowed here": [
        "(SELECT max(y) FROM __rows)",
        "y = ANY ([1])",
        "EXISTS (SELECT 1)",
    ],
    "is not one of the functions that this SQL may use": [
        "max(y)",
        "unnest([y])",
        "query('SELECT 1')",
        "sniff_csv('/etc/passwd')",
        "repeat('x', 1000000000)",
        "error(y)",
    ],
    "a window function is not allowed here": [
        "lag(y) OVER ()",
    ],
    "is not deterministic: it depends on the moment, the session or chance": [
        "random() > 0.5",
        "current_date > y",
        "age(y)",
        "now() > y",
        "getvariable('x')",
        "nextval('s')",
        "hash(y, uuid())",
    ],
    "names that begin with __ are reserved": [
        "__row",
        "list_filter([y], lambda i: i > __row)[1]",
    ],
}  # fmt: skip
#: What DuckDB cannot parse there, by its words.
NO_EXPRESSION: dict[str, list[str]] = {
    "syntax error at or near": [
        "y FROM __published",
        "y AS z",
        "DISTINCT y",
        "y WHERE y > 1",
        "y LIMIT 1",
        "y ORDER BY y",
    ],
    "2 statements; one SELECT is needed": [
        "y; SELECT y",
    ],
    "unterminated /* comment": [
        "y /*",
    ],
    "it is not valid text": [
        "y\ud800",
    ],
}  # fmt: skip


def in_its_place(expression: str) -> str:
    """The SQL in which the expression of a label stands."""
    return f"SELECT (\n{expression}\n) FROM rows"


@pytest.mark.parametrize(("sql", "reason"), cases(LABEL_ATTACKS))
def test_a_label_is_one_harmless_expression(sql: str, reason: str, con: duckdb.DuckDBPyConnection) -> None:
    assert con.extract_statements(in_its_place(sql)), "an attack that cannot be parsed tries nothing"
    problem = author_sql.check_expression(con, sql, ["id", "y"])
    assert problem
    assert reason in problem.message


@pytest.mark.parametrize(("sql", "reason"), cases(NO_EXPRESSION))
def test_a_label_that_cannot_be_parsed_is_refused(
    sql: str, reason: str, con: duckdb.DuckDBPyConnection
) -> None:
    problem = author_sql.check_expression(con, sql, ["id", "y"])
    assert problem
    assert reason in problem.message


@pytest.mark.parametrize(
    "sql",
    ["y", '"y"', "y > 15", "y > 15 -- late", "y;", "y > 15 ; -- late; later", "y ;; /* a */ ;",
     "CASE WHEN y > 1 THEN 'a' ELSE lower(y::VARCHAR) END",
     "coalesce(y, 0) <> 0",
     "/* a */ y IN (1, 2)", "list_filter([1, 2], lambda i: i > y)[1]", "date_diff('day', id::DATE, DATE '2024-01-01')",
     "(y)", "y BETWEEN 1 AND 2 AND NOT id LIKE 'x%'"],
)  # fmt: skip
def test_an_ordinary_label_is_allowed(sql: str, con: duckdb.DuckDBPyConnection) -> None:
    assert author_sql.check_expression(con, sql, ["id", "y"]) is None


PIECES = ["SELECT", "FROM", "rows", "(", ")", ",", "x", "*", "random()", "'/etc/passwd'", "query", "UNION ALL", "--",
          "/*",
          "*/", ";", "WITH t AS", "t", "1", "lambda x:", "[", "]", ".", "read_text", "__published", "\n"]  # fmt: skip


@hypothesis_settings(max_examples=100)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_what_is_allowed_reads_only_the_tables_handed_to_it(pieces: list[str]) -> None:
    """Whatever passes runs, nested as the engine nests it, in a connection with these tables, or does not bind."""
    con = _tables()
    sql = " ".join(pieces)
    if author_sql.check_query(con, sql, [], ["x"]) is None:
        try:
            result = con.execute(f"WITH rows AS (FROM __mine) SELECT * FROM (\n{sql}\n)").fetchall()
        except duckdb.Error:
            return
        assert CANARY not in repr(result)
    if author_sql.check_expression(con, sql, ["x"]) is None:
        try:
            result = con.execute(f"SELECT (\n{sql}\n) FROM __mine").fetchall()
        except duckdb.Error:
            return
        assert len(result) == 2
        assert all(len(row) == 1 for row in result)
        assert CANARY not in repr(result)


@functools.cache
def _tables() -> duckdb.DuckDBPyConnection:
    con = duckdb_session.connect_small()
    con.execute("CREATE TEMP TABLE __mine AS SELECT 1 AS x UNION ALL SELECT 2")
    con.execute("CREATE TEMP TABLE __published AS SELECT ? AS x", [CANARY])
    duckdb_session.lock(con)
    return con


def test_the_connection_of_features_is_locked_even_if_the_checker_fails(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text(f"word\n{CANARY}\n")
    monkeypatch.setattr(author_sql, "check_model", lambda *_: None)
    for read in (
        f"read_csv('{secret}')",
        f"'{secret}'",
        f"sniff_csv('{secret}')",
        f"query('FROM ''{secret}''')",
    ):
        with pytest.raises((SpecError, DataError)) as error:
            query = FeatureQuery(make(f"SELECT id, (SELECT count(*) FROM {read}) AS x, k FROM rows"))
            query.compute(toys.rows("binary", "2024-01-01"))
        assert CANARY not in str(error.value)


def test_sql_that_never_ends_is_interrupted(con: duckdb.DuckDBPyConnection) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"more than 0\.3 seconds"), duckdb_session.time_limit(con, 0.3):
        con.execute("SELECT count(*) FROM range(1000000000000)")
    assert time.monotonic() - started < 5
    with duckdb_session.time_limit(con, 60):
        assert con.execute("SELECT count(*) FROM range(1000)").fetchall() == [(1000,)]
    # A short limit while a long one is running, and both at once.
    with duckdb_session.time_limit(con, 60), pytest.raises(TimeoutError), duckdb_session.time_limit(con, 0.2):
        con.execute("SELECT count(*) FROM range(1000000000000)")


def test_the_limit_of_features_is_an_error_with_a_remedy(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    joins = "range(1000) a, range(1000) b, range(1000) c, range(1000) d"
    spec = make(
        f"SELECT id, (SELECT sum(a.range * b.range + c.range * d.range) FROM {joins}) + x AS x, k FROM rows"
    )
    query = FeatureQuery(spec)
    limit = duckdb_session.time_limit
    monkeypatch.setattr(duckdb_session, "time_limit", lambda con: limit(con, 0.5))
    with pytest.raises(DataError, match=r"more than 0\.5 seconds") as error:
        query.compute(toys.rows("binary", "2024-01-01"))
    assert "joins" in error.value.remedy


def test_the_lineage_of_a_label_is_not_traced_through_sql_that_is_refused(make: Any, tmp_path: Path) -> None:
    """Training traces it, also of a spec that was never checked."""
    secret = tmp_path / "secret.csv"
    secret.write_text(f"{CANARY}\n1\n")
    spec = make()
    object.__setattr__(spec.label, "expression", f"y + (SELECT \"{CANARY}\" FROM read_csv('{secret}'))")
    with pytest.raises(SpecError, match="is refused: a subquery is not allowed here"):
        lineage.label_sources(spec)


def test_the_watchdog_keeps_no_connection_open() -> None:
    con = duckdb.connect()
    with pytest.raises(TimeoutError), duckdb_session.time_limit(con, 0.2):
        con.execute("SELECT count(*) FROM range(1000000000000)")
    assert not duckdb_session._WATCHDOG._deadlines
    gc.collect()
    assert sys.getrefcount(con) == 2


@pytest.mark.parametrize(
    ("sql", "statement"),
    [
        ("SELECT 'ä;' AS \"ñ;\" ; -- ü; x", "SELECT 'ä;' AS \"ñ;\""),
        ("SELECT 1\n-- a\n;\n/* b; */ ; ;\n", "SELECT 1"),
        ("SELECT 1 -- a", "SELECT 1"),
        ("SELECT 1; SELECT 2;", "SELECT 1; SELECT 2"),
        ("-- only", "-- only"),
        ("", ""),
        ("SELECT 1 /* open", "SELECT 1 /* open"),
        ("SELECT $$;--$$", "SELECT $$;--$$"),
    ],
)
def test_a_statement_ends_before_its_last_semicolons_and_comments(sql: str, statement: str) -> None:
    assert author_sql.statement(sql) == statement
