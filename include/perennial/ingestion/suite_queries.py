"""The SQL that people write in ``expectations.json``: what is checked before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import duckdb

from perennial.features import author_sql
from perennial.storage import duckdb_session
from perennial.validation import check_builder
from perennial.validation.suite import QUERY_TYPE, Expectation, SuiteProblem, batch_query


def query_problems(suite: Iterable[Expectation], columns: Mapping[str, str]) -> list[SuiteProblem]:
    """The queries of a suite that may not run, or cannot be planned.

    A query runs in the locked connection of the data step and may read nothing but the partition.

    Args:
        suite: the expectations.
        columns: declared type of each column of the partition.
    """
    problems, con = [], duckdb_session.connect_small()
    for expectation in suite:
        if expectation.type == QUERY_TYPE and (cause := _problem(con, expectation, columns)):
            problems.append(SuiteProblem(expectation.line, f"unexpected_rows_query: {cause}"))
    return problems


def _problem(con: duckdb.DuckDBPyConnection, expectation: Expectation, columns: Mapping[str, str]) -> str:
    query = batch_query(expectation.kwargs["unexpected_rows_query"])
    if problem := author_sql.check_query(con, query, (), columns):
        message = problem.message.replace("there are: rows", "there is {batch}")
        return f"{message} (read {{batch}} with the functions that include/models/README.md lists)"
    try:
        check_builder.query_columns(query, columns)
    except (duckdb.Error, TimeoutError) as error:
        return str(error).strip().splitlines()[0]
    return ""
