"""What can be said of ``features.sql`` before a night runs it: it binds, keeps every row, and keeps rows apart.

The SQL is bound against the declared columns and whatever reference tables are there, then run on a few rows: landed
ones where a partition has landed, made-up ones else. It can read what is given to it and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.core.sql import quote_identifier
from perennial.features import reference_tables
from perennial.features.engine import FeatureQuery, compose_query
from perennial.spec.model_spec import ModelSpec, ReferenceTable
from perennial.storage import delta_tables, duckdb_session, landing, object_store

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

ROWS = 2000
#: A reference table of more rows is bound by its schema alone.
REFERENCE_ROWS = 500_000
_NOWHERE = 1 << 62
_FILTERS = {"where_clause": "WHERE", "having": "HAVING", "qualify": "QUALIFY", "sample": "USING SAMPLE"}


@dataclass
class Findings:
    """What was found: ``(file, line or None, message)`` each, and what could not be looked at."""

    problems: list[tuple[str, int | None, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


class _Trial(FeatureQuery):
    """Features over tables that were registered beforehand, writing nothing into the lake."""

    def __init__(self, spec: ModelSpec, con: duckdb.DuckDBPyConnection) -> None:
        self.spec, self.versions, self._con, self._query = spec, {}, con, compose_query(spec)
        self.columns = self._check()
        self.categorical = list(spec.features.categorical)

    def check_slices(self, rows: pa.Table) -> None:
        """Refuse SQL that gives a row other features when other rows are beside it.

        Raises:
            SpecError: it does. DataError: it lost, doubled or could not compute rows.
        """
        n, whole = rows.num_rows, self.apply(rows)
        for first, last in ((0, n // 2), (n // 2, n), (n - 1, n)):
            alone, expected = self.apply(rows.slice(first, last - first)), whole.slice(first, last - first)
            for column in self.columns:
                if _plain(alone.column(column)) != _plain(expected.column(column)):
                    raise self._wrong(
                        f"feature {column!r} of a row depends on the other rows",
                        "use no window or aggregate over rows: a night must give what a year gives",
                    )


def _plain(column: pa.ChunkedArray) -> list[Any]:
    return ["nan" if value != value else value for value in column.to_pylist()]


def check(spec: ModelSpec, rows: pa.Table | None, made_up: Callable[[], pa.Table]) -> Findings:
    """Look at the SQL of a model and of its feature sets.

    Args:
        rows: landed rows, typed as declared; none: those that ``made_up`` gives are tried instead.
    """
    found = Findings()
    con = _connect()
    missing = _load_references(con, spec, found)
    con.execute(
        "SET python_enable_replacements=false; SET enable_external_access=false; SET lock_configuration=true"
    )
    if not _read(con, spec, found):
        return found
    if missing:
        found.notes.append(f"features.sql was not bound: reference table {', '.join(missing)} has not landed")
        return found
    if not _bind(con, spec, found):
        return found
    try:
        trial = _Trial(spec, con)
    except SpecError as error:
        found.problems.append(_told(error, spec))
        return found
    found.columns = trial.columns
    if not found.problems:
        _try(trial, rows, made_up, found)
    return found


def _told(error: PerennialError, spec: ModelSpec) -> tuple[str, None, str]:
    """File and message of what the features themselves complain about: ``[folder/]features.sql: message``."""
    folder, _, cause = error.cause.partition("features.sql: ")
    where = (
        f"{folder}features.sql"
        if folder.rstrip("/") in {s.name for s in spec.feature_sets}
        else "features.sql"
    )
    return where, None, f"{cause or error.cause} ({error.remedy})"


def _connect() -> duckdb.DuckDBPyConnection:
    import duckdb

    con = duckdb.connect(
        config={"threads": 2, "autoinstall_known_extensions": False, "memory_limit": "512MiB"}
    )
    con.execute("SET TimeZone='UTC'; SET enable_progress_bar=false; SET temp_directory=''")
    return con


def _load_references(con: duckdb.DuckDBPyConnection, spec: ModelSpec, found: Findings) -> list[str]:
    """Give ``con`` the reference tables; returns the names of those that are nowhere."""
    missing = []
    for reference in spec.references:
        try:
            content = _reference(reference)
        except (PerennialError, OSError, ValueError) as error:
            found.notes.append(
                f"reference table {reference.name} cannot be read: {str(error).splitlines()[0][:160]}"
            )
            content = None
        if content is None:
            missing.append(reference.name)
            continue
        con.register("_reference", content)
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {quote_identifier(reference.name)} AS SELECT * FROM _reference"
        )
        con.unregister("_reference")
    return missing


def _reference(reference: ReferenceTable) -> pa.Table | None:
    """The rows of a reference table, or none of them but its columns; None: it has not landed."""
    import pyarrow.csv
    import pyarrow.parquet

    source = landing.source_uri(reference.source)
    if object_store.exists(source):
        system, path = (
            object_store.filesystem() if object_store.is_remote(source) else None,
            source.removeprefix("s3://"),
        )
        if source.endswith(".parquet"):
            with pyarrow.parquet.ParquetFile(path, filesystem=system) as file:
                small = file.metadata.num_rows <= REFERENCE_ROWS and system is None
                return file.read() if small else file.schema_arrow.empty_table()
        if system is None:
            return pyarrow.csv.read_csv(path)
        with system.open_input_stream(path) as stream, pyarrow.csv.open_csv(stream) as reader:
            return reader.schema.empty_table()
    table = delta_tables.open_table(reference_tables.uri(reference))
    if table is None:
        return None
    place = reference_tables.uri(reference)
    rows = table.to_pyarrow_dataset(
        filesystem=duckdb_session.table_filesystem(place) if object_store.is_remote(place) else None
    )
    return rows.head(REFERENCE_ROWS) if not object_store.is_remote(place) else rows.schema.empty_table()


def _parts(spec: ModelSpec) -> list[tuple[str, str]]:
    return [*((f"{s.name}/features.sql", s.sql) for s in spec.feature_sets), ("features.sql", spec.sql)]


def _read(con: duckdb.DuckDBPyConnection, spec: ModelSpec, found: Findings) -> bool:
    """Parse each part, and note what would lose rows or let them see each other; false: one cannot be parsed."""
    whole = True
    for where, sql in _parts(spec):
        row = con.execute("SELECT json_serialize_sql(?)", [sql.rstrip().rstrip(";")]).fetchone()
        tree = json.loads(row[0]) if row else {}
        statements = tree.get("statements", [])
        if tree.get("error"):
            position = tree.get("position")
            line = sql.count("\n", 0, int(position)) + 1 if position else None
            found.problems.append(
                (where, line, f"{tree.get('error_message')} (one SELECT statement is needed)")
            )
            whole = False
        elif len(statements) != 1:
            found.problems.append((where, None, f"{len(statements)} statements; one SELECT is needed"))
            whole = False
        else:
            for at, message, hard in _unsound(statements[0]["node"], {"rows"}, in_union=False):
                line = sql.count("\n", 0, at) + 1 if at is not None else None
                if hard:
                    found.problems.append((where, line, message))
                else:
                    found.notes.append(f"{where}{f':{line}' if line else ''}: {message}")
    return whole


def _unsound(node: Any, rows: set[str], *, in_union: bool) -> Iterator[tuple[int | None, str, bool]]:
    """What a query node does to rows that it must not: ``(offset, message, whether it is surely wrong)`` each.

    Args:
        rows: names that stand for the model's rows: ``rows`` itself, and queries over it.
    """
    if not isinstance(node, dict):
        return
    for item in (node.get("cte_map") or {}).get("map", []):
        inner = item["value"]["query_node"]
        yield from _unsound(inner, rows, in_union=in_union)
        if inner.get("type") == "SELECT_NODE" and _reads(inner.get("from_table"), rows):
            rows = rows | {str(item["key"]).lower()}
    if node.get("type") != "SELECT_NODE":
        for side in (node.get("left"), node.get("right"), *node.get("children", [])):
            yield from _unsound(side, rows, in_union=True)
        return
    for inner in _subqueries(node):
        yield from _unsound(inner, rows, in_union=in_union)
    source = node.get("from_table")
    if not _reads(source, rows):
        return
    words = [(node[key], word) for key, word in _FILTERS.items() if node.get(key)]
    words += [
        (m.get("limit"), "LIMIT") for m in node.get("modifiers", []) if m.get("type", "").startswith("LIMIT")
    ]
    for part, word in words if not in_union else []:
        yield _at(part), f"{word} leaves rows out: each row must come out once, whatever it holds", True
    for window in _windows(node.get("select_list")):
        yield (
            _at(window),
            (
                f"{window.get('function_name')}() OVER looks at other rows: a night must give what a year "
                "gives"
            ),
            True,
        )
    kinds = {k: source.get(k) for k in ("type", "join_type", "ref_type")} if isinstance(source, dict) else {}
    if kinds == {"type": "JOIN", "join_type": "INNER", "ref_type": "REGULAR"}:
        yield _at(source), "an inner JOIN loses rows that find no match; LEFT JOIN keeps them", False


def _reads(source: Any, rows: set[str]) -> bool:
    """Whether a FROM clause reads the model's rows."""
    if not isinstance(source, dict):
        return False
    if source.get("type") == "BASE_TABLE":
        return str(source.get("table_name", "")).lower() in rows
    if source.get("type") == "SUBQUERY":
        return _reads((source.get("subquery") or {}).get("node", {}).get("from_table"), rows)
    return _reads(source.get("left"), rows) or _reads(source.get("right"), rows)


def _subqueries(node: Any) -> Iterator[Any]:
    """The query nodes directly within a query node, its common table expressions left out."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "cte_map":
                continue
            if key == "node":
                yield value
            else:
                yield from _subqueries(value)
    elif isinstance(node, list):
        for value in node:
            yield from _subqueries(value)


def _windows(expression: Any) -> Iterator[dict[str, Any]]:
    """The window functions of an expression, those of its subqueries left out."""
    if isinstance(expression, dict):
        if expression.get("class") == "WINDOW":
            yield expression
        for key, value in expression.items():
            if key not in ("node", "subquery"):
                yield from _windows(value)
    elif isinstance(expression, list):
        for value in expression:
            yield from _windows(value)


def _at(part: Any) -> int | None:
    """The offset of the first thing within ``part`` that has one."""
    if isinstance(part, dict):
        if isinstance(at := part.get("query_location"), int) and at < _NOWHERE:
            return at
        part = list(part.values())
    if isinstance(part, list):
        return next((at for value in part if (at := _at(value)) is not None), None)
    return None


def _bind(con: duckdb.DuckDBPyConnection, spec: ModelSpec, found: Findings) -> bool:
    """Bind each part upon the one before it, so that an error is told with file and line."""
    import duckdb

    from perennial.core.sql import SQL_TYPES

    hidden = spec.label.expression if spec.label.source is None else None
    listed = ", ".join(
        f"CAST(NULL AS {SQL_TYPES[t]}) AS {quote_identifier(c)}"
        for c, t in spec.data.columns.items()
        if c != hidden
    )
    con.execute(f"CREATE TEMP VIEW stage_0 AS SELECT {listed} LIMIT 0")
    try:
        for i, (where, sql) in enumerate(_parts(spec)):
            con.execute(f'CREATE OR REPLACE TEMP VIEW "rows" AS SELECT * FROM stage_{i}')
            try:
                con.execute(
                    f"CREATE TEMP TABLE stage_{i + 1} AS FROM (\n{sql.rstrip().rstrip(';')}\n) LIMIT 0"
                )
            except duckdb.Error as error:
                found.problems.append((where, *_located(error)))
                return False
        return True
    finally:
        con.execute('DROP VIEW IF EXISTS "rows"')


def _located(error: Exception) -> tuple[int | None, str]:
    """Line (of the file, behind the one line that was put before it) and message of a DuckDB error."""
    text = str(error).strip()
    line = re.search(r"^LINE (\d+):", text, re.MULTILINE)
    lines = [part.strip() for part in text.split("\n\nLINE ")[0].splitlines() if part.strip()]
    message = " ".join(lines)
    if "disabled by configuration" in message or "is disabled" in message:
        message = f"it reads a file or an address; it may read rows and the reference tables. {lines[0]}"
    return (int(line[1]) - 1 if line and int(line[1]) > 1 else None), message[:400]


def _try(trial: _Trial, rows: pa.Table | None, made_up: Callable[[], pa.Table], found: Findings) -> None:
    """Run the SQL on a few rows."""
    try:
        trial.check_slices(made_up() if rows is None else rows)
    except (SpecError, DataError) as error:
        if rows is None and " failed: " in error.cause:
            found.notes.append(f"features.sql could not be tried on made-up rows: {error.cause}")
            return
        where, line, message = _told(error, trial.spec)
        if trial.spec.data.personal:  # the engine quotes the value that it could not convert
            message = re.sub(r"'[^']*'", "'…'", message) if " failed: " in error.cause else message
        found.problems.append((where, line, message))
