"""Checks that are more than a SQL condition of a row or an aggregate: how each type of expectation becomes one."""

from __future__ import annotations

from dataclasses import replace
from math import isinf
from typing import Any

from perennial.core.sql import quote_identifier, sql_literal
from perennial.validation._sql_aggregates import count_where, filter_clause
from perennial.validation.checks import Check

#: Expectations that Great Expectations itself evaluates, because only Python's parsers say what they accept.
IN_BATCHES = {
    "expect_column_values_to_be_dateutil_parseable", "expect_column_values_to_be_json_parseable",
    "expect_column_values_to_match_json_schema", "expect_column_values_to_match_strftime_format",
}  # fmt: skip
#: Expectations of a column's type.
OF_TYPE = {
    "expect_column_type_to_be", "expect_column_values_to_be_of_type", "expect_column_values_to_be_in_type_list",
}  # fmt: skip


def table_check(check: Check) -> Check | None:
    """Complete a table-level check; None if SQL aggregates are enough for its type."""
    if not check.columns:
        return None
    column = quote_identifier(check.columns[0])
    if check.type in OF_TYPE:
        statistics = {
            "rows": count_where(check.where),
            "non-null": f"count({column})" + filter_clause(check.where),
            "all rows": "count(*)",
            "all non-null": f"count({column})",
        }
        return replace(check, run="type", statistics=statistics)
    if check.type == "expect_column_most_common_value_to_be_in_set":
        return replace(check, run="counts", counted=_finite(check, column))
    if check.type != "expect_column_kl_divergence_to_be_less_than":
        return None
    partition = check.kwargs.get("partition_object")
    if partition is None and check.kwargs.get("bucketize_data", True):
        return replace(check, run="whole")
    bins = (partition or {}).get("bins")
    value = _finite(check, column)
    return replace(check, run="counts", counted=_interval(value, bins) if bins else value)


def row_check(check: Check, index: int, exact: bool) -> Check | None:
    """Complete a row-level check; None if a SQL condition is enough for its type.

    Args:
        check: the check, with the rows that it counts.
        index: of the check, which makes the names of columns unique.
        exact: whether quantiles are exact or estimated.
    """
    if check.type in IN_BATCHES:
        return batch_check(check, index)
    if check.type in ("expect_column_values_to_be_increasing", "expect_column_values_to_be_decreasing"):
        return _ordered(check, index)
    if check.type == "expect_column_value_z_scores_to_be_less_than":
        return _z_scores(check, index)
    if check.type == "expect_column_values_to_not_be_outliers":
        return _outliers(check, index, exact)
    return None


def batch_check(check: Check, index: int) -> Check:
    """A check whose bad rows Great Expectations itself finds, batch by batch."""
    mark = f"__unexpected_{index}"
    return replace(check, run="batches", mark=mark, bad=mark)


def _finite(check: Check, column: str) -> str:
    """SQL of a value, null if it is infinite: such rows go to quarantine."""
    number = check.types[check.columns[0]] == "number"
    return f"CASE WHEN isfinite({column}) THEN {column} END" if number else column


def _ordered(check: Check, index: int) -> Check:
    """Compare each value with the one before it, in the order of the file."""
    column, previous = quote_identifier(check.columns[0]), f"__previous_{index}"
    value = f"CASE WHEN {check.where} THEN {column} END" if check.where else column
    window = f"lag({value} IGNORE NULLS) OVER (PARTITION BY __file ORDER BY __row)"
    sign = "<" if check.type.endswith("increasing") else ">"
    if check.kwargs.get("strictly"):
        sign += "="
    return replace(check, windows={previous: window}, bad=f"coalesce({column} {sign} {previous}, FALSE)")


def _z_scores(check: Check, index: int) -> Check:
    column, mean, deviation = quote_identifier(check.columns[0]), f"__mean_{index}", f"__deviation_{index}"
    z_score = f"(({column} - {mean}) / nullif({deviation}, 0))"
    threshold: Any = check.kwargs["threshold"]
    if check.kwargs["double_sided"]:
        z_score, threshold = f"abs{z_score}", abs(threshold)
    bad = f"coalesce({z_score} >= {sql_literal(threshold, 'number')}, FALSE)"
    return replace(check, parameters=_mean_and_deviation(check, mean, deviation), bad=bad)


def _mean_and_deviation(check: Check, mean: str, deviation: str) -> dict[str, str]:
    finite, where = _finite(check, quote_identifier(check.columns[0])), filter_clause(check.where)
    return {mean: f"avg({finite}){where}", deviation: f"stddev_samp({finite}){where}"}


def _outliers(check: Check, index: int, exact: bool) -> Check:
    column, multiplier = (
        quote_identifier(check.columns[0]),
        sql_literal(check.kwargs.get("multiplier", 1.5), "number"),
    )
    if check.kwargs.get("method", "iqr") == "std":
        mean, deviation = f"__mean_{index}", f"__deviation_{index}"
        reach = f"({multiplier} * {deviation})"
        good = f"CASE WHEN {reach} <= 0 THEN {column} = {mean} ELSE abs({column} - {mean}) < {reach} END"
        parameters = _mean_and_deviation(check, mean, deviation)
    else:
        first, third = f"__first_quartile_{index}", f"__third_quartile_{index}"
        finite, where = _finite(check, column), filter_clause(check.where)
        quantile = "quantile_cont" if exact else "approx_quantile"
        parameters = {name: f"{quantile}({finite}, {q}){where}" for name, q in ((first, 0.25), (third, 0.75))}
        reach = f"({multiplier} * ({third} - {first}))"
        good = f"({column} >= {first} - {reach} AND {column} <= {third} + {reach})"
    return replace(check, parameters=parameters, bad=f"coalesce(NOT ({good}), FALSE)")


def _interval(value: str, bins: list[float]) -> str:
    """SQL of the index of a value's interval: closed below, the last one also above; -1 below the first one."""
    last = len(bins) - 2
    cases = [] if isinf(bins[0]) else [f"WHEN {value} < {sql_literal(bins[0], 'number')} THEN -1"]
    for i, upper in enumerate(bins[1:]):
        sign = "<=" if i == last else "<"
        reached = "TRUE" if isinf(upper) else f"{value} {sign} {sql_literal(upper, 'number')}"
        cases.append(f"WHEN {reached} THEN {i}")
    return f"CASE WHEN ({value}) IS NULL THEN NULL {' '.join(cases)} ELSE {last + 1} END"
