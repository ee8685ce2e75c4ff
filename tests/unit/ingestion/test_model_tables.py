"""Types and keys that change: each value read back is the one that landed, or nothing is written."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perennial.core import dates
from perennial.core.errors import SpecError, StorageError
from perennial.ingestion import model_tables
from perennial.steps.data import data
from perennial.storage import delta_tables, generations, ledger
from support import lake
from support.small_model import DAY, SmallModel, rows

NEXT = "2020-03-02"
VALUES: dict[str, tuple[st.SearchStrategy[Any], pa.DataType]] = {
    "string": (st.sampled_from(["007", "1", "true", "2020-01-01", "x"]), pa.string()),
    "integer": (st.integers(-(2**63), 2**63 - 1), pa.int64()),
    "number": (st.floats(allow_nan=False), pa.float64()),
    "boolean": (st.booleans(), pa.bool_()),
    "date": (st.dates(), pa.date32()),
    "timestamp": (st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)), pa.timestamp("us")),
}
small = st.integers(-1000, 1000)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the tables."""
    kinds = [folder / k for k in ("published", "labels", "quarantine", "predictions", "served")]
    files = [f for k in kinds for f in k.rglob("*") if f.is_file()]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def column(model: SmallModel, name: str = "value") -> dict[str, list[Any]]:
    """A published column by partition."""
    table = lake.read_table(delta_tables.table_uri("published", "small")).sort_by("id")
    days = table.column(delta_tables.PARTITION).to_pylist()
    result: dict[str, list[Any]] = {}
    for day, value in zip(days, table.column(name).to_pylist(), strict=True):
        result.setdefault(day, []).append(value)
    return result


def land(model: SmallModel, day: str, values: list[Any], arrow: pa.DataType, name: str = "value") -> None:
    some = rows(day, len(values)).select(["id", "at"])
    model.land(some.append_column(name, pa.array(values, arrow)), day)


@pytest.fixture
def plain(small_model: SmallModel) -> SmallModel:
    """The model with one column besides its key and time, no expectations and no label feed's file."""
    small_model.suite = []
    small_model.columns = {"id": "string", "at": "timestamp"}
    return small_model


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_after_a_change_of_type_every_value_is_the_one_that_landed_or_nothing_is_written(
    plain: SmallModel, draw: st.DataObject
) -> None:
    import shutil

    shutil.rmtree(plain.lake, ignore_errors=True)
    before = draw.draw(st.sampled_from(sorted(VALUES)))
    after = draw.draw(st.sampled_from([t for t in sorted(VALUES) if t != before]))
    strategy = small if before == "integer" and draw.draw(st.booleans()) else VALUES[before][0]
    old = draw.draw(st.lists(st.none() | strategy, min_size=1, max_size=4))
    new = draw.draw(st.lists(st.none() | VALUES[after][0], min_size=1, max_size=4))
    plain.columns = {"id": "string", "at": "timestamp", "value": before}
    land(plain, DAY, old, VALUES[before][1])
    data(plain.spec, start=DAY)
    plain.columns = plain.columns | {"value": after}
    land(plain, NEXT, new, VALUES[after][1])
    files = digests(plain.lake)
    try:
        data(plain.spec, start=NEXT)
    except SpecError as error:
        assert "'value'" in str(error) and before in str(error) and after in str(error)
        assert "new-generation small" in str(error)
        assert digests(plain.lake) == files
        assert column(plain) == {DAY: old}
        exact = all(v is None or abs(v) <= 2**53 for v in old) if before == "integer" else True
        assert (before, after) not in {("integer", "number"), ("date", "timestamp")} or not exact
    else:
        assert (before, after) in {("integer", "number"), ("date", "timestamp")}
        if after == "timestamp":
            old = [v and dt.datetime.combine(v, dt.time()) for v in old]
        assert column(plain) == {DAY: old, NEXT: new}
        assert ledger.records("small")[-1]["decision"] == "widened"


def test_a_range_of_files_with_other_number_types_gives_what_each_file_has(plain: SmallModel) -> None:
    plain.columns = {"id": "string", "at": "timestamp", "value": "number"}
    land(plain, DAY, [2**24 + 1, 2**53], pa.int64())
    land(plain, NEXT, [0.5], pa.float32())
    data(plain.spec, start=DAY, end=NEXT)
    assert column(plain) == {DAY: [2**24 + 1, 2**53], NEXT: [0.5]}


@pytest.fixture
def counted(plain: SmallModel) -> SmallModel:
    """The model with a column of integers, published on two days, and labels."""
    plain.columns = {"id": "string", "at": "timestamp", "value": "integer"}
    land(plain, DAY, [1, 2, 3], pa.int64())
    land(plain, NEXT, [4], pa.int64())
    landed = pa.table({"id": [f"{DAY}-{i}" for i in range(3)], "value": [0.5, 1.5, 2.5]})
    plain.land(landed, DAY, "labels")
    data(plain.spec, start=DAY, end=NEXT)
    return plain


def test_a_new_generation_is_empty_keeps_the_old_one_readable_and_is_recorded(counted: SmallModel) -> None:
    uri = delta_tables.table_uri("published", "small")
    before = delta_tables.version(uri)
    counted.columns = counted.columns | {"value": "string"}
    plan = model_tables.plan_generation(counted.spec)
    assert {t.kind for t in plan.tables} == {"published", "labels"}
    assert plan.commands("small", "data") == [f"perennial run data --model small --start {DAY} --end {NEXT}"]
    model_tables.begin_generation(counted.spec, plan, reason="codes have zeros", actor="ann")
    assert delta_tables.partitions(uri) == []
    assert delta_tables.version(uri) == (before or 0) + 1  # one commit
    old = lake.read_table(uri, version=before)
    assert old["value"].to_pylist() == [1, 2, 3, 4]
    record = ledger.records("small", ledger.LedgerKind.GENERATION)[-1]
    assert (record["decision"], record["actor"], record["reason"]) == ("started", "ann", "codes have zeros")
    assert record["evidence"]["tables"]["published"] == {"generation": 2, "version_before": before}
    table = delta_tables.open_table(uri)
    assert table is not None
    assert table.history(1)[0]["perennial.reason"] == "codes have zeros (ann)"


def test_after_a_new_generation_the_same_partitions_are_published_again(counted: SmallModel) -> None:
    counted.columns = counted.columns | {"value": "string"}
    land(counted, DAY, ["007", "x", None], pa.string())
    land(counted, NEXT, ["08"], pa.string())
    with pytest.raises(SpecError, match="column 'value' is integer in the table and string in the spec"):
        data(counted.spec, start=DAY, end=NEXT)
    plan = model_tables.plan_generation(counted.spec)
    model_tables.begin_generation(counted.spec, plan, reason="r", actor="a")
    assert data(counted.spec, start=DAY, end=NEXT)["status"] == "published"
    assert column(counted) == {DAY: ["007", "x", None], NEXT: ["08"]}
    assert len(lake.read_table(delta_tables.table_uri("labels", "small"))) == 3
    assert data(counted.spec, start=DAY, end=NEXT)["status"] == "unchanged"
    # A forced generation has no other inputs than its number: manifests must not hide that the tables are empty.
    plan = model_tables.plan_generation(counted.spec, force=True)
    model_tables.begin_generation(counted.spec, plan, reason="r", actor="a")
    assert data(counted.spec, start=DAY, end=NEXT)["status"] == "published"
    assert column(counted) == {DAY: ["007", "x", None], NEXT: ["08"]}


def test_an_interrupted_new_generation_plans_all_tables_again(
    counted: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted.columns = counted.columns | {"value": "string"}
    real, kinds = generations.start, []

    def start(uri: str, *arguments: Any) -> int:
        kinds.append(uri.split("/")[-2])
        if len(kinds) == 2:
            raise KeyboardInterrupt
        return real(uri, *arguments)

    monkeypatch.setattr(generations, "start", start)
    plan = model_tables.plan_generation(counted.spec)
    with pytest.raises(KeyboardInterrupt):
        model_tables.begin_generation(counted.spec, plan, reason="r", actor="a")
    again = model_tables.plan_generation(counted.spec)
    assert kinds == ["labels", "published"]
    assert {t.kind for t in again.tables} == {"published", "labels"}


@pytest.mark.parametrize(
    ("change", "tables", "message"),
    [
        (
            {"label": {"expression": "value > 2"}},
            {"labels"},
            "label.expression was 'value > 1' and is 'value > 2'",
        ),
        ({"label": {"expression": "value::VARCHAR"}}, {"labels"}, "column 'label' is integer in the table"),
        ({"key": ["id", "at"]}, {"labels"}, r"key was \['id'\] and is \['at', 'id'\]"),
        ({"columns": {"Value": "integer"}}, {"published", "labels"}, "differs only in case"),
    ],
)
def test_another_meaning_of_the_rows_needs_a_new_generation(
    counted: SmallModel, change: dict[str, Any], tables: set[str], message: str
) -> None:
    files = digests(counted.lake)
    counted.label = counted.label | change.get("label", {})
    if "key" in change:
        counted.changes = {"key": change["key"]}
        counted.label["columns"] = {"id": "string", "at": "timestamp", "value": "number"}
    if "columns" in change:
        counted.columns = {"id": "string", "at": "timestamp"} | change["columns"]
    with pytest.raises(SpecError, match=message):
        data(counted.spec, start=DAY, end=NEXT, force=True)
    assert digests(counted.lake) == files
    assert {t.kind for t in model_tables.plan_generation(counted.spec).tables} == tables


def test_a_generation_is_refused_if_nothing_has_to_change(counted: SmallModel) -> None:
    with pytest.raises(SpecError, match="no table has to change"):
        model_tables.plan_generation(counted.spec)


def test_a_new_column_is_null_in_partitions_before_it(counted: SmallModel) -> None:
    counted.columns = counted.columns | {"more": "number"}
    some = rows(NEXT, 1).select(["id", "at"])
    counted.land(some.append_column("value", pa.array([9])).append_column("more", pa.array([0.5])), NEXT)
    data(counted.spec, start=NEXT)
    assert column(counted, "more") == {DAY: [None] * 3, NEXT: [0.5]}
    assert column(counted) == {DAY: [1, 2, 3], NEXT: [9]}


def test_a_writer_refuses_what_another_run_changed_meanwhile(counted: SmallModel) -> None:
    old = model_tables.writer_of(counted.spec, "labels")
    counted.label = counted.label | {"expression": "value > 2"}
    plan = model_tables.plan_generation(counted.spec)
    model_tables.begin_generation(counted.spec, plan, reason="r", actor="a")
    rows = pa.table({"id": ["a"], "label": [1], "arrived": [NEXT], "partition_date": [DAY]})
    with pytest.raises(StorageError, match="nothing was written"):
        old.replace(rows, DAY)
    assert delta_tables.partitions(old.uri) == []


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"data": {"extra_columns": "stop"}}, True),
        ({"data": {"quarantine_limit": 0.5}}, True),
        ({"data": {"personal": ["value"]}}, True),
        ({"data": {"arrival": "wait", "arrival_hours": 1.0}}, False),
        ({"suite": [{"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 1}}]}, True),
        ({"label": {"personal": ["value"]}}, True),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_backfill_publishes_again_what_a_change_concerns(
    counted: SmallModel, change: dict[str, Any], again: bool
) -> None:
    before = column(counted)
    counted.changes = change.get("data", {})
    counted.label = counted.label | change.get("label", {})
    counted.suite = [e | {"meta": {}} for e in change.get("suite", [])]
    status = data(counted.spec, start=DAY, end=NEXT)["status"]
    assert status == ("published" if again else "unchanged")
    assert column(counted) == before


def test_another_source_is_read_by_a_backfill_and_a_personal_column_hidden_by_it(counted: SmallModel) -> None:
    counted.suite = [
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "value", "max_value": 2},
            "meta": {},
        }
    ]
    counted.changes = {"quarantine_limit": 0.5}
    data(counted.spec, start=DAY)
    assert '"value":3' in counted.table("quarantine")[0]["row_values"].replace(" ", "")
    counted.changes = {"quarantine_limit": 0.5, "personal": ["value"]}
    data(counted.spec, start=DAY)
    assert "3" not in counted.table("quarantine")[0]["row_values"].replace(DAY, "").replace(f"{DAY}-2", "")
    counted.changes = {"source": "{landing}/other/{date}.parquet"}
    some = rows(DAY, 2).select(["id", "at"])
    counted.land(some.append_column("value", pa.array([1, 2])), DAY, "other")
    data(counted.spec, start=DAY)
    assert column(counted) == {DAY: [1, 2], NEXT: [4]}


def test_labels_that_arrive_earlier_are_fetched_by_the_next_runs(plain: SmallModel) -> None:
    plain.columns = {"id": "string", "at": "timestamp", "value": "integer"}
    plain.label = plain.label | {"arrives_after": "3 days"}
    days = dates.dates(DAY, "2020-03-04")
    for day in days:
        land(plain, day, [1], pa.int64())
        plain.land(pa.table({"id": [f"{day}-0"], "value": [2.0]}), day, "labels")
    data(plain.spec, start=days[0], end=days[-1])
    labels = delta_tables.table_uri("labels", "small")
    assert delta_tables.partitions(labels) == [DAY]
    plain.label = plain.label | {"arrives_after": "1 day"}
    data(plain.spec, start=days[0], end=days[-1])
    assert delta_tables.partitions(labels) == days[:-1]
