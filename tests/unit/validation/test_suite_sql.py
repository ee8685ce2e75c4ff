"""A suite is data: nothing of it becomes SQL but names and literals, whatever its arguments are."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from perennial.core.sql import SQL_TYPES, quote_identifier
from perennial.features import author_sql
from perennial.ingestion.suite_queries import query_problems
from perennial.validation import check_builder, checks, dry_run, validator
from perennial.validation.suite import SUPPORTED, parse_suite

COLUMNS = {
    "s": "string", "i": "integer", "n": "number", "b": "boolean", "d": "date", "t": "timestamp",
    "o'x \" OR (SELECT 1)": "string",
}  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2**70, 0.5, 1e308, float("inf"), float("nan")]),
    st.sampled_from([*COLUMNS, "x", "", "o'x", "1) OR (SELECT 1", "\0", "\ud800", "(", "a{5000}", "[[:alpha:]]", "\\Z",
                     "2024-01-01", "0001-01-01T00:00:00+14:00", "nan", "any", "never"]),
)  # fmt: skip
CONDITIONS = st.recursive(
    st.fixed_dictionaries(
        {
            "type": st.one_of(st.sampled_from(["comparison", "nullity"]), SCALARS),
            "column": st.fixed_dictionaries({"name": st.one_of(st.sampled_from(list(COLUMNS)), SCALARS)}) | SCALARS,
            "operator": st.one_of(st.sampled_from(["==", "!=", "<", ">=", "IN", "NOT_IN"]), SCALARS),
            "parameter": st.one_of(SCALARS, st.lists(SCALARS, max_size=2)),
        }
    ),
    lambda inner: st.fixed_dictionaries(
        {"type": st.sampled_from(["and", "or", "not"]), "conditions": st.one_of(SCALARS, st.lists(inner, max_size=2))}
    ),
    max_leaves=3,
)  # fmt: skip
QUANTILES = st.fixed_dictionaries(
    {"quantiles": st.one_of(st.just([0.5]), SCALARS, st.lists(SCALARS, max_size=2)),
     "value_ranges": st.one_of(st.just([[0, 1]]), SCALARS, st.lists(st.lists(SCALARS, max_size=2), max_size=2))}
)  # fmt: skip
QUERIES = st.sampled_from(
    [
        "SELECT * FROM {batch}",
        "SELECT s FROM {batch} WHERE i > 1 --",
        "SELECT * FROM read_csv('x')",
        "SELECT * FROM {batch}) UNION (SELECT 1",
        "DROP TABLE {batch}",
        "SELECT i FROM {batch}; SELECT 1",
    ]
)
PARTITIONS = st.fixed_dictionaries(
    {"weights": st.one_of(st.just([0.5, 0.5]), SCALARS)},
    optional={"values": st.lists(SCALARS, min_size=2, max_size=2), "bins": st.lists(SCALARS, min_size=3, max_size=3),
              "tail_weights": st.lists(SCALARS, max_size=2)},
)  # fmt: skip
ANYTHING = st.one_of(
    SCALARS, st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=2)), max_size=2), CONDITIONS, QUANTILES
)


@st.composite
def expectations(draw: st.DrawFn) -> dict[str, Any]:
    """An expectation whose columns are mostly good, and whose other arguments may be anything."""
    name = draw(st.sampled_from(sorted(SUPPORTED)))
    signature = SUPPORTED[name]
    kwargs: dict[str, Any] = {}
    for argument in (*signature.required, *signature.optional):
        if argument not in signature.required and draw(st.booleans()):
            continue
        columns = [c for c, kind in COLUMNS.items() if kind in signature.types]
        good = {"column_list": st.lists(st.sampled_from(columns), min_size=2, max_size=2), "row_condition": CONDITIONS,
                "quantile_ranges": QUANTILES, "unexpected_rows_query": QUERIES, "partition_object": PARTITIONS,
                "type_": st.sampled_from(["int64", "str", "nope"])}.get(argument, st.sampled_from(columns))  # fmt: skip
        kwargs[argument] = draw(
            st.one_of(good, ANYTHING) if argument in ("column", "column_list") else ANYTHING | good
        )
    return {"type": name, "kwargs": kwargs}


@pytest.mark.parametrize(("a", "b"), itertools.combinations(COLUMNS, 2))
def test_columns_of_any_two_types_can_be_compared(a: str, b: str) -> None:
    entry = {
        "type": "expect_select_column_values_to_be_unique_within_record", "kwargs": {"column_list": [a, b]},
    }  # fmt: skip
    suite, problems = parse_suite(json.dumps({"name": "s", "expectations": [entry]}), COLUMNS)
    assert problems == []
    check, *_ = check_builder.build_checks(suite, COLUMNS, ["s"])
    values = (
        "'a' AS s, 1::BIGINT AS i, 1.0 AS n, true AS b, DATE '2024-01-01' AS d, TIMESTAMP '2024-01-01' AS t"
    )
    other = quote_identifier(list(COLUMNS)[-1])
    rows = duckdb.connect().execute(f"SELECT ({check.bad}) FROM (SELECT {values}, 'a' AS {other})").fetchall()
    assert rows == [({a, b} in ({"i", "n"}, {"s", list(COLUMNS)[-1]}),)]


@hypothesis_settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(expectations())
def test_a_suite_is_refused_or_becomes_names_and_literals(entry: dict[str, Any]) -> None:
    suite, problems = parse_suite(json.dumps({"name": "s", "expectations": [entry]}), COLUMNS)
    assert bool(suite) is not bool(problems)
    if not suite or validator.pattern_problems(suite) or query_problems(suite, COLUMNS):
        return
    con = duckdb.connect()
    listed = ", ".join(f"{quote_identifier(c)} {SQL_TYPES[kind]}" for c, kind in COLUMNS.items())
    con.execute(f"CREATE TABLE rows ({listed})")
    con.execute("INSERT INTO rows VALUES ('a', 1, 1.5, true, '2024-01-01', '2024-01-01', 'x')")
    for check in check_builder.build_checks(suite, COLUMNS, ["s"]):
        added = "".join(f", NULL AS {name}" for name in _added(check))
        for condition in filter(None, (check.bad, check.where, check.considered, check.counted)):
            # the library's own columns have names that no author's SQL may use
            text = re.sub(r"\b__(?=[a-z_]+_\d+\b)", "x", condition)
            assert author_sql.check_expression(con, text, COLUMNS) is None, condition
            assert con.execute(f"SELECT ({condition}) FROM (SELECT *{added} FROM rows)").fetchall()
        for aggregate in (*check.aggregates(), *check.parameters.values()):
            assert con.execute(f"SELECT {aggregate} FROM (SELECT *{added} FROM rows)").fetchall()
    assert isinstance(dry_run.argument_problems(suite, COLUMNS, ["s"]), list)


def _added(check: checks.Check) -> list[str]:
    return [*check.parameters, *check.windows, *filter(None, [check.mark])]


@pytest.mark.parametrize(
    ("pattern", "evaluated"),
    [
        ("a{5000}", False),
        ("(a{1000}){1000}", False),
        (r"\Z", True),
        ("(?#c)x", False),
        ("(?=a)b", True),
        ("^a", True),
    ],
)
def test_a_pattern_that_nothing_can_evaluate_is_a_problem(pattern: str, evaluated: bool) -> None:
    kwargs = {"column": "s", "regex": pattern}
    entries = [{"type": "expect_column_values_to_match_regex", "kwargs": kwargs}]
    suite, problems = parse_suite(json.dumps({"name": "s", "expectations": entries}), COLUMNS)
    assert not problems
    found = validator.pattern_problems(suite)
    assert [p.line for p in found] == ([] if evaluated else [1])
    assert all("cannot be evaluated" in p.message for p in found)


def test_a_suite_that_is_nested_too_deeply_is_a_problem() -> None:
    condition: dict[str, Any] = {"type": "nullity", "column": {"name": "s"}, "is_null": True}
    for _ in range(300):
        condition = {"type": "and", "conditions": [condition]}
    kwargs = {"column": "s", "row_condition": condition}
    text = json.dumps(
        {"name": "s", "expectations": [{"type": "expect_column_values_to_be_null", "kwargs": kwargs}]}
    )
    assert len(parse_suite(text, COLUMNS)[0]) + len(parse_suite(text, COLUMNS)[1]) == 1
    deep = '{"name": "s", "expectations": ' + "[" * 100_000 + "]" * 100_000 + "}"
    assert parse_suite(deep, COLUMNS)[1]
