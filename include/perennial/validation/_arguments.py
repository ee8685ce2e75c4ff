"""Check the arguments of one expectation of a suite: their shapes, columns and values."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from math import isinf
from string import Formatter
from typing import Any

from perennial.core.sql import NUMERIC, is_number, row_condition_sql, shorten, sql_literal
from perennial.validation.signatures import ExpectationSignature

_TEXTS = (
    "column", "column_A", "column_B", "ignore_row_if", "match_on", "like_pattern", "escape", "strftime_format",
    "method", "type_", "unexpected_rows_query",
)  # fmt: skip
_LISTS_OF_TEXTS = ("column_list", "column_set", "regex_list", "like_pattern_list", "type_list")
_FLAGS = (
    "strict_min", "strict_max", "or_equal", "exact_match", "strictly", "double_sided", "ties_okay", "bucketize_data",
)  # fmt: skip
#: The relation that stands for ``{batch}`` in a query.
BATCH = "rows"
#: Most intervals of a histogram, and most values of a distribution that is expected.
MAX_INTERVALS = 1000
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


def check_shapes(kwargs: dict[str, Any]) -> Iterator[str]:
    """The arguments whose values are not even of the kind that the other checks read."""
    for argument in _TEXTS:
        if argument in kwargs and not isinstance(kwargs[argument], str):
            yield f"{argument} is {shorten(kwargs[argument])}; a text is needed"
    for argument in _LISTS_OF_TEXTS:
        value = kwargs.get(argument, [""])
        if not isinstance(value, list) or not value or any(not isinstance(item, str) for item in value):
            yield f"{argument} is a list of texts; received {shorten(value)}"
    if "column_index" in kwargs and type(kwargs["column_index"]) is not int:
        yield f"column_index is {shorten(kwargs['column_index'])}; a whole number is needed"


def check_columns(
    name: str, signature: ExpectationSignature, kwargs: dict[str, Any], columns: Mapping[str, str]
) -> Iterator[str]:
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


def check_values(name: str, kwargs: dict[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """The problems of the arguments' values."""
    yield from _check_options(name, kwargs)
    yield from _check_outliers(kwargs)
    if name == "expect_column_kl_divergence_to_be_less_than":
        yield from _check_divergence(kwargs, columns)
    if name.endswith("between") and "quantile" not in name:
        yield from _check_bounds(name, kwargs, columns)
    for argument in [a for a in ("value", "sum_total", "threshold") if a in kwargs]:
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
    yield from _check_like_patterns(kwargs)
    if "strftime_format" in kwargs:
        yield from _check_strftime_format(kwargs["strftime_format"])
    if "json_schema" in kwargs:
        yield from _check_schema(kwargs["json_schema"])
    if "unexpected_rows_query" in kwargs:
        yield from _check_query(kwargs["unexpected_rows_query"])
    if "quantile_ranges" in kwargs:
        yield from _check_quantiles(kwargs["quantile_ranges"])
    if "row_condition" in kwargs:
        try:
            row_condition_sql(kwargs["row_condition"], columns)
        except ValueError as error:
            yield f"row_condition: {error}"
        except RecursionError:
            yield "row_condition is nested too deeply"


def _check_options(name: str, kwargs: dict[str, Any]) -> Iterator[str]:
    if "column_list" in kwargs and "table" not in name and len(kwargs["column_list"]) < 2:
        yield "column_list needs two columns or more"
    if "mostly" in kwargs and not (is_number(kwargs["mostly"]) and 0 <= kwargs["mostly"] <= 1):
        yield f"mostly is {shorten(kwargs['mostly'])}; a share from 0 to 1 is needed"
    for flag in _FLAGS:
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


def _check_like_patterns(kwargs: dict[str, Any]) -> Iterator[str]:
    escape = kwargs.get("escape", "")
    if len(escape) > 1 or kwargs.get("escape") == "":
        yield f"escape is {shorten(escape)}; a single character is needed"
        return
    for pattern in [kwargs[a] for a in ("like_pattern",) if a in kwargs] + kwargs.get(
        "like_pattern_list", []
    ):
        # A character that is escaped is skipped together with its escape character.
        if escape and re.sub(f"{re.escape(escape)}.", "", pattern, flags=re.DOTALL).endswith(escape):
            yield f"like pattern {shorten(pattern)} ends with the escape character"


def _check_strftime_format(text: str) -> Iterator[str]:
    """A format that Python cannot read back would be matched by nothing."""
    try:
        datetime.strptime(datetime(2024, 2, 3, 4, 5, 6).strftime(text), text)
    except ValueError as error:
        yield f"strftime_format {shorten(text)} is not a format that Python can parse: {error}"


def _check_schema(schema: Any) -> Iterator[str]:
    if not isinstance(schema, dict):
        yield f"json_schema is {shorten(schema)}; a JSON schema, an object, is needed"
    elif outside := next(_references_outside(schema), None):
        # They would be fetched from the network.
        yield f"json_schema refers to {shorten(outside)}; only references within the schema (#…) are allowed"


def _references_outside(schema: Any) -> Iterator[str]:
    parts = list(schema.values()) if isinstance(schema, dict) else schema
    if isinstance(schema, dict):
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            if isinstance(schema.get(key), str) and not schema[key].startswith("#"):
                yield schema[key]
    if isinstance(parts, list):
        for part in parts:
            yield from _references_outside(part)


def _check_query(query: str) -> Iterator[str]:
    try:
        batch_query(query)
    except ValueError as error:
        yield f"unexpected_rows_query: {error}"


def batch_query(query: str) -> str:
    """The SQL of an ``unexpected_rows_query``, in which `BATCH` stands for the partition.

    Raises:
        ValueError: it has a brace without its pair, another parameter than ``{batch}``, or none.
    """
    parts, reads_batch = [], False
    for text, name, form, conversion in Formatter().parse(query):
        parts.append(text)
        if name is None:
            continue
        if name != "batch" or form or conversion:
            raise ValueError(f"unknown parameter {{{name}}}; only {{batch}} is known, and {{{{ is a brace")
        parts.append(BATCH)
        reads_batch = True
    if not reads_batch:
        raise ValueError("it must read the partition, which is called {batch}")
    return "".join(parts).rstrip("; \t\r\n\v\f")


def _check_outliers(kwargs: dict[str, Any]) -> Iterator[str]:
    if kwargs.get("method", "iqr") not in ("iqr", "std"):
        yield f"method is {shorten(kwargs['method'])}; allowed: iqr, std"
    if "multiplier" in kwargs and not (is_number(kwargs["multiplier"]) and kwargs["multiplier"] >= 0):
        yield f"multiplier is {shorten(kwargs['multiplier'])}; a number from 0 on is needed"


def _check_divergence(kwargs: dict[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """The arguments of the KL divergence."""
    for argument in ("internal_weight_holdout", "tail_weight_holdout"):
        if argument in kwargs and not (is_number(kwargs[argument]) and 0 <= kwargs[argument] <= 1):
            yield f"{argument} is {shorten(kwargs[argument])}; a share from 0 to 1 is needed"
            return
    for argument in ("min_value", "max_value"):
        if argument in kwargs and not is_number(kwargs[argument]):
            yield f"{argument} is {shorten(kwargs[argument])}; a number is needed"
    if is_number(kwargs.get("threshold")) and kwargs["threshold"] < 0:
        yield f"threshold is {shorten(kwargs['threshold'])}; a number from 0 on is needed"
    declared = columns.get(kwargs["column"], "number")
    if "partition_object" in kwargs:
        yield from _check_partition(kwargs["partition_object"], kwargs, declared)
    elif kwargs.get("bucketize_data", True) and declared in ("string", "boolean"):
        yield f"without a partition_object, a {declared} column needs bucketize_data: false"


def _check_partition(partition: Any, kwargs: dict[str, Any], declared: str) -> Iterator[str]:
    """The expected distribution: shares of values, or of intervals."""
    needed = "partition_object is an object with 'weights' and either 'values' or 'bins'"
    keys = set(partition) if isinstance(partition, dict) else set()
    if keys not in ({"values", "weights"}, {"bins", "weights"}, {"bins", "weights", "tail_weights"}):
        yield needed
        return
    of_values = "values" in keys
    points, weights, tails = partition.get("values", partition.get("bins")), partition["weights"], []
    if "tail_weights" in keys:
        tails = partition["tail_weights"]
    if not all(isinstance(part, list) for part in (points, weights, tails)):
        yield needed
        return
    if len(points) != len(weights) + (0 if of_values else 1) or not weights or len(tails) not in (0, 2):
        yield "partition_object: one weight for each value is needed; with bins, one bin more than weights"
        return
    if len(weights) > MAX_INTERVALS:
        yield f"partition_object has {len(weights)} weights; {MAX_INTERVALS} are allowed"
        return
    numbers = [*weights, *tails]
    if not all(is_number(w) and w >= 0 for w in numbers) or abs(sum(numbers) - 1) > 1e-5:
        yield "partition_object: the weights are shares; their sum must be 1"
    if of_values:
        for value in points:
            yield from _check_literal(value, declared, "partition_object")
        if kwargs.get("internal_weight_holdout"):
            yield "internal_weight_holdout is for bins; partition_object has values"
    else:
        yield from _check_bins(points, tails, kwargs, declared)


def _check_bins(bins: list[Any], tails: list[Any], kwargs: dict[str, Any], declared: str) -> Iterator[str]:
    if declared not in NUMERIC:
        yield f"partition_object has bins, and the column is declared {declared}; use values"
    if any(isinstance(b, bool) or not isinstance(b, int | float) or b != b for b in bins):
        yield "partition_object: bins are numbers"
        return
    if any(low >= high for low, high in itertools.pairwise(bins)):
        yield "partition_object: each bin must be larger than the one before it"
    infinite = [isinf(bins[0]), isinf(bins[-1])]
    if tails and (any(infinite) or kwargs.get("tail_weight_holdout")):
        yield "partition_object: tail_weights are not allowed with infinite bins or tail_weight_holdout"
    if all(infinite) and kwargs.get("tail_weight_holdout"):
        yield "tail_weight_holdout is not allowed with infinite bins"
    if kwargs.get("bucketize_data") is False:
        yield "partition_object has bins, which bucketize_data: false does not allow"


def _check_quantiles(ranges: Any) -> Iterator[str]:
    has_keys = isinstance(ranges, dict) and set(ranges) == {"quantiles", "value_ranges"}
    if (
        not has_keys
        or not all(isinstance(value, list) for value in ranges.values())
        or len(ranges["quantiles"]) != len(ranges["value_ranges"])
        or not ranges["quantiles"]
    ):
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
