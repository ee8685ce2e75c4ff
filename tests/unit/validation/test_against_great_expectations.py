"""Any small table has the results that Great Expectations' own pandas engine gives, for every type of expectation."""

# ruff: noqa: E501 -- a case a line reads best
from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion.typed_rows import create_landed_view
from perennial.storage import duckdb_session
from perennial.storage.landing import fetch_file
from perennial.validation import _gx_engine
from perennial.validation.check_builder import build_checks
from perennial.validation.suite import QUERY_TYPE, SUPPORTED, parse_suite
from perennial.validation.validator import validate

COLUMNS = {"id": "integer", "i": "integer", "n": "number", "m": "number", "s": "string", "u": "string", "b": "boolean",
           "d": "date", "t": "timestamp"}  # fmt: skip
TYPES = {"id": pa.int64(), "i": pa.int64(), "n": pa.float64(), "m": pa.float64(), "s": pa.string(), "u": pa.string(),
         "b": pa.bool_(), "d": pa.date32(), "t": pa.timestamp("us")}  # fmt: skip
DAYS = [dt.date(2020, 1, 1) + dt.timedelta(days=k) for k in (0, 1, 1, 40)]
VALUES = {
    "i": st.integers(-3, 3),
    "n": st.sampled_from([-2.5, 0.0, 0.5, 1.0, 1.5, 7.0]),
    "m": st.sampled_from([-2.5, 0.0, 0.5, 1.0, 1.5, 7.0]),
    "s": st.sampled_from(["", "a", "ab", "b%", "A_", "é", "{}", '{"k": 1}', "[", "1", "2020-01-02", "1 Jan 2020"]),
    "u": st.sampled_from(["a", "ab", "é", "x"]),
    "b": st.booleans(),
    "d": st.sampled_from(DAYS),
    "t": st.sampled_from([dt.datetime(d.year, d.month, d.day, 3) for d in DAYS]),
}  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """A table of up to a dozen rows, each column with or without missing values."""
    rows = draw(st.integers(1, 12))
    columns: dict[str, Any] = {"id": list(range(rows))}
    for name, values in VALUES.items():
        cell = st.one_of(st.none(), values) if draw(st.booleans()) else values
        columns[name] = draw(st.lists(cell, min_size=rows, max_size=rows))
    return pa.table({name: pa.array(columns[name], TYPES[name]) for name in COLUMNS})


def some(strategy: st.SearchStrategy[Any], **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"column": strategy}, optional=arguments)


NUMERIC, ORDERED, ANY = (st.sampled_from(c) for c in ("in", "indt", "inmsbdt"))
NUMBER, BOOL = st.sampled_from([-3, -1, 0, 0.5, 1, 2, 4]), st.booleans()
BETWEEN: dict[str, Any] = {"max_value": NUMBER, "strict_min": BOOL, "strict_max": BOOL}
CONDITION = st.sampled_from([
    {"type": "comparison", "column": {"name": "i"}, "operator": ">", "parameter": 0},
    {"type": "comparison", "column": {"name": "s"}, "operator": "==", "parameter": "a"},
    {"type": "nullity", "column": {"name": "n"}, "is_null": False},
])  # fmt: skip
WEIGHTS = [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]
PARTITIONS = {
    "s": {"values": ["a", "ab", "é"]}, "u": {"values": ["a", "ab", "zz"]}, "i": {"bins": [-2, 0, 1, 2]},
    "n": {"bins": [float("-inf"), 0, 1, float("inf")]}, "m": {"values": [0.5, 1.0, 7.0]},
}  # fmt: skip


@st.composite
def divergence(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a KL divergence that belong together."""
    column = draw(st.sampled_from(list(PARTITIONS)))
    partition = PARTITIONS[column] | {"weights": draw(st.sampled_from(WEIGHTS))}
    kwargs = {
        "column": column,
        "partition_object": partition,
        "threshold": draw(st.sampled_from([0, 0.3, 2])),
    }
    if column != "n":
        kwargs["tail_weight_holdout"] = draw(st.sampled_from([0, 0.1]))
    if "bins" in partition:
        kwargs["internal_weight_holdout"] = draw(st.sampled_from([0, 0.1]))
    return kwargs


def pair(*columns: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    # Of one column twice, Great Expectations compares a table of two columns with itself.
    order = st.permutations(columns).map(lambda names: {"column_A": names[0], "column_B": names[1]})
    ignored = st.sampled_from(["both_values_are_missing", "either_value_is_missing", "neither"])
    rest = st.fixed_dictionaries({}, optional={**arguments, "ignore_row_if": ignored})
    return st.tuples(order, rest).map(lambda parts: parts[0] | parts[1])


def many(*columns: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    ignored = st.sampled_from(["all_values_are_missing", "any_value_is_missing", "never"])
    return st.fixed_dictionaries(
        {"column_list": st.just(list(columns)), **arguments}, optional={"ignore_row_if": ignored}
    )


NAMES, TEXT, SET = (
    st.sampled_from(list(COLUMNS)),
    st.just("s"),
    st.sampled_from([[1, 2], [0, 7], [-3, 0.5, 1]]),
)
BOUNDS = {"min_value": NUMBER, **BETWEEN}
BOUNDED = st.one_of(some(NUMERIC, **BETWEEN).flatmap(lambda k: NUMBER.map(lambda low: k | {"min_value": low})),
                    st.just({"column": "t", "min_value": "2020-01-01T12:00:00"}))  # fmt: skip
NUMBERS = some(NUMERIC, **BETWEEN).flatmap(lambda k: NUMBER.map(lambda low: k | {"min_value": low}))
COUNTS = some(ANY, **BETWEEN).flatmap(lambda k: NUMBER.map(lambda low: k | {"min_value": low}))
#: Strategies of the arguments of each type.
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "expect_column_values_to_not_be_null": some(ANY),
    "expect_column_values_to_be_null": some(ANY),
    "expect_column_values_to_be_unique": some(ANY),
    "expect_column_values_to_be_between": BOUNDED,
    "expect_column_values_to_be_in_set": st.fixed_dictionaries({"column": NUMERIC, "value_set": SET}),
    "expect_column_values_to_not_be_in_set": st.fixed_dictionaries({"column": NUMERIC, "value_set": SET}),
    "expect_column_values_to_match_regex": st.fixed_dictionaries({"column": TEXT, "regex": st.sampled_from(["^a", "b", r"\d{4}", "(?=.b)a", "é"])}),
    "expect_column_values_to_not_match_regex": st.fixed_dictionaries({"column": TEXT, "regex": st.sampled_from(["^a", r"(.)\1"])}),
    "expect_column_values_to_match_regex_list": st.fixed_dictionaries({"column": TEXT, "regex_list": st.just(["a", "b"])}, optional={"match_on": st.sampled_from(["any", "all"])}),
    "expect_column_values_to_not_match_regex_list": st.fixed_dictionaries({"column": TEXT, "regex_list": st.just(["a", "2020"])}),
    "expect_column_values_to_match_strftime_format": st.fixed_dictionaries({"column": TEXT, "strftime_format": st.sampled_from(["%Y-%m-%d", "%d %b %Y", "%H"])}),
    "expect_column_values_to_be_dateutil_parseable": some(TEXT),
    "expect_column_values_to_be_json_parseable": some(TEXT),
    "expect_column_values_to_match_json_schema": st.fixed_dictionaries({"column": TEXT, "json_schema": st.just({"type": "object"})}),
    "expect_column_values_to_be_increasing": some(ORDERED, strictly=BOOL),
    "expect_column_values_to_be_decreasing": some(ORDERED, strictly=BOOL),
    "expect_column_value_z_scores_to_be_less_than": st.fixed_dictionaries({"column": NUMERIC, "threshold": st.sampled_from([-1.1, 0.3, 1.3]), "double_sided": BOOL}),
    "expect_column_values_to_not_be_outliers": some(NUMERIC, method=st.sampled_from(["iqr", "std"]), multiplier=st.sampled_from([0, 0.7, 1.3])),
    "expect_column_value_lengths_to_be_between": st.fixed_dictionaries({"column": TEXT, "min_value": st.integers(0, 2)}, optional=BETWEEN),
    "expect_column_value_lengths_to_equal": st.fixed_dictionaries({"column": TEXT, "value": st.integers(0, 3)}),
    "expect_column_pair_values_a_to_be_greater_than_b": pair("n", "m", "i", or_equal=BOOL),
    "expect_column_pair_values_to_be_equal": pair("s", "u"),
    "expect_column_pair_values_to_be_in_set": pair("s", "u").map(lambda k: k | {"value_pairs_set": [["a", "a"], ["ab", "é"]]}),
    "expect_compound_columns_to_be_unique": many("s", "b"),
    "expect_select_column_values_to_be_unique_within_record": many("s", "u"),
    "expect_multicolumn_values_to_be_equal": many("n", "m"),
    "expect_multicolumn_sum_to_equal": many("n", "i", sum_total=NUMBER),
    "expect_table_row_count_to_be_between": st.fixed_dictionaries({"min_value": st.integers(0, 4)}),
    "expect_table_row_count_to_equal": st.fixed_dictionaries({"value": st.integers(0, 4)}),
    "expect_table_column_count_to_be_between": st.fixed_dictionaries({"max_value": st.integers(7, 10)}),
    "expect_table_column_count_to_equal": st.fixed_dictionaries({"value": st.integers(8, 10)}),
    "expect_table_columns_to_match_set": st.fixed_dictionaries({"column_set": st.lists(NAMES, min_size=1)}, optional={"exact_match": BOOL}),
    "expect_table_columns_to_match_ordered_list": st.fixed_dictionaries({"column_list": st.one_of(st.just(list(COLUMNS)), st.lists(NAMES, min_size=1))}),
    "expect_column_to_exist": st.fixed_dictionaries({"column": st.sampled_from(["i", "nope"])}, optional={"column_index": st.integers(0, 2)}),
    "expect_column_min_to_be_between": NUMBERS,
    "expect_column_max_to_be_between": NUMBERS,
    "expect_column_mean_to_be_between": NUMBERS,
    "expect_column_median_to_be_between": NUMBERS,
    "expect_column_stdev_to_be_between": NUMBERS,
    "expect_column_sum_to_be_between": NUMBERS,
    "expect_column_quantile_values_to_be_between": st.fixed_dictionaries({"column": NUMERIC, "quantile_ranges": st.just({"quantiles": [0.1, 0.5], "value_ranges": [[-1, 1], [None, 2]]})}),
    "expect_column_unique_value_count_to_be_between": COUNTS,
    "expect_column_proportion_of_unique_values_to_be_between": COUNTS,
    "expect_column_proportion_of_non_null_values_to_be_between": COUNTS,
    "expect_column_distinct_values_to_be_in_set": st.fixed_dictionaries({"column": NUMERIC, "value_set": SET}),
    "expect_column_distinct_values_to_contain_set": st.fixed_dictionaries({"column": NUMERIC, "value_set": SET}),
    "expect_column_distinct_values_to_equal_set": st.fixed_dictionaries({"column": NUMERIC, "value_set": SET}),
    "expect_column_most_common_value_to_be_in_set": st.fixed_dictionaries({"column": NUMERIC, "value_set": SET}, optional={"ties_okay": BOOL}),
    "expect_column_kl_divergence_to_be_less_than": st.one_of(divergence(), st.just({"column": "n", "threshold": 0.1}), st.just({"column": "s", "bucketize_data": False})),
    "expect_column_type_to_be": st.fixed_dictionaries({"column": NAMES, "type_": st.sampled_from(["int64", "float64", "str", "object", "bool", "datetime64"])}),
    "expect_column_values_to_be_of_type": st.fixed_dictionaries({"column": NAMES, "type_": st.sampled_from(["int64", "float", "str", "object", "bool", "datetime64"])}),
    "expect_column_values_to_be_in_type_list": st.fixed_dictionaries({"column": NAMES, "type_list": st.sampled_from([["int64", "float64"], ["str", "bool"], ["object"]])}),
}  # fmt: skip
#: Great Expectations ignores the row condition: its metric does not name it among the keys of its domain.
WITHOUT_CONDITION = {"expect_column_pair_values_to_be_in_set"}
SQL_ONLY = {QUERY_TYPE, *(name for name in SUPPORTED if "like_pattern" in name)}


@st.composite
def suites(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A few expectations of any types."""
    suite = []
    for name in draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), min_size=6, max_size=12)):
        kwargs, allowed = draw(ARGUMENTS[name]), SUPPORTED[name].optional
        if "mostly" in allowed and draw(st.booleans()):
            kwargs = kwargs | {"mostly": draw(st.sampled_from([0.3, 0.5, 0.9]))}
        if "row_condition" in allowed and name not in WITHOUT_CONDITION and draw(st.booleans()):
            kwargs = kwargs | {"row_condition": draw(CONDITION)}
        suite.append(
            {
                "type": name,
                "kwargs": kwargs,
                "severity": draw(st.sampled_from(["critical", "warning", "info"])),
            }
        )
    return suite


def test_every_type_has_arguments() -> None:
    assert set(ARGUMENTS) == set(SUPPORTED) - SQL_ONLY


def ours(table: pa.Table, suite: list[dict[str, Any]], folder: Path) -> tuple[list[Any], list[bool]]:
    """Results of the expectations, and whether each row is good."""
    path = folder / "2020-01-01.parquet"
    pq.write_table(table, path)
    expectations, problems = parse_suite(json.dumps({"name": "s", "expectations": suite}), COLUMNS)
    assert not problems
    feed, con = FeedSchema("m", "rows", COLUMNS), duckdb_session.connect(threads=1)
    landed = [fetch_file(feed, "2020-01-01", str(path), folder, con)]
    create_landed_view(con, feed, landed)
    findings = validate(con, feed, landed, build_checks(expectations, COLUMNS, ["id"]), 1.0)
    bad = con.execute(f"SELECT ({findings.bad}) FROM {findings.source} ORDER BY __row").fetchall()
    assert sum(row[0] for row in bad) == findings.outcomes[0].quarantined
    return findings.outcomes[0].results, [not row[0] for row in bad]


def theirs(table: pa.Table, suite: list[dict[str, Any]]) -> list[Any]:
    """Great Expectations' results; None where it raises an error."""
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    results = []
    for entry in suite:
        expectation = ExpectationConfiguration(type=entry["type"], kwargs=entry["kwargs"]).to_domain_obj()
        try:
            results.append(_gx_engine.evaluate(expectation, table.to_pandas(), "COMPLETE"))
        except _gx_engine.EvaluationError:
            results.append(None)
    return results


def same(mine: Any, other: Any) -> bool:
    if isinstance(other, float) and math.isnan(other):
        return mine is None or (isinstance(mine, float) and math.isnan(mine))
    if isinstance(other, list):
        return isinstance(mine, list) and len(mine) == len(other) and all(map(same, mine, other))
    return bool(mine == pytest.approx(other) if isinstance(other, int | float) else mine == other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@hypothesis_settings(
    max_examples=15,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(tables(), suites())
def test_results_are_those_of_great_expectations(
    folder: Path, table: pa.Table, suite: list[dict[str, Any]]
) -> None:
    results, good = ours(table, suite, folder)
    quarantined: set[int] | None = set()
    for entry, mine, other in zip(suite, results, theirs(table, suite), strict=False):
        case = f"{entry} on {table.to_pylist()}"
        if other is None:
            # It raises an error where a text is no JSON, which here does not match the schema, and on no pairs.
            nothing = mine.result.get("element_count", 1) == mine.result.get("missing_count", 0)
            lenient = "json_schema" in entry["type"] or nothing
            assert lenient or not mine.success, case
            quarantined = None
            continue
        assert bool(mine.success) == bool(other.success), case
        for name in ("unexpected_count", "element_count", "missing_count"):
            assert mine.result.get(name) == other.result.get(name), f"{name}: {case}"
        if (
            "distinct" not in entry["type"]
            and "observed_value" in other.result
            and "quantile" not in entry["type"]
        ):
            observed = mine.result["observed_value"]
            assert same(observed, other.result["observed_value"]), f"{observed}, {other.result}: {case}"
        if (
            quarantined is not None
            and SUPPORTED[entry["type"]].level == "row"
            and entry["severity"] == "critical"
        ):
            quarantined.update(other.result.get("unexpected_index_list") or [])
    if quarantined is not None:
        assert [i not in quarantined for i in range(table.num_rows)] == good, (
            f"{suite} on {table.to_pylist()}"
        )
