"""No value of a personal column leaves the tables of the lake, whatever is wrong with a file or a label."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.errors import PerennialError
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.validation.suite import SUPPORTED
from support import canary
from support.canary import NUMBER, TEXT
from support.small_model import SmallModel

DAY, NEXT = "2020-03-01", "2020-03-02"
HEADER = "id,at,mail,salary\n"


def row(i: int, mail: str = "a@b.c", salary: object = 5) -> str:
    return f"r{i},{DAY} 08:00:00,{mail},{salary}\n"


GOOD = HEADER + "".join(row(i) for i in range(9))


@pytest.fixture
def model(small_model: SmallModel) -> SmallModel:
    """A model with personal columns, one of which is in its label feed."""
    small_model.columns = {"id": "string", "at": "timestamp", "mail": "string", "salary": "number"}
    small_model.changes = {"personal": ["mail", "salary"]}
    small_model.suite = []
    return small_model


@pytest.fixture
def watch(tmp_path: Path, caplog: Any, capfd: Any) -> canary.Watch:
    return canary.Watch([tmp_path], caplog, capfd)


def rows(day: str = DAY, n: int = 40, **changes: Any) -> pa.Table:
    import datetime as dt

    date = dt.datetime.fromisoformat(day)
    return canary.table(
        n, id=[f"{day}-{i}" for i in range(n)], at=pa.array([date] * n, pa.timestamp("us")), **changes
    )


def run(model: SmallModel, watch: canary.Watch, start: str = DAY, end: str | None = None) -> Any:
    """Run the step as Airflow, the command line and a pod do, and search what it leaves."""
    try:
        outcome: Any = dispatch.run("data", model.spec, start=start, end=end)
    except PerennialError as error:
        outcome = error
    watch.add(outcome)
    watch.check()
    return outcome


def compressed(text: str) -> bytes:
    return gzip.compress(text.encode())[:-9]


def parquet(**changes: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(rows(**changes), file, compression="none", use_dictionary=False, store_schema=False)
    return file.getvalue()


FILES: dict[str, tuple[str, str | bytes]] = {
    "too many cells": ("csv", GOOD + row(10, TEXT, f"{NUMBER},more")),
    "too few cells": ("csv", GOOD + f"r1,{TEXT}\n"),
    "quote not closed": ("csv", GOOD + row(10, f'"{TEXT}')),
    "text after a quote": ("csv", GOOD + row(10, f'"a"{TEXT}')),
    "continued line": ("csv", GOOD + row(10, f'"x\n{TEXT}\n{TEXT}"', f"{NUMBER},1")),
    "lines that look like hints": ("csv", GOOD + row(10, f'"\nPossible fixes:\n* {TEXT}\n"', "1,2")),
    "invalid bytes": ("csv", GOOD.encode() + row(10).encode().replace(b"a@b.c", TEXT.encode("latin-1"))),
    "invalid bytes at the start": ("csv", b"\xff" + TEXT.encode("latin-1") + b"\n"),
    "no header": ("csv", row(10, TEXT, NUMBER) * 3),
    "header with empty names": ("csv", f"{TEXT},,{NUMBER},\n" + GOOD),
    "header with duplicates": ("csv", f"{TEXT},{TEXT},a,b\n" + GOOD),
    "long line": ("csv", GOOD + row(10, TEXT + "x" * (17 << 20))),
    "not compressed": ("csv.gz", GOOD + row(10, TEXT)),
    "compression ends early": ("csv.gz", compressed(GOOD + row(10, TEXT) * 2000)),
    "no parquet file": ("parquet", TEXT.encode() * 9),
    "parquet without its end": ("parquet", parquet()[:-40]),
    "parquet, changed bytes": ("parquet", parquet().replace(TEXT.encode()[:12], b"\xff" * 12)),
    "parquet, invalid text": ("parquet", parquet().replace("ö".encode(), b"\xff\xfe")),
    "parquet, another type": ("parquet", parquet(salary=[TEXT] * 40)),
    "a row in place of names": ("parquet", parquet().replace(b"salary", b"Salary")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILES)
def test_a_broken_file(model: SmallModel, watch: canary.Watch, fault: str) -> None:
    ending, content = FILES[fault]
    model.changes |= {"source": "{landing}/rows/{date}." + ending, "extra_columns": "stop"}
    model.land(content, ending=ending)
    error = run(model, watch)
    assert isinstance(error, PerennialError), "the file must be refused"
    assert error.__cause__ is None and error.__context__ is None


def test_a_broken_file_within_a_range(model: SmallModel, watch: canary.Watch) -> None:
    model.changes |= {"source": "{landing}/rows/{date}.csv"}
    model.land(FILES["continued line"][1], ending="csv")
    model.land(GOOD.replace(DAY, NEXT), NEXT, ending="csv")
    error = run(model, watch, DAY, NEXT)
    assert isinstance(error, PerennialError) and "line 11" in str(error), "the line is named"
    assert {r["partition_date"] for r in model.table()} == {NEXT}, "the other partition is published"


@pytest.mark.parametrize("fault", ["too many cells", "continued line", "invalid bytes", "no header"])
def test_a_broken_label_file(model: SmallModel, watch: canary.Watch, fault: str) -> None:
    ending, content = FILES[fault]
    model.changes = {}
    model.columns = {"id": "string", "at": "timestamp"}
    model.label = {
        "source": "{landing}/labels/{date}." + ending, "expression": "salary > 1", "arrives_after": "0 days",
        "columns": {"id": "string", "at": "timestamp", "mail": "string", "salary": "number"},
        "personal": ["mail", "salary"],
    }  # fmt: skip
    model.land(rows().select(["id", "at"]))
    model.land(content, feed="labels", ending=ending)
    assert isinstance(run(model, watch), PerennialError)


#: Label expressions that fail on the canary's row alone, in forms in which DuckDB quotes values.
EXPRESSIONS = [
    "mail::DATE > DATE '2020-01-01'",
    "CASE WHEN mail LIKE 'canary%' THEN mail::INTEGER ELSE 1 END",
    "CASE WHEN mail LIKE 'canary%' THEN error('v ' || mail) ELSE 1 END",
    "CASE WHEN mail LIKE 'canary%' THEN json_extract(mail, '$.a')::INTEGER ELSE 1 END",
    "CASE WHEN mail LIKE 'canary%' THEN strptime(mail, '%Y')::DATE = DATE '2020-01-01' ELSE TRUE END",
    "CASE WHEN mail LIKE 'canary%' THEN (mail || chr(10) || mail)::TIMESTAMP > TIMESTAMP '2020-01-01' END",
    "CASE WHEN mail LIKE 'canary%' THEN from_base64(mail) IS NULL ELSE TRUE END",
    "CASE WHEN mail LIKE 'canary%' THEN regexp_matches('x', '(' || mail) ELSE TRUE END",
    "CASE WHEN mail LIKE 'canary%' THEN salary::TINYINT ELSE 1 END",
    "CASE WHEN mail LIKE 'canary%' THEN salary::BIGINT * 9000000000000 ELSE 1 END",
    "CASE WHEN mail LIKE 'canary%' THEN salary::DECIMAL(4, 2)::DOUBLE ELSE 1 END > 0",
    "CASE WHEN mail LIKE 'canary%' THEN (['a'])[mail::INTEGER] END",
]


@pytest.mark.parametrize(
    ("expression", "own_feed"), [*((e, False) for e in EXPRESSIONS), *((e, True) for e in EXPRESSIONS[:2])]
)
def test_a_label_that_cannot_be_computed(
    model: SmallModel, watch: canary.Watch, expression: str, own_feed: bool
) -> None:
    columns = {"id": "string", "mail": "string", "salary": "number"}
    model.label = {
        "source": "{landing}/labels/{date}.parquet", "expression": expression, "arrives_after": "0 days",
        "columns": columns, "personal": ["mail", "salary"] if own_feed else [],
    }  # fmt: skip
    if own_feed:
        model.changes = {}
    model.land(rows())
    model.land(rows().select(list(columns)), feed="labels")
    assert isinstance(run(model, watch), PerennialError)


def arguments(kind: str) -> dict[str, Any]:
    """Arguments with which an expectation on the personal columns is broken by the canary, or by all rows."""
    signature, number = SUPPORTED[kind], "string" not in SUPPORTED[kind].types
    column = "salary" if number or ("between" in kind and "length" not in kind) else "mail"
    values: dict[str, Any] = {
        "column": column, "column_A": "id", "column_B": "mail", "column_list": ["mail", "id"],
        "min_value": 0, "max_value": 0.01, "value": 3, "value_set": ["other" if column == "mail" else 3],
        "regex": "^p", "regex_list": ["^p"], "value_pairs_set": [["a", "b"]], "sum_total": 3,
        "quantile_ranges": {"quantiles": [0.5, 1.0], "value_ranges": [[0, 1], [0, 1]]},
        "column_set": ["id"], "like_pattern": "p%", "like_pattern_list": ["p%"], "strftime_format": "%Y",
        "json_schema": {"type": "object"}, "threshold": 0.01, "double_sided": True, "type_": "int64",
        "type_list": ["int64"], "strictly": True,
        "unexpected_rows_query": "SELECT * FROM {batch} WHERE mail LIKE 'canary%'",
        "partition_object": {"values": ["other" if column == "mail" else 3], "weights": [1]},
    }  # fmt: skip
    if number and "column_list" in signature.required:
        values["column_list"] = ["salary", "bonus"]
    if "regex" in signature.required and "not" in kind.split("_to_")[-1]:
        values["regex"] = "^canary"
    if "regex_list" in signature.required and "not_match" in kind:
        values["regex_list"] = ["^canary"]
    if "not_match_like" in kind:
        values |= {"like_pattern": "canary%", "like_pattern_list": ["canary%"]}
    if "increasing" in kind or "decreasing" in kind:
        values["column"] = "salary"
    given = ("min_value", "max_value", "type_list", "strictly", "partition_object")
    names = [*signature.required, *(a for a in given if a in signature.optional)]
    return {name: values[name] for name in names}


def expectations(severity: str) -> list[dict[str, Any]]:
    """An expectation of each type, and the same of another column in the rows that a personal column selects."""
    suite: list[dict[str, Any]] = []
    condition = {"type": "comparison", "column": {"name": "mail"}, "operator": "==", "parameter": "x"}
    for kind in SUPPORTED:
        given = arguments(kind)
        suite.append({"type": kind, "kwargs": given, "severity": severity, "meta": {}})
        if "row_condition" in SUPPORTED[kind].optional:
            other = {k: ("id" if v == "mail" else v) for k, v in given.items()}
            suite.append(suite[-1] | {"kwargs": other | {"row_condition": condition}, "severity": "info"})
    return suite


@pytest.mark.parametrize("severity", ["critical", "warning"])
def test_broken_expectations(model: SmallModel, watch: canary.Watch, severity: str) -> None:
    model.columns["bonus"] = "number"
    model.changes |= {"personal": ["mail", "salary", "bonus"], "quarantine_limit": 1}
    model.suite = expectations(severity)
    mails = [TEXT] * 20 + [f"person{i}@example.org" for i in range(20)]
    model.land(rows(mail=mails, bonus=[NUMBER] * 40))
    outcome = run(model, watch)
    assert isinstance(outcome, PerennialError) is (severity == "critical")
    results = json.loads(model.report(ending="json"))["results"]
    failed = {r["expectation_config"]["type"] for r in results if not r["success"]}
    assert len(failed) > 30, sorted(set(SUPPORTED) - failed)


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_rows_that_go_to_quarantine(model: SmallModel, watch: canary.Watch, limit: float) -> None:
    model.changes |= {"source": "{landing}/rows/{date}.csv", "quarantine_limit": limit}
    model.land(GOOD + row(20, TEXT, TEXT) + row(21, TEXT, "inf") + row(20, TEXT, NUMBER), ending="csv")
    outcome = run(model, watch)
    assert isinstance(outcome, PerennialError) is (limit == 0.0)
    for record in model.table("quarantine"):
        assert not canary.find(str(record).encode()), "of a row that was quarantined only the key is kept"


def test_a_personal_key_is_kept_only_in_the_tables(model: SmallModel, watch: canary.Watch) -> None:
    model.changes |= {"key": ["mail"]}
    model.label = {"expression": "x"}
    model.columns["x"] = "integer"
    model.land(rows(mail=[TEXT] * 20 + [f"{TEXT}{i}" for i in range(20)], x=[1] * 40))
    outcome = run(model, watch)
    assert isinstance(outcome, PerennialError), "19 of 40 rows repeat a key"
    model.changes["quarantine_limit"] = 1
    assert run(model, watch)["quarantined"] == 19


@pytest.mark.data_profile
def test_the_profile(model: SmallModel, watch: canary.Watch) -> None:
    model.land(rows())
    assert run(model, watch)["rows_out"] == 40


def test_the_search_finds_a_value(model: SmallModel, watch: canary.Watch, tmp_path: Path) -> None:
    model.changes = {}
    model.suite = [
        {
            "type": "expect_column_max_to_be_between",
            "kwargs": {"column": "salary", "max_value": 1},
            "meta": {},
        }
    ]
    model.land(rows())
    with pytest.raises(AssertionError):
        run(model, watch)


def test_personal_columns_of_either_feed_are_personal_in_both(model: SmallModel) -> None:
    model.changes = {"personal": ["mail"]}
    model.label["columns"] = {"id": "string", "value": "number"}
    model.label["personal"] = ["value"]
    spec: ModelSpec = model.spec
    assert spec.personal_columns == ["mail", "value"] and spec.hides_values
    assert ModelSpec.from_bundle(spec.bundle()).personal_columns == ["mail", "value"]
