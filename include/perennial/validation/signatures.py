"""The expectation types that a suite may use, and the arguments of each.

No heavy libraries are imported here, because ``perennial check`` and DAG files read suites.
"""

from __future__ import annotations

from dataclasses import dataclass

from perennial.core.sql import NUMERIC

#: Types of columns that expectations accept.
COMPARABLE = ("integer", "number", "date", "timestamp")  # Great Expectations does not accept text as a bound
ORDERED = (*COMPARABLE, "string")
ANY = ("string", "integer", "number", "boolean", "date", "timestamp")
TEXT = ("string",)
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
    "expect_column_values_to_match_regex": _column(TEXT, "regex"),
    "expect_column_values_to_not_match_regex": _column(TEXT, "regex"),
    "expect_column_values_to_match_regex_list": _column(TEXT, "regex_list", optional=("match_on",)),
    "expect_column_values_to_not_match_regex_list": _column(TEXT, "regex_list"),
    "expect_column_values_to_match_like_pattern": _column(TEXT, "like_pattern", optional=("escape",)),
    "expect_column_values_to_not_match_like_pattern": _column(TEXT, "like_pattern", optional=("escape",)),
    "expect_column_values_to_match_like_pattern_list": _column(
        TEXT, "like_pattern_list", optional=("match_on", "escape")
    ),
    "expect_column_values_to_not_match_like_pattern_list": _column(
        TEXT, "like_pattern_list", optional=("escape",)
    ),
    "expect_column_values_to_match_strftime_format": _column(TEXT, "strftime_format"),
    "expect_column_values_to_be_dateutil_parseable": _column(TEXT),
    "expect_column_values_to_be_json_parseable": _column(TEXT),
    "expect_column_values_to_match_json_schema": _column(TEXT, "json_schema"),
    "expect_column_values_to_be_increasing": _column(COMPARABLE, optional=("strictly",)),
    "expect_column_values_to_be_decreasing": _column(COMPARABLE, optional=("strictly",)),
    "expect_column_value_z_scores_to_be_less_than": _column(NUMERIC, "threshold", "double_sided"),
    "expect_column_values_to_not_be_outliers": _column(NUMERIC, optional=("method", "multiplier")),
    "expect_column_value_lengths_to_be_between": _column(TEXT, optional=_BETWEEN),
    "expect_column_value_lengths_to_equal": _column(TEXT, "value"),
    "expect_column_pair_values_a_to_be_greater_than_b": _pair(ORDERED, optional=("or_equal",)),
    "expect_column_pair_values_to_be_equal": _pair(ANY),
    "expect_column_pair_values_to_be_in_set": _pair(ANY, "value_pairs_set"),
    "expect_compound_columns_to_be_unique": _many(ANY),
    "expect_select_column_values_to_be_unique_within_record": _many(ANY),
    "expect_multicolumn_values_to_be_equal": _many(ANY),
    "expect_multicolumn_sum_to_equal": _many(NUMERIC, "sum_total"),
    "expect_table_row_count_to_be_between": ExpectationSignature("table", (), (*_BETWEEN, "row_condition")),
    "expect_table_row_count_to_equal": ExpectationSignature("table", ("value",), ("row_condition",)),
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
    "expect_column_quantile_values_to_be_between": _aggregate(
        NUMERIC, "quantile_ranges", optional=("allow_relative_error",)
    ),
    "expect_column_unique_value_count_to_be_between": _aggregate(ANY, optional=_BETWEEN),
    "expect_column_proportion_of_unique_values_to_be_between": _aggregate(ANY, optional=_BETWEEN),
    "expect_column_proportion_of_non_null_values_to_be_between": _aggregate(ANY, optional=_BETWEEN),
    "expect_column_distinct_values_to_be_in_set": _aggregate(ANY, "value_set"),
    "expect_column_distinct_values_to_contain_set": _aggregate(ANY, "value_set"),
    "expect_column_distinct_values_to_equal_set": _aggregate(ANY, "value_set"),
    "expect_column_most_common_value_to_be_in_set": _aggregate(ANY, "value_set", optional=("ties_okay",)),
    "expect_column_kl_divergence_to_be_less_than": _aggregate(
        ("string", "integer", "number", "boolean"),
        optional=(
            "partition_object",
            "threshold",
            "internal_weight_holdout",
            "tail_weight_holdout",
            "bucketize_data",
            "min_value",
            "max_value",
        ),
    ),
    # The type of a column is that of the whole partition, so a wrong one stops it.
    "expect_column_type_to_be": ExpectationSignature("table", ("column", "type_")),
    "expect_column_values_to_be_of_type": _aggregate(ANY, "type_", optional=("mostly",)),
    "expect_column_values_to_be_in_type_list": _aggregate(ANY, optional=("type_list", "mostly")),
    # Row-level if the query gives the key of the rows.
    "unexpected_rows_expectation": ExpectationSignature("table", ("unexpected_rows_query",)),
}

#: Types of Great Expectations that cannot be evaluated here, and what to write instead.
REFUSED = {
    "expect_multicolumn_values_to_be_unique": (
        "Great Expectations cannot evaluate it: use expect_compound_columns_to_be_unique"
    ),
    "expect_query_results_to_match_comparison": (
        "it compares with another data source, which a partition does not have: "
        "use unexpected_rows_expectation, which compares within the partition"
    ),
    "expect_table_row_count_to_equal_other_table": (
        "it counts a table of a SQL data source, which a partition does not have: "
        "use expect_table_row_count_to_equal or expect_table_row_count_to_be_between"
    ),
}
