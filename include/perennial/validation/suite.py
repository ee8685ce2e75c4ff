"""Parse the suite ``expectations.json``, in Great Expectations' format, and check its content.

An expectation is row-level (it becomes a SQL condition that a bad row meets) or table-level (it becomes SQL aggregates
over the partition). Types that are not in `SUPPORTED` are refused when the spec is checked.

No heavy libraries are imported here, because ``perennial check`` and DAG files read suites.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from perennial.core.sql import NUMERIC, is_number, row_condition_sql, shorten, sql_literal

MAX_EXPECTATIONS = 1000
#: Types of columns that expectations accept.
COMPARABLE = ("integer", "number", "date", "timestamp")  # Great Expectations does not accept text as a bound
ORDERED = (*COMPARABLE, "string")
ANY = ("string", "integer", "number", "boolean", "date", "timestamp")
_BETWEEN = ("min_value", "max_value", "strict_min", "strict_max")


@dataclass(frozen=True)
class ExpectationSignature:
    """The arguments of one expectation type.

    Attributes:
        level: ``row`` or ``table``.
        required: arguments that must be given; among them ``column``, ``column_A`` and ``column_B``, ``column_list``,
            or none of these.
        optional: arguments that may be given.
        types: declared types that its columns may have.
    """

    level: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    types: tuple[str, ...] = ANY


def _column(types: tuple[str, ...], *required: str, optional: tuple[str, ...] = ()) -> ExpectationSignature:
    return ExpectationSignature("row", ("column", *required), (*optional, "mostly", "row_condition"), types)


def _pair(types: tuple[str, ...], *required: str, optional: tuple[str, ...] = ()) -> ExpectationSignature:
    return ExpectationSignature(
        "row",
        ("column_A", "column_B", *required),
        (*optional, "mostly", "ignore_row_if", "row_condition"),
        types,
    )


def _many(types: tuple[str, ...], *required: str) -> ExpectationSignature:
    return ExpectationSignature(
        "row", ("column_list", *required), ("mostly", "ignore_row_if", "row_condition"), types
    )


def _aggregate(
    types: tuple[str, ...], *required: str, optional: tuple[str, ...] = ()
) -> ExpectationSignature:
    return ExpectationSignature("table", ("column", *required), (*optional, "row_condition"), types)


SUPPORTED: dict[str, ExpectationSignature] = {
    "expect_column_values_to_not_be_null": _column(ANY),
    "expect_column_values_to_be_null": _column(ANY),
    "expect_column_values_to_be_unique": _column(ANY),
    "expect_column_values_to_be_between": _column(COMPARABLE, optional=_BETWEEN),
    "expect_column_values_to_be_in_set": _column(ANY, "value_set"),
    "expect_column_values_to_not_be_in_set": _column(ANY, "value_set"),
    "expect_column_values_to_match_regex": _column(("string",), "regex"),
    "expect_column_values_to_not_match_regex": _column(("string",), "regex"),
    "expect_column_values_to_match_regex_list": _column(("string",), "regex_list", optional=("match_on",)),
    "expect_column_values_to_not_match_regex_list": _column(("string",), "regex_list"),
    "expect_column_value_lengths_to_be_between": _column(("string",), optional=_BETWEEN),
    "expect_column_value_lengths_to_equal": _column(("string",), "value"),
    "expect_column_pair_values_a_to_be_greater_than_b": _pair(ORDERED, optional=("or_equal",)),
    "expect_column_pair_values_to_be_equal": _pair(ANY),
    "expect_column_pair_values_to_be_in_set": _pair(ANY, "value_pairs_set"),
    "expect_compound_columns_to_be_unique": _many(ANY),
    "expect_select_column_values_to_be_unique_within_record": _many(ANY),
    "expect_multicolumn_values_to_be_equal": _many(ANY),
    "expect_multicolumn_sum_to_equal": _many(NUMERIC, "sum_total"),
    "expect_table_row_count_to_be_between": ExpectationSignature("table", (), _BETWEEN),
    "expect_table_row_count_to_equal": ExpectationSignature("table", ("value",)),
    "expect_table_column_count_to_be_between": ExpectationSignature("table", (), ("min_value", "max_value")),
    "expect_table_column_count_to_equal": ExpectationSignature("table", ("value",)),
    "expect_table_columns_to_match_set": ExpectationSignature("table", ("column_set",), ("exact_match",)),
    "expect_table_columns_to_match_ordered_list": ExpectationSignature("table", ("column_list",)),
    "expect_column_to_exist": ExpectationSignature("table", ("column",), ("column_index",)),
    "expect_column_min_to_be_between": _aggregate(COMPARABLE, optional=_BETWEEN),
    "expect_column_max_to_be_between": _aggregate(COMPARABLE, optional=_BETWEEN),
    "expect_column_mean_to_be_between": _aggregate(NUMERIC, optional=_BETWEEN),
    "expect_column_median_to_be_between": _aggregate(NUMERIC, optional=_BETWEEN),
    "expect_column_stdev_to_be_between": _aggregate(NUMERIC, optional=_BETWEEN),
    "expect_column_sum_to_be_between": _aggregate(NUMERIC, optional=_BETWEEN),
    "expect_column_quantile_values_to_be_between": _aggregate(NUMERIC, "quantile_ranges"),
    "expect_column_unique_value_count_to_be_between": _aggregate(ANY, optional=_BETWEEN),
    "expect_column_proportion_of_unique_values_to_be_between": _aggregate(ANY, optional=_BETWEEN),
    "expect_column_proportion_of_non_null_values_to_be_between": _aggregate(ANY, optional=_BETWEEN),
    "expect_column_distinct_values_to_be_in_set": _aggregate(ANY, "value_set"),
    "expect_column_distinct_values_to_contain_set": _aggregate(ANY, "value_set"),
    "expect_column_distinct_values_to_equal_set": _aggregate(ANY, "value_set"),
}
SEVERITIES = ("critical", "warning", "info")
#: Keys of an entry of the suite.
_KEYS = {"type", "kwargs", "meta", "severity", "notes", "description", "id", "rendered_content"}
_IGNORE = {
    "column_B": ("both_values_are_missing", "either_value_is_missing", "neither"),
    "column_list": ("all_values_are_missing", "any_value_is_missing", "never"),
}
#: Expectations whose bounds are compared with the column's values, so that they have the column's type.
_BOUNDS_OF_COLUMN_TYPE = {
    "expect_column_values_to_be_between",
    "expect_column_min_to_be_between",
    "expect_column_max_to_be_between",
}


@dataclass(frozen=True)
class Expectation:
    """One declared expectation.

    Attributes:
        type: Great Expectations' type.
        kwargs: the arguments as written.
        severity: ``critical``, ``warning`` or ``info``; the last two are recorded only.
        line: line in the suite's file.
        config: the whole entry, in Great Expectations' format.
    """

    type: str
    kwargs: dict[str, Any]
    severity: str
    line: int
    config: dict[str, Any] = field(repr=False)

    @property
    def level(self) -> str:
        """``row`` or ``table``."""
        return SUPPORTED[self.type].level

    @property
    def columns(self) -> list[str]:
        """The columns that the expectation reads."""
        if self.type == "expect_table_columns_to_match_ordered_list":
            return []
        named = [self.kwargs[k] for k in ("column", "column_A", "column_B") if k in self.kwargs]
        return named + list(self.kwargs.get("column_list", []))

    @property
    def label(self) -> str:
        """The name of the expectation in reasons and messages: type and columns, no values."""
        return f"{self.type}({', '.join(self.columns)})"


@dataclass(frozen=True)
class SuiteProblem:
    """An invalid part of a suite.

    Attributes:
        line: line in the suite's file.
        message: what is wrong.
    """

    line: int
    message: str

    def __str__(self) -> str:
        return f"expectations.json:{self.line}: {self.message}"


def parse_suite(text: str, columns: Mapping[str, str]) -> tuple[list[Expectation], list[SuiteProblem]]:
    """Read a suite.

    Args:
        text: the file's text.
        columns: declared type of each column (``data.columns`` of the spec).

    Returns:
        The valid expectations, and the problems of the others.
    """
    try:
        suite = json.loads(text)
    except ValueError as error:
        return [], [SuiteProblem(getattr(error, "lineno", 1), f"is not JSON: {getattr(error, 'msg', error)}")]
    if not isinstance(suite, dict) or not isinstance(suite.get("expectations"), list):
        return [], [SuiteProblem(1, "a suite is an object with 'name' and a list 'expectations'")]
    if not isinstance(suite.get("name"), str) or not suite["name"]:
        return [], [SuiteProblem(1, "the suite has no 'name'")]
    problems = []
    if suite.get("suite_parameters"):
        problems.append(
            SuiteProblem(1, "suite_parameters are not supported: write the values into the expectations")
        )
    if len(suite["expectations"]) > MAX_EXPECTATIONS:
        return [], [
            SuiteProblem(1, f"{len(suite['expectations'])} expectations; {MAX_EXPECTATIONS} are allowed")
        ]
    expectations = []
    for entry, line in zip(suite["expectations"], _lines(text), strict=True):
        messages = list(_check_entry(entry, columns))
        problems += [SuiteProblem(line, message) for message in messages]
        if not messages:
            severity = entry.get("severity") or "critical"
            kwargs = {k: v for k, v in entry["kwargs"].items() if v is not None}
            expectations.append(Expectation(entry["type"], kwargs, severity, line, entry))
    return expectations, problems


def _lines(text: str) -> list[int]:
    """The line on which each entry of ``expectations`` begins."""
    decoder = json.JSONDecoder()
    lines: list[int] = []
    # The JSON decoder skips preceding values, so that a nested key "expectations" is not mistaken for the suite's.
    at = text.index("{") + 1
    space = re.compile(r"[\s,:]*")
    while True:
        at = space.match(text, at).end()  # type: ignore[union-attr]
        key, at = decoder.raw_decode(text, at)
        at = space.match(text, at).end()  # type: ignore[union-attr]
        if key == "expectations":
            break
        _, at = decoder.raw_decode(text, at)
    at += 1
    while True:
        at = space.match(text, at).end()  # type: ignore[union-attr]
        if text[at] == "]":
            return lines
        lines.append(text.count("\n", 0, at) + 1)
        _, at = decoder.raw_decode(text, at)


def _check_entry(entry: Any, columns: Mapping[str, str]) -> Iterator[str]:
    """The problems of one entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kwargs"), dict):
        yield "an expectation is an object with 'type' and 'kwargs'"
        return
    if "expectation_type" in entry:
        yield "'expectation_type' is the format before Great Expectations 1.0: write 'type'"
        return
    if unknown := sorted(set(entry) - _KEYS):
        yield f"unknown key {unknown[0]!r}; allowed: {', '.join(sorted(_KEYS))}"
    name, kwargs = entry.get("type"), entry["kwargs"]
    if name not in SUPPORTED:
        close = difflib.get_close_matches(str(name), SUPPORTED, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        yield f"expectation type {name!r} is not supported; {hint}allowed: {', '.join(sorted(SUPPORTED))}"
        return
    if (entry.get("severity") or "critical") not in SEVERITIES:
        yield f"severity is {entry['severity']!r}; allowed: {', '.join(SEVERITIES)}"
    signature = SUPPORTED[name]
    allowed = (*signature.required, *signature.optional)
    if unknown := sorted(set(kwargs) - set(allowed)):
        close = difflib.get_close_matches(unknown[0], allowed, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        yield f"{name} has no argument {unknown[0]!r}; {hint}allowed: {', '.join(allowed) or 'none'}"
    kwargs = {k: v for k, v in kwargs.items() if v is not None}
    if missing := [n for n in signature.required if n not in kwargs]:
        yield f"{name} needs {missing[0]!r}"
        return
    if bad := [k for k, v in kwargs.items() if isinstance(v, dict) and "$PARAMETER" in v]:
        yield f"{name}: {bad[0]} is a suite parameter, which is not supported: write the value"
        return
    yield from (f"{name}: {message}" for message in _check_columns(name, signature, kwargs, columns))
    yield from (f"{name}: {message}" for message in _check_values(name, kwargs, columns))


def _check_columns(
    name: str, signature: ExpectationSignature, kwargs: dict[str, Any], columns: Mapping[str, str]
) -> Iterator[str]:
    for argument in ("column_list", "column_set"):
        if argument in kwargs and not (isinstance(kwargs[argument], list) and kwargs[argument]):
            yield f"{argument} is a list of column names; received {shorten(kwargs[argument])}"
            return
    if name == "expect_table_columns_to_match_ordered_list" or name == "expect_column_to_exist":
        return
    named = [kwargs[k] for k in ("column", "column_A", "column_B") if k in kwargs] + kwargs.get(
        "column_list", []
    )
    for column in named:
        if column not in columns:
            close = difflib.get_close_matches(str(column), columns, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"declared: {', '.join(columns)}"
            yield f"column {column!r} is not in data.columns; {hint}"
        elif columns[column] not in signature.types:
            allowed = ", ".join(signature.types)
            yield f"column {column!r} is declared {columns[column]}; allowed here: {allowed}"
    if len(named) > 1 and all(c in columns for c in named) and "unique" not in name:
        families = {"number" if columns[c] in NUMERIC else columns[c] for c in named}
        if len(families) > 1 and name != "expect_column_pair_values_to_be_in_set":
            yield f"columns of different types are compared: {', '.join(f'{c} {columns[c]}' for c in named)}"


def _check_values(name: str, kwargs: dict[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """The problems of the arguments' values."""
    yield from _check_options(name, kwargs)
    if name.endswith("between") and "quantile" not in name:
        yield from _check_bounds(name, kwargs, columns)
    for argument in [a for a in ("value", "sum_total") if a in kwargs]:
        yield from _check_literal(kwargs[argument], "number", argument)
    if "value_set" in kwargs:
        if not isinstance(kwargs["value_set"], list) or not kwargs["value_set"]:
            yield f"value_set is a list with at least one value; received {shorten(kwargs['value_set'])}"
        elif kwargs["column"] in columns:
            for value in kwargs["value_set"]:
                yield from _check_literal(value, columns[kwargs["column"]], "value_set")
    if "value_pairs_set" in kwargs:
        yield from _check_pairs(kwargs, columns)
    for pattern in [kwargs[a] for a in ("regex",) if a in kwargs] + list(kwargs.get("regex_list", [])):
        yield from _check_regex(pattern)
    if "quantile_ranges" in kwargs:
        yield from _check_quantiles(kwargs["quantile_ranges"])
    if "row_condition" in kwargs:
        try:
            row_condition_sql(kwargs["row_condition"], columns)
        except ValueError as error:
            yield f"row_condition: {error}"


def _check_options(name: str, kwargs: dict[str, Any]) -> Iterator[str]:
    if "column_list" in kwargs and "table" not in name and len(kwargs["column_list"]) < 2:
        yield "column_list needs two columns or more"
    if "mostly" in kwargs and not (is_number(kwargs["mostly"]) and 0 <= kwargs["mostly"] <= 1):
        yield f"mostly is {shorten(kwargs['mostly'])}; a share from 0 to 1 is needed"
    for flag in ("strict_min", "strict_max", "or_equal", "exact_match"):
        if flag in kwargs and not isinstance(kwargs[flag], bool):
            yield f"{flag} is {shorten(kwargs[flag])}; true or false is needed"
    if kwargs.get("match_on", "any") not in ("any", "all"):
        yield f"match_on is {shorten(kwargs['match_on'])}; allowed: any, all"
    for argument, allowed in _IGNORE.items():
        if argument in kwargs and kwargs.get("ignore_row_if", allowed[0]) not in allowed:
            yield f"ignore_row_if is {shorten(kwargs['ignore_row_if'])}; allowed: {', '.join(allowed)}"


def _check_bounds(name: str, kwargs: dict[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    if "min_value" not in kwargs and "max_value" not in kwargs:
        yield "min_value or max_value must be given"
    of_column = name in _BOUNDS_OF_COLUMN_TYPE
    declared = columns.get(kwargs.get("column", ""), "number") if of_column else "number"
    for bound in [b for b in ("min_value", "max_value") if b in kwargs]:
        yield from _check_literal(kwargs[bound], declared, bound)


def _check_pairs(kwargs: dict[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    pairs = kwargs["value_pairs_set"]
    if not isinstance(pairs, list) or not pairs or any(not isinstance(p, list) or len(p) != 2 for p in pairs):
        yield "value_pairs_set is a list of pairs"
        return
    for pair in pairs:
        for side, value in zip(("column_A", "column_B"), pair, strict=True):
            if value is not None and kwargs[side] in columns:
                yield from _check_literal(value, columns[kwargs[side]], "value_pairs_set")


def _check_regex(pattern: Any) -> Iterator[str]:
    if not isinstance(pattern, str):
        yield f"regex is {shorten(pattern)}; a string is needed"
        return
    try:
        re.compile(pattern)
    except re.error as error:
        yield f"regex {shorten(pattern)} is not a regular expression: {error}"
    if re.search(r"\(\?(=|!|<=|<!|P=|>|\()|\\[1-9]", pattern):
        yield f"regex {shorten(pattern)}: look-around and back-references are not supported (RE2 syntax)"


def _check_quantiles(ranges: Any) -> Iterator[str]:
    has_keys = isinstance(ranges, dict) and set(ranges) == {"quantiles", "value_ranges"}
    if not has_keys or len(ranges["quantiles"]) != len(ranges["value_ranges"]) or not ranges["quantiles"]:
        yield "quantile_ranges is an object with as many 'quantiles' as 'value_ranges'"
        return
    for quantile, bounds in zip(ranges["quantiles"], ranges["value_ranges"], strict=True):
        if not is_number(quantile) or not 0 <= quantile <= 1:
            yield f"quantile {shorten(quantile)} is not from 0 to 1"
        if (
            not isinstance(bounds, list)
            or len(bounds) != 2
            or any(b is not None and not is_number(b) for b in bounds)
        ):
            yield f"value range {shorten(bounds)} is not a pair of numbers"


def _check_literal(value: Any, declared: str, argument: str) -> Iterator[str]:
    try:
        sql_literal(value, declared)
    except ValueError as error:
        yield f"{argument}: {error}"
