"""The number of a row in its file, as a column and as the key, and rows without an event time."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.errors import DataError

DAY, NEXT = "2020-03-01", "2020-03-02"


@pytest.fixture
def numbered(small_model: Any) -> Any:
    """A model whose rows have no key: twice the same row, and the label in the files of the rows."""
    small_model.columns = {"x": "number", "line no": "integer"}
    small_model.changes = {
        "source": "{landing}/rows/{date}.csv", "key": ["line no"], "row_number": "line no", "event_time": None,
    }  # fmt: skip
    small_model.suite = []
    small_model.label = {
        "source": "{landing}/rows/{date}.csv",
        "columns": {"line no": "integer", "y": "string"},
        "expression": "y = 'yes'",
    }
    return small_model


def land(model: Any, lines: list[str], day: str = DAY, header: str = "x,y") -> None:
    model.land("\n".join([header, *lines, ""]), day, ending="csv")


def test_rows_are_numbered_in_the_order_of_their_file(numbered: Any) -> None:
    land(numbered, ["5,yes", "5,yes", "3,no"])
    land(numbered, ["7,no"], NEXT)
    result = numbered.run(DAY, NEXT)
    assert (result["rows_out"], result["quarantined"], result["labels"]) == (4, 0, 4)
    rows = [(r["partition_date"], r["line no"], r["x"]) for r in numbered.table(order="line no")]
    assert rows == [(DAY, 1, 5.0), (DAY, 2, 5.0), (DAY, 3, 3.0), (NEXT, 1, 7.0)]
    labels = [(r["partition_date"], r["line no"], r["label"]) for r in numbered.table("labels", "line no")]
    assert labels == [(DAY, 1, 1), (DAY, 2, 1), (DAY, 3, 0), (NEXT, 1, 0)]
    assert numbered.run(DAY, NEXT)["status"] == "unchanged"


def test_a_quarantined_row_keeps_its_number(numbered: Any) -> None:
    numbered.changes["quarantine_limit"] = 0.5
    land(numbered, ["1,yes", "one,no", "3,no"])
    assert numbered.run()["quarantined"] == 1
    (record,) = [r for r in numbered.table("quarantine", "line no") if r["feed"] == "rows"]
    assert record["line no"] == 2
    assert [r["line no"] for r in numbered.table(order="line no")] == [1, 3]


def test_rows_and_labels_are_joined_by_the_number(numbered: Any) -> None:
    lines = [f"{i},{'yes' if i % 3 else 'no'}" for i in range(5000)]
    land(numbered, lines)
    numbered.run()
    joined = numbered.table(order="line no")
    labels = {r["line no"]: r["label"] for r in numbered.table("labels", "line no")}
    assert all(
        labels[r["line no"]] == int(int(r["x"]) % 3 > 0) and r["x"] == r["line no"] - 1 for r in joined
    )


@pytest.mark.parametrize("name", ["file_row_number", "FILE_INDEX", "__row"])
def test_the_number_counts_within_a_file_whatever_the_other_columns_are_called(
    numbered: Any, name: str
) -> None:
    for day, count in ((DAY, 3), (NEXT, 2)):
        land(numbered, [f"{i},no,9" for i in range(count)], day, f"x,y,{name}")
    numbered.run(DAY, NEXT)
    rows = [(r["partition_date"], r["line no"], r["x"]) for r in numbered.table(order="line no")]
    assert rows == [(DAY, 1, 0.0), (DAY, 2, 1.0), (DAY, 3, 2.0), (NEXT, 1, 0.0), (NEXT, 2, 1.0)]


def test_a_parquet_file_is_numbered_as_well(numbered: Any) -> None:
    numbered.changes["source"] = "{landing}/rows/{date}.parquet"
    numbered.label["source"] = "{landing}/rows/{date}.parquet"
    numbered.land(pa.table({"x": [4.0, 4.0], "y": ["yes", "no"]}))
    numbered.run()
    assert [r["line no"] for r in numbered.table(order="line no")] == [1, 2]


@pytest.mark.parametrize("name", ["line no", "LINE NO"])
def test_files_that_have_the_column_are_refused(numbered: Any, name: str) -> None:
    land(numbered, ["1,yes,7"], header=f"x,y,{name}")
    with pytest.raises(DataError, match=r"column 'line no' is in the file, but data\.row_number computes it"):
        numbered.run()


def test_a_label_feed_of_its_own_has_the_number_in_its_files(numbered: Any) -> None:
    numbered.label["source"] = "{landing}/labels/{date}.csv"
    land(numbered, ["5,-", "6,-"])
    numbered.land("line no,y\n2,yes\n1,no\n", DAY, "labels", "csv")
    numbered.run()
    assert {r["line no"]: r["label"] for r in numbered.table("labels", "line no")} == {1: 0, 2: 1}


def test_without_an_event_time_no_row_is_too_late(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows("2031-05-05"))
    small_model.changes = {"event_time": None}
    assert small_model.run()["quarantined"] == 0


def test_rows_of_a_folder_of_parts_are_numbered_in_the_order_of_their_names(numbered: Any) -> None:
    numbered.changes["source"] = "{landing}/rows/{date}.parquet"
    numbered.label["source"] = "{landing}/rows/{date}.parquet"
    folder = numbered.landing / "rows" / f"{DAY}.parquet"
    folder.mkdir(parents=True)
    for name, values in (("part-00001", [3.0]), ("part-00000", [1.0, 2.0])):
        pq.write_table(pa.table({"x": values, "y": ["yes"] * len(values)}), folder / f"{name}.snappy.parquet")
    (folder / "_SUCCESS").touch()
    numbered.run()
    assert [(r["line no"], r["x"]) for r in numbered.table(order="line no")] == [(1, 1.0), (2, 2.0), (3, 3.0)]
