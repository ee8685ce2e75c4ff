"""Published rows joined with their labels."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.features import labelled_rows
from perennial.features.labelled_rows import count_labelled_rows, read_labelled_rows
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from support import lake, toys

DAYS = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 3))


@pytest.fixture
def spec(empty_home: Path, tmp_path: Path) -> ModelSpec:
    return toys.model(tmp_path / "models", "toy")


def test_rows_come_by_date_and_key_with_their_label(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.publish(spec, days=4)
    published, labels = (
        delta_tables.version(delta_tables.table_uri("published", "toy")),
        delta_tables.version(delta_tables.table_uri("labels", "toy")),
    )
    whole = pa.concat_tables(read_labelled_rows(spec, tuple(DAYS), published, labels)).combine_chunks()
    assert whole["id"].to_pylist() == sorted(whole["id"].to_pylist())
    for day in DAYS:
        rows = toys.rows("binary", day)
        mine = whole.filter(pa.compute.equal(whole[delta_tables.PARTITION], day))
        assert mine["__label"].to_pylist() == toys.labels("binary", rows)["y"].to_pylist()
    monkeypatch.setattr(labelled_rows, "GROUP_ROWS", toys.ROWS + 1)  # one partition at a time
    assert (
        pa.concat_tables(read_labelled_rows(spec, tuple(DAYS), published, labels))
        .combine_chunks()
        .equals(whole)
    )


def test_a_wide_partition_that_does_not_fit_is_sorted_some_columns_at_a_time(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.publish(spec, days=2)
    days = tuple(DAYS[:2])
    whole = pa.concat_tables(read_labelled_rows(spec, days, None, None)).combine_chunks()
    monkeypatch.setattr(labelled_rows, "GROUP_ROWS", toys.ROWS // 2)
    monkeypatch.setattr(labelled_rows, "BATCH_ROWS", toys.ROWS // 3)
    monkeypatch.setattr(labelled_rows, "COLUMNS_PER_SORT", 2)
    tables = list(read_labelled_rows(spec, days, None, None))
    assert max(map(len, tables)) == toys.ROWS // 3
    assert pa.concat_tables(tables).combine_chunks().equals(whole)


def test_sorting_some_columns_at_a_time_needs_less_memory(empty_home: Path) -> None:
    con = duckdb.connect(config={"threads": 1, "temp_directory": str(empty_home)})
    columns = ", ".join(f"(i + {c})::DOUBLE AS c{c}" for c in range(1500))
    con.execute(
        f"COPY (SELECT 7 * i % 8192 AS id, {columns} FROM range(8192) r(i)) TO '{empty_home}/rows.parquet'"
    )
    con.execute("SET memory_limit='80MB'")
    query = f"SELECT * FROM read_parquet('{empty_home}/rows.parquet')"
    with pytest.raises(duckdb.OutOfMemoryException):
        con.execute(f"{query} ORDER BY id").fetchmany(1)
    assert labelled_rows.read_sorted(con, f"{query} WHERE id % 8 = 0", "id")["id"].to_pylist() == [
        *range(0, 8192, 8)
    ]
    ids = [t["id"].to_pylist() for t in labelled_rows._sort_by_columns(con, query, "id", 1000)]
    assert [len(part) for part in ids] == [*[1000] * 8, 192]
    assert [i for part in ids for i in part] == list(range(8192))


def test_rows_without_a_label_and_labels_without_a_row_do_not_train(spec: ModelSpec) -> None:
    toys.publish(spec, days=1)
    rows = toys.rows("binary", DAYS[0])
    y = pa.array([None, *[1] * 9])
    some = pa.table(
        {"id": [*rows["id"].to_pylist()[:9], "nobody's"], "label": y, "partition_date": [DAYS[0]] * 10}
    )
    delta_tables.replace(delta_tables.table_uri("labels", "toy"), some, DAYS[0])
    found = pa.concat_tables(read_labelled_rows(spec, (DAYS[0],), None, None))
    assert found["id"].to_pylist() == rows["id"].to_pylist()[1:9]


@pytest.mark.parametrize("task", ["binary", "ranking"])
def test_a_sample_has_whole_lists_and_is_part_of_a_larger_one(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    spec = toys.model(tmp_path / "models", "toy", task)
    toys.publish(spec, days=4)

    def read(share: float) -> list[tuple[str, str, str]]:
        rows = pa.concat_tables(read_labelled_rows(spec, tuple(DAYS), None, None, share)).to_pylist()
        return [
            (row[delta_tables.PARTITION], row[spec.group] if spec.group else "", row["id"]) for row in rows
        ]

    everything, half, third = (read(share) for share in (1, 1 / 2, 1 / 3))
    assert set(third) < set(half) < set(everything)
    assert len(half) == pytest.approx(len(everything) / 2, rel=0.35)
    assert half == [row for row in everything if row in set(half)], "in the same order"
    if spec.group:
        lists = {row[:2] for row in half}
        assert half == [row for row in everything if row[:2] in lists]
    monkeypatch.setattr(labelled_rows, "GROUP_ROWS", toys.ROWS // 2)
    assert read(1 / 2) == half, "whatever is read together"


def test_labelled_rows_are_counted(spec: ModelSpec, tmp_path: Path) -> None:
    toys.publish(spec, days=2)
    labels = delta_tables.table_uri("labels", spec.name)
    some = lake.read_table(labels).slice(0, 5)
    delta_tables.replace(labels, some, DAYS[0], DAYS[1])
    assert count_labelled_rows(spec, tuple(DAYS), None, None) == 5, "rows without a label do not count"
    label = {"source": None, "columns": {}, "expression": "z", "arrives_after": "0 days"}
    of_rows = toys.model(tmp_path / "models", "in_rows", "regression", label=label)
    rows = toys.rows("binary", DAYS[0])
    z = pa.array([1.0, None, *[0.0] * (len(rows) - 2)])
    rows = rows.set_column(rows.column_names.index("z"), "z", z)
    rows = rows.append_column(delta_tables.PARTITION, pa.array([DAYS[0]] * len(rows)))
    delta_tables.replace(delta_tables.table_uri("published", "in_rows"), rows, DAYS[0])
    assert count_labelled_rows(of_rows, tuple(DAYS), None, None) == toys.ROWS - 1
