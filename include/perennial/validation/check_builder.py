"""Build the checks of a partition: those declared in the suite, and the built-in ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from perennial.core.sql import (
    NUMERIC,
    SQL_TYPES,
    fold_identifier,
    quote_identifier,
    row_condition_sql,
    sql_literal,
    text_literal,
)
from perennial.storage import duckdb_session
from perennial.validation import _patterns, _special_checks
from perennial.validation._arguments import BATCH, batch_query
from perennial.validation._sql_aggregates import table_level
from perennial.validation.checks import Check
from perennial.validation.suite import QUERY_TYPE, Expectation

#: In larger partitions median and quantiles are estimated (t-digest), because exact ones need all values in memory.
EXACT_QUANTILE_ROWS = 1_000_000
#: Seconds in which an author's query is planned.
PLANNING_SECONDS = 10.0
_LARGEST_DOUBLE = 1.7976931348623157e308
_NOT_NULL = "expect_column_values_to_not_be_null"
#: What the text of each type looks like, as a regular expression for the data doc.
_PATTERNS = {
    "integer": r"^[+-]?\d+$",
    "number": r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$",
    "boolean": "^(true|false|t|f|1|0|yes|no)$",
    "date": r"^\d{4}-\d{2}-\d{2}$",
    "timestamp": r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}",
    "string": ".*",
}


def build_checks(
    suite: Iterable[Expectation],
    columns: Mapping[str, str],
    key: list[str],
    event_time: str | None = None,
    cast_failures: Mapping[str, str] | None = None,
    exact: bool = True,
) -> list[Check]:
    """Build all checks of a feed: the suite's, and the built-in ones.

    Args:
        suite: the declared expectations.
        columns: declared type of each column.
        key: columns that identify a row; must be unique and not null.
        event_time: column with the time of a row's event; must not be null, nor later than its partition.
        cast_failures: SQL condition of a cell that cannot be cast to its column's type, by column.
        exact: whether quantiles are exact or estimated.
    """
    checks = [_declared_check(i, e, columns, key, exact) for i, e in enumerate(suite)]
    required = [*key, *([event_time] if event_time and event_time not in key else [])]
    checks += _not_null_checks(checks, required, columns)
    checks = _with_key_check(checks, key, columns)
    checks += _finite_checks(columns)
    checks += _cast_checks(cast_failures or {}, columns)
    if event_time:
        name = quote_identifier(event_time)
        late = _built_in_check(
            "expect_column_values_to_be_between",
            {"column": event_time},
            [event_time],
            columns,
            bad=f"coalesce({name} >= __future, FALSE)",
            label=f"later than its partition: {event_time}",
        )
        checks.append(replace(late, limits_event_time=True))
    return checks


def _not_null_checks(checks: list[Check], required: list[str], columns: Mapping[str, str]) -> list[Check]:
    """Checks that required columns have no nulls, unless the suite declares the same check."""
    declared = {tuple(c.columns) for c in checks if c.type == _NOT_NULL and c.critical and not c.where}
    return [
        _built_in_check(
            _NOT_NULL,
            {"column": name},
            [name],
            columns,
            bad=f"{quote_identifier(name)} IS NULL",
            considered="TRUE",
            hidden_if_passed=False,
        )
        for name in required
        if (name,) not in declared
    ]


def _with_key_check(checks: list[Check], key: list[str], columns: Mapping[str, str]) -> list[Check]:
    """Add the check that the key is unique, unless the suite declares it; keep the first row of a key."""
    for i, check in enumerate(checks):
        if check.unique and check.critical and not check.where and set(check.unique) == set(key):
            return [*checks[:i], replace(check, keep_first=True), *checks[i + 1 :]]
    single = len(key) == 1
    built_in = _built_in_check(
        "expect_column_values_to_be_unique" if single else "expect_compound_columns_to_be_unique",
        {"column": key[0]} if single else {"column_list": key},
        key,
        columns,
        unique=tuple(key),
        considered=_not_ignored(key, "any"),
        hidden_if_passed=False,
    )
    return [*checks, replace(built_in, keep_first=True)]


def _finite_checks(columns: Mapping[str, str]) -> list[Check]:
    """Checks that no number is infinite."""
    return [
        _built_in_check(
            "expect_column_values_to_be_between",
            {"column": name, "min_value": -_LARGEST_DOUBLE, "max_value": _LARGEST_DOUBLE},
            [name],
            columns,
            bad=f"coalesce(isinf({quote_identifier(name)}), FALSE)",
            label=f"not a finite number: {name}",
        )
        for name, declared in columns.items()
        if declared == "number"
    ]


def _cast_checks(cast_failures: Mapping[str, str], columns: Mapping[str, str]) -> list[Check]:
    """Checks that each cell can be cast to the declared type."""
    return [
        _built_in_check(
            "expect_column_values_to_match_regex",
            {"column": name, "regex": _PATTERNS[columns[name]]},
            [name],
            columns,
            bad=bad,
            label=f"not readable as {columns[name]}: {name}",
            considered="TRUE",
            bad_is_null=True,
        )
        for name, bad in cast_failures.items()
    ]


def _built_in_check(
    type_: str,
    kwargs: dict[str, Any],
    names: list[str],
    columns: Mapping[str, str],
    *,
    bad: str = "",
    unique: tuple[str, ...] = (),
    considered: str = "",
    label: str = "",
    bad_is_null: bool = False,
    hidden_if_passed: bool = True,
) -> Check:
    return Check(
        label=label or f"{type_}({', '.join(names)})",
        type=type_,
        config={"type": type_, "kwargs": kwargs, "meta": {"built_in": True}, "severity": "critical"},
        level="row",
        declared=False,
        columns=names,
        considered=considered or f"{quote_identifier(names[0])} IS NOT NULL",
        bad=bad,
        unique=unique,
        bad_is_null=bad_is_null,
        hidden_if_passed=hidden_if_passed,
        types=columns,
    )


def _declared_check(
    index: int, expectation: Expectation, columns: Mapping[str, str], key: list[str], exact: bool
) -> Check:
    kwargs = expectation.kwargs
    where = row_condition_sql(kwargs["row_condition"], columns) if "row_condition" in kwargs else ""
    check = Check(
        label=expectation.label,
        type=expectation.type,
        config={"meta": {}, **expectation.config, "kwargs": kwargs},
        level=expectation.level,
        severity=expectation.severity,
        columns=expectation.columns,
        where=where,
        mostly=kwargs.get("mostly"),
        types=columns,
    )
    if expectation.type == QUERY_TYPE:
        return _query_check(check, index, columns, key)
    if expectation.level == "table":
        return _special_checks.table_check(check) or replace(
            check, statistics=table_level(check.type, kwargs, columns, where, exact)
        )
    check = replace(check, considered=_considered(expectation))
    if special := _special_checks.row_check(check, index, exact):
        return special
    if expectation.type in ("expect_column_values_to_be_unique", "expect_compound_columns_to_be_unique"):
        return replace(check, unique=tuple(expectation.columns))
    if any(map(_patterns.sql_problem, expectation.patterns)):
        return _special_checks.batch_check(check, index)
    return replace(check, bad=_bad_row(expectation, columns))


def _query_check(check: Check, index: int, columns: Mapping[str, str], key: list[str]) -> Check:
    """The check of an author's query: row-level if the query gives the key of its rows."""
    query = batch_query(check.kwargs["unexpected_rows_query"])
    given = {fold_identifier(c) for c in query_columns(query, columns)}
    check = replace(check, run="query", query=query)
    if not given.issuperset(map(fold_identifier, key)):
        return check
    mark = f"__unexpected_{index}"
    return replace(check, level="row", columns=list(key), considered="TRUE", mark=mark, bad=mark)


def query_columns(query: str, columns: Mapping[str, str]) -> list[str]:
    """The columns of an author's query.

    Args:
        query: as `batch_query` gives it.
        columns: declared type of each column.

    Raises:
        duckdb.Error: it cannot be planned.
    """
    con = duckdb_session.connect_small()
    duckdb_session.lock(con)
    typed = ", ".join(f"NULL::{SQL_TYPES[kind]} AS {quote_identifier(c)}" for c, kind in columns.items())
    con.execute(f"CREATE TEMP TABLE {BATCH} AS SELECT {typed} LIMIT 0")
    with duckdb_session.time_limit(con, PLANNING_SECONDS):
        return [str(row[0]) for row in con.execute(f"DESCRIBE SELECT * FROM (\n{query}\n)").fetchall()]


def _considered(expectation: Expectation) -> str:
    """SQL condition of the rows that a row-level expectation counts."""
    kwargs, columns = expectation.kwargs, expectation.columns
    if "column_list" in kwargs:
        return _not_ignored(columns, kwargs.get("ignore_row_if", "all_values_are_missing"))
    if "column_B" in kwargs:
        return _not_ignored(columns, kwargs.get("ignore_row_if", "both_values_are_missing"))
    if expectation.type in (_NOT_NULL, "expect_column_values_to_be_null"):
        return "TRUE"
    return f"{quote_identifier(columns[0])} IS NOT NULL"


def _bad_row(expectation: Expectation, types: Mapping[str, str]) -> str:
    """SQL condition of a row that breaks a row-level expectation, never null."""
    name, kwargs = expectation.type, expectation.kwargs
    columns = [quote_identifier(c) for c in expectation.columns]
    if name == "expect_select_column_values_to_be_unique_within_record":
        pairs = itertools.combinations(expectation.columns, 2)
        return f"({' OR '.join(_equal(a, b, types) for a, b in pairs)})"
    if name == "expect_multicolumn_values_to_be_equal":
        return "(" + " OR ".join(f"{c} IS DISTINCT FROM {columns[0]}" for c in columns[1:]) + ")"
    if name == "expect_multicolumn_sum_to_equal":
        total = " + ".join(f"{c}::DOUBLE" for c in columns)
        return _fails(f"({total}) = {sql_literal(kwargs['sum_total'], 'number')}", if_null="TRUE")
    if name == "expect_column_pair_values_to_be_equal":
        return _fails(f"{columns[0]} = {columns[1]}", if_null="TRUE")
    if name == "expect_column_pair_values_a_to_be_greater_than_b":
        sign = ">=" if kwargs.get("or_equal") else ">"
        return _fails(f"{columns[0]} {sign} {columns[1]}", if_null="TRUE")
    if name == "expect_column_pair_values_to_be_in_set":
        pairs_sql = [
            " AND ".join(
                f"{quote_identifier(c)} IS NULL"
                if value is None
                else f"coalesce({quote_identifier(c)} = {sql_literal(value, types[c])}, FALSE)"
                for c, value in zip(expectation.columns, pair, strict=True)
            )
            for pair in kwargs["value_pairs_set"]
        ]
        return f"NOT ({' OR '.join(f'({pair})' for pair in pairs_sql)})"
    return _bad_value(name, columns[0], types[expectation.columns[0]], kwargs)


def _equal(a: str, b: str, types: Mapping[str, str]) -> str:
    """SQL condition that two columns of any types have the same value, or both none."""
    first, second = quote_identifier(a), quote_identifier(b)
    if types[a] == types[b] or {types[a], types[b]} <= set(NUMERIC):
        return f"({first} IS NOT DISTINCT FROM {second})"
    return f"({first} IS NULL AND {second} IS NULL)"  # a text is no number, whatever it looks like


def _bad_value(name: str, column: str, declared: str, kwargs: dict[str, Any]) -> str:
    """SQL condition of a bad value of one column; false for a missing one."""
    if name == _NOT_NULL:
        return f"{column} IS NULL"
    if name == "expect_column_values_to_be_null":
        return f"{column} IS NOT NULL"
    if name == "expect_column_values_to_be_between":
        return _fails(_within(column, declared, kwargs))
    if name == "expect_column_value_lengths_to_be_between":
        return _fails(_within(f"length({column})", "number", kwargs))
    if name == "expect_column_value_lengths_to_equal":
        return _fails(f"length({column}) = {sql_literal(kwargs['value'], 'number')}")
    if name in ("expect_column_values_to_be_in_set", "expect_column_values_to_not_be_in_set"):
        inside = f"{column} IN ({', '.join(sql_literal(v, declared) for v in kwargs['value_set'])})"
        return _fails(inside if name.endswith("to_be_in_set") else f"NOT {inside}")
    if "like_pattern" in name:
        return _fails(_like(name, column, kwargs))
    patterns = [kwargs["regex"]] if "regex" in kwargs else kwargs["regex_list"]
    word = " AND " if kwargs.get("match_on") == "all" else " OR "
    matches = "(" + word.join(f"regexp_matches({column}, {text_literal(p)})" for p in patterns) + ")"
    return _fails(f"NOT {matches}" if "_not_match_" in name else matches)


def _like(name: str, column: str, kwargs: dict[str, Any]) -> str:
    """SQL condition that a value matches LIKE patterns, or none of them."""
    patterns = [kwargs["like_pattern"]] if "like_pattern" in kwargs else kwargs["like_pattern_list"]
    escape = f" ESCAPE {text_literal(kwargs['escape'])}" if "escape" in kwargs else ""
    word = " AND " if kwargs.get("match_on") == "all" else " OR "
    matches = "(" + word.join(f"{column} LIKE {text_literal(p)}{escape}" for p in patterns) + ")"
    return f"NOT {matches}" if "_not_match_" in name else matches


def _within(value: str, declared: str, kwargs: dict[str, Any]) -> str:
    """SQL condition that a value is between ``min_value`` and ``max_value``."""
    parts = []
    if "min_value" in kwargs:
        sign = ">" if kwargs.get("strict_min") else ">="
        parts.append(f"{value} {sign} {sql_literal(kwargs['min_value'], declared)}")
    if "max_value" in kwargs:
        sign = "<" if kwargs.get("strict_max") else "<="
        parts.append(f"{value} {sign} {sql_literal(kwargs['max_value'], declared)}")
    return "(" + " AND ".join(parts) + ")"


def _not_ignored(columns: list[str], rule: str) -> str:
    """SQL condition of the rows that ``ignore_row_if`` does not ignore."""
    missing = [f"{quote_identifier(c)} IS NULL" for c in columns]
    if rule in ("neither", "never"):
        return "TRUE"
    return f"NOT ({(' AND ' if rule.startswith(('both', 'all')) else ' OR ').join(missing)})"


def _fails(good: str, if_null: str = "FALSE") -> str:
    """SQL condition that a condition does not hold; ``if_null`` if it is null."""
    return f"coalesce(NOT ({good}), {if_null})"
