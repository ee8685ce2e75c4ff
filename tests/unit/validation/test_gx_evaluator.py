"""Great Expectations accepts what the reading of a suite accepts."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from perennial.core.errors import SpecError
from perennial.validation.checks import Check
from perennial.validation.gx_evaluator import gx_expectation
from perennial.validation.suite import Expectation, SuiteProblem, parse_suite

COLUMNS = {"a": "number", "b": "integer", "s": "string", "t": "timestamp", "d": "date", "f": "boolean"}
BETWEEN = "expect_column_values_to_be_between"


def suite(*entries: Any) -> str:
    return json.dumps({"name": "s", "expectations": list(entries)}, indent=1)


def refused(expectations: list[Expectation]) -> list[SuiteProblem]:
    """What Great Expectations refuses of expectations that `parse_suite` has read."""
    problems = []
    for entry in expectations:
        config = {"meta": {}, **entry.config, "kwargs": entry.kwargs}
        try:
            gx_expectation(Check(entry.label, entry.type, config, entry.level), datetime(2000, 1, 1))
        except SpecError as error:
            problems.append(SuiteProblem(entry.line, error.cause.removeprefix("expectations.json: ")))
    return problems


def test_great_expectations_accepts_what_is_read() -> None:
    entries = [
        {"type": BETWEEN, "kwargs": {"column": "t", "min_value": "2020-01-01T00:00:00"}, "severity": "warning",
         "notes": "why", "description": "what", "id": "1", "meta": {"a": 1}},
        {"type": BETWEEN, "kwargs": {"column": "d", "max_value": "2020-01-01", "strict_max": True}, "meta": None},
        {"type": "expect_column_min_to_be_between", "kwargs": {"column": "t", "min_value": "2020-01-01T00:00:00"}},
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "t", "value_set": ["2020-01-01T00:00:00"]}},
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "d", "value_set": ["2020-01-01"]}},
        {"type": "expect_column_distinct_values_to_be_in_set", "kwargs": {"column": "d", "value_set": ["2020-01-01"]}},
        {"type": "expect_column_pair_values_a_to_be_greater_than_b", "kwargs": {"column_A": "s", "column_B": "s"}},
        {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 1, "max_value": None}},
    ]  # fmt: skip
    expectations, problems = parse_suite(suite(*entries), COLUMNS)
    assert problems == []
    assert refused(expectations) == []
