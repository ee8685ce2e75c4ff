"""The view of landed files with what some checks need besides: statistics of the file, earlier rows, marks of bad rows.

Everything here streams. A statistic is a constant of each file, an earlier value is a window function, and bad rows
that no SQL condition describes are found beforehand and joined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import duckdb

from perennial.core.errors import DataError
from perennial.core.sql import SQL_TYPES, quote_identifier, sql_literal
from perennial.feeds.feed_schema import FeedSchema
from perennial.storage import duckdb_session
from perennial.storage.landing import LandedFile
from perennial.validation import _gx_engine
from perennial.validation._aggregation import aggregate_by_file
from perennial.validation._arguments import BATCH
from perennial.validation._sql_aggregates import all_of
from perennial.validation.checks import Check, Measurement
from perennial.validation.gx_evaluator import unconditional_expectation, value_expectations

#: Most values whose frequencies are compared; others of a column are too many for a distribution.
MAX_COUNTED_VALUES = 100_000
#: Most common values that a result shows.
_MAX_MODES = 1000


@dataclass
class Extension:
    """What checks need besides the view.

    Attributes:
        relation: the view, with more columns if any check needs them.
        measured: what was measured, by index of the check and of the file.
    """

    relation: str
    measured: dict[tuple[int, int], Measurement] = field(default_factory=dict)

    def of(self, check: int, file: int) -> Measurement:
        """What was measured of one check in one file."""
        return self.measured.get((check, file)) or Measurement()


def extend(
    con: duckdb.DuckDBPyConnection,
    feed: FeedSchema,
    landed: list[LandedFile],
    checks: list[Check],
    view: str,
) -> Extension:
    """Measure what SQL aggregates of the view do not give, and extend the view by it.

    Args:
        con: connection with the view.
        feed: the files' feed.
        landed: the files.
        checks: all checks.
        view: the view of the files.
    """
    extension = Extension(view)
    columns, joins = _parameters(con, landed, checks, view), []
    by_file = _rows_by_file(con, feed, landed, checks, view)
    for i, check in enumerate(checks):
        columns += [f"{sql} AS {name}" for name, sql in check.windows.items()]
        measured: dict[int, Measurement] = {}
        if check.run == "batches":
            table = f"{view}_unexpected_{i}"
            measured = _gx_engine.find_bad_rows(con, check, value_expectations(check), view, table)
            joins.append(
                f"LEFT JOIN {table} __u{i} ON {view}.__file = __u{i}.__in_file AND {view}.__row = __u{i}.__bad_row"
            )
            columns.append(f"(__u{i}.__bad_row IS NOT NULL) AS {check.mark}")
        elif check.run == "query":
            measured = _run_query(con, feed, landed, check, i, view, by_file)
            if check.mark:
                joins.append(_join_keys(check, i, view))
                columns.append(f"(__u{i}.__in_file IS NOT NULL) AS {check.mark}")
        elif check.run == "counts":
            measured = _count_values(con, landed, check, view)
        elif check.run == "whole":
            measured = _evaluate_whole(con, landed, check, by_file)
        extension.measured |= {(i, file): m for file, m in measured.items()}
    if by_file != view:
        con.execute(f"DROP TABLE {by_file}")
    if columns:
        extension.relation = f"{view}_extended"
        con.execute(
            f"CREATE OR REPLACE TEMP VIEW {extension.relation} AS SELECT {view}.*, {', '.join(columns)} "
            f"FROM {view} {' '.join(joins)}"
        )
    return extension


def _rows_by_file(
    con: duckdb.DuckDBPyConnection,
    feed: FeedSchema,
    landed: list[LandedFile],
    checks: list[Check],
    view: str,
) -> str:
    """The relation that is read one file at a time.

    DuckDB would open all files of the view each time. So several files are copied to a temporary table, whose blocks
    DuckDB skips by ``__file``, and which it spills.
    """
    reading = [check for check in checks if check.run in ("query", "whole")]
    if not reading or len(landed) < 2:
        return view
    any_column = any(check.run == "query" for check in reading)
    read = {column for check in reading for column in check.all_columns}
    columns = [quote_identifier(c) for c in feed.columns if any_column or c in read]
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {view}_by_file AS SELECT {', '.join(['__file', *columns])} FROM {view}"
    )
    return f"{view}_by_file"


def _parameters(
    con: duckdb.DuckDBPyConnection, landed: list[LandedFile], checks: list[Check], view: str
) -> list[str]:
    """SQL columns of the statistics of each file that conditions use."""
    needed = {name: sql for check in checks for name, sql in check.parameters.items()}
    if not needed:
        return []
    files = aggregate_by_file(con, landed, view, needed.values())
    columns = []
    for name, sql in needed.items():
        values = [_number(file[sql]) for file in files]
        value = f"([{', '.join(values)}])[__file + 1]" if len(values) > 1 else (values or ["NULL::DOUBLE"])[0]
        columns.append(f"{value} AS {name}")
    return columns


def _number(value: Any) -> str:
    usable = value is not None and math.isfinite(value)
    return f"{sql_literal(float(value), 'number')}::DOUBLE" if usable else "NULL::DOUBLE"


def _count_values(
    con: duckdb.DuckDBPyConnection, landed: list[LandedFile], check: Check, view: str
) -> dict[int, Measurement]:
    """Count how often each value occurs; of the most common value, only ties."""
    where = all_of(check.where, f"({check.counted}) IS NOT NULL")
    counted = (
        f"SELECT __file, {check.counted} AS __value, count(*) AS __n FROM {view} WHERE {where} GROUP BY ALL"
    )
    if check.type == "expect_column_most_common_value_to_be_in_set":
        return _count_modes(con, landed, check, counted)
    numbered = f"SELECT *, count(*) OVER (PARTITION BY __file) AS __values FROM ({counted})"
    rows = con.execute(
        f"SELECT * FROM ({numbered}) WHERE __values <= {MAX_COUNTED_VALUES} ORDER BY __file, __value"
    ).fetchall()
    measured = {file: Measurement() for file in range(len(landed))}
    for file, value, n, _ in rows:
        measured[file].counts.append((value, n))
    too_many = con.execute(
        f"SELECT __file, any_value(__values) FROM ({numbered}) WHERE __values > {MAX_COUNTED_VALUES} GROUP BY 1"
    ).fetchall()
    for file, values in too_many:
        measured[file].error = DataError(
            f"the column has {values:,} different values, at most {MAX_COUNTED_VALUES:,} are compared",
            "use bins in partition_object if it is a number, or another expectation",
        )
    return measured


def _count_modes(
    con: duckdb.DuckDBPyConnection, landed: list[LandedFile], check: Check, counted: str
) -> dict[int, Measurement]:
    declared, expected = check.types[check.columns[0]], check.kwargs["value_set"]
    index = " ".join(f"WHEN {sql_literal(v, declared)} THEN {i}" for i, v in enumerate(expected))
    rows = con.execute(
        f"SELECT __file, __value, __n, CASE __value {index} END AS __index FROM ({counted}) "
        f"QUALIFY __n = max(__n) OVER (PARTITION BY __file) "
        f"AND (__index IS NOT NULL OR row_number() OVER (PARTITION BY __file, __n, __index ORDER BY __value) "
        f"<= {_MAX_MODES}) ORDER BY __file, __value"
    ).fetchall()
    measured = {file: Measurement() for file in range(len(landed))}
    for file, value, n, i in rows:
        # A date is compared as one; Great Expectations would compare it with the text.
        measured[file].counts.append((value if i is None else expected[i], n))
    return measured


def _evaluate_whole(
    con: duckdb.DuckDBPyConnection, landed: list[LandedFile], check: Check, view: str
) -> dict[int, Measurement]:
    expectation, measured = unconditional_expectation(check), {}
    for file in range(len(landed)):
        try:
            measured[file] = Measurement(
                result=_gx_engine.evaluate_whole(con, check, expectation, file, view)
            )
        except duckdb.Error:
            raise
        except Exception as error:
            measured[file] = Measurement(error=error)
    return measured


def _run_query(
    con: duckdb.DuckDBPyConnection,
    feed: FeedSchema,
    landed: list[LandedFile],
    check: Check,
    index: int,
    view: str,
    by_file: str,
) -> dict[int, Measurement]:
    """Run an author's query on each file; its rows' keys go to a temporary table if it gives keys."""
    measured: dict[int, Measurement] = {}
    table = f"{view}_query_{index}"
    columns = ", ".join(map(quote_identifier, feed.columns))
    keys = _keys(check)
    selected = ", ".join(f"TRY_CAST({name} AS {sql_type})" for name, sql_type, _ in keys)
    empty = ", ".join(f"NULL::{sql_type} AS {alias}" for _, sql_type, alias in keys)
    if keys:
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT 0 AS __in_file, {empty}, 0 AS __n LIMIT 0"
        )
    for file in range(len(landed)):
        # On lines of its own, because it may end in a comment.
        query = f"(\n{check.query}\n)"
        con.execute(
            f"CREATE OR REPLACE TEMP VIEW {BATCH} AS SELECT {columns} FROM {by_file} WHERE __file = {file}"
        )
        try:
            with duckdb_session.time_limit(con):
                if keys:
                    con.execute(
                        f"INSERT INTO {table} SELECT {file}, {selected}, count(*) FROM {query} GROUP BY ALL"
                    )
                    rows = f"SELECT coalesce(sum(__n), 0)::BIGINT FROM {table} WHERE __in_file = {file}"
                else:
                    rows = f"SELECT count(*) FROM {query}"
                measured[file] = Measurement(rows=con.execute(rows).fetchall()[0][0])
                if keys and measured[file].rows:
                    _check_keys(con, check, file, table, by_file, measured[file])
        except (duckdb.Error, TimeoutError) as error:
            if "Out of Memory" in str(error) or "No space left" in str(error):
                raise
            measured[file] = Measurement(error=error)
        finally:
            con.execute(f"DROP VIEW IF EXISTS {BATCH}")
    return measured


def _keys(check: Check) -> list[tuple[str, str, str]]:
    """Name, SQL type and name in the temporary table of the key columns, if the query gives them."""
    if not check.mark:
        return []
    return [
        (quote_identifier(column), SQL_TYPES[check.types[column]], f"__value_{j}")
        for j, column in enumerate(check.columns)
    ]


def _check_keys(
    con: duckdb.DuckDBPyConnection, check: Check, file: int, table: str, view: str, measured: Measurement
) -> None:
    """A row whose key is none of the partition's could not be put into quarantine."""
    same = " AND ".join(
        f"{view}.{name} IS NOT DISTINCT FROM {table}.{alias}" for name, _, alias in _keys(check)
    )
    ((unknown,),) = con.execute(
        f"SELECT count(*) FROM {table} WHERE __in_file = {file} AND NOT EXISTS "
        f"(SELECT 1 FROM {view} WHERE {view}.__file = {file} AND {same})"
    ).fetchall()
    if unknown:
        measured.error = DataError(
            f"{unknown} of the keys that the query gives are not of the partition",
            "select the key's columns as they are, or none of them",
        )


def _join_keys(check: Check, index: int, view: str) -> str:
    same = " AND ".join(
        f"{view}.{name} IS NOT DISTINCT FROM __u{index}.{alias}" for name, _, alias in _keys(check)
    )
    return f"LEFT JOIN {view}_query_{index} __u{index} ON {view}.__file = __u{index}.__in_file AND {same}"
