"""Validate partitions of any size by one DuckDB query, which Great Expectations evaluates.

Great Expectations determines which metrics each expectation needs, the query computes them for each file, and
``metrics_validate`` evaluates them. So the results are those of Great Expectations, and memory does not grow with the
rows. Only if a check failed, a second pass counts the rows for quarantine and collects examples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from perennial.core.sql import quote_identifier, shorten
from perennial.feeds.feed_schema import FeedSchema
from perennial.storage.landing import LandedFile
from perennial.validation import _extension, _patterns
from perennial.validation._aggregation import aggregate_by_file
from perennial.validation._extension import Extension
from perennial.validation._sql_aggregates import count_where
from perennial.validation.checks import MAX_EXAMPLES, Check
from perennial.validation.gx_evaluator import ExpectationEvaluator, ValidationOutcome
from perennial.validation.suite import Expectation, SuiteProblem

_MAX_EXAMPLE_LENGTH = 120
log = logging.getLogger("perennial")


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


def pattern_problems(suite: Iterable[Expectation]) -> list[SuiteProblem]:
    """The regular expressions of a suite that can be evaluated by neither DuckDB nor Great Expectations itself.

    `suite.parse_suite` cannot ask them, because it imports nothing heavy.
    """
    return [
        SuiteProblem(
            expectation.line, f"{expectation.type}: regex {shorten(pattern)} cannot be evaluated: {cause}"
        )
        for expectation in suite
        for pattern in expectation.patterns
        if (cause := _patterns.problem(pattern))
    ]


def validate(
    con: duckdb.DuckDBPyConnection,
    feed: FeedSchema,
    landed: list[LandedFile],
    checks: list[Check],
    quarantine_limit: float,
    view: str = "__rows",
    conditions: Mapping[str, str] | None = None,
) -> ValidationFindings:
    """Validate the files of a view.

    Args:
        con: DuckDB connection with the view.
        feed: the files' feed.
        landed: the files.
        checks: what to check.
        quarantine_limit: share of rows in quarantine above which a partition is stopped.
        view: name of the view, see `typed_rows.create_landed_view`.
        conditions: further SQL conditions of a bad row, never null, by their names in reasons and messages.

    Raises:
        duckdb.Error: a file is malformed beyond its footer.
    """
    bad_counts = {name: count_where(sql) for name, sql in (conditions or {}).items()}
    if labels := [check.label for check in checks if check.in_great_expectations]:
        log.info("Great Expectations itself evaluates on the %s: %s", feed.kind, ", ".join(labels))
    extension = _extension.extend(con, feed, landed, checks, view)
    aggregates = _aggregate(con, landed, checks, view, extension, list(bad_counts.values()))
    relation = _relation_of_failures(checks, aggregates, view, extension)
    source, duplicates = _find_duplicates(con, checks, aggregates, relation)
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
    for name, sql in (conditions or {}).items():
        if any(values[bad_counts[name]] for values in aggregates):
            reasons[name] = sql
    bad_rows = _second_pass(con, feed, checks, failed, reasons, source) if failed or reasons else {}
    outcomes = []
    evaluators = [
        ExpectationEvaluator(check, feed.personal, hides_values=feed.hides_values, cadence=feed.cadence)
        for check in checks
    ]
    for f, (file, values) in enumerate(zip(landed, aggregates, strict=True)):
        bad = bad_rows.get(f, _BadRows(0, {}))
        outcome = ValidationOutcome(file.day, values["count(*)"], bad.quarantined)
        for i, evaluator in enumerate(evaluators):
            measured = extension.of(i, f)
            evaluator.evaluate(outcome, values, file.columns, counts[f][i], bad.examples.get(i, []), measured)
        outcome.bad_rows_by_check |= {name: values[sql] for name, sql in bad_counts.items() if values[sql]}
        _apply_limits(outcome, quarantine_limit)
        outcomes.append(outcome)
    return ValidationFindings(outcomes, source, reasons)


def _any_of(reasons: dict[str, str]) -> str:
    return " OR ".join(f"({sql})" for sql in reasons.values()) or "FALSE"


def _bad_condition(index: int, check: Check) -> str:
    """SQL condition of a bad row of one check; duplicates are marked by a column of the joined view."""
    return f"__duplicate_{index}" if check.unique else check.bad_row


def _aggregate(
    con: duckdb.DuckDBPyConnection,
    landed: list[LandedFile],
    checks: list[Check],
    view: str,
    extension: Extension,
    bad_counts: list[str],
) -> list[dict[str, Any]]:
    """Compute all checks' aggregates; returns results by SQL text, for each file."""
    plain = ["count(*)", *(sql for c in checks if not c.extended for sql in _aggregates(c)), *bad_counts]
    values = aggregate_by_file(con, landed, view, plain)
    if extended := [sql for c in checks if c.extended for sql in _aggregates(c)]:
        more = aggregate_by_file(con, landed, extension.relation, extended)
        values = [first | second for first, second in zip(values, more, strict=True)]
    return values


def _relation_of_failures(
    checks: list[Check], aggregates: list[dict[str, Any]], view: str, extension: Extension
) -> str:
    """The relation that has the columns of all row-level checks that failed."""
    failed = any(
        check.extended and check.level == "row" and values[check.bad_sql]
        for check in checks
        for values in aggregates
    )
    return extension.relation if failed else view


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
        table, alias = f"{view}_twice_{i}", f"__d{i}"
        _create_duplicates_table(con, check, suspects, view, table)
        counts[i] = dict(
            con.execute(f"SELECT __in_file, sum(__n)::BIGINT FROM {table} GROUP BY 1").fetchall()
        )
        same = " AND ".join(
            f"{view}.{quote_identifier(c)} IS NOT DISTINCT FROM {alias}.__value_{j}"
            for j, c in enumerate(check.unique)
        )
        joins.append(f"LEFT JOIN {table} {alias} ON {view}.__file = {alias}.__in_file AND {same}")
        checked = f" AND ({check.where})" if check.where else ""
        not_first = f" AND {view}.__row <> {alias}.__first_row" if check.keep_first else ""
        selected.append(f"({alias}.__n IS NOT NULL{not_first}{checked}) AS __duplicate_{i}")
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
    """Create a table of duplicate values in some files: file, values, number of rows, first row.

    No column of the table has the name of one of the view's, so that conditions on the joined relation, which name the
    columns without the relation, remain unambiguous.
    """
    names = [quote_identifier(c) for c in check.unique]
    values = ", ".join(f"{name} AS __value_{j}" for j, name in enumerate(names))
    in_files = f"__file IN ({', '.join(map(str, files))})"
    where = " AND ".join(w for w in (check.where, check.considered, in_files) if w)
    # First by hash, because grouping by text is twice as slow; then exactly, among the rows that share a hash.
    hashes = f"SELECT {check.hash_sql} FROM {view} WHERE {where} GROUP BY __file, {check.hash_sql} HAVING count(*) > 1"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} AS "
        f"SELECT __file AS __in_file, {values}, count(*) AS __n, min(__row) AS __first_row "
        f"FROM {view} WHERE {where} AND {check.hash_sql} IN ({hashes}) "
        f"GROUP BY __file, {', '.join(names)} HAVING count(*) > 1"
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
    selected = ", ".join([f"count(*) FILTER (WHERE {_any_of(reasons)})", *examples])
    rows = con.execute(f"SELECT __file, {selected} FROM {source} GROUP BY __file").fetchall()
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
    if check.all_columns & set(personal):
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
