"""Features that depend on personal columns, however the SQL is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.errors import SpecError
from perennial.features import lineage
from perennial.features.engine import FeatureQuery
from perennial.features.lineage import ROWS
from perennial.storage import duckdb_session
from support import toys

ROW_TYPES = {
    "id": "INTEGER",
    "mail": "VARCHAR",
    "x": "DOUBLE",
    "place": "VARCHAR",
    "t": "TIMESTAMP",
    "l": "DOUBLE[]",
}
TABLES = {
    ROWS: ROW_TYPES,
    "places": {"place": "VARCHAR", "known_at": "TIMESTAMP", "size": "DOUBLE"},
    "people": {"mail": "VARCHAR", "age": "INTEGER", "town": "VARCHAR"},
}
PERSONAL = {ROWS: ["mail"], "people": ["age"]}


def composed(sql: str) -> str:
    return f"WITH rows AS NOT MATERIALIZED (SELECT * FROM {ROWS}) SELECT * FROM (\n{sql}\n)"


def found(sql: str, personal: Any = PERSONAL) -> dict[str, str]:
    """The personal columns that each column of the result depends on, joined by commas."""
    with duckdb.connect() as con:
        for table, columns in TABLES.items():
            con.execute(f"CREATE TABLE {table} ({', '.join(f'{c} {kind}' for c, kind in columns.items())})")
        names = [row[0] for row in con.execute(f"DESCRIBE {composed(sql)}").fetchall()]
    sources = lineage.personal_sources(TABLES, personal, composed(sql))
    return {name: ",".join(s) for name, s in zip(names, sources, strict=True) if s}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT id, x FROM rows", {}),
        ("SELECT * FROM rows", {"mail": "mail"}),
        ("SELECT * EXCLUDE (mail, l) FROM rows", {}),
        ("SELECT * REPLACE (mail || place AS place) FROM rows", {"mail": "mail", "place": "mail"}),
        ("SELECT COLUMNS('m.*|x') FROM rows", {"mail": "mail"}),
        ("SELECT id, r.x AS mail, upper(r.MAIL) AS x FROM rows r", {"x": "mail"}),
        ("FROM (SELECT id, mail AS a FROM rows) SELECT id, a AS b, length(b) AS c", {"b": "mail", "c": "mail"}),
        ("SELECT id, CASE WHEN mail LIKE 'a%' THEN 1 ELSE 0 END AS c, x FROM rows", {"c": "mail"}),
        ("SELECT id, list_sum(list_transform(l, lambda e: e + length(mail))) AS a, "
         "list_sum(list_transform(l, lambda e: e + x)) AS b FROM rows", {"a": "mail"}),
        ("SELECT id, list_transform(l, lambda e: list_transform(l, lambda f: e + f + length(mail))) AS a, "
         "list_transform(l, lambda e: list_transform(l, lambda f: e + f + x)) AS b FROM rows", {"a": "mail"}),
        ("SELECT id, x, row_number() OVER (PARTITION BY mail) AS r FROM rows", {"r": "mail"}),
        ("SELECT id, x, row_number() OVER (ORDER BY x) AS r FROM rows", {}),
        ("WITH a AS (SELECT id, mail AS k FROM rows), b AS MATERIALIZED (SELECT id, length(k) AS n FROM a) "
         "SELECT rows.id, x, n FROM rows JOIN b USING (id)", {"n": "mail"}),
        ("SELECT rows.id, x, v.* FROM rows, LATERAL (SELECT length(rows.mail) AS n, length(rows.place) AS o) v",
         {"n": "mail"}),
        # a reference table joined by a personal key, in every way to write it
        ("SELECT rows.id, x, town FROM rows LEFT JOIN people USING (mail)", {"town": "mail"}),
        ("SELECT rows.id, x, town FROM rows JOIN people ON people.mail = lower(rows.mail)", {"town": "mail"}),
        ("SELECT rows.id, x, town FROM people RIGHT JOIN rows USING (mail)", {"town": "mail"}),
        ("SELECT id, (SELECT max(town) FROM people p WHERE p.mail = rows.mail) AS town FROM rows", {"town": "mail"}),
        ("SELECT id, x, EXISTS (FROM people p WHERE p.mail = rows.mail) AS e FROM rows", {"e": "mail"}),
        ("SELECT id, x, rows.mail IN (SELECT mail FROM people) AS e FROM rows", {"e": "mail"}),
        ("SELECT id, x, (SELECT town FROM people p WHERE p.mail = rows.mail ORDER BY town LIMIT 1) AS e FROM rows",
         {"e": "mail"}),
        ("SELECT rows.id, town FROM rows LEFT JOIN people ON town = place AND people.mail = rows.mail",
         {"town": "mail"}),
        # by another key
        ("SELECT rows.id, x, size FROM rows ASOF LEFT JOIN places ON rows.place = places.place AND known_at <= t", {}),
        ("SELECT id, (SELECT max(size) FROM places p WHERE p.place = rows.place) AS s FROM rows", {}),
        ("SELECT rows.id, x, size FROM rows, places WHERE rows.place = places.place", {}),
        ("SELECT rows.id, c FROM rows LEFT JOIN (VALUES ('a', 1)) w(p, c) ON rows.place = w.p", {}),
        # personal columns of a reference table
        ("SELECT rows.id, x, town, age FROM rows LEFT JOIN people ON town = place", {"age": "people.age"}),
        ("SELECT rows.id, x, (SELECT avg(age) FROM people) AS a FROM rows", {"a": "people.age"}),
        ("SELECT rows.id, (SELECT town FROM people ORDER BY age LIMIT 1) AS a FROM rows", {"a": "people.age"}),
        ("SELECT rows.id, (SELECT max(town) FROM people WHERE age > 3) AS a FROM rows", {"a": "people.age"}),
        # what decides which rows there are
        ("SELECT id, x FROM rows WHERE mail IS NOT NULL", {"id": "mail", "x": "mail"}),
        ("SELECT id, x FROM rows UNION ALL SELECT length(mail), x FROM rows", {"id": "mail"}),
        ("SELECT id, max(x) FILTER (WHERE mail <> '') AS m FROM rows GROUP BY id", {"m": "mail"}),
        ("SELECT DISTINCT ON (id) id, x FROM rows ORDER BY id, mail", {"id": "mail", "x": "mail"}),
        # values that read no column
        ("SELECT id, x, (SELECT count(*) FROM people WHERE age > 3) AS n FROM rows", {"n": "people.age"}),
        ("SELECT id, x, (SELECT 1 FROM people WHERE age = 3 LIMIT 1) AS n FROM rows", {"n": "people.age"}),
        ("SELECT id, x, n FROM rows CROSS JOIN (SELECT count(*) AS n FROM (SELECT DISTINCT age FROM people))",
         {"n": "people.age"}),
        ("SELECT id, x, n FROM rows CROSS JOIN (SELECT count(*) AS n FROM (SELECT 1 FROM people GROUP BY age))",
         {"n": "people.age"}),
        ("SELECT id, x, (SELECT count(*) FROM (SELECT age FROM people UNION SELECT 3)) AS n, "
         "(SELECT count(*) FROM (SELECT age FROM people UNION ALL SELECT 3)) AS m FROM rows", {"n": "people.age"}),
        ("SELECT id, x, (SELECT count(*) FROM (SELECT age FROM people INTERSECT ALL SELECT 3)) AS n FROM rows",
         {"n": "people.age"}),
        ("SELECT id, x, (SELECT count(*) FROM (SELECT unnest(range(age)) FROM people)) AS n FROM rows",
         {"n": "people.age"}),
        ("SELECT id, x, (SELECT max(n) FROM (SELECT count(*) OVER () AS n FROM people WHERE age > 3)) AS n FROM rows",
         {"n": "people.age"}),
        ("SELECT id, x, (SELECT count(*) FROM people p JOIN places s ON p.age = s.size) AS n FROM rows",
         {"n": "people.age"}),
        ("SELECT id, x, (SELECT count(*) FROM places s WHERE EXISTS (FROM people p WHERE p.age = s.size)) AS n "
         "FROM rows", {"n": "people.age"}),
        ("SELECT id, x, (SELECT count(*) FROM people p WHERE p.town = rows.place AND age > 3) AS n, "
         "(SELECT count(*) FROM people p WHERE p.town = rows.place) AS m FROM rows", {"n": "people.age"}),
        ("SELECT id, x, place IN (SELECT town FROM people WHERE age > 3) AS n FROM rows", {"n": "people.age"}),
        ("SELECT rows.id, x, w.town IS NULL AS n FROM rows LEFT JOIN (SELECT town FROM people WHERE age > 3) w "
         "ON w.town = rows.place", {"n": "people.age"}),
        ("SELECT rows.id, x, n FROM rows LEFT JOIN (SELECT DISTINCT 1 AS n, town FROM people) w ON w.town = place", {}),
        ("SELECT count(*) AS n FROM rows WHERE mail > 'm'", {"n": "mail"}),
    ],
)  # fmt: skip
def test_what_depends_on_personal_columns(sql: str, expected: dict[str, str]) -> None:
    assert found(sql) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) "
        "SELECT id, x, (SELECT max(i) FROM n) AS m FROM rows",
        "SELECT rows.id, x FROM rows POSITIONAL JOIN people",
    ],
)
def test_everything_is_personal_where_the_plan_is_not_understood(sql: str) -> None:
    assert set(found(sql).values()) == {"mail,people.age"}


@contextmanager
def no_time(_: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """In place of `duckdb_session.time_limit`: the time was over."""
    yield
    raise TimeoutError("it ran for more than 1 seconds")


def test_sql_that_takes_too_long_to_plan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sql, features = "SELECT id, x, z, k FROM rows", {"references": []}
    spec = toys.model(tmp_path, "toy", sql=sql, data={"personal": ["place"]}, features=features)
    query = FeatureQuery(spec)
    monkeypatch.setattr(duckdb_session, "time_limit", no_time)
    for call in (lambda: FeatureQuery(spec), lambda: query._check_personal(dict.fromkeys(query.columns, ""))):
        with pytest.raises(SpecError, match=r"features\.sql: it ran for .* while it was planned") as error:
            call()
        assert "simplify the SQL" in error.value.remedy
    with pytest.raises(SpecError, match=r"label\.expression: it ran for .* while it was planned"):
        lineage.label_sources(spec)


def test_without_personal_columns_nothing_is() -> None:
    assert found("SELECT * FROM rows", {}) == {}


_VALUES = st.sampled_from(
    ["x", "r.mail", "length(r.mail)", "upper(r.place)", "hash(r.mail) % 3", "p.age", "p.town", "s.size",
     "coalesce(r.mail, r.place)", "CASE WHEN r.mail > 'm' THEN x END", "x + length(r.place)",
     "(SELECT max(age) FROM people q WHERE q.mail = r.mail)", "r.mail IN (SELECT mail FROM people)",
     "(SELECT count(*) FROM people q WHERE q.town = r.place)", "(SELECT max(q.mail) FROM rows q WHERE q.id = r.id)"]
)  # fmt: skip
_JOINS = st.sampled_from(
    ["people p USING (mail)", "(SELECT DISTINCT ON (town) * FROM people ORDER BY ALL) p ON p.town = r.place",
     "(SELECT max(mail) AS k, town, max(age) AS age FROM people GROUP BY town) p ON p.k = r.mail"]
)  # fmt: skip


@settings(max_examples=25)
@given(st.lists(_VALUES, min_size=1, max_size=4), _JOINS, st.randoms(use_true_random=False))
def test_other_features_do_not_change_with_personal_values(values: list[str], join: str, random: Any) -> None:
    """The meaning of the result: whatever persons are in the rows, a feature that is not personal is the same."""
    listed = ", ".join(f"{value} AS v{i}" for i, value in enumerate(values))
    sql = f"SELECT r.id, {listed} FROM rows r LEFT JOIN {join} LEFT JOIN places s ON s.place = r.place"
    personal = found(sql, {ROWS: ["mail"]})
    names = [c for c in ["id", *(f"v{i}" for i in range(len(values)))] if c not in personal]
    results = []
    for _ in range(2):
        with duckdb.connect() as con:
            for table, columns in TABLES.items():
                con.execute(
                    f"CREATE TABLE {table} ({', '.join(f'{c} {kind}' for c, kind in columns.items())})"
                )
            rows = [(i, random.choice("anzq"), i / 2, "uv"[i % 2]) for i in range(8)]
            con.executemany(f"INSERT INTO {ROWS} VALUES (?, ?, ?, ?, NULL, [])", rows)
            con.execute("INSERT INTO people VALUES ('a', 1, 'u'), ('n', 2, 'v'), ('z', 3, 'w')")
            con.execute("INSERT INTO places VALUES ('u', NULL, 5), ('v', NULL, 6)")
            query = f"SELECT {', '.join(names)} FROM ({composed(sql)}) ORDER BY id"
            results.append(con.execute(query).fetchall())
    assert results[0] == results[1], sql
