"""Try the expectations of a suite without data: what Great Expectations or DuckDB refuse of their arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import duckdb

from perennial.core.errors import SpecError
from perennial.core.sql import SQL_TYPES, quote_identifier
from perennial.feeds.feed_schema import FeedSchema
from perennial.storage import duckdb_session
from perennial.validation import _extension, _gx_engine, _special_checks, check_builder
from perennial.validation.checks import Check
from perennial.validation.gx_evaluator import gx_expectation, unconditional_expectation
from perennial.validation.suite import Expectation, SuiteProblem

_VIEW = "__rows"


def argument_problems(
    suite: Iterable[Expectation], columns: Mapping[str, str], key: list[str]
) -> list[SuiteProblem]:
    """The expectations whose arguments Great Expectations refuses, or that fail on a table without rows.

    Great Expectations, which takes seconds to import, is asked about those that are not SQL alone. Of the others,
    `suite.parse_suite` accepts nothing that it refuses.

    Args:
        suite: what `suite.parse_suite` has read; its patterns and queries must have been checked.
        columns: declared type of each column.
        key: columns that identify a row.
    """
    con = duckdb_session.connect_small()
    duckdb_session.lock(con)
    typed = ", ".join(f"NULL::{SQL_TYPES[kind]} AS {quote_identifier(c)}" for c, kind in columns.items())
    con.execute(
        f"CREATE TEMP TABLE {_VIEW} AS SELECT 0::BIGINT AS __file, 0::BIGINT AS __row, "
        f"NULL::TIMESTAMP AS __future, {typed} LIMIT 0"
    )
    feed, problems = FeedSchema("", "rows", columns), []
    for expectation in suite:
        check = check_builder.build_checks([expectation], columns, key)[0]
        if cause := _problem(con, feed, check):
            problems.append(SuiteProblem(expectation.line, f"{expectation.type}: {cause}"))
    return problems


def _problem(con: duckdb.DuckDBPyConnection, feed: FeedSchema, check: Check) -> str:
    try:
        if check.run != "sql":
            gx_expectation(check)
            _probe(check)
        relation = _extension.extend(con, feed, [], [check], _VIEW).relation
        selected = ", ".join(check.aggregates()) or "count(*)"
        con.execute(f"SELECT {selected} FROM {relation}").fetchall()
    except SpecError as error:
        return _one_line(error.cause.removeprefix("expectations.json: ").removeprefix(f"{check.label}: "))
    except (duckdb.Error, TimeoutError, _gx_engine.EvaluationError) as error:
        return _one_line(str(error))
    return ""


def _probe(check: Check) -> None:
    """Have Great Expectations look at one value that any valid argument allows it to look at.

    Raises:
        EvaluationError: an argument is not valid.
    """
    import pandas as pd

    if check.type in _special_checks.OF_TYPE or check.type == "expect_column_values_to_match_json_schema":
        # A value of no type of its own, and one that is JSON.
        frame = pd.DataFrame({check.columns[0]: pd.Series(["null"], dtype=object)})
        _gx_engine.evaluate(unconditional_expectation(check), frame)


def _one_line(text: str) -> str:
    # A JSON schema's error continues with the schema of schemas.
    return "; ".join(line.strip() for line in text.strip().split("\n\n")[0].splitlines())[:300]
