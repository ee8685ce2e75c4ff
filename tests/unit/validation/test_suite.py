"""What ``expectations.json`` may contain: everything else is refused with its line and what is allowed."""

# ruff: noqa: E501 -- a case a line reads best
from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from perennial.validation.suite import SUPPORTED, SuiteProblem, parse_suite

COLUMNS = {"a": "number", "b": "integer", "s": "string", "t": "timestamp", "d": "date", "f": "boolean"}
BETWEEN = "expect_column_values_to_be_between"


def problems_of(text: str) -> list[SuiteProblem]:
    return parse_suite(text, COLUMNS)[1]


def suite(*entries: Any) -> str:
    return json.dumps({"name": "s", "expectations": list(entries)}, indent=1)


def one(type_: str, **kwargs: Any) -> str:
    return suite({"type": type_, "kwargs": kwargs, "meta": {}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "a suite is an object"),
        ('{"expectations": []}', "the suite has no 'name'"),
        (suite(3), "an expectation is an object with 'type' and 'kwargs'"),
        (suite({"expectation_type": BETWEEN, "kwargs": {}}), "before Great Expectations 1.0"),
        (suite({"type": BETWEEN, "kwargs": {"column": "a", "min_value": 1}, "sverity": "info"}), "unknown key 'sverity'"),
        (suite({"type": BETWEEN, "kwargs": {"column": "a", "min_value": 1}, "severity": "mild"}), "severity is 'mild'"),
        (one("expect_column_values_to_be_betwen", column="a"), f"did you mean {BETWEEN}?"),
        (one("expect_column_values_to_match_like_pattern", column="s", like_pattern="a%"), "is not supported"),
        (one(BETWEEN, column="a", max_value=2, minvalue=1), "has no argument 'minvalue'; did you mean 'min_value'?"),
        (one(BETWEEN, min_value=1), "needs 'column'"),
        (one(BETWEEN, column="aa", min_value=1), "column 'aa' is not in data.columns; did you mean 'a'?"),
        (one("expect_column_mean_to_be_between", column="s", min_value=1), "column 's' is declared string; allowed here"),
        (one(BETWEEN, column="a"), "min_value or max_value must be given"),
        (one(BETWEEN, column="a", min_value="x"), "'x' is not a value of type number"),
        (one(BETWEEN, column="t", min_value="yesterday"), "'yesterday' is not a timestamp: write it as ISO 8601"),
        (one(BETWEEN, column="d", min_value="2020-01-01T10:00:00"), "has a time of day; the column is a date"),
        (one(BETWEEN, column="a", min_value=1, mostly=2), "mostly is 2; a share from 0 to 1"),
        (one(BETWEEN, column="a", min_value={"$PARAMETER": "x"}), "suite parameter"),
        (one(BETWEEN, column="a", min_value=1, strict_min="yes"), "strict_min is 'yes'"),
        (one(BETWEEN, column="a", min_value=1, row_condition="b > 1"), "conditions in pandas or Spark syntax"),
        (one(BETWEEN, column="a", min_value=1, row_condition={"type": "comparison", "column": {"name": "zz"},
             "operator": ">", "parameter": 1}), "row_condition: column 'zz'"),
        (one("expect_column_values_to_be_in_set", column="s", value_set=[1]), "1 is not a value of type string"),
        (one("expect_column_values_to_be_in_set", column="s", value_set=[]), "value_set is a list with at least one value"),
        (one("expect_column_values_to_match_regex", column="s", regex="("), "is not a regular expression"),
        (one("expect_column_values_to_match_regex", column="s", regex="(?=a)b"), "look-around"),
        (one("expect_column_values_to_match_regex", column="a", regex="b"), "column 'a' is declared number"),
        (one("expect_compound_columns_to_be_unique", column_list=["a"]), "column_list needs two columns or more"),
        (one("expect_column_pair_values_to_be_equal", column_A="a", column_B="s"), "columns of different types"),
        (one("expect_column_pair_values_to_be_equal", column_A="a", column_B="b", ignore_row_if="never"), "ignore_row_if"),
        (one("expect_column_pair_values_to_be_in_set", column_A="a", column_B="b", value_pairs_set=[1]), "list of pairs"),
        (one("expect_column_quantile_values_to_be_between", column="a", quantile_ranges={"quantiles": [2],
             "value_ranges": [[0, 1]]}), "quantile 2 is not from 0 to 1"),
        (one("expect_column_mean_to_be_between", column="t", min_value=1), "column 't' is declared timestamp"),
        (json.dumps({"name": "s", "expectations": [], "suite_parameters": {"a": 1}}), "suite_parameters"),
    ],
)  # fmt: skip
def test_a_problem_is_reported_with_its_line(text: str, message: str) -> None:
    problems = problems_of(text)
    assert len(problems) == 1, problems
    assert message in problems[0].message
    assert str(problems[0]).startswith(f"expectations.json:{problems[0].line}: ")


def test_an_unknown_type_lists_what_is_allowed() -> None:
    message = problems_of(one("expect_magic"))[0].message
    assert all(name in message for name in SUPPORTED)


def test_problems_carry_the_line_of_their_entry() -> None:
    text = """{
 "meta": {"expectations": [1, 2], "note": "expectations: {[ \\" "},
 "name": "s",
 "expectations": [
  {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "a"}},

  {
   "type": "expect_column_values_to_be_nul",
   "kwargs": {"column": "a"}
  }, {"type": "x", "kwargs": {}}
 ]
}"""
    assert [p.line for p in problems_of(text)] == [7, 10]


def test_reading_a_suite_imports_nothing_heavy() -> None:
    code = (
        "import sys; from perennial.validation.suite import parse_suite; parse_suite('{}', {}); "
        "heavy = {'duckdb', 'numpy', 'pandas', 'pyarrow', 'great_expectations', 'evidently', 'deltalake'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "include"}, check=False).returncode
        == 0
    )
