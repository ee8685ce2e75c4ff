"""The SQL aggregates of table-level expectations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perennial.core.sql import quote_identifier, sql_literal


def table_level(
    type_: str, kwargs: dict[str, Any], types: Mapping[str, str], where: str, exact: bool
) -> dict[str, str]:
    """SQL aggregates of a table-level check, by metric or by a name of our own."""
    only = only_where(where)
    if "column" not in kwargs or type_ == "expect_column_to_exist":
        return {"table.row_count": "count(*)"}
    kind, column = types[kwargs["column"]], quote_identifier(kwargs["column"])
    # statistics are of finite values: a row with an infinite one goes to quarantine
    finite = f"CASE WHEN isfinite({column}) THEN {column} END" if kind == "number" else column
    middle = f"median({finite})" if exact else f"approx_quantile({finite}, 0.5)"
    distinct = f"count(DISTINCT hash({column}))" + only_where(both(where, f"{column} IS NOT NULL"))
    what = type_.removeprefix("expect_column_").removesuffix("_to_be_between")
    simple = {
        "min": ("column.min", f"min({finite})"),
        "max": ("column.max", f"max({finite})"),
        "mean": ("column.mean", f"avg({finite})"),
        "sum": ("column.sum", f"coalesce(sum({finite}){only}, 0)"),
        "median": ("column.median", middle),
        "stdev": ("column.standard_deviation", f"stddev_samp({finite})"),
    }
    if what in simple:
        metric, sql = simple[what]
        return {metric: sql + ("" if what == "sum" else only)}
    if what == "quantile_values":
        return {
            "column.quantile_values": _quantiles(finite, kwargs["quantile_ranges"]["quantiles"], where, exact)
        }
    if what == "unique_value_count":
        return {"column.distinct_values.count": distinct}
    if what.startswith("proportion_of"):
        return {"distinct": distinct, "filled": f"count({column}){only}", "rows": f"count(*){only}"}
    values = [sql_literal(v, kind) for v in kwargs["value_set"]]
    outside = only_where(both(where, f"{column} NOT IN ({', '.join(values)})"))
    index = " ".join(f"WHEN {v} THEN {i}" for i, v in enumerate(values))
    inside = only_where(both(where, f"{column} IN ({', '.join(values)})"))
    return {
        "outside": f"count(DISTINCT {column}){outside}",
        "some outside": f"[min({column}){outside}, max({column}){outside}]",
        "inside": f"list(DISTINCT CASE {column} {index} END){inside}",
    }


def _quantiles(column: str, shares: list[float], where: str, exact: bool) -> str:
    if not exact:
        return f"approx_quantile({column}, {[float(s) for s in shares]}){only_where(where)}"
    # the value nearest to the quantile's place, as pandas' interpolation="nearest" takes it
    filled = f"count({column}){only_where(where)}"
    ordered = f"list_sort(list({column}){only_where(both(where, f'{column} IS NOT NULL'))})"
    places = [f"{ordered}[1 + round_even({float(s)!r} * ({filled} - 1), 0)::BIGINT]" for s in shares]
    return f"[{', '.join(places)}]"


def both(one: str, other: str) -> str:
    parts = [p for p in (one, other) if p and p != "TRUE"]
    return " AND ".join(parts) if parts else "TRUE"


def only_where(where: str) -> str:
    return f" FILTER (WHERE {where})" if where and where != "TRUE" else ""


def count_where(where: str) -> str:
    return f"count(*){only_where(where)}"
