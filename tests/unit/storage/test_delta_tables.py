"""The lake: partitions replaced whole and atomically, versions that stay readable, writers that collide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core import dates
from perennial.core.errors import PerennialError, StorageError
from perennial.core.sql import quote_identifier, text_literal
from perennial.storage import delta_tables, duckdb_session
from support import lake, processes


def table(day: str, *values: int) -> pa.Table:
    return pa.table({"id": pa.array(values, pa.int64()), "partition_date": pa.array([day] * len(values))})


def ids(uri: str, **where: Any) -> list[int]:
    rows = lake.find_table(uri, **where)
    return sorted(rows["id"].to_pylist()) if rows is not None else []


@pytest.fixture
def uri(empty_home: Path) -> str:
    return delta_tables.table_uri("published", "toy")


def test_nothing_is_there_at_first(uri: str) -> None:
    assert delta_tables.version(uri) is None
    assert delta_tables.partitions(uri) == []
    assert lake.find_table(uri) is None
    assert delta_tables.partitions_digest(uri) == ""


def test_a_partition_is_replaced_and_its_neighbours_stay(uri: str) -> None:
    delta_tables.replace(uri, table("2024-01-01", 1, 2), "2024-01-01")
    delta_tables.replace(uri, table("2024-01-02", 3), "2024-01-02")
    delta_tables.replace(uri, table("2024-01-01", 9), "2024-01-01")
    assert ids(uri) == [3, 9]
    assert delta_tables.partitions(uri) == ["2024-01-01", "2024-01-02"]


def test_a_range_is_replaced_in_one_commit(uri: str) -> None:
    days = dates.dates("2024-01-01", "2024-01-05")
    for i, day in enumerate(days):
        delta_tables.replace(uri, table(day, i), day)
    before = delta_tables.version(uri)
    assert before is not None
    new = pa.concat_tables([table("2024-01-02", 10, 11), table("2024-01-04", 12)])
    assert delta_tables.replace(uri, new, "2024-01-02", "2024-01-04") == before + 1
    assert ids(uri) == [0, 4, 10, 11, 12]
    assert ids(uri, start="2024-01-02", end="2024-01-03") == [10, 11]


def test_a_partition_between_those_that_are_replaced_stays(uri: str) -> None:
    """Another run may have written it since this one listed the partitions."""
    days = dates.dates("2024-01-01", "2024-01-06")
    delta_tables.replace(uri, table(days[2], 7), days[2])
    written = [days[0], days[1], days[3], days[5]]
    new = pa.concat_tables([table(day, i) for i, day in enumerate(written)])
    delta_tables.replace(uri, new, days[0], days[5], days=written)
    assert ids(uri) == [0, 1, 2, 3, 7]
    assert ids(uri, start=days[2], end=days[2]) == [7]


def test_some_rows_of_a_partition_are_replaced_whatever_another_writer_adds(uri: str) -> None:
    day = "2024-01-01"

    def write(writer: delta_tables.Writer, feed: str, *values: int) -> None:
        rows = table(day, *values).append_column("feed", pa.array([feed] * len(values), pa.string()))
        writer.replace(rows, day, condition=f"feed = '{feed}'")

    one, two = delta_tables.Writer(uri), delta_tables.Writer(uri)
    write(one, "a", 1, 2)
    write(two, "b", 3)
    write(one, "a", 4)  # at an outdated version: the commit conflicts and is repeated
    assert ids(uri) == [3, 4]
    write(two, "b")
    assert ids(uri) == [4]


def test_a_writer_that_stays_open_sees_what_others_write(uri: str) -> None:
    mine, theirs = delta_tables.Writer(uri), delta_tables.Writer(uri)
    for i, day in enumerate(dates.dates("2024-01-01", "2024-01-04")):
        assert mine.replace(table(day, 10 + i), day) == 2 * i + 1
        assert theirs.replace(table(day, 20 + i), day) == 2 * i + 2
    assert ids(uri) == [20, 21, 22, 23]
    mine.replace(table("2024-01-02", 31), "2024-01-02", "2024-01-03")
    assert ids(uri) == [20, 23, 31]


def test_rows_outside_the_range_are_refused_and_nothing_is_written(uri: str) -> None:
    delta_tables.replace(uri, table("2024-01-01", 1), "2024-01-01")
    with pytest.raises(StorageError):
        delta_tables.replace(uri, table("2024-01-02", 2), "2024-01-01")
    assert ids(uri) == [1]


def test_rows_outside_the_range_are_refused_in_the_first_write_too(uri: str) -> None:
    with pytest.raises(StorageError):
        delta_tables.replace(uri, table("2024-01-02", 2), "2024-01-01")
    assert ids(uri) == []


def test_an_old_version_stays_readable(uri: str) -> None:
    first = delta_tables.replace(uri, table("2024-01-01", 1), "2024-01-01")
    delta_tables.replace(uri, table("2024-01-01", 2), "2024-01-01")
    assert ids(uri, version=first) == [1]
    assert ids(uri) == [2]
    with pytest.raises(StorageError, match="at version 99"):
        delta_tables.open_table(uri, 99)


def test_a_fingerprint_changes_with_its_partitions_and_with_no_other(uri: str) -> None:
    delta_tables.replace(uri, table("2024-01-01", 1), "2024-01-01")
    delta_tables.replace(uri, table("2024-01-02", 2), "2024-01-02")
    one, both = (
        delta_tables.partitions_digest(uri, "2024-01-01", "2024-01-01"),
        delta_tables.partitions_digest(uri),
    )
    delta_tables.replace(uri, table("2024-01-02", 3), "2024-01-02")
    assert delta_tables.partitions_digest(uri, "2024-01-01", "2024-01-01") == one
    assert delta_tables.partitions_digest(uri) != both
    assert delta_tables.partitions_digest(uri, "2025-01-01", "2025-01-01") == ""


def test_fingerprints_are_those_of_each_partition(uri: str) -> None:
    days = dates.dates("2024-01-01", "2024-01-30")
    rows = pa.table({"id": list(range(3000)), "partition_date": [d for d in days for _ in range(100)]})
    delta_tables.replace(uri, rows, days[0], days[-1], distinct=["id"])
    files = delta_tables.files_by_partition(uri)
    assert len(files) == 30
    assert (
        delta_tables.files_digest(files["2024-01-07"])
        == delta_tables.partitions_digest(uri, "2024-01-07", "2024-01-07")
        != ""
    )
    assert {sum(f.rows for f in listed) for listed in files.values()} == {100}
    assert delta_tables.rows_by_partition(uri) == dict.fromkeys(days, 100)


@pytest.mark.parametrize(("numbers", "dictionaries"), [(10, 11), (delta_tables.WIDE_TABLE, 1)])
def test_only_texts_of_a_wide_table_have_dictionaries(uri: str, numbers: int, dictionaries: int) -> None:
    columns: dict[str, Any] = {f"n{i}": [i, i, 1] for i in range(numbers)} | {"text": ["a", "b", "a"]}
    day = "2024-01-01"
    delta_tables.replace(uri, pa.table(columns | {"partition_date": [day] * 3}), day)
    (path,) = Path(uri).glob("*/*.parquet")
    group = pq.ParquetFile(path).metadata.row_group(0)
    with_dictionary = [
        group.column(i).path_in_schema
        for i in range(group.num_columns)
        if group.column(i).has_dictionary_page
    ]
    assert len(with_dictionary) == dictionaries and "text" in with_dictionary
    stored = lake.find_table(uri)
    assert stored is not None and stored.select(list(columns)).to_pydict() == columns


def test_partitions_are_grouped_up_to_a_number_of_rows() -> None:
    rows = {"01": 40, "02": 60, "03": 0, "04": 1, "05": 250, "06": 0, "07": 100}
    assert [tuple(g) for g in delta_tables.group_by_rows(rows, 100)] == [
        ("01", "03", 100, 3),
        ("04", "04", 1, 1),
        ("05", "05", 250, 1),
        ("06", "07", 100, 2),
    ]
    assert list(delta_tables.group_by_rows({}, 100)) == []


def test_a_column_that_comes_later_is_added(uri: str) -> None:
    delta_tables.replace(uri, table("2024-01-01", 1), "2024-01-01")
    more = table("2024-01-02", 2).append_column("extra", pa.array(["x"]))
    delta_tables.replace(uri, more, "2024-01-02")
    rows = lake.read_table(uri).select(["id", "extra"])
    assert sorted(rows.to_pylist(), key=lambda r: r["id"]) == [
        {"id": 1, "extra": None},
        {"id": 2, "extra": "x"},
    ]


@pytest.mark.parametrize("name", ["with space", "it's", "glob*", "what?", "ümlaut", "#hash", "{brace}"])
def test_any_folder_will_do(
    name: str, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_LAKE", str(tmp_path / name))
    uri = delta_tables.table_uri("published", "toy")
    delta_tables.replace(uri, table("2024-01-01", 1), "2024-01-01")
    delta_tables.replace(uri, table("2024-01-02", 2), "2024-01-02")
    assert ids(uri) == [1, 2]
    assert ids(uri, start="2024-01-02") == [2]
    assert Path(tmp_path / name / "published" / "toy").is_dir()


@pytest.mark.parametrize("name", ["in [x] brackets", "per%20cent"])
def test_a_folder_that_delta_tables_cannot_have_is_told(
    name: str, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """deltalake panics, or reads another folder than it writes."""
    monkeypatch.setenv("PERENNIAL_LAKE", str(tmp_path / name))
    with pytest.raises(StorageError, match=r"path of a Delta table must not contain(.|\n)*PERENNIAL_LAKE"):
        delta_tables.replace(delta_tables.table_uri("published", "toy"), table("2024-01-01", 1), "2024-01-01")


def test_dates_are_checked_before_they_reach_a_query(uri: str) -> None:
    with pytest.raises(PerennialError, match="not a date"):
        delta_tables.replace(uri, table("2024-01-01", 1), "2024-01-01' OR true --")


def test_a_stream_that_breaks_writes_nothing(uri: str) -> None:
    delta_tables.replace(uri, table("2024-01-01", 1), "2024-01-01")

    def breaking() -> pa.RecordBatchReader:
        def batches() -> Any:
            yield from table("2024-01-01", 5).to_batches()
            raise ValueError("the source went away")

        return pa.RecordBatchReader.from_batches(table("2024-01-01", 5).schema, batches())

    with pytest.raises(ValueError, match="the source went away"):
        delta_tables.replace(uri, breaking, "2024-01-01")
    assert ids(uri) == [1]


def test_many_writers_of_one_partition_leave_one_writers_rows(uri: str) -> None:
    delta_tables.replace(uri, table("2024-01-02", -1), "2024-01-02")
    writers = [processes.start(processes.write_ids, uri, "2024-01-01", 10 * n, 10) for n in range(8)]
    assert processes.wait(*writers) == [0] * 8
    found = ids(uri, start="2024-01-01", end="2024-01-01")
    assert len(found) == 10
    assert found == list(range(found[0], found[0] + 10))
    assert ids(uri, start="2024-01-02") == [-1]


def test_many_first_writers_of_different_partitions_lose_nothing(uri: str) -> None:
    """Each finds no table; only one may create it."""
    days = dates.dates("2024-01-01", "2024-01-08")
    writers = [processes.start(processes.write_ids, uri, day, n, 1) for n, day in enumerate(days)]
    assert processes.wait(*writers) == [0] * 8
    assert ids(uri) == list(range(8))
    assert delta_tables.partitions(uri) == days


def test_a_table_that_another_task_creates_at_the_same_moment_has_not_lost_its_log(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = delta_tables.table_uri("published", "toy")
    has_files = delta_tables._has_files

    def after_another_task(uri: str) -> bool:
        monkeypatch.setattr(delta_tables, "_has_files", has_files)
        delta_tables.replace(uri, table("2024-01-01", 1), "2024-01-01")
        return has_files(uri)

    monkeypatch.setattr(delta_tables, "_has_files", after_another_task)
    opened = delta_tables.open_table(uri)
    assert opened is not None and delta_tables.partitions(uri) == ["2024-01-01"]


def test_a_folder_that_cannot_be_written_is_told_with_a_remedy(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PERENNIAL_LAKE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="What to do"):
        delta_tables.replace(delta_tables.table_uri("published", "toy"), table("2024-01-01", 1), "2024-01-01")


def test_duckdb_stays_within_its_share_and_in_utc(empty_home: Path) -> None:
    con = duckdb_session.connect(memory_share=0.5)
    row = con.execute("SELECT current_setting('TimeZone'), current_setting('memory_limit')").fetchone()
    assert row == ("UTC", "512.0 MiB")


def test_quoting() -> None:
    assert text_literal("it's") == "'it''s'"
    assert quote_identifier('say "x"') == '"say ""x"""'
