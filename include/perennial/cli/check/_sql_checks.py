"""Check ``features.sql`` before a run: it binds, keeps each row, and does not mix rows.

The SQL is bound against the declared columns and the reference tables that exist, then run on a few rows: landed rows
where a partition has landed, generated ones otherwise. It can read what is given to it and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.features import reference_tables
from perennial.features.engine import FeatureQuery, empty_rows_sql
from perennial.spec.model_spec import ModelSpec

#: Rows that the SQL is run on, at most.
MAX_ROWS = 2000
#: Of larger reference tables, only the columns are used.
MAX_REFERENCE_ROWS = 500_000
#: DuckDB gives the largest integer as the location of nodes that have none.
_NO_LOCATION = 1 << 62
_FILTERS = {"where_clause": "WHERE", "having": "HAVING", "qualify": "QUALIFY", "sample": "USING SAMPLE"}


@dataclass
class Findings:
    """The results of the checks of one model.

    Attributes:
        problems: file, line (None if not known) and message of each problem.
        notes: what was not checked, or may be a mistake.
        columns: names of the features; empty if the SQL does not bind.
    """

    problems: list[tuple[str, int | None, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


def check(spec: ModelSpec, rows: pa.Table | None, generate_rows: Callable[[], pa.Table]) -> Findings:
    """Check the SQL of a model and of its feature sets.

    Args:
        spec: the model.
        rows: landed rows with the declared types; None if none have landed.
        generate_rows: returns rows to run the SQL on if none have landed.
    """
    findings = Findings()
    con = _connect()
    missing = _load_references(con, spec, findings)
    con.execute(
        "SET python_enable_replacements=false; SET enable_external_access=false; SET lock_configuration=true"
    )
    if not _parse(con, spec, findings):
        return findings
    if missing:
        findings.notes.append(
            f"features.sql was not bound: reference table {', '.join(missing)} has not landed"
        )
        return findings
    if not _bind(con, spec, findings):
        return findings
    try:
        # No versions, because the connection has the reference tables, and nothing must be written to the lake.
        features = FeatureQuery(spec, {}, connection=con)
    except SpecError as error:
        findings.problems.append(_problem(error, spec))
        return findings
    findings.columns = features.columns
    if not findings.problems:
        _run(features, rows, generate_rows, findings)
    return findings


def _problem(error: PerennialError, spec: ModelSpec) -> tuple[str, None, str]:
    """File and message of an engine's error, whose cause is ``[folder/]features.sql: message``."""
    folder, _, cause = error.cause.partition("features.sql: ")
    where = (
        f"{folder}features.sql"
        if folder.rstrip("/") in {s.name for s in spec.feature_sets}
        else "features.sql"
    )
    return where, None, f"{cause or error.cause} ({error.remedy})"


def _connect() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(
        config={"threads": 2, "autoinstall_known_extensions": False, "memory_limit": "512MiB"}
    )
    con.execute("SET TimeZone='UTC'; SET enable_progress_bar=false; SET temp_directory=''")
    return con


def _load_references(con: duckdb.DuckDBPyConnection, spec: ModelSpec, findings: Findings) -> list[str]:
    """Load the reference tables that exist into ``con``; returns the names of those that do not."""
    missing = []
    for reference in spec.references:
        try:
            rows = reference_tables.preview(reference, MAX_REFERENCE_ROWS)
        except (PerennialError, OSError, ValueError) as error:
            findings.notes.append(
                f"reference table {reference.name} cannot be read: {str(error).splitlines()[0][:160]}"
            )
            rows = None
        if rows is None:
            missing.append(reference.name)
            continue
        reference_tables.load_table(con, reference.name, rows)
    return missing


def _parts(spec: ModelSpec) -> list[tuple[str, str]]:
    return [*((f"{s.name}/features.sql", s.sql) for s in spec.feature_sets), ("features.sql", spec.sql)]


def _parse(con: duckdb.DuckDBPyConnection, spec: ModelSpec, findings: Findings) -> bool:
    """Parse each part, report SQL that loses or mixes rows; returns whether all parts can be parsed."""
    parsed = True
    for where, sql in _parts(spec):
        row = con.execute("SELECT json_serialize_sql(?)", [sql.rstrip().rstrip(";")]).fetchone()
        tree = json.loads(row[0]) if row else {}
        statements = tree.get("statements", [])
        if tree.get("error"):
            position = tree.get("position")
            line = sql.count("\n", 0, int(position)) + 1 if position else None
            findings.problems.append(
                (where, line, f"{tree.get('error_message')} (one SELECT statement is needed)")
            )
            parsed = False
        elif len(statements) != 1:
            findings.problems.append((where, None, f"{len(statements)} statements; one SELECT is needed"))
            parsed = False
        else:
            for offset, message, certain in _row_problems(statements[0]["node"], {"rows"}, in_union=False):
                line = sql.count("\n", 0, offset) + 1 if offset is not None else None
                if certain:
                    findings.problems.append((where, line, message))
                else:
                    findings.notes.append(f"{where}{f':{line}' if line else ''}: {message}")
    return parsed


def _row_problems(node: Any, rows: set[str], *, in_union: bool) -> Iterator[tuple[int | None, str, bool]]:
    """Find parts of a query that lose rows or mix them.

    Args:
        node: node of DuckDB's parse tree.
        rows: names of relations with the model's rows: ``rows``, and queries over it.
        in_union: whether the node is one side of a set operation, where a filter may be correct.

    Yields:
        Offset in the SQL (None if not known), message, and whether it is certainly wrong.
    """
    if not isinstance(node, dict):
        return
    for item in (node.get("cte_map") or {}).get("map", []):
        inner = item["value"]["query_node"]
        yield from _row_problems(inner, rows, in_union=in_union)
        if inner.get("type") == "SELECT_NODE" and _reads(inner.get("from_table"), rows):
            rows = rows | {str(item["key"]).lower()}
    if node.get("type") != "SELECT_NODE":
        for side in (node.get("left"), node.get("right"), *node.get("children", [])):
            yield from _row_problems(side, rows, in_union=True)
        return
    for inner in _subqueries(node):
        yield from _row_problems(inner, rows, in_union=in_union)
    source = node.get("from_table")
    if not _reads(source, rows):
        return
    filters = [(node[key], clause) for key, clause in _FILTERS.items() if node.get(key)]
    filters += [
        (m.get("limit"), "LIMIT") for m in node.get("modifiers", []) if m.get("type", "").startswith("LIMIT")
    ]
    for part, clause in filters if not in_union else []:
        yield _offset(part), f"{clause} leaves rows out: each row must come out once, whatever it holds", True
    for window in _windows(node.get("select_list")):
        yield (
            _offset(window),
            (
                f"{window.get('function_name')}() OVER reads other rows: a partition must give what a year "
                "gives"
            ),
            True,
        )
    kinds = {k: source.get(k) for k in ("type", "join_type", "ref_type")} if isinstance(source, dict) else {}
    if kinds == {"type": "JOIN", "join_type": "INNER", "ref_type": "REGULAR"}:
        yield _offset(source), "an inner JOIN loses rows without a match; use LEFT JOIN to keep them", False


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
    """The query nodes directly within a query node, except common table expressions."""
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
    """The window functions of an expression, except those in subqueries."""
    if isinstance(expression, dict):
        if expression.get("class") == "WINDOW":
            yield expression
        for key, value in expression.items():
            if key not in ("node", "subquery"):
                yield from _windows(value)
    elif isinstance(expression, list):
        for value in expression:
            yield from _windows(value)


def _offset(part: Any) -> int | None:
    """The offset in the SQL of the first node within ``part`` that has one."""
    if isinstance(part, dict):
        if isinstance(offset := part.get("query_location"), int) and offset < _NO_LOCATION:
            return offset
        part = list(part.values())
    if isinstance(part, list):
        return next((offset for value in part if (offset := _offset(value)) is not None), None)
    return None


def _bind(con: duckdb.DuckDBPyConnection, spec: ModelSpec, findings: Findings) -> bool:
    """Bind each part to the columns of the previous part; returns whether all could be bound."""
    con.execute(f"CREATE TEMP VIEW stage_0 AS {empty_rows_sql(spec)}")
    try:
        for i, (where, sql) in enumerate(_parts(spec)):
            con.execute(f'CREATE OR REPLACE TEMP VIEW "rows" AS SELECT * FROM stage_{i}')
            try:
                con.execute(
                    f"CREATE TEMP TABLE stage_{i + 1} AS FROM (\n{sql.rstrip().rstrip(';')}\n) LIMIT 0"
                )
            except duckdb.Error as error:
                findings.problems.append((where, *_line_and_message(error)))
                return False
        return True
    finally:
        con.execute('DROP VIEW IF EXISTS "rows"')


def _line_and_message(error: Exception) -> tuple[int | None, str]:
    """Line in the file and message of a DuckDB error; the statement has one line before the file's first."""
    text = str(error).strip()
    line = re.search(r"^LINE (\d+):", text, re.MULTILINE)
    lines = [part.strip() for part in text.split("\n\nLINE ")[0].splitlines() if part.strip()]
    message = " ".join(lines)
    if "disabled by configuration" in message or "is disabled" in message:
        message = f"it reads a file or an address; only rows and the reference tables are allowed. {lines[0]}"
    return (int(line[1]) - 1 if line and int(line[1]) > 1 else None), message[:400]


def _run(
    features: FeatureQuery,
    rows: pa.Table | None,
    generate_rows: Callable[[], pa.Table],
    findings: Findings,
) -> None:
    """Run the SQL on a few rows."""
    try:
        features.check_rowwise(generate_rows() if rows is None else rows, single_row=True)
    except (SpecError, DataError) as error:
        if rows is None and " failed: " in error.cause:
            findings.notes.append(f"features.sql could not be run on generated rows: {error.cause}")
            return
        where, line, message = _problem(error, features.spec)
        # The engine quotes the value that it could not convert.
        if features.spec.data.personal and " failed: " in error.cause:
            message = re.sub(r"'[^']*'", "'…'", message)
        findings.problems.append((where, line, message))
