"""Check ``features.sql`` before a run: it is allowed, binds, keeps each row, and does not mix rows.

The SQL is bound against the declared columns and the reference tables that exist, then run on a few rows: landed rows
where a partition has landed, generated ones otherwise. Both end after `SECONDS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from perennial.cli.check._bounded import run_bounded
from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.core.redaction import error_text
from perennial.features import author_sql, reference_tables
from perennial.features.declared_rows import empty_rows_sql
from perennial.features.engine import FeatureQuery
from perennial.spec.model_spec import ModelSpec
from perennial.storage import duckdb_session

#: Errors whose text is about the SQL alone.
_ABOUT_SQL = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.SyntaxException)
#: Rows that the SQL is run on, at most.
MAX_ROWS = 2000
#: Of larger reference tables, only the columns are used.
MAX_REFERENCE_ROWS = 500_000
#: Seconds of processor time in which the SQL of a model is bound and run.
SECONDS = 30.0
#: Seconds in which DuckDB notices that it was interrupted; then it is left running until `perennial check` ends.
GRACE_SECONDS = 5.0
_FILTERS = {"where_clause": "WHERE", "having": "HAVING", "qualify": "QUALIFY"}


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
    con = duckdb_session.connect_small()
    missing = _load_references(con, spec, findings)
    duckdb_session.lock(con)

    def run() -> None:
        _check(con, spec, missing, rows, generate_rows, findings)

    try:
        run_bounded(run, SECONDS, con.interrupt, GRACE_SECONDS)
    except TimeoutError:
        # What the interrupted SQL left there says nothing.
        findings.problems = [
            (
                "features.sql",
                None,
                f"it did not end within {SECONDS:g} seconds on {MAX_ROWS} rows: look for joins without a condition "
                "and for lists in lists",
            )
        ]
    return findings


def _check(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    missing: list[str],
    rows: pa.Table | None,
    generate_rows: Callable[[], pa.Table],
    findings: Findings,
) -> None:
    """Check and run the SQL of a model; add to the findings."""
    if not _parse(con, spec, findings):
        return
    if missing:
        findings.notes.append(
            f"features.sql was not bound: reference table {', '.join(missing)} has not landed"
        )
        return
    if not _bind(con, spec, findings):
        return
    try:
        # No versions, because the connection has the reference tables, and nothing must be written to the lake.
        features = FeatureQuery(spec, {}, connection=con)
    except SpecError as error:
        findings.problems.append(_problem(error, spec))
        return
    findings.columns = features.columns
    if not findings.problems:
        _run(features, rows, generate_rows, findings)


def _problem(error: PerennialError, spec: ModelSpec) -> tuple[str, None, str]:
    """File and message of an engine's error, whose cause is ``[folder/]features.sql: message``."""
    folder, _, cause = error.cause.partition("features.sql: ")
    where = (
        f"{folder}features.sql"
        if folder.rstrip("/") in {s.name for s in spec.feature_sets}
        else "features.sql"
    )
    return where, None, f"{cause or error.cause} ({error.remedy})"


def _load_references(con: duckdb.DuckDBPyConnection, spec: ModelSpec, findings: Findings) -> list[str]:
    """Load the reference tables that exist into ``con``; returns the names of those that do not."""
    missing = []
    for reference in spec.references:
        try:
            rows = reference_tables.preview(reference, MAX_REFERENCE_ROWS)
        except (PerennialError, OSError, ValueError) as error:
            findings.notes.append(
                f"reference table {reference.name} cannot be read: {error_text(error, hide=spec.hides_values)}"
            )
            rows = None
        if rows is None:
            missing.append(reference.name)
            continue
        reference_tables.load_table(con, reference.name, rows)
    return missing


def _parse(con: duckdb.DuckDBPyConnection, spec: ModelSpec, findings: Findings) -> bool:
    """Check each part, report SQL that loses or mixes rows; returns whether all parts may run."""
    allowed = True
    for where, sql in author_sql.parts(spec):
        if problem := author_sql.check_part(con, spec, sql):
            findings.problems.append((where, problem.line, f"{problem.message} ({author_sql.REMEDY})"))
            allowed = False
            continue
        for offset, message, certain in _row_problems(author_sql.parse(con, sql), {"rows"}, in_union=False):
            line = author_sql.line_of(sql, offset)
            if certain:
                findings.problems.append((where, line, message))
            else:
                findings.notes.append(f"{where}{f':{line}' if line else ''}: {message}")
    return allowed


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
        yield (
            author_sql.offset_of(part),
            f"{clause} leaves rows out: each row must come out once, whatever it holds",
            True,
        )
    for window in _windows(node.get("select_list")):
        yield (
            author_sql.offset_of(window),
            (
                f"{window.get('function_name')}() OVER reads other rows: a partition must give what a year "
                "gives"
            ),
            True,
        )
    kinds = {k: source.get(k) for k in ("type", "join_type", "ref_type")} if isinstance(source, dict) else {}
    if kinds == {"type": "JOIN", "join_type": "INNER", "ref_type": "REGULAR"}:
        yield (
            author_sql.offset_of(source),
            "an inner JOIN loses rows without a match; use LEFT JOIN to keep them",
            False,
        )


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


def _bind(con: duckdb.DuckDBPyConnection, spec: ModelSpec, findings: Findings) -> bool:
    """Bind each part to the columns of the previous part; returns whether all could be bound."""
    con.execute(f"CREATE TEMP VIEW __stage_0 AS {empty_rows_sql(spec)}")
    try:
        for i, (where, sql) in enumerate(author_sql.parts(spec)):
            con.execute(f'CREATE OR REPLACE TEMP VIEW "rows" AS SELECT * FROM __stage_{i}')
            try:
                con.execute(
                    f"CREATE TEMP TABLE __stage_{i + 1} AS FROM (\n{author_sql.statement(sql)}\n) LIMIT 0"
                )
            except duckdb.Error as error:
                findings.problems.append((where, *_line_and_message(error, spec)))
                return False
        return True
    finally:
        con.execute('DROP VIEW IF EXISTS "rows"')


def _line_and_message(error: Exception, spec: ModelSpec) -> tuple[int | None, str]:
    """Line in the file and message of a DuckDB error; the statement has one line before the file's first."""
    text = str(error).strip()
    line = re.search(r"^LINE (\d+):", text, re.MULTILINE)
    lines = [part.strip() for part in text.split("\n\nLINE ")[0].splitlines() if part.strip()]
    message = " ".join(lines)
    if spec.hides_values and not isinstance(error, _ABOUT_SQL):  # it may quote a reference table
        message = error_text(error, hide=True, names=spec.data.columns)
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
        # Generated values may be none that the SQL can convert; but no few rows need all the memory.
        if rows is None and " failed: " in error.cause and "Out of Memory" not in error.cause:
            findings.notes.append(f"features.sql could not be run on generated rows: {error.cause}")
            return
        where, line, message = _problem(error, features.spec)
        findings.problems.append((where, line, message))
