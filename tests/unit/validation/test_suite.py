"""What ``expectations.json`` may contain: everything else is refused with its line and what is allowed."""

# ruff: noqa: E501 -- a case a line reads best
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perennial.validation.signatures import REFUSED
from perennial.validation.suite import SUPPORTED, SuiteProblem, batch_query, parse_suite

COLUMNS = {"a": "number", "b": "integer", "s": "string", "t": "timestamp", "d": "date", "f": "boolean"}
BETWEEN = "expect_column_values_to_be_between"
KL = "expect_column_kl_divergence_to_be_less_than"
QUERY = "unexpected_rows_expectation"


def problems_of(text: str) -> list[SuiteProblem]:
    return parse_suite(text, COLUMNS)[1]


def suite(*entries: Any) -> str:
    return json.dumps({"name": "s", "expectations": list(entries)}, indent=1)


def one(kind: str, /, **kwargs: Any) -> str:
    return suite({"type": kind, "kwargs": kwargs, "meta": {}})


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
        (one("expect_table_row_count_to_equal_other_table", other_table_name="t"), "use expect_table_row_count_to_equal"),
        (one("expect_query_results_to_match_comparison"), "use unexpected_rows_expectation"),
        (one("expect_multicolumn_values_to_be_unique", column_list=["a", "b"]), "use expect_compound_columns_to_be_unique"),
        (one("expect_column_values_to_match_like_pattern", column="s", like_pattern="a%", escape="ab"), "escape is 'ab'"),
        (one("expect_column_values_to_match_like_pattern", column="s", like_pattern="a!!!", escape="!"), "ends with the escape"),
        (one("expect_column_values_to_match_like_pattern_list", column="s", like_pattern_list=[]), "like_pattern_list is a list"),
        (one("expect_column_values_to_not_match_like_pattern", column="a", like_pattern="a%"), "column 'a' is declared number"),
        (one("expect_column_values_to_match_strftime_format", column="s", strftime_format="%Q"), "is not a format that Python"),
        (one("expect_column_values_to_match_strftime_format", column="t", strftime_format="%Y"), "column 't' is declared timestamp"),
        (one("expect_column_values_to_match_json_schema", column="s", json_schema="x"), "a JSON schema, an object, is needed"),
        (one("expect_column_values_to_match_json_schema", column="s", json_schema={"items": [{"$ref": "http://a.b/c"}]}),
         "refers to 'http://a.b/c'; only references within"),
        (one("expect_column_values_to_be_increasing", column="s"), "column 's' is declared string"),
        (one("expect_column_values_to_be_decreasing", column="a", strictly="yes"), "strictly is 'yes'"),
        (one("expect_column_value_z_scores_to_be_less_than", column="a", threshold="x", double_sided=True), "threshold: 'x'"),
        (one("expect_column_value_z_scores_to_be_less_than", column="a", threshold=1), "needs 'double_sided'"),
        (one("expect_column_values_to_not_be_outliers", column="a", method="mad"), "method is 'mad'; allowed: iqr, std"),
        (one("expect_column_values_to_not_be_outliers", column="a", multiplier=-1), "multiplier is -1"),
        (one("expect_column_most_common_value_to_be_in_set", column="s", value_set=[1]), "1 is not a value of type string"),
        (one("expect_column_values_to_be_of_type", column="a", type_=1), "type_ is 1; a text is needed"),
        (one("expect_column_values_to_be_in_type_list", column="a", type_list="int"), "type_list is a list of texts"),
        (one(KL, column="t", threshold=1), "column 't' is declared timestamp"),
        (one(KL, column="s", threshold=1), "needs bucketize_data: false"),
        (one(KL, column="a", threshold=-1), "threshold is -1"),
        (one(KL, column="a", partition_object=[1]), "partition_object is an object with 'weights'"),
        (one(KL, column="a", partition_object={"values": [1], "weights": [1], "bins": [0, 1]}), "either 'values' or 'bins'"),
        (one(KL, column="a", partition_object={"bins": [0, 1], "weights": [0.5, 0.5]}), "one bin more than weights"),
        (one(KL, column="a", partition_object={"bins": [0, 1], "weights": [0.5]}), "their sum must be 1"),
        (one(KL, column="a", partition_object={"bins": [1, 0], "weights": [1]}), "larger than the one before"),
        (one(KL, column="s", partition_object={"bins": [0, 1], "weights": [1]}), "the column is declared string; use values"),
        (one(KL, column="s", partition_object={"values": [1], "weights": [1]}), "1 is not a value of type string"),
        (one(KL, column="s", partition_object={"values": ["a"], "weights": [1]}, internal_weight_holdout=0.1), "is for bins"),
        (one(KL, column="a", partition_object={"bins": [0, 1], "weights": [0.8], "tail_weights": [0.1, 0.1]},
             tail_weight_holdout=0.1), "tail_weights are not allowed"),
        (one(KL, column="a", partition_object={"bins": [0, 1], "weights": [1]}, tail_weight_holdout=2), "a share from 0 to 1"),
        (one(QUERY, unexpected_rows_query=1), "unexpected_rows_query is 1; a text is needed"),
        (one(QUERY, unexpected_rows_query="SELECT 1"), "it must read the partition"),
        (one(QUERY, unexpected_rows_query="SELECT '{x}' FROM {batch}"), "unknown parameter {x}"),
        (one(QUERY, unexpected_rows_query="SELECT '{' FROM {batch}"), "unexpected_rows_query: unexpected '{'"),
        (suite({"type": BETWEEN, "kwargs": {"column": "a", "min_value": 1}, "description": ["no"]}), "description is ['no']"),
        (suite({"type": BETWEEN, "kwargs": {"column": "a", "min_value": 1}, "meta": "m"}), "meta is 'm'"),
        (suite({"type": BETWEEN, "kwargs": {"column": "a", "min_value": 1}, "notes": [1]}), "notes is [1]"),
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


def test_a_query_is_named_by_its_description_or_its_line() -> None:
    query = {"unexpected_rows_query": "SELECT * FROM {batch} WHERE '{{' = s ;\n"}
    text = suite(
        {"type": QUERY, "kwargs": query}, {"type": QUERY, "kwargs": query, "description": "no  braces\n in s"}
    )
    expectations, problems = parse_suite(text, COLUMNS)
    assert not problems
    assert [e.label for e in expectations] == [f"{QUERY}(line 4)", f"{QUERY}(no braces in s)"]
    assert batch_query(query["unexpected_rows_query"]) == "SELECT * FROM rows WHERE '{' = s"


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


def test_the_documentation_lists_every_type() -> None:
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text("utf-8")
    table = text.partition("## Expectations")[2].partition("## Personal data")[0]
    named: set[str] = set()
    for row in table.splitlines():
        prefixes: list[str] = []
        for name in re.findall(r"`([a-z_…]+)`", row.split("|")[1] if row.startswith("|") else ""):
            start = name.removeprefix("…")
            names = {p + start for p in prefixes} if name.startswith("…") else {name}
            named |= names
            if not name.startswith("…"):
                prefixes = [name[:i] for i, c in enumerate(name) if c == "_"]
    missing = {n for n in (*SUPPORTED, *REFUSED) if n not in named and not _abbreviated(n, table)}
    assert not missing


def _abbreviated(name: str, table: str) -> bool:
    """Whether a name such as expect_column_max_to_be_between stands as …_max_…."""
    middle = name.removeprefix("expect_column_").removesuffix("_to_be_between")
    return f"`…_{middle}_…`" in table
