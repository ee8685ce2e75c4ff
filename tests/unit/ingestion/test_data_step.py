"""The data step: what is published, what is put aside, what is repeated and what is not."""

from __future__ import annotations

import json
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


@pytest.mark.summary
def test_publishes_a_night(place: Any, make_rows: Any) -> None:
    place.land(make_rows())
    result = place.run(run_id="r1")
    assert result["status"] == "published"
    assert (result["rows_in"], result["rows_out"], result["quarantined"]) == (40, 40, 0)
    assert result["partitions"] == [DAY]
    table = place.table()
    assert len(table) == 40
    assert {r["partition_date"] for r in table} == {DAY}
    assert set(table[0]) == {*place.columns, "partition_date"}
    found = manifests.read("small", "data", DAY)
    assert found is not None and found.rows_in == 40 and found.run_id == "r1"
    assert "Expectation Validation Result" in place.report()
    assert json.loads(place.report(ending="json"))["success"] is True
    assert json.loads(place.report(kind="profile", ending="json"))["perennial"]["rows_sampled"] == 40


def test_a_rerun_does_nothing_and_a_change_does_it_again(place: Any, make_rows: Any) -> None:
    place.land(make_rows())
    first = place.run()
    again = place.run()
    assert again["status"] == "unchanged"
    assert {k: v for k, v in again.items() if k != "status"} == {
        k: v for k, v in first.items() if k != "status"
    }
    assert place.run(force=True)["version"] > first["version"]
    place.land(make_rows(n=30))
    assert place.run()["rows_out"] == 30
    assert len(place.table()) == 30
    place.suite = [
        *place.suite,
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "kind"}},
    ]
    assert place.run()["status"] == "published"
    place.changes = {"quarantine_limit": 0.5}
    assert place.run()["status"] == "published"


def test_bad_rows_go_to_quarantine_with_key_and_reason(place: Any, make_rows: Any) -> None:
    amounts = [float(i) for i in range(40)]
    amounts[3], amounts[7] = -1.0, -2.5
    place.land(make_rows(amount=amounts))
    result = place.run(run_id="r9")
    assert (result["rows_out"], result["quarantined"]) == (38, 2)
    aside = place.table("quarantine")
    assert [r["id"] for r in aside] == [f"{DAY}-3", f"{DAY}-7"]
    assert aside[0]["reasons"] == ["expect_column_values_to_be_between(amount)"]
    assert aside[0]["run_id"] == "r9"
    assert json.loads(aside[0]["row_values"])["amount"] == "-1.0"
    assert json.loads(aside[0]["row_values"])["phone"] == "(personal data)"
    assert not {r["id"] for r in aside} & {r["id"] for r in place.table()}
    document = json.loads(place.report(ending="json"))
    assert document["meta"]["perennial"] == {
        "verdict": "published", "rows": 40, "quarantined": 2, "stopped": [], "declared": 3, "evaluated": 3,
        "broken": {"expect_column_values_to_be_between(amount)": 2},
    }  # fmt: skip
    judged = next(
        r for r in document["results"] if r["expectation_config"]["kwargs"].get("column") == "amount"
    )
    assert judged["success"] is False
    assert judged["result"]["unexpected_count"] == 2
    assert judged["result"]["partial_unexpected_list"] == [-2.5, -1.0]
    assert expectationSuiteValidationResultSchema.load(document).to_json_dict() == document
    # mended and run again, the quarantine of that date is empty
    place.land(make_rows())
    place.run()
    assert place.table("quarantine") == []


def test_a_warning_is_recorded_and_stops_nothing(place: Any, make_rows: Any) -> None:
    place.land(make_rows(kind=["z"] * 40))
    result = place.run()
    assert (result["rows_out"], result["quarantined"]) == (40, 0)
    judged = json.loads(place.report(ending="json"))["results"][2]
    assert judged["success"] is False and judged["result"]["unexpected_count"] == 40


def test_too_many_bad_rows_stop_the_partition(place: Any, make_rows: Any) -> None:
    place.land(make_rows())
    place.run()
    place.land(make_rows(amount=[-1.0] * 40))
    with pytest.raises(
        DataError, match=r"(?s)model small, partition 2020-03-01: .*40 of 40 rows .*quarantine_limit is 25.0%"
    ):
        place.run()
    assert len(place.table()) == 40, "what was published before stays"
    record = place.table("quarantine")
    assert len(record) == 1 and record[0]["feed"] == "partition" and record[0]["id"] is None
    assert record[0]["reasons"][0].startswith("partition stopped: 40 of 40 rows")
    assert "nothing was published" in place.report()


def test_a_broken_table_level_expectation_stops_the_partition(place: Any, make_rows: Any) -> None:
    place.suite = [
        {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 100, "max_value": 200}}
    ]
    place.land(make_rows())
    with pytest.raises(DataError) as caught:
        place.run()
    text = str(caught.value)
    for part in ("small", DAY, "expect_table_row_count_to_be_between", "observed 40", "min_value 100", "Data doc: ",
                 "What to do"):  # fmt: skip
        assert part in text
    assert place.table() == []
    assert manifests.read("small", "data", DAY) is None
    assert json.loads(place.report(ending="json"))["success"] is False


def test_mostly_stops_where_it_is_not_met(place: Any, make_rows: Any) -> None:
    kinds = ["a"] * 36 + ["z"] * 4
    place.land(make_rows(kind=kinds))
    wanted = {
        "type": "expect_column_values_to_be_in_set",
        "kwargs": {"column": "kind", "value_set": ["a"], "mostly": 0.85},
    }
    place.suite = [wanted]
    assert place.run()["quarantined"] == 4
    wanted["kwargs"]["mostly"] = 0.95
    with pytest.raises(DataError, match=r"90.00% of the rows are good, mostly requires 95.00%"):
        place.run()


def test_labels_arrive_a_day_later(place: Any, make_rows: Any) -> None:
    place.land(make_rows())
    place.land(make_rows(NEXT), NEXT)
    assert place.run()["labels"] == 0, "the first night's labels are not there: no failure"
    found = manifests.read("small", "data", DAY)
    assert found is not None and found.result["label_state"] == "missing"
    place.land(labels(make_rows, value=[None] + [i / 10 for i in range(1, 40)]), DAY, "labels")
    assert place.run(NEXT)["labels"] == 40
    table = place.table("labels")
    assert {(r["partition_date"], r["arrived"]) for r in table} == {(DAY, NEXT)}
    values = {r["id"]: r["label"] for r in table}
    assert values[f"{DAY}-0"] is None and values[f"{DAY}-5"] == 0 and values[f"{DAY}-39"] == 1
    # the first night's own labels still have not come: nothing to do
    assert place.run()["status"] == "unchanged"


def test_labels_that_come_late_are_published_by_a_rerun(place: Any, make_rows: Any) -> None:
    for day in (DAY, NEXT):
        place.land(make_rows(day), day)
        place.run(day)
    place.land(labels(make_rows), DAY, "labels")
    result = place.run(NEXT)
    assert result["status"] == "published" and result["labels"] == 40


def test_labels_for_keys_never_published_are_put_aside(place: Any, make_rows: Any) -> None:
    amounts = [float(i) for i in range(40)]
    amounts[3] = -1.0
    place.land(make_rows(amount=amounts))
    place.land(make_rows(NEXT, amount=[-1.0] + amounts[4:] + [0.0] * 3), NEXT)
    strange = [f"{DAY}-{i}" for i in range(38)] + ["nobody", None]
    place.land(labels(make_rows, id=strange), DAY, "labels")
    result = place.run(DAY, NEXT)
    assert result["labels"] == 37, "one row was in quarantine, one was never there, one has no key"
    assert result["labels_quarantined"] == 3
    aside = [r for r in place.table("quarantine") if r["feed"] == "labels"]
    assert {(r["id"], r["partition_date"], r["feed_date"]) for r in aside} == {
        (f"{DAY}-3", NEXT, DAY), ("nobody", NEXT, DAY), (None, NEXT, DAY)}  # fmt: skip
    reasons = {r["id"]: r["reasons"] for r in aside}
    assert reasons["nobody"] == ["key was never published"]
    assert "expect_column_values_to_not_be_null(id)" in reasons[None]
    rows_aside = [r for r in place.table("quarantine") if r["feed"] == "rows" and r["partition_date"] == NEXT]
    assert len(rows_aside) == 1, "the night's own quarantine is kept beside that of the labels it brought"


def test_labels_can_be_a_column_of_the_data(place: Any, make_rows: Any) -> None:
    place.label = {"expression": "ok"}
    place.land(make_rows())
    result = place.run()
    assert result["labels"] == 40
    assert sum(r["label"] for r in place.table("labels")) == 14


def test_a_label_expression_that_fails_names_the_columns(place: Any, make_rows: Any) -> None:
    place.label = place.label | {"expression": "valeu > 1"}
    place.land(make_rows())
    with pytest.raises(SpecError, match=r"(?s)label.expression 'valeu > 1' fails.*id, value"):
        place.run()


def test_a_label_expression_reads_no_file(place: Any, make_rows: Any, tmp_path: Any) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    place.label = place.label | {"expression": f"(SELECT a FROM read_csv('{tmp_path}/secret.csv'))"}
    place.land(make_rows())
    with pytest.raises(SpecError, match=r"label\.expression"):
        place.run()


def _content(place: Any) -> dict[str, Any]:
    kept = {kind: place.table(kind) for kind in ("published", "labels", "quarantine")}
    documents = {}
    for path in sorted((place.lake / "reports" / "small" / "validation").glob("*.json")):
        documents[path.name] = json.loads(path.read_text())
    manifests = {}
    for path in sorted((place.lake / "manifests" / "small" / "data").glob("*.json")):
        found = json.loads(path.read_text())
        manifests[path.name] = [
            found["inputs"],
            found["rows_in"],
            found["rows_out"],
            found["quarantined"],
        ] + [found["result"][k] for k in ("labels", "labels_quarantined", "label_state")]
    return {"tables": kept, "documents": documents, "manifests": manifests}


def test_a_range_gives_what_its_nights_give(
    place: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    amounts = [float(i) for i in range(40)]
    place.suite = [
        *place.suite,
        {"type": "expect_column_median_to_be_between", "kwargs": {"column": "count", "min_value": 1}},
        {"type": "expect_column_quantile_values_to_be_between",
         "kwargs": {"column": "amount", "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[0, 30]]}}},
        {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["kind", "count"]}},
    ]  # fmt: skip
    place.land(make_rows(amount=[-1.0, *amounts[1:]]))
    place.land(make_rows(NEXT, id=["x"] * 3 + [f"{NEXT}-{i}" for i in range(37)]), NEXT)
    place.land(make_rows(THIRD, amount=[-1.0] * 40), THIRD)  # stopped
    place.land(make_rows("2020-03-04", n=30), "2020-03-04")
    # the fifth never lands
    place.land(make_rows("2020-03-06", n=20, kind=["z"] * 20), "2020-03-06")
    for day in (DAY, NEXT, "2020-03-04"):
        place.land(labels(make_rows, day), day, "labels")
    with pytest.raises(DataError, match=r"(?s)2 of 6 partitions .*2020-03-03.*2020-03-05.*has not landed"):
        place.run(DAY, "2020-03-06")
    whole = _content(place)
    monkeypatch.setenv("PERENNIAL_LAKE", str(place.folder / "lake2"))
    place.lake = place.folder / "lake2"
    for day in (DAY, NEXT, THIRD, "2020-03-04", "2020-03-05", "2020-03-06"):
        try:
            place.run(day)
        except DataError as error:
            assert day in (THIRD, "2020-03-05"), error
    nights = _content(place)
    assert whole["tables"] == nights["tables"]
    assert whole["documents"] == nights["documents"]
    assert whole["manifests"] == nights["manifests"]
    assert delta_tables.partitions(delta_tables.table_uri("published", "small")) == [
        DAY,
        NEXT,
        "2020-03-04",
        "2020-03-06",
    ]


def test_a_range_goes_on_where_it_ended(place: Any, make_rows: Any) -> None:
    for day in (DAY, NEXT):
        place.land(make_rows(day), day)
    place.run(DAY, NEXT)
    place.land(make_rows(THIRD), THIRD)
    result = place.run(DAY, THIRD)
    assert result["partitions"] == [DAY, NEXT, THIRD] and result["rows_in"] == 120
    assert manifests.read("small", "data", DAY).result["version"] < result["version"]  # type: ignore[union-attr]


def test_a_suite_that_great_expectations_refuses_stops_before_anything_is_written(
    place: Any, make_rows: Any
) -> None:
    place.suite = [
        {"type": "expect_column_values_to_be_betwen", "kwargs": {"column": "amount", "min_value": 0}}
    ]
    place.land(make_rows())
    with pytest.raises(SpecError, match=r"did you mean expect_column_values_to_be_between"):
        place.run()
    assert not place.lake.exists()


def test_an_expectation_that_cannot_be_evaluated_stops_the_partition(
    place: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite passes only if as many expectations were evaluated as were declared."""
    from great_expectations.expectations.core import ExpectColumnValuesToBeBetween

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(ExpectColumnValuesToBeBetween, "metrics_validate", fail)
    place.land(make_rows())
    with pytest.raises(
        DataError, match=r"expect_column_values_to_be_between\(amount\) could not be evaluated"
    ):
        place.run()
    kept = json.loads(place.report(ending="json"))
    assert kept["meta"]["perennial"]["evaluated"] == 2 and kept["meta"]["perennial"]["declared"] == 3
    assert place.table() == []
