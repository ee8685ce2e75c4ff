"""Cells that cannot be read as their declared type go to quarantine, however many, with the text of the file."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from perennial.feeds import text_files
from perennial.ingestion import typed_rows
from support.small_model import DAY, SUITE, SmallModel, rows


def quarantined(model: SmallModel, column: str) -> list[Any]:
    return [json.loads(row["row_values"])[column] for row in model.table("quarantine")]


@pytest.mark.parametrize(("bad", "columns"), [(1, 250), (20, 250), (20, 2), (39, 250), (40, 3)])
def test_any_share_of_a_text_column(
    small_model: SmallModel, monkeypatch: pytest.MonkeyPatch, bad: int, columns: int
) -> None:
    """However many columns are parsed and cast at a time."""
    monkeypatch.setattr(typed_rows, "COLUMNS_PER_CAST", columns)
    monkeypatch.setattr(text_files, "COLUMNS_PER_PASS", columns)
    lines = ["id,at,amount,count,kind,ok,on,phone"]
    for i, row in enumerate(rows().to_pylist()):
        on = "31.12.2020" if i < bad else row["on"]
        lines.append(",".join(map(str, (*list(row.values())[:6], on, row["phone"]))))
    small_model.land("\n".join(lines) + "\n", ending="csv")
    small_model.changes = {"source": "{landing}/rows/{date}.csv", "quarantine_limit": 1.0}
    result = small_model.run()
    assert (result["rows_in"], result["rows_out"], result["quarantined"]) == (40, 40 - bad, bad)
    assert small_model.reasons() == ["not readable as date: on"]
    assert quarantined(small_model, "on") == ["31.12.2020"] * bad
    for readable in ("amount", "count"):
        values = [row[readable] for row in rows().to_pylist()[:bad]]
        assert sorted(float(cell) for cell in quarantined(small_model, readable)) == sorted(values)
    entries = json.loads(small_model.report(ending="json"))["results"]
    (entry,) = [e for e in entries if e["result"].get("unexpected_count") == bad]
    assert entry["result"]["missing_count"] == 0
    assert entry["result"]["unexpected_percent"] == pytest.approx(100 * bad / 40)


def test_integers_wider_than_64_bits(small_model: SmallModel) -> None:
    """In Parquet, where the cell is no text; another expectation puts a row of the same file into quarantine, too."""
    wide = [2**63 + 1, 2**64 - 1, *range(2, 40)]
    small_model.land(rows(count=pa.array(wide, pa.uint64()), amount=[1.0] * 39 + [-1.0]))
    result = small_model.run()
    assert (result["rows_out"], result["quarantined"]) == (37, 3)
    assert quarantined(small_model, "count") == ["9223372036854775809", "18446744073709551615", "39"]
    assert [row["count"] for row in small_model.table()] == sorted(range(2, 39), key=lambda i: f"{DAY}-{i}")


TYPES: dict[str, tuple[str, pa.Array, str | None]] = {
    "unsigned": ("count", pa.array([1, 2**64 - 1, *range(38)], pa.uint64()), f"{2**64 - 1}"),
    "decimal": ("count", pa.array([Decimal(i) for i in (1, 10**20, *range(38))], pa.decimal128(38, 0)), f"{10**20}"),
    "float": ("count", pa.array([1.0, 2.5, None, *[7.0] * 37]), "2.5"),
    "text": ("amount", pa.array(["1", "2,5", None, *["7"] * 37]), "2,5"),
    "bytes": ("kind", pa.array([b"a", b"\xff", None, *[b"b"] * 37]), "\\xFF"),
    "boolean": ("ok", pa.array([1, 2, None, *[0] * 37], pa.uint64()), "2"),
    "date": ("on", pa.array([0, 1, None, *[0] * 37], pa.timestamp("ns", "UTC")), "1970-01-01 00:00:00.000000001+00"),
    "time": ("at", pa.array([0, 2**63 - 1, 2, *[0] * 37], pa.timestamp("ns", "Asia/Tokyo")), "infinity"),
}  # fmt: skip


@pytest.mark.parametrize("case", TYPES)
def test_a_parquet_cell_that_its_declared_type_does_not_have(small_model: SmallModel, case: str) -> None:
    """Beside a row that another expectation quarantines; the same again gives the same."""
    column, cells, text = TYPES[case]
    amounts = [1.0] * 39 + [-1.0]
    changes = {"amount": amounts if column != "amount" else cells, column: cells}
    kinds = [*["a"] * 39, "c"] if column == "amount" else None
    if kinds:
        changes["kind"] = kinds
        small_model.suite = [{**s, "severity": "critical"} for s in SUITE]
    small_model.land(rows(**changes))
    for options in ({}, {"force": True}):
        result = small_model.run(**options)
        assert (result["rows_out"], result["quarantined"]) == (38, 2)
        assert quarantined(small_model, column)[0] == text
    assert small_model.run()["status"] == "unchanged"
    assert f"not readable as {small_model.columns[column]}: {column}" in small_model.reasons()


@pytest.mark.parametrize(("low", "stopped"), [("2020-03-01", False), ("2020-03-02", True)])
@pytest.mark.parametrize("column", ["on", "at"])
def test_a_date_bounds_the_values_of_dates_and_times(
    small_model: SmallModel, column: str, low: str, stopped: bool
) -> None:
    small_model.land(rows())
    bounds = {"column": column, "min_value": low, "max_value": "2020-03-03"}
    small_model.suite = [
        {"type": f"expect_column_{kind}_to_be_between", "kwargs": bounds, "meta": {}}
        for kind in ("min", "max")
    ]
    if stopped:
        with pytest.raises(Exception, match=r"expect_column_min_to_be_between\(\w+\): observed 2020-03-01"):
            small_model.run()
    else:
        assert small_model.run()["rows_out"] == 40


def test_a_bound_with_an_offset_is_a_moment(small_model: SmallModel) -> None:
    small_model.land(rows())  # the first row is at midnight
    small_model.suite = [
        {"type": "expect_column_min_to_be_between", "meta": {},
         "kwargs": {"column": "at", "min_value": "2020-03-01T01:00:00+01:00", "max_value": "2020-03-01"}}
    ]  # fmt: skip
    assert small_model.run()["rows_out"] == 40


def test_a_condition_beside_another_check_of_its_column(small_model: SmallModel) -> None:
    """Both checks find duplicates, and the condition has a sign that pages escape."""
    condition = {"type": "comparison", "column": {"name": "count"}, "operator": ">=", "parameter": 10}
    kinds = ["b"] * 25 + [f"k{i}" for i in range(15)]
    small_model.land(rows(count=pa.array([0, 0, *range(2, 40)]), kind=kinds))
    unique = "expect_column_values_to_be_unique"
    small_model.suite = [
        {"type": unique, "kwargs": {"column": "count", "mostly": 0.5}, "meta": {}},
        {"type": unique, "kwargs": {"column": "kind", "mostly": 0.4, "row_condition": condition}, "meta": {}},
    ]
    small_model.changes = {"quarantine_limit": 1.0}
    assert small_model.run()["quarantined"] == 2 + 15
    page = small_model.report()
    assert "23 of 40 rows published" in page and "must be unique" in page


def column(cells: st.SearchStrategy[Any], kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    return st.lists(st.none() | cells, min_size=8, max_size=8).map(lambda values: pa.array(values, kind))


DAY_NS = 86_400 * 10**9
#: Columns of integers and of dates as writers store them: whole or not, in range or not, missing.
COUNTS = st.one_of(
    column(st.integers(0, 2**64 - 1), pa.uint64()),
    column(st.integers(-9, 9).map(float) | st.floats(), pa.float64()),
    column(st.integers(-(10**20), 10**20).map(Decimal), pa.decimal128(38, 0)),
    column(st.integers(-(10**20), 10**20).map(str) | st.text("0123456789.- x", max_size=5), pa.string()),
)
DATES = column(
    st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(-9, 9).map(lambda i: i * DAY_NS),
    pa.timestamp("ns", "UTC"),
)


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=st.lists(st.tuples(COUNTS, DATES), min_size=6, max_size=6))
def test_each_cell_is_published_exactly_or_its_row_is_in_quarantine(
    small_model: SmallModel, columns: list[tuple[pa.Array, pa.Array]]
) -> None:
    small_model.changes, small_model.suite = {"quarantine_limit": 1.0}, []
    days = {f"2020-03-0{i}": pair for i, pair in enumerate(columns, 1)}
    for day, (count, on) in days.items():
        small_model.land(rows(day, n=8, count=count, on=on), day)
    result = small_model.run(*(min(days), max(days)), force=True)
    published = {row["id"]: row for row in small_model.table()}
    bad = {row["id"] for row in small_model.table("quarantine")}
    assert result["rows_in"] == 48 == len(published) + len(bad) and not published.keys() & bad
    for day, (count, on) in days.items():
        moments = on.cast(pa.int64()).to_pylist()
        for i, (cell, moment) in enumerate(zip(count.to_pylist(), moments, strict=True)):
            if (row := published.get(f"{day}-{i}")) is None:
                continue
            if row["count"] is None:
                assert cell is None or cell != cell or not str(cell).strip()
            else:
                assert Decimal(str(cell)) == row["count"]
            assert row["on"] == (
                None if moment is None else dt.date(1970, 1, 1) + dt.timedelta(moment // DAY_NS)
            )
            assert moment is None or moment % DAY_NS == 0


def test_a_sparse_text_column(small_model: SmallModel) -> None:
    """With more unreadable cells than readable ones: their rows are quarantined, within the limit."""
    lines = ["id,at,amount,count,kind,ok,on,phone"]
    for i, row in enumerate(rows(n=200).to_pylist()):
        amount = "x?" if i < 5 else row["amount"] if i < 7 else ""
        lines.append(",".join(map(str, (row | {"amount": amount}).values())))
    small_model.land("\n".join(lines) + "\n", ending="csv")
    small_model.changes = {"source": "{landing}/rows/{date}.csv", "quarantine_limit": 0.05}
    result = small_model.run()
    assert (result["rows_in"], result["rows_out"], result["quarantined"]) == (200, 195, 5)
    assert small_model.reasons() == ["not readable as number: amount"]
