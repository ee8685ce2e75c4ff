"""SQL aggregates of table-level expectations, and helpers that compose SQL aggregates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perennial.core.sql import quote_identifier, sql_literal


def table_level(
    type_: str, kwargs: dict[str, Any], types: Mapping[str, str], where: str, exact: bool
) -> dict[str, str]:
    """Compose the SQL aggregates of a table-level check.

    The names are Great Expectations' metrics. The parts of a metric that is computed from several aggregates have names
    of this module.

    Args:
        type_: Great Expectations' type.
        kwargs: its arguments.
        types: declared type of each column.
        where: SQL condition of the rows that are checked; empty: all.
        exact: whether median and quantiles are exact or estimated.

    Returns:
        SQL by name.
    """
    row_filter = filter_clause(where)
    if "column" not in kwargs or type_ == "expect_column_to_exist":
        return {"table.row_count": count_where(where)}
    declared, column = types[kwargs["column"]], quote_identifier(kwargs["column"])
    # Only finite values count: rows with infinite ones go to quarantine.
    finite = f"CASE WHEN isfinite({column}) THEN {column} END" if declared == "number" else column
    name = type_.removeprefix("expect_column_").removesuffix("_to_be_between")
    simple = {
        "min": ("column.min", f"min({finite}){row_filter}"),
        "max": ("column.max", f"max({finite}){row_filter}"),
        "mean": ("column.mean", f"avg({finite}){row_filter}"),
        "sum": ("column.sum", f"coalesce(sum({finite}){row_filter}, 0)"),
        "median": (
            "column.median",
            (f"median({finite})" if exact else f"approx_quantile({finite}, 0.5)") + row_filter,
        ),
        "stdev": ("column.standard_deviation", f"stddev_samp({finite}){row_filter}"),
    }
    if name in simple:
        metric, sql = simple[name]
        return {metric: sql}
    if name == "quantile_values":
        return {
            "column.quantile_values": _quantiles(finite, kwargs["quantile_ranges"]["quantiles"], where, exact)
        }
    distinct = f"count(DISTINCT hash({column}))" + filter_clause(all_of(where, f"{column} IS NOT NULL"))
    if name == "unique_value_count":
        return {"column.distinct_values.count": distinct}
    if name.startswith("proportion_of"):
        return {
            "distinct": distinct,
            "non-null": f"count({column}){row_filter}",
            "rows": f"count(*){row_filter}",
        }
    return _set_aggregates(column, [sql_literal(v, declared) for v in kwargs["value_set"]], where)


def _set_aggregates(column: str, values: list[str], where: str) -> dict[str, str]:
    """SQL aggregates that compare a column's distinct values with a set."""
    outside = filter_clause(all_of(where, f"{column} NOT IN ({', '.join(values)})"))
    inside = filter_clause(all_of(where, f"{column} IN ({', '.join(values)})"))
    index = " ".join(f"WHEN {v} THEN {i}" for i, v in enumerate(values))
    return {
        "outside": f"count(DISTINCT {column}){outside}",
        "some outside": f"[min({column}){outside}, max({column}){outside}]",
        "inside": f"list(DISTINCT CASE {column} {index} END){inside}",
    }


def _quantiles(column: str, quantiles: list[float], where: str, exact: bool) -> str:
    if not exact:
        return f"approx_quantile({column}, {[float(q) for q in quantiles]}){filter_clause(where)}"
    # The value nearest to the quantile, as in pandas with interpolation="nearest".
    count = f"count({column}){filter_clause(where)}"
    ordered = f"list_sort(list({column}){filter_clause(all_of(where, f'{column} IS NOT NULL'))})"
    values = [f"{ordered}[1 + round_even({float(q)!r} * ({count} - 1), 0)::BIGINT]" for q in quantiles]
    return f"[{', '.join(values)}]"


def all_of(one: str, other: str) -> str:
    """SQL condition that both conditions hold; an empty condition is true."""
    parts = [p for p in (one, other) if p and p != "TRUE"]
    return " AND ".join(parts) if parts else "TRUE"


def filter_clause(where: str) -> str:
    """SQL that restricts an aggregate to the rows of a condition; empty for all rows."""
    return f" FILTER (WHERE {where})" if where and where != "TRUE" else ""


def count_where(where: str) -> str:
    """SQL aggregate: number of rows that meet a condition."""
    return f"count(*){filter_clause(where)}"
