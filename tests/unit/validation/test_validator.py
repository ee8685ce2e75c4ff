"""Validation in DuckDB gives the results of Great Expectations' own pandas engine on the same rows."""

# ruff: noqa: E501 -- a case a line reads best
from __future__ import annotations

import datetime as dt
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion.typed_rows import create_landed_view
from perennial.storage import duckdb_session
from perennial.storage.landing import fetch_file
from perennial.validation.check_builder import build_checks
from perennial.validation.suite import QUERY_TYPE, SUPPORTED, parse_suite
from perennial.validation.validator import validate

COLUMNS = {
    "id": "integer",
    "a": "number",
    "b": "number",
    "n": "integer",
    "s": "string",
    "t": "string",
    "flag": "boolean",
    "maybe": "boolean",
    "day": "date",
    "at": "timestamp",
    "when": "string",
    "json": "string",
}
DAYS = [dt.date(2020, 1, 5), dt.date(2020, 1, 2), None, dt.date(2020, 1, 2), dt.date(2020, 2, 1), None,
        dt.date(2020, 2, 1), dt.date(2020, 1, 31)]  # fmt: skip
TYPES = [("id", "int64"), ("id", "float64"), ("a", "float64"), ("s", "str"), ("s", "object"), ("flag", "bool"),
         ("maybe", "bool"), ("maybe", "int64"), ("maybe", "object"), ("day", "object"), ("day", "str"),
         ("at", "datetime64[us]"), ("at", "datetime64")]  # fmt: skip
OF_TYPE: list[tuple[str, str, Any]] = [
    ("expect_column_type_to_be", "type_", str),
    ("expect_column_values_to_be_of_type", "type_", str),
    ("expect_column_values_to_be_in_type_list", "type_list", lambda given: [given, "nope"]),
]
ROWS: dict[str, list[Any]] = {
    "id": [1, 2, 3, 4, 5, 6, 7, 8],
    "a": [1.0, 2.5, None, 4.0, float("nan"), -3.0, 10.0, 2.5],
    "b": [1.0, 2.0, None, 5.0, 1.0, -3.0, 9.5, None],
    "n": [1, 1, 2, 3, 5, 8, 13, 21],
    "s": ["ab", "abc", None, "é", "", "x1", "<script>", "ab"],
    "t": ["ab", "b", None, "é", "q", None, "=1+1", "ab"],
    "flag": [True, False, True, True, False, True, True, False],
    "maybe": [True, None, True, True, False, True, True, False],
    "day": DAYS,
    "at": [None if day is None else dt.datetime(day.year, day.month, day.day, 5) for day in DAYS],
    "when": ["2020-01-05", "5 Jan 2020", None, "31.12.2020", "no date", "", "12:00", "2020-02-30"],
    "json": ['{"a": 1}', "{}", None, '{"a": null}', "[1, 2]", '"x"', "3.5e3", "NaN"],
}
WHERE = {"type": "comparison", "column": {"name": "n"}, "operator": ">", "parameter": 1}
EITHER = {"type": "or", "conditions": [WHERE, {"type": "nullity", "column": {"name": "s"}, "is_null": True}]}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("expect_column_values_to_not_be_null", {"column": "a"}),
    ("expect_column_values_to_not_be_null", {"column": "s", "mostly": 0.5}),
    ("expect_column_values_to_not_be_null", {"column": "s", "row_condition": WHERE}),
    ("expect_column_values_to_be_null", {"column": "a"}),
    ("expect_column_values_to_be_unique", {"column": "s"}),
    ("expect_column_values_to_be_unique", {"column": "id"}),
    ("expect_column_values_to_be_unique", {"column": "n", "row_condition": WHERE}),
    ("expect_column_values_to_be_between", {"column": "a", "min_value": 0, "max_value": 4}),
    ("expect_column_values_to_be_between", {"column": "a", "min_value": 1, "max_value": 4, "strict_min": True, "strict_max": True}),
    ("expect_column_values_to_be_between", {"column": "n", "max_value": 8}),
    ("expect_column_values_to_be_between", {"column": "n", "min_value": 1.5, "mostly": 0.7}),
    ("expect_column_values_to_be_between", {"column": "a", "min_value": 2, "row_condition": EITHER}),
    ("expect_column_values_to_be_in_set", {"column": "s", "value_set": ["ab", "abc"]}),
    ("expect_column_values_to_be_in_set", {"column": "n", "value_set": [1, 2, 3]}),
    ("expect_column_values_to_be_in_set", {"column": "flag", "value_set": [True]}),
    ("expect_column_values_to_not_be_in_set", {"column": "s", "value_set": ["ab"]}),
    ("expect_column_values_to_not_be_in_set", {"column": "a", "value_set": [2.5, 4]}),
    ("expect_column_values_to_match_regex", {"column": "s", "regex": "^[a-z]+$"}),
    ("expect_column_values_to_match_regex", {"column": "s", "regex": "b", "mostly": 0.1}),
    ("expect_column_values_to_not_match_regex", {"column": "t", "regex": "^="}),
    ("expect_column_values_to_match_regex_list", {"column": "s", "regex_list": ["a", "b"], "match_on": "all"}),
    ("expect_column_values_to_match_regex_list", {"column": "s", "regex_list": ["1", "é"]}),
    ("expect_column_values_to_not_match_regex_list", {"column": "s", "regex_list": ["<", "é"]}),
    ("expect_column_value_lengths_to_be_between", {"column": "s", "min_value": 1, "max_value": 2}),
    ("expect_column_value_lengths_to_be_between", {"column": "s", "min_value": 1, "strict_min": True}),
    ("expect_column_value_lengths_to_equal", {"column": "s", "value": 2}),
    ("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "a", "column_B": "b"}),
    ("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "a", "column_B": "b", "or_equal": True, "mostly": 0.5}),
    ("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "a", "column_B": "b", "ignore_row_if": "either_value_is_missing"}),
    ("expect_column_pair_values_to_be_equal", {"column_A": "s", "column_B": "t"}),
    ("expect_column_pair_values_to_be_equal", {"column_A": "a", "column_B": "b", "ignore_row_if": "neither"}),
    ("expect_column_pair_values_to_be_equal", {"column_A": "a", "column_B": "b", "ignore_row_if": "either_value_is_missing"}),
    ("expect_column_pair_values_to_be_in_set", {"column_A": "s", "column_B": "t", "value_pairs_set": [["ab", "ab"], ["x1", None]]}),
    ("expect_compound_columns_to_be_unique", {"column_list": ["s", "t"]}),
    ("expect_compound_columns_to_be_unique", {"column_list": ["a", "t"], "ignore_row_if": "any_value_is_missing"}),
    ("expect_compound_columns_to_be_unique", {"column_list": ["id", "t"]}),
    ("expect_select_column_values_to_be_unique_within_record", {"column_list": ["s", "t"]}),
    ("expect_select_column_values_to_be_unique_within_record", {"column_list": ["a", "b"], "ignore_row_if": "never"}),
    ("expect_multicolumn_values_to_be_equal", {"column_list": ["s", "t"]}),
    ("expect_multicolumn_values_to_be_equal", {"column_list": ["a", "b"], "ignore_row_if": "never"}),
    ("expect_multicolumn_sum_to_equal", {"column_list": ["a", "b"], "sum_total": 2}),
    ("expect_multicolumn_sum_to_equal", {"column_list": ["a", "b"], "sum_total": 4.5, "ignore_row_if": "any_value_is_missing"}),
    ("expect_table_row_count_to_be_between", {"min_value": 8, "max_value": 8}),
    ("expect_table_row_count_to_be_between", {"min_value": 8, "strict_min": True}),
    ("expect_table_row_count_to_equal", {"value": 7}),
    ("expect_table_column_count_to_be_between", {"min_value": 1, "max_value": 7}),
    ("expect_table_column_count_to_equal", {"value": 12}),
    ("expect_table_columns_to_match_set", {"column_set": sorted(COLUMNS)}),
    ("expect_table_columns_to_match_set", {"column_set": ["id", "a"], "exact_match": False}),
    ("expect_table_columns_to_match_ordered_list", {"column_list": list(COLUMNS)}),
    ("expect_table_columns_to_match_ordered_list", {"column_list": ["a", *COLUMNS]}),
    ("expect_column_to_exist", {"column": "a", "column_index": 1}),
    ("expect_column_to_exist", {"column": "zz"}),
    ("expect_column_min_to_be_between", {"column": "a", "min_value": -3, "max_value": 0}),
    ("expect_column_max_to_be_between", {"column": "n", "max_value": 20}),
    ("expect_column_max_to_be_between", {"column": "a", "min_value": 1, "row_condition": WHERE}),
    ("expect_column_mean_to_be_between", {"column": "a", "min_value": 2, "max_value": 3}),
    ("expect_column_mean_to_be_between", {"column": "n", "max_value": 3}),
    ("expect_column_median_to_be_between", {"column": "a", "min_value": 2.5, "max_value": 2.5}),
    ("expect_column_median_to_be_between", {"column": "n", "min_value": 3, "max_value": 4, "strict_max": True}),
    ("expect_column_stdev_to_be_between", {"column": "n", "min_value": 7, "max_value": 7.1}),
    ("expect_column_sum_to_be_between", {"column": "n", "min_value": 54, "max_value": 54}),
    ("expect_column_quantile_values_to_be_between",
     {"column": "n", "quantile_ranges": {"quantiles": [0, 0.25, 0.5, 0.9], "value_ranges": [[1, 1], [1, 1], [3, 3], [None, 12]]}}),
    ("expect_column_quantile_values_to_be_between",
     {"column": "a", "quantile_ranges": {"quantiles": [0.1, 0.75], "value_ranges": [[-3, 0], [4, 4]]}}),
    ("expect_column_unique_value_count_to_be_between", {"column": "s", "min_value": 6, "max_value": 6}),
    ("expect_column_unique_value_count_to_be_between", {"column": "a", "max_value": 4}),
    ("expect_column_proportion_of_unique_values_to_be_between", {"column": "s", "min_value": 0.8, "max_value": 0.9}),
    ("expect_column_proportion_of_non_null_values_to_be_between", {"column": "b", "min_value": 0.75, "max_value": 0.75}),
    ("expect_column_distinct_values_to_be_in_set", {"column": "s", "value_set": ["ab", "abc", "é"]}),
    ("expect_column_distinct_values_to_be_in_set", {"column": "flag", "value_set": [True, False]}),
    ("expect_column_distinct_values_to_contain_set", {"column": "n", "value_set": [1, 2, 4]}),
    ("expect_column_distinct_values_to_contain_set", {"column": "s", "value_set": ["ab", ""]}),
    ("expect_column_distinct_values_to_equal_set", {"column": "flag", "value_set": [True, False]}),
    ("expect_column_distinct_values_to_equal_set", {"column": "s", "value_set": ["ab", "nope"]}),
    ("expect_table_row_count_to_be_between", {"min_value": 6, "max_value": 6, "row_condition": WHERE}),
    ("expect_table_row_count_to_equal", {"value": 6, "row_condition": WHERE}),
    ("expect_column_values_to_be_increasing", {"column": "n"}),
    ("expect_column_values_to_be_increasing", {"column": "n", "strictly": True}),
    ("expect_column_values_to_be_increasing", {"column": "a", "mostly": 0.5}),
    ("expect_column_values_to_be_increasing", {"column": "a", "row_condition": EITHER}),
    ("expect_column_values_to_be_decreasing", {"column": "n"}),
    ("expect_column_values_to_be_decreasing", {"column": "a", "strictly": True}),
    ("expect_column_values_to_be_increasing", {"column": "day"}),
    ("expect_column_values_to_be_decreasing", {"column": "at", "mostly": 0.2}),
    ("expect_column_value_z_scores_to_be_less_than", {"column": "n", "threshold": 1.5, "double_sided": True}),
    ("expect_column_value_z_scores_to_be_less_than", {"column": "a", "threshold": -1, "double_sided": False}),
    ("expect_column_value_z_scores_to_be_less_than", {"column": "a", "threshold": 2, "double_sided": True, "row_condition": WHERE, "mostly": 0.9}),
    ("expect_column_values_to_not_be_outliers", {"column": "n"}),
    ("expect_column_values_to_not_be_outliers", {"column": "a", "multiplier": 1, "row_condition": WHERE}),
    ("expect_column_values_to_not_be_outliers", {"column": "n", "method": "std", "multiplier": 1}),
    ("expect_column_values_to_not_be_outliers", {"column": "a", "method": "std", "multiplier": 0, "mostly": 0.1}),
    ("expect_column_values_to_match_strftime_format", {"column": "s", "strftime_format": "%Y"}),
    ("expect_column_values_to_match_strftime_format", {"column": "when", "strftime_format": "%Y-%m-%d"}),
    ("expect_column_values_to_match_strftime_format", {"column": "when", "strftime_format": "%d.%m.%Y", "mostly": 0.1}),
    ("expect_column_values_to_be_dateutil_parseable", {"column": "when"}),
    ("expect_column_values_to_be_dateutil_parseable", {"column": "when", "row_condition": WHERE}),
    ("expect_column_values_to_be_json_parseable", {"column": "json"}),
    ("expect_column_values_to_be_json_parseable", {"column": "when", "mostly": 0.1}),
    ("expect_column_values_to_match_json_schema", {"column": "json", "json_schema": {"type": "object", "required": ["a"]}}),
    ("expect_column_values_to_match_json_schema", {"column": "json", "json_schema": {"type": "object"}, "row_condition": WHERE}),
    ("expect_column_values_to_match_regex", {"column": "s", "regex": "(?=.*b)a"}),
    ("expect_column_values_to_not_match_regex_list", {"column": "s", "regex_list": [r"(.)\1", "x"], "row_condition": WHERE}),
    ("expect_column_most_common_value_to_be_in_set", {"column": "s", "value_set": ["ab"]}),
    ("expect_column_most_common_value_to_be_in_set", {"column": "n", "value_set": [2, 3], "row_condition": WHERE}),
    ("expect_column_most_common_value_to_be_in_set", {"column": "id", "value_set": [1, 99], "ties_okay": True}),
    ("expect_column_most_common_value_to_be_in_set", {"column": "id", "value_set": [99], "ties_okay": True}),
    ("expect_column_most_common_value_to_be_in_set", {"column": "flag", "value_set": [True]}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "s", "partition_object": {"values": ["ab", "abc", "z"], "weights": [0.5, 0.25, 0.25]}, "threshold": 0.5, "tail_weight_holdout": 0.1}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "s", "partition_object": {"values": ["ab"], "weights": [1]}, "threshold": 0.5}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "n", "partition_object": {"values": [1, 2, 3], "weights": [0.5, 0.25, 0.25]}, "threshold": 9, "tail_weight_holdout": 0.3, "row_condition": EITHER}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "flag", "partition_object": {"values": [True, False], "weights": [0.5, 0.5]}, "threshold": 0.5}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "n", "partition_object": {"bins": [0, 2, 8, 20], "weights": [0.5, 0.25, 0.25]}, "threshold": 0.5, "tail_weight_holdout": 0.1}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "a", "partition_object": {"bins": [-5, 2.5, 10], "weights": [1, 0]}, "threshold": 0.1, "internal_weight_holdout": 0.2}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "a", "partition_object": {"bins": [0, 2.5, 5], "weights": [0.4, 0.4], "tail_weights": [0.1, 0.1]}, "threshold": 3}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "a", "partition_object": {"bins": [float("-inf"), 0, 5, float("inf")], "weights": [0.3, 0.4, 0.3]}, "threshold": 3}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "a", "partition_object": {"bins": [0, 5, float("inf")], "weights": [0.6, 0.4]}, "threshold": 3, "tail_weight_holdout": 0.2}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "n", "threshold": 0.1}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "s", "bucketize_data": False, "threshold": 0.1}),
    ("expect_column_kl_divergence_to_be_less_than", {"column": "a", "partition_object": {"bins": [0, 2.5, 5], "weights": [0.5, 0.5]}, "tail_weight_holdout": 0.1}),
    *((kind, {"column": column, argument: value(given)}) for kind, argument, value in OF_TYPE for column, given in TYPES),
    ("expect_column_values_to_be_in_type_list", {"column": "n"}),
    ("expect_column_values_to_be_of_type", {"column": "day", "type_": "int64", "mostly": 0.1, "row_condition": WHERE}),
    ("expect_column_values_to_be_of_type", {"column": "maybe", "type_": "int64", "row_condition": WHERE}),
]  # fmt: skip


#: Great Expectations has no pandas metric for these: see test_suite_queries.py and test_like_patterns.py.
LIKE = {name for name in SUPPORTED if "like_pattern" in name}


def test_every_supported_type_has_a_case() -> None:
    assert {name for name, _ in CASES} == set(SUPPORTED) - {*LIKE, QUERY_TYPE}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("rows")
    path = folder / "2020-01-01.parquet"
    pq.write_table(pa.table(ROWS), path)
    suite = {"name": "s", "expectations": [{"type": t, "kwargs": k, "meta": {}} for t, k in CASES]}
    expectations, problems = parse_suite(json.dumps(suite), COLUMNS)
    assert not problems
    feed = FeedSchema("m", "rows", COLUMNS)
    con = duckdb_session.connect()
    landed = [fetch_file(feed, "2020-01-01", str(path), folder, con)]
    create_landed_view(con, feed, landed)
    findings = validate(con, feed, landed, build_checks(expectations, COLUMNS, ["id"]), 1.0)
    assert findings.outcomes[0].evaluated == len(CASES)
    return findings.outcomes[0].results


@pytest.fixture(scope="module")
def theirs() -> list[Any]:
    import great_expectations as gx
    import pyarrow as pa
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    rows = dict(ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        frame = pa.table(rows).to_pandas()
        asset = context.data_sources.add_pandas("p").add_dataframe_asset("a")
        batch = asset.add_batch_definition_whole_dataframe("b").get_batch({"dataframe": frame})
        expectations = [
            ExpectationConfiguration(type=t, kwargs=k, meta={"case": i}).to_domain_obj()
            for i, (t, k) in enumerate(CASES)
        ]
        results = batch.validate(gx.ExpectationSuite("s", expectations=expectations)).results
        return sorted(results, key=lambda r: r.expectation_config.meta["case"])


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{i}-{t}" for i, (t, _) in enumerate(CASES)])
def test_agrees_with_the_pandas_engine(index: int, ours: list[Any], theirs: list[Any]) -> None:
    mine, other = ours[index], theirs[index]
    assert not other.exception_info.get("raised_exception"), other.exception_info
    assert mine.success == other.success
    for name in ("unexpected_count", "element_count", "missing_count"):
        assert mine.result.get(name) == other.result.get(name), name
    observed = other.result.get("observed_value")
    if isinstance(observed, int | float):
        assert mine.result["observed_value"] == pytest.approx(observed)
    elif (
        "distinct_values" not in mine.expectation_config.type
        and "quantile" not in mine.expectation_config.type
    ):
        assert mine.result.get("observed_value") == observed
    if mine.expectation_config.type == "expect_column_kl_divergence_to_be_less_than":
        for part in ("observed_partition", "expected_partition"):
            for key, values in other.result["details"][part].items():
                assert mine.result["details"][part][key] == pytest.approx(values)


def test_all_null_columns_and_no_rows_agree_on_success(tmp_path: Path) -> None:
    """A check over nothing is vacuously true row by row, and false where a number was asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "2020-01-01.parquet"
    pq.write_table(pa.table({"id": pa.array([1, 2]), "a": pa.array([None, None], pa.float64())}), path)
    columns = {"id": "integer", "a": "number"}
    suite = {"name": "s", "expectations": [
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "a", "min_value": 0}},
        {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "a", "min_value": 0}},
    ]}  # fmt: skip
    expectations, problems = parse_suite(json.dumps(suite), columns)
    assert not problems
    feed, con = FeedSchema("m", "rows", columns), duckdb_session.connect()
    landed = [fetch_file(feed, "2020-01-01", str(path), tmp_path, con)]
    create_landed_view(con, feed, landed)
    outcome = validate(con, feed, landed, build_checks(expectations, columns, ["id"]), 1.0).outcomes[0]
    assert [r.success for r in outcome.results[:2]] == [True, False]
    assert outcome.stopped and "expect_column_mean_to_be_between(a)" in outcome.stopped[0]
