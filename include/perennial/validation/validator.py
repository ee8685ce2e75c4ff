"""Validate partitions of any size by one DuckDB query, which Great Expectations evaluates.

Great Expectations determines which metrics each expectation needs, the query computes them for each file, and
``metrics_validate`` evaluates them. So the results are those of Great Expectations, and memory does not grow with the
rows. Only if a check failed, a second pass counts the rows for quarantine and collects examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import duckdb

from perennial.core.sql import quote_identifier
from perennial.storage.landing import FeedSchema, LandedFile
from perennial.validation.checks import MAX_EXAMPLES, Check
from perennial.validation.gx_evaluator import ExpectationEvaluator, ValidationOutcome

_MAX_EXAMPLE_LENGTH = 120


@dataclass(frozen=True)
class ValidationFindings:
    """The outcome of each partition, and which of its rows are bad.

    Attributes:
        outcomes: one for each file, in order.
        source: SQL relation of the rows: the view, with columns that mark duplicates if there are any.
        reasons: SQL condition of a bad row, by check label; empty if no row is bad.
    """

    outcomes: list[ValidationOutcome]
    source: str
    reasons: dict[str, str]

    @property
    def bad(self) -> str:
        """SQL condition of a row that goes to quarantine."""
        return _any_of(self.reasons)


@dataclass(frozen=True)
class _BadRows:
    """Result of the second pass for one file: rows for quarantine, and examples of bad values by check."""

    quarantined: int
    examples: dict[int, list[Any]]


def validate(
    con: duckdb.DuckDBPyConnection,
    feed: FeedSchema,
    landed: list[LandedFile],
    checks: list[Check],
    quarantine_limit: float,
    view: str = "rows",
) -> ValidationFindings:
    """Validate the files of a view.

    Args:
        con: DuckDB connection with the view.
        feed: the files' feed.
        landed: the files.
        checks: what to check.
        quarantine_limit: share of rows in quarantine above which a partition is stopped.
        view: name of the view, see `landing.create_landed_view`.

    Raises:
        duckdb.Error: a file is malformed beyond its footer.
    """
    aggregates = _aggregate_by_file(con, landed, checks, view)
    source, duplicates = _find_duplicates(con, checks, aggregates, view)
    counts = [
        [_bad_rows(check, i, file, values, duplicates) for i, check in enumerate(checks)]
        for file, values in enumerate(aggregates)
    ]
    failed = [i for i, c in enumerate(checks) if c.level == "row" and any(row[i] for row in counts)]
    reasons: dict[str, str] = {}
    for i in failed:
        if checks[i].critical:
            label, condition = checks[i].label, _bad_condition(i, checks[i])
            reasons[label] = f"{reasons[label]} OR {condition}" if label in reasons else condition
    bad_rows = _second_pass(con, feed, checks, failed, reasons, source) if failed else {}
    outcomes = []
    evaluators = [ExpectationEvaluator(check, feed.personal) for check in checks]
    for f, (file, values) in enumerate(zip(landed, aggregates, strict=True)):
        bad = bad_rows.get(f, _BadRows(0, {}))
        outcome = ValidationOutcome(file.day, values["count(*)"], bad.quarantined)
        for i, evaluator in enumerate(evaluators):
            evaluator.evaluate(outcome, values, file.columns, counts[f][i], bad.examples.get(i, []))
        _apply_limits(outcome, quarantine_limit)
        outcomes.append(outcome)
    return ValidationFindings(outcomes, source, reasons)


def _any_of(reasons: dict[str, str]) -> str:
    return " OR ".join(f"({sql})" for sql in reasons.values()) or "FALSE"


def _bad_condition(index: int, check: Check) -> str:
    """SQL condition of a bad row of one check; duplicates are marked by a column of the joined view."""
    return f"__duplicate_{index}" if check.unique else check.bad_row


def _aggregate_by_file(
    con: duckdb.DuckDBPyConnection, landed: list[LandedFile], checks: list[Check], view: str
) -> list[dict[str, Any]]:
    """Compute all checks' aggregates in one query; returns results by SQL text, for each file."""
    aggregates = list(dict.fromkeys(["count(*)", *(sql for c in checks for sql in _aggregates(c))]))
    selected = ", ".join(aggregates)
    # a file without rows has no group
    empty = (
        con.execute(f"SELECT {selected} FROM {view} WHERE FALSE").fetchall()[0]
        if any(not file.rows for file in landed)
        else ()
    )
    if len(landed) == 1:
        results = {0: con.execute(f"SELECT {selected} FROM {view}").fetchall()[0]}
    else:
        groups = con.execute(f"SELECT __file, {selected} FROM {view} GROUP BY __file").fetchall()
        results = {group[0]: group[1:] for group in groups}
    return [dict(zip(aggregates, results.get(i, empty), strict=True)) for i in range(len(landed))]


def _aggregates(check: Check) -> list[str]:
    one_column = check.level == "row" and len(check.columns) == 1
    return check.aggregates() + ([check.non_null_sql] if one_column else [])


def _bad_rows(
    check: Check, index: int, file: int, aggregates: dict[str, Any], duplicates: dict[int, dict[int, int]]
) -> int:
    """Number of bad rows of one check in one file."""
    if check.level != "row":
        return 0
    if check.unique:
        return duplicates.get(index, {}).get(file, 0)
    return int(aggregates[check.bad_sql])


def _find_duplicates(
    con: duckdb.DuckDBPyConnection, checks: list[Check], aggregates: list[dict[str, Any]], view: str
) -> tuple[str, dict[int, dict[int, int]]]:
    """Find duplicate rows, for each uniqueness check.

    Only files with fewer distinct hashes than rows are searched.

    Returns:
        The relation with one column ``__duplicate_<i>`` for each such check, and the rows by check and file.
    """
    joins, selected, counts = [], [], {}
    for i, check in enumerate(checks):
        suspects = [
            file
            for file, values in enumerate(aggregates)
            if check.unique and values[check.bad_sql] != values[check.considered_sql]
        ]
        if not suspects:
            continue
        table, alias = f"twice_{view}_{i}", f"d{i}"
        _create_duplicates_table(con, check, suspects, view, table)
        counts[i] = dict(con.execute(f"SELECT __file, sum(n)::BIGINT FROM {table} GROUP BY 1").fetchall())
        names = [quote_identifier(c) for c in check.unique]
        same = " AND ".join(f"{view}.{n} IS NOT DISTINCT FROM {alias}.{n}" for n in names)
        joins.append(f"LEFT JOIN {table} {alias} ON {view}.__file = {alias}.__file AND {same}")
        checked = f" AND ({check.where})" if check.where else ""
        not_first = f" AND {view}.__row <> {alias}.first" if check.keep_first else ""
        selected.append(f"({alias}.n IS NOT NULL{not_first}{checked}) AS __duplicate_{i}")
    if not joins:
        return view, {}
    marked = f"{view}_with_duplicates"
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {marked} AS SELECT {view}.*, {', '.join(selected)} "
        f"FROM {view} {' '.join(joins)}"
    )
    return marked, counts


def _create_duplicates_table(
    con: duckdb.DuckDBPyConnection, check: Check, files: list[int], view: str, table: str
) -> None:
    """Create a table of duplicate values in some files: file, columns, number of rows, first row."""
    names = ", ".join(quote_identifier(c) for c in check.unique)
    in_files = f"__file IN ({', '.join(map(str, files))})"
    where = " AND ".join(w for w in (check.where, check.considered, in_files) if w)
    # First by hash, because grouping by text is twice as slow; then exactly, among the rows that share a hash.
    hashes = f"SELECT {check.hash_sql} FROM {view} WHERE {where} GROUP BY __file, {check.hash_sql} HAVING count(*) > 1"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT __file, {names}, count(*) AS n, min(__row) AS first "
        f"FROM {view} WHERE {where} AND {check.hash_sql} IN ({hashes}) "
        f"GROUP BY __file, {names} HAVING count(*) > 1"
    )


def _second_pass(
    con: duckdb.DuckDBPyConnection,
    feed: FeedSchema,
    checks: list[Check],
    failed: list[int],
    reasons: dict[str, str],
    source: str,
) -> dict[int, _BadRows]:
    """Count the rows for quarantine and collect examples of the failed checks, for each file."""
    examples = [_examples_sql(i, checks[i], feed.personal) for i in failed]
    rows = con.execute(
        f"SELECT __file, count(*) FILTER (WHERE {_any_of(reasons)}), {', '.join(examples)} "
        f"FROM {source} GROUP BY __file"
    ).fetchall()
    return {
        file: _BadRows(
            quarantined,
            {
                i: [_example(v, checks[i]) for v in bad_values or []]
                for i, bad_values in zip(failed, values, strict=True)
            },
        )
        for file, quarantined, *values in rows
    }


def _examples_sql(index: int, check: Check, personal: list[str]) -> str:
    """SQL aggregate: some of a check's bad values, without personal data."""
    if set(check.columns) & set(personal):
        return "NULL"
    names = [quote_identifier(c) for c in check.columns]
    values = [
        f"left({name}, {_MAX_EXAMPLE_LENGTH})" if check.types[column] == "string" else name
        for column, name in zip(check.columns, names, strict=True)
    ]
    value = values[0] if len(values) == 1 else f"[{', '.join(f'{v}::VARCHAR' for v in values)}]"
    return f"min({value}, {MAX_EXAMPLES}) FILTER (WHERE {_bad_condition(index, check)})"


def _example(value: Any, check: Check) -> Any:
    """A bad value as Great Expectations shows it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return dict(zip(check.columns, value, strict=True)) if "column_list" in check.kwargs else tuple(value)
    return value


def _apply_limits(outcome: ValidationOutcome, quarantine_limit: float) -> None:
    """Stop a partition that was not fully evaluated, or of which too many rows are bad."""
    if outcome.evaluated < outcome.declared and not outcome.stopped:
        outcome.stopped.append(f"only {outcome.evaluated} of {outcome.declared} expectations were evaluated")
    if outcome.rows and outcome.quarantined / outcome.rows > quarantine_limit:
        most = sorted(outcome.bad_rows_by_check.items(), key=lambda item: -item[1])[:3]
        share = f"{outcome.quarantined / outcome.rows:.1%}"
        outcome.stopped.append(
            f"{outcome.quarantined} of {outcome.rows} rows ({share}) would go to quarantine, "
            f"quarantine_limit is {quarantine_limit:.1%}: {', '.join(f'{n} × {label}' for label, n in most)}"
        )
