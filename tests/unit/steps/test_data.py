"""The data step: what is published, what goes to quarantine, what a rerun repeats and what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from great_expectations.core.expectation_validation_result import expectationSuiteValidationResultSchema

from perennial.core.errors import DataError, SpecError
from perennial.storage import delta_tables, manifests

DAY, NEXT, THIRD = "2020-03-01", "2020-03-02", "2020-03-03"


def labels(make_rows: Any, day: str = DAY, n: int = 40, **changes: Any) -> Any:
    import pyarrow as pa

    columns = {"id": [f"{day}-{i}" for i in range(n)], "value": [i / 10 for i in range(n)]}
    return pa.table(columns | changes)


@pytest.mark.data_profile
def test_publishes_a_partition(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows())
    result = small_model.run(run_id="r1")
    assert result["status"] == "published"
    assert (result["rows_in"], result["rows_out"], result["quarantined"]) == (40, 40, 0)
    assert result["partitions"] == [DAY]
    table = small_model.table()
    assert len(table) == 40
    assert {r["partition_date"] for r in table} == {DAY}
    assert set(table[0]) == {*small_model.columns, "partition_date"}
    manifest = manifests.read("small", "data", DAY)
    assert manifest is not None and manifest.rows_in == 40 and manifest.run_id == "r1"
    assert "Expectation Validation Result" in small_model.report()
    assert json.loads(small_model.report(ending="json"))["success"] is True
    assert json.loads(small_model.report(kind="profile", ending="json"))["perennial"]["rows_sampled"] == 40


def test_a_rerun_does_nothing_and_a_change_does_it_again(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows())
    first = small_model.run()
    again = small_model.run()
    assert again["status"] == "unchanged"
    assert {k: v for k, v in again.items() if k != "status"} == {
        k: v for k, v in first.items() if k != "status"
    }
    assert small_model.run(force=True)["version"] > first["version"]
    small_model.land(make_rows(n=30))
    assert small_model.run()["rows_out"] == 30
    assert len(small_model.table()) == 30
    small_model.suite = [
        *small_model.suite,
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "kind"}},
    ]
    assert small_model.run()["status"] == "published"
    small_model.changes = {"quarantine_limit": 0.5}
    assert small_model.run()["status"] == "published"


@pytest.mark.parametrize("feed", ["rows", "labels"])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_file_that_is_replaced_while_it_is_read_is_not_published(
    small_model: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch, feed: str, ending: str
) -> None:
    from perennial.validation import validator

    real = validator.validate
    if ending == "csv":
        small_model.changes = {"source": "{landing}/rows/{date}.csv", "personal": []}
        small_model.columns = {"id": "string", "at": "timestamp", "amount": "number", "kind": "string"}
    land = {
        "rows": lambda n, first: small_model.land(
            make_rows(NEXT, n=n, amount=[first] + [1.0] * (n - 1))
            if ending == "parquet"
            else "id,at,amount,kind\n" + "".join(f"{i},{NEXT} 01:00,{first},a\n" for i in range(n)),
            NEXT, ending=ending,
        ),
        "labels": lambda n, first: small_model.land(labels(make_rows, n=n, value=[first] * n), DAY, "labels"),
    }  # fmt: skip
    for name in ("rows", "labels"):
        land[name](40, 1.0)

    def replaced(con: Any, schema: Any, *rest: Any) -> Any:
        findings = real(con, schema, *rest)
        if schema.kind == feed:
            land[feed](40, 2.0)  # as many rows, validated as others
        return findings

    monkeypatch.setattr(validator, "validate", replaced)
    if feed == "rows" and ending == "csv":  # a copy is read: what was validated is published
        small_model.run(NEXT)
        assert {r["amount"] for r in small_model.table()} == {1.0}
    else:
        with pytest.raises(DataError, match=r"was replaced while it was read(?s:.)*run it again"):
            small_model.run(NEXT)
        assert small_model.table("published" if feed == "rows" else "labels") == []
    monkeypatch.setattr(validator, "validate", real)
    assert small_model.run(NEXT)["status"] == "published"
    assert small_model.run(NEXT)["status"] == "unchanged"
    if feed == "rows":
        assert 2.0 in {r["amount"] for r in small_model.table()}
    else:
        assert {r["label"] for r in small_model.table("labels")} == {1}


@pytest.mark.parametrize("feed", ["rows", "labels"])
def test_a_manifest_counts_only_if_the_tables_hold_what_its_run_wrote(
    small_model: Any, make_rows: Any, feed: str
) -> None:
    """Of two runs at the same time, one may write the rows last and the other the manifest."""
    key, step = (NEXT, "data") if feed == "rows" else (DAY, "labels")
    path = small_model.lake / "manifests" / "small" / step / f"{key}.json"

    def publish(n: int) -> None:
        small_model.land(make_rows(NEXT, n=n if feed == "rows" else 40), NEXT)
        small_model.land(labels(make_rows, n=n if feed == "labels" else 40), DAY, "labels")
        small_model.run(NEXT)

    publish(30)
    other = path.read_text()
    publish(20)
    path.write_text(other)
    publish(30)
    assert len(small_model.table("published" if feed == "rows" else "labels")) == 30
    assert small_model.run(NEXT)["status"] == "unchanged"


def test_bad_rows_go_to_quarantine_with_key_and_reason(small_model: Any, make_rows: Any) -> None:
    amounts = [float(i) for i in range(40)]
    amounts[3], amounts[7] = -1.0, -2.5
    small_model.land(make_rows(amount=amounts))
    result = small_model.run(run_id="r9")
    assert (result["rows_out"], result["quarantined"]) == (38, 2)
    quarantined = small_model.table("quarantine")
    assert [r["id"] for r in quarantined] == [f"{DAY}-3", f"{DAY}-7"]
    assert quarantined[0]["reasons"] == ["expect_column_values_to_be_between(amount)"]
    assert quarantined[0]["run_id"] == "r9"
    assert json.loads(quarantined[0]["row_values"])["amount"] == "-1.0"
    assert json.loads(quarantined[0]["row_values"])["phone"] == "(personal data)"
    assert not {r["id"] for r in quarantined} & {r["id"] for r in small_model.table()}
    document = json.loads(small_model.report(ending="json"))
    assert document["meta"]["perennial"] == {
        "verdict": "published", "rows": 40, "quarantined": 2, "stopped": [], "declared": 3, "evaluated": 3,
        "broken": {"expect_column_values_to_be_between(amount)": 2}, "in_great_expectations": [],
    }  # fmt: skip
    judged = next(
        r for r in document["results"] if r["expectation_config"]["kwargs"].get("column") == "amount"
    )
    assert judged["success"] is False
    assert judged["result"]["unexpected_count"] == 2
    assert judged["result"]["partial_unexpected_list"] == [-2.5, -1.0]
    assert expectationSuiteValidationResultSchema.load(document).to_json_dict() == document
    # mended and run again, the quarantine of that date is empty
    small_model.land(make_rows())
    small_model.run()
    assert small_model.table("quarantine") == []


def test_a_warning_is_recorded_and_stops_nothing(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows(kind=["z"] * 40))
    result = small_model.run()
    assert (result["rows_out"], result["quarantined"]) == (40, 0)
    judged = json.loads(small_model.report(ending="json"))["results"][2]
    assert judged["success"] is False and judged["result"]["unexpected_count"] == 40


def test_too_many_bad_rows_stop_the_partition(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows())
    small_model.run()
    small_model.land(make_rows(amount=[-1.0] * 40))
    with pytest.raises(
        DataError, match=r"(?s)model small, partition 2020-03-01: .*40 of 40 rows .*quarantine_limit is 25.0%"
    ):
        small_model.run()
    assert len(small_model.table()) == 40, "what was published before stays"
    record = small_model.table("quarantine")
    assert len(record) == 1 and record[0]["feed"] == "partition" and record[0]["id"] is None
    assert record[0]["reasons"][0].startswith("partition stopped: 40 of 40 rows")
    assert "nothing was published" in small_model.report()


def test_a_broken_table_level_expectation_stops_the_partition(small_model: Any, make_rows: Any) -> None:
    small_model.suite = [
        {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 100, "max_value": 200}}
    ]
    small_model.land(make_rows())
    with pytest.raises(DataError) as caught:
        small_model.run()
    text = str(caught.value)
    for part in ("small", DAY, "expect_table_row_count_to_be_between", "observed 40", "min_value 100", "Data doc: ",
                 "What to do"):  # fmt: skip
        assert part in text
    assert small_model.table() == []
    assert manifests.read("small", "data", DAY) is None
    assert json.loads(small_model.report(ending="json"))["success"] is False


def test_mostly_stops_where_it_is_not_met(small_model: Any, make_rows: Any) -> None:
    kinds = ["a"] * 36 + ["z"] * 4
    small_model.land(make_rows(kind=kinds))
    wanted = {
        "type": "expect_column_values_to_be_in_set",
        "kwargs": {"column": "kind", "value_set": ["a"], "mostly": 0.85},
    }
    small_model.suite = [wanted]
    assert small_model.run()["quarantined"] == 4
    wanted["kwargs"]["mostly"] = 0.95
    with pytest.raises(DataError, match=r"90.00% of the rows are good, mostly requires 95.00%"):
        small_model.run()


def _content(small_model: Any) -> dict[str, Any]:
    tables = {kind: small_model.table(kind) for kind in ("published", "labels", "quarantine")}
    documents = {}
    for path in sorted((small_model.lake / "reports" / "small" / "validation").glob("*.json")):
        documents[path.name] = json.loads(path.read_text())
    manifests = {}
    for path in sorted((small_model.lake / "manifests" / "small" / "data").glob("*.json")):
        content = json.loads(path.read_text())
        manifests[path.name] = [
            content["inputs"],
            content["rows_in"],
            content["rows_out"],
            content["quarantined"],
        ]
    for path in sorted((small_model.lake / "manifests" / "small" / "labels").glob("*.json")):
        content = json.loads(path.read_text())
        manifests[f"labels of {path.name}"] = [content["inputs"], content["rows_out"], content["quarantined"]]
    return {"tables": tables, "documents": documents, "manifests": manifests}


def test_a_range_gives_what_its_partitions_give(
    small_model: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    amounts = [float(i) for i in range(40)]
    small_model.suite = [
        *small_model.suite,
        {"type": "expect_column_median_to_be_between", "kwargs": {"column": "count", "min_value": 1}},
        {"type": "expect_column_quantile_values_to_be_between",
         "kwargs": {"column": "amount", "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[0, 30]]}}},
        {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["kind", "count"]}},
    ]  # fmt: skip
    small_model.land(make_rows(amount=[-1.0, *amounts[1:]]))
    small_model.land(make_rows(NEXT, id=["x"] * 3 + [f"{NEXT}-{i}" for i in range(37)]), NEXT)
    small_model.land(make_rows(THIRD, amount=[-1.0] * 40), THIRD)  # stopped
    small_model.land(make_rows("2020-03-04", n=30), "2020-03-04")
    # the fifth never lands
    small_model.land(make_rows("2020-03-06", n=20, kind=["z"] * 20), "2020-03-06")
    for day in (DAY, NEXT, "2020-03-04"):
        small_model.land(labels(make_rows, day), day, "labels")
    with pytest.raises(DataError, match=r"(?s)2 of 6 partitions .*2020-03-03.*2020-03-05.*has not landed"):
        small_model.run(DAY, "2020-03-06")
    whole = _content(small_model)
    monkeypatch.setenv("PERENNIAL_LAKE", str(small_model.folder / "lake2"))
    small_model.lake = small_model.folder / "lake2"
    for day in (DAY, NEXT, THIRD, "2020-03-04", "2020-03-05", "2020-03-06"):
        try:
            small_model.run(day)
        except DataError as error:
            assert day in (THIRD, "2020-03-05"), error
    single = _content(small_model)
    assert whole["tables"] == single["tables"]
    assert whole["documents"] == single["documents"]
    assert whole["manifests"] == single["manifests"]
    assert delta_tables.partitions(delta_tables.table_uri("published", "small")) == [
        DAY,
        NEXT,
        "2020-03-04",
        "2020-03-06",
    ]


def test_a_range_goes_on_where_it_ended(small_model: Any, make_rows: Any) -> None:
    for day in (DAY, NEXT):
        small_model.land(make_rows(day), day)
    small_model.run(DAY, NEXT)
    small_model.land(make_rows(THIRD), THIRD)
    result = small_model.run(DAY, THIRD)
    assert result["partitions"] == [DAY, NEXT, THIRD] and result["rows_in"] == 120
    assert manifests.read("small", "data", DAY).result["version"] < result["version"]  # type: ignore[union-attr]


def test_a_suite_that_great_expectations_refuses_stops_before_anything_is_written(
    small_model: Any, make_rows: Any
) -> None:
    small_model.suite = [
        {"type": "expect_column_values_to_be_betwen", "kwargs": {"column": "amount", "min_value": 0}}
    ]
    small_model.land(make_rows())
    with pytest.raises(SpecError, match=r"did you mean expect_column_values_to_be_between"):
        small_model.run()
    assert not small_model.lake.exists()


def test_an_expectation_that_cannot_be_evaluated_stops_the_partition(
    small_model: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite passes only if as many expectations were evaluated as were declared."""
    from great_expectations.expectations.core import ExpectColumnValuesToBeBetween

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(ExpectColumnValuesToBeBetween, "metrics_validate", fail)
    small_model.land(make_rows())
    with pytest.raises(
        DataError, match=r"expect_column_values_to_be_between\(amount\) could not be evaluated"
    ):
        small_model.run()
    document = json.loads(small_model.report(ending="json"))
    summary = document["meta"]["perennial"]
    assert (summary["evaluated"], summary["declared"]) == (2, 3)
    assert small_model.table() == []


def test_a_forced_run_repairs_a_damaged_partition(small_model: Any, make_rows: Any) -> None:
    """What the message about a damaged file says to do."""
    small_model.land(make_rows())
    small_model.run()
    for file in Path(delta_tables.table_uri("published", "small")).rglob("*.parquet"):
        file.write_bytes(b"PAR1")
    small_model.run(force=True)
    assert len(small_model.table()) == 40


def test_rows_that_a_query_or_great_expectations_finds_go_to_quarantine(
    small_model: Any, make_rows: Any
) -> None:
    query = {"unexpected_rows_query": "SELECT * FROM {batch} WHERE amount > 37 AND kind = 'a'"}
    small_model.suite = [
        {"type": "unexpected_rows_expectation", "kwargs": query, "description": "too <much>"},
        {"type": "expect_column_values_to_match_strftime_format",
         "kwargs": {"column": "kind", "strftime_format": "%Y"}},
        {"type": "expect_column_kl_divergence_to_be_less_than", "kwargs": {"column": "amount", "threshold": 1}},
        {"type": "expect_column_values_to_be_of_type", "kwargs": {"column": "count", "type_": "int64"}},
    ]  # fmt: skip
    small_model.land(make_rows(kind=["a" if i == 39 else "2020" if i else "x" for i in range(40)]))
    result = small_model.run()
    assert (result["rows_out"], result["quarantined"]) == (38, 2)
    assert {row["id"]: row["reasons"] for row in small_model.table("quarantine")} == {
        f"{DAY}-0": ["expect_column_values_to_match_strftime_format(kind)"],
        f"{DAY}-39": [
            "unexpected_rows_expectation(too <much>)",
            "expect_column_values_to_match_strftime_format(kind)",
        ],
    }
    itself = [
        "expect_column_values_to_match_strftime_format(kind)",
        "expect_column_kl_divergence_to_be_less_than(amount)",
    ]
    assert (
        json.loads(small_model.report(ending="json"))["meta"]["perennial"]["in_great_expectations"] == itself
    )
    page = small_model.report()
    assert f"Evaluated by Great Expectations itself, not in SQL: {', '.join(itself)}." in page
    assert "too &lt;much&gt;" in page and "too <much>" not in page
    manifest = manifests.read("small", "data", DAY)
    assert manifest and manifest.outputs["in_great_expectations"] == itself


def test_a_query_that_may_not_run_publishes_nothing(small_model: Any, make_rows: Any) -> None:
    query = {"unexpected_rows_query": "SELECT * FROM {batch}, read_csv('/etc/passwd')"}
    small_model.suite = [{"type": "unexpected_rows_expectation", "kwargs": query}]
    small_model.land(make_rows())
    with pytest.raises(SpecError, match="read_csv"):
        small_model.run()
    assert small_model.table() == []
