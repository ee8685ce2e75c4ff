"""The SQL aggregates of table-level checks, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import duckdb
import pytest

from perennial.validation import _sql_aggregates
from perennial.validation._sql_aggregates import all_of, count_where, filter_clause, table_level

TYPES = {"n": "number", "i": "integer", "s": "string"}


@pytest.fixture(scope="module")
def con() -> duckdb.DuckDBPyConnection:
    """Five rows: one ``n`` is infinite and one missing; ``s`` has three values, one of them twice, and one missing."""
    con = duckdb.connect()
    con.execute(
        "CREATE TABLE rows AS SELECT * FROM (VALUES (1.0::DOUBLE, 1, 'a'), (2.0, 2, 'a'), (4.0, 2, 'b'), "
        "('inf'::DOUBLE, 7, NULL), (NULL, NULL, 'o''x')) t(n, i, s)"
    )
    return con


def evaluate(
    con: duckdb.DuckDBPyConnection, kind: str, where: str = "", exact: bool = True, **kwargs: Any
) -> dict[str, Any]:
    aggregates = table_level(kind, kwargs, TYPES, where, exact)
    columns = ", ".join(f'{sql} AS "{name}"' for name, sql in aggregates.items())
    (row,) = con.sql(f"SELECT {columns} FROM rows").to_arrow_table().to_pylist()
    return dict(row)


@pytest.mark.parametrize(
    ("kind", "column", "where", "expected"),
    [
        ("expect_column_min_to_be_between", "n", "", {"column.min": 1.0}),
        ("expect_column_max_to_be_between", "n", "", {"column.max": 4.0}),
        ("expect_column_max_to_be_between", "n", "i < 2", {"column.max": 1.0}),
        ("expect_column_mean_to_be_between", "n", "", {"column.mean": 7 / 3}),
        ("expect_column_sum_to_be_between", "n", "", {"column.sum": 7.0}),
        ("expect_column_sum_to_be_between", "n", "i > 100", {"column.sum": 0.0}),
        ("expect_column_median_to_be_between", "n", "", {"column.median": 2.0}),
        ("expect_column_stdev_to_be_between", "n", "", {"column.standard_deviation": (7 / 3) ** 0.5}),
        ("expect_column_max_to_be_between", "i", "", {"column.max": 7}),
        ("expect_column_unique_value_count_to_be_between", "s", "", {"column.distinct_values.count": 3}),
        ("expect_column_unique_value_count_to_be_between", "s", "i = 2", {"column.distinct_values.count": 2}),
        ("expect_column_proportion_of_unique_values_to_be_between", "s", "", {"distinct": 3, "non-null": 4, "rows": 5}),
        ("expect_table_row_count_to_be_between", None, "", {"table.row_count": 5}),
        ("expect_column_to_exist", "s", "", {"table.row_count": 5}),
    ],
)  # fmt: skip
def test_aggregates(
    con: duckdb.DuckDBPyConnection, kind: str, column: str | None, where: str, expected: dict[str, Any]
) -> None:
    kwargs = {"column": column} if column else {}
    assert evaluate(con, kind, where, **kwargs) == pytest.approx(expected)


@pytest.mark.parametrize("exact", [True, False])
def test_quantiles_are_values_of_the_column(con: duckdb.DuckDBPyConnection, exact: bool) -> None:
    ranges = {"quantiles": [0.0, 0.5, 1.0], "value_ranges": [[None, None]] * 3}
    kind = "expect_column_quantile_values_to_be_between"
    values = evaluate(con, kind, exact=exact, column="n", quantile_ranges=ranges)["column.quantile_values"]
    assert values == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("value_set", "outside", "some_outside", "inside"),
    [
        (["a", "o'x"], 1, ["b", "b"], {0, 1}),
        (["b", "c"], 2, ["a", "o'x"], {0}),
        (["a", "b", "o'x"], 0, [None, None], {0, 1, 2}),
    ],
)
def test_sets_are_compared_with_the_distinct_values(
    con: duckdb.DuckDBPyConnection,
    value_set: list[str],
    outside: int,
    some_outside: list[str | None],
    inside: set[int],
) -> None:
    kind = "expect_column_distinct_values_to_be_in_set"
    found = evaluate(con, kind, column="s", value_set=value_set)
    assert (found["outside"], found["some outside"]) == (outside, some_outside)
    assert {index for index in found["inside"] if index is not None} == inside


def test_conditions_are_composed() -> None:
    assert all_of("a", "b") == "a AND b"
    assert all_of("", "b") == all_of("TRUE", "b") == all_of("b", "") == "b"
    assert all_of("", "TRUE") == "TRUE"
    assert filter_clause("") == filter_clause("TRUE") == ""
    assert filter_clause("a > 1") == " FILTER (WHERE a > 1)"
    assert count_where("a > 1") == "count(*) FILTER (WHERE a > 1)"
    assert _sql_aggregates.count_where("") == "count(*)"
