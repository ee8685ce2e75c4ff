"""Every check of a partition as SQL: those the suite declares, and those that hold for any partition.

A check becomes SQL aggregates over the relation ``rows`` (columns typed as declared, plus ``__file``, ``__row`` and,
for text files, one ``__unread_<n>`` a column). `validator` puts the aggregates of
all checks into one query, grouped by file; `Check.metrics` then answers, by Great Expectations' own metric names,
what its expectations ask for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from perennial.core.sql import condition, quote_identifier, sql_literal, text_literal
from perennial.storage.landing import MAX_DAY_OFFSET
from perennial.validation._sql_aggregates import both, count_where, only_where, table_level
from perennial.validation.suite import Expectation

#: Examples of bad values that a data doc shows.
EXAMPLES = 20
#: Partitions of more rows than this have their median and quantiles estimated (t-digest): exact ones hold all values.
EXACT_QUANTILE_ROWS = 1_000_000
LARGEST = 1.7976931348623157e308
Value = Callable[[str], Any]


@dataclass
class Check:
    """One check.

    Attributes:
        label: names it in reasons and messages; holds no values.
        type: Great Expectations' type.
        config: its entry in Great Expectations' format.
        level: ``row`` or ``table``.
        severity: only ``critical`` checks put rows aside or stop a partition.
        declared: it is in the suite (else it holds for any partition).
        columns: the columns it reads.
        where: SQL condition of the rows it looks at (``row_condition``), or nothing.
        considered: SQL condition of the rows it counts.
        bad: SQL condition of a bad row, never null; empty for uniqueness and table-level checks.
        unique: columns that must be unique together; empty for other checks.
        keep_first: of rows with one key, the first of the file stays.
        mostly: share of good rows below which the partition stops; none: `quarantine_limit` decides.
        quiet: shown in the data doc only where it is broken.
        until_day: days after the partition's date from which its values are too late; 0: it has no such limit.
    """

    label: str
    type: str
    config: dict[str, Any]
    level: str
    severity: str = "critical"
    declared: bool = True
    columns: list[str] = field(default_factory=list)
    where: str = ""
    considered: str = "TRUE"
    bad: str = ""
    unique: tuple[str, ...] = ()
    keep_first: bool = False
    mostly: float | None = None
    quiet: bool = False
    until_day: int = 0
    statistics: dict[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Its arguments as written."""
        return self.config["kwargs"]  # type: ignore[no-any-return]

    @property
    def critical(self) -> bool:
        """Whether it puts rows aside or stops the partition."""
        return self.severity == "critical"

    @property
    def rows_sql(self) -> str:
        """Rows it looks at."""
        return count_where(self.where)

    @property
    def filled_sql(self) -> str:
        """Rows whose (first) column has a value."""
        return f"count({quote_identifier(self.columns[0])})" + only_where(self.where)

    @property
    def considered_sql(self) -> str:
        """Rows it counts."""
        return count_where(both(self.where, self.considered))

    @property
    def bad_sql(self) -> str:
        """Bad rows; for uniqueness, the different values (as many as `considered_sql`: none is twice)."""
        where = both(self.where, self.considered)
        if not self.unique:
            return count_where(both(where, self.bad))
        hashed = f"hash({', '.join(quote_identifier(c) for c in self.unique)})"
        return f"count(DISTINCT {hashed})" + (f" FILTER (WHERE {where})" if where != "TRUE" else "")

    @property
    def bad_row(self) -> str:
        """SQL condition of a bad row among all rows; uniqueness is told by a join instead."""
        return both(self.where, both(self.considered, self.bad))

    def aggregates(self) -> list[str]:
        """The SQL aggregates it needs."""
        if self.level == "row":
            return [self.rows_sql, self.considered_sql, self.bad_sql]
        return list(self.statistics.values())

    def metrics(
        self, value: Value, columns: list[str], bad: int, examples: list[Any]
    ) -> Callable[[str], Any]:
        """Answers for Great Expectations: a function from metric name to value.

        Args:
            value: the result of one of `aggregates`, by its SQL text.
            columns: the file's columns, in its order.
            bad: rows that are bad.
            examples: some of their values.
        """

        def answer(name: str) -> Any:
            if name == "table.row_count":
                return value(self.rows_sql if self.level == "row" else self.statistics[name])
            if name == "table.columns":
                return columns
            if name == "table.column_count":
                return len(columns)
            if (
                name == "column_values.nonnull.unexpected_count"
                and self.type != "expect_column_values_to_not_be_null"
            ):
                return value(self.rows_sql) - value(self.filled_sql)
            suffix = name.rsplit(".", 1)[1]
            if suffix == "unexpected_count":
                return bad
            if suffix == "filtered_row_count":
                return value(self.considered_sql)
            if suffix == "unexpected_values":
                return examples
            return _statistic(self, name, value)

        return answer


def _statistic(check: Check, name: str, value: Value) -> Any:
    found = value(check.statistics[name]) if name in check.statistics else None
    if name in ("column.min", "column.max") and isinstance(found, date) and not isinstance(found, datetime):
        return datetime(
            found.year, found.month, found.day
        )  # Great Expectations parses texts for datetimes alone
    if name == "column.unique_proportion":
        distinct, filled = value(check.statistics["distinct"]), value(check.statistics["filled"])
        return distinct / filled if filled else 0
    if name == "column.non_null_proportion":
        rows = value(check.statistics["rows"])
        return value(check.statistics["filled"]) / rows if rows else 0
    if name.startswith("column.distinct_values.not_in_set"):
        if name.endswith(".count"):
            return value(check.statistics["outside"])
        return sorted({v for v in value(check.statistics["some outside"]) or [] if v is not None})
    if name.startswith("column.distinct_values.missing_from_column"):
        present = set(value(check.statistics["inside"]) or [])
        missing = [v for i, v in enumerate(check.kwargs["value_set"]) if i not in present]
        return len(missing) if name.endswith(".count") else missing
    return found


def build_checks(
    suite: Iterable[Expectation],
    columns: Mapping[str, str],
    key: list[str],
    event_time: str | None = None,
    unread: dict[str, str] | None = None,
    exact: bool = True,
) -> list[Check]:
    """All checks of a feed: the suite's, and those that hold for any.

    Args:
        suite: what is declared.
        columns: declared type of each column.
        key: columns that name a row; never null, never twice.
        event_time: column that says when a row happened; never null, never after its partition.
        unread: for text files, the SQL condition of a cell that cannot be read as its column's type.
        exact: quantiles are exact; else estimated.
    """
    found = [_declared(e, columns, exact) for e in suite]
    never_null = [*key, *([event_time] if event_time and event_time not in key else [])]
    present = {(c.type, tuple(c.columns)) for c in found if c.critical and not c.where}
    for name in never_null:
        if ("expect_column_values_to_not_be_null", (name,)) not in present:
            found.append(_given("expect_column_values_to_not_be_null", {"column": name}, [name], columns,
                                bad=f"{quote_identifier(name)} IS NULL", considered="TRUE"))  # fmt: skip
    keyed = next(
        (c for c in found if c.unique and c.critical and not c.where and set(c.unique) == set(key)), None
    )
    if keyed is None:
        single = len(key) == 1
        keyed = _given(
            "expect_column_values_to_be_unique" if single else "expect_compound_columns_to_be_unique",
            {"column": key[0]} if single else {"column_list": key}, key, columns, unique=tuple(key),
            considered=_ignoring(key, "any"),
        )  # fmt: skip
        found.append(keyed)
    keyed.keep_first = True
    for name in [n for n, t in columns.items() if t == "number"]:
        found.append(_given("expect_column_values_to_be_between",
                            {"column": name, "min_value": -LARGEST, "max_value": LARGEST}, [name], columns, quiet=True,
                            bad=f"coalesce(isinf({quote_identifier(name)}), FALSE)",
                            label=f"not a finite number: {name}"))  # fmt: skip
    for name, bad in (unread or {}).items():
        kind = columns[name]
        found.append(_given("expect_column_values_to_match_regex", {"column": name, "regex": _SHAPES[kind]}, [name],
                            columns, quiet=True, bad=bad, label=f"not readable as {kind}: {name}",
                            considered="TRUE"))  # fmt: skip
    if event_time:
        found.append(_given("expect_column_values_to_be_between", {"column": event_time}, [event_time], columns,
                            quiet=True, bad=f"coalesce({quote_identifier(event_time)} >= __future, FALSE)",
                            label=f"later than its partition: {event_time}"))  # fmt: skip
        found[-1].until_day = MAX_DAY_OFFSET
    return found


_SHAPES = {
    "integer": r"^[+-]?\d+$",
    "number": r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$",
    "boolean": "^(true|false|t|f|1|0|yes|no)$",
    "date": r"^\d{4}-\d{2}-\d{2}$",
    "timestamp": r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}",
    "string": ".*",
}


def _given(
    type_: str, kwargs: dict[str, Any], names: list[str], columns: Mapping[str, str], *, bad: str = "",
    unique: tuple[str, ...] = (), considered: str = "", label: str = "", quiet: bool = False,
) -> Check:  # fmt: skip
    return Check(
        label=label or f"{type_}({', '.join(names)})", type=type_, level="row", declared=False, columns=names,
        config={"type": type_, "kwargs": kwargs, "meta": {"built_in": True}, "severity": "critical"},
        considered=considered or f"{quote_identifier(names[0])} IS NOT NULL", bad=bad, unique=unique, quiet=quiet,
        types=columns,
    )  # fmt: skip


def _declared(expectation: Expectation, columns: Mapping[str, str], exact: bool) -> Check:
    kwargs = expectation.kwargs
    where = condition(kwargs["row_condition"], columns) if "row_condition" in kwargs else ""
    check = Check(
        label=expectation.label, type=expectation.type, level=expectation.level, severity=expectation.severity,
        config={"meta": {}, **expectation.config, "kwargs": kwargs}, columns=expectation.columns, where=where,
        mostly=kwargs.get("mostly"), types=columns,
    )  # fmt: skip
    if expectation.level == "row":
        _row_level(check, kwargs)
    else:
        check.statistics = table_level(check.type, kwargs, columns, where, exact)
    return check


def _row_level(check: Check, kwargs: dict[str, Any]) -> None:
    name, types, columns = check.type, check.types, [quote_identifier(c) for c in check.columns]
    if "column_list" in kwargs:
        check.considered = _ignoring(check.columns, kwargs.get("ignore_row_if", "all_values_are_missing"))
    elif "column_B" in kwargs:
        check.considered = _ignoring(check.columns, kwargs.get("ignore_row_if", "both_values_are_missing"))
    elif name not in ("expect_column_values_to_not_be_null", "expect_column_values_to_be_null"):
        check.considered = f"{columns[0]} IS NOT NULL"
    if name in ("expect_column_values_to_be_unique", "expect_compound_columns_to_be_unique"):
        check.unique = tuple(check.columns)
    elif name == "expect_select_column_values_to_be_unique_within_record":
        pairs = itertools.combinations(columns, 2)
        check.bad = "(" + " OR ".join(f"{a} IS NOT DISTINCT FROM {b}" for a, b in pairs) + ")"
    elif name == "expect_multicolumn_values_to_be_equal":
        check.bad = "(" + " OR ".join(f"{c} IS DISTINCT FROM {columns[0]}" for c in columns[1:]) + ")"
    elif name == "expect_multicolumn_sum_to_equal":
        total = " + ".join(f"{c}::DOUBLE" for c in columns)
        check.bad = _fails(f"({total}) = {sql_literal(kwargs['sum_total'], 'number')}", missing="TRUE")
    elif name == "expect_column_pair_values_to_be_equal":
        check.bad = _fails(f"{columns[0]} = {columns[1]}", missing="TRUE")
    elif name == "expect_column_pair_values_a_to_be_greater_than_b":
        sign = ">=" if kwargs.get("or_equal") else ">"
        check.bad = _fails(f"{columns[0]} {sign} {columns[1]}", missing="TRUE")
    elif name == "expect_column_pair_values_to_be_in_set":
        pairs_sql = [
            "(" + " AND ".join(
                f"{c} IS NULL" if v is None else f"coalesce({c} = {sql_literal(v, types[n])}, FALSE)"
                for c, n, v in zip(columns, check.columns, pair, strict=True)
            ) + ")"
            for pair in kwargs["value_pairs_set"]
        ]  # fmt: skip
        check.bad = f"NOT ({' OR '.join(pairs_sql)})"
    else:
        check.bad = _column_level(name, columns[0], types[check.columns[0]], kwargs)


def _column_level(name: str, column: str, kind: str, kwargs: dict[str, Any]) -> str:
    """SQL of a bad value of one column; false for a missing one."""
    if name == "expect_column_values_to_not_be_null":
        return f"{column} IS NULL"
    if name == "expect_column_values_to_be_null":
        return f"{column} IS NOT NULL"
    if name == "expect_column_values_to_be_between":
        return _fails(_within(column, kind, kwargs))
    if name == "expect_column_value_lengths_to_be_between":
        return _fails(_within(f"length({column})", "number", kwargs))
    if name == "expect_column_value_lengths_to_equal":
        return _fails(f"length({column}) = {sql_literal(kwargs['value'], 'number')}")
    if name in ("expect_column_values_to_be_in_set", "expect_column_values_to_not_be_in_set"):
        inside = f"{column} IN ({', '.join(sql_literal(v, kind) for v in kwargs['value_set'])})"
        return _fails(inside if name.endswith("to_be_in_set") else f"NOT {inside}")
    patterns = [kwargs["regex"]] if "regex" in kwargs else kwargs["regex_list"]
    word = " AND " if kwargs.get("match_on") == "all" else " OR "
    matches = "(" + word.join(f"regexp_matches({column}, {text_literal(p)})" for p in patterns) + ")"
    return _fails(f"NOT {matches}" if "_not_match_" in name else matches)


def _within(value: str, kind: str, kwargs: dict[str, Any]) -> str:
    parts = []
    if "min_value" in kwargs:
        parts.append(
            f"{value} {'>' if kwargs.get('strict_min') else '>='} {sql_literal(kwargs['min_value'], kind)}"
        )
    if "max_value" in kwargs:
        parts.append(
            f"{value} {'<' if kwargs.get('strict_max') else '<='} {sql_literal(kwargs['max_value'], kind)}"
        )
    return "(" + " AND ".join(parts) + ")"


def _ignoring(columns: list[str], rule: str) -> str:
    """SQL condition of the rows that ``ignore_row_if`` leaves."""
    missing = [f"{quote_identifier(c)} IS NULL" for c in columns]
    if rule in ("neither", "never"):
        return "TRUE"
    return f"NOT ({(' AND ' if rule.startswith(('both', 'all')) else ' OR ').join(missing)})"


def _fails(good: str, missing: str = "FALSE") -> str:
    return f"coalesce(NOT ({good}), {missing})"
