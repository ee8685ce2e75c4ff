"""How rows flow through scoring: batches of an even size, features one batch ahead, keys put back in order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from perennial.features import scan_units
from perennial.features.engine import FeatureQuery
from perennial.scoring import planning
from perennial.steps import score
from perennial.storage import delta_tables, duckdb_session


@pytest.fixture
def nights(tmp_path: Path) -> str:
    """A table of thirty nights of a hundred rows."""
    uri = str(tmp_path / "lake" / "published" / "toy")
    days = [f"2024-01-{i:02d}" for i in range(1, 31)]
    rows = pa.table({"id": list(range(3000)), "partition_date": [d for d in days for _ in range(100)]})
    delta_tables.replace(uri, rows, days[0], days[-1], distinct=["id"])
    return uri


def test_small_files_come_together_and_no_row_is_lost(nights: str) -> None:
    stream = duckdb_session.stream(nights, rows=1000)
    assert stream is not None
    batches = list(stream)
    assert [b.num_rows for b in batches] == [1000, 1000, 1000]
    assert sorted(i for b in batches for i in b.column("id").to_pylist()) == list(range(3000))


def test_long_rows_come_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duckdb_session, "BATCH_BYTES", 2000)
    rows = pa.table({"id": list(range(1000))})  # 800 bytes a hundred
    source = pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches(max_chunksize=100))
    assert [b.num_rows for b in duckdb_session._together(source, 1000)] == [200] * 5


def test_fingerprints_are_those_of_each_partition(nights: str) -> None:
    found = delta_tables.files_by_partition(nights)
    assert len(found) == 30
    assert (
        delta_tables.files_digest(found["2024-01-07"])
        == delta_tables.fingerprint(nights, "2024-01-07", "2024-01-07")
        != ""
    )
    assert {sum(f.rows for f in held) for held in found.values()} == {100}


def test_a_range_is_committed_in_stretches_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "COMMIT_ROWS", 250)
    days = ["01", "02", "03", "04", "05", "07", "08", "09"]
    rows = {**dict.fromkeys(days, 100), "07": 900}
    found = [["01", "02"], ["03", "04"], ["05"], ["07"], ["08", "09"]]
    assert list(planning.group_into_commits(days, days, rows, 125)) == found
    # a partition that is not to be scored lies between
    assert list(planning.group_into_commits(["01", "03"], days, rows, 125)) == [["01"], ["03"]]
    # five nights would have room, two units of two nights each have four: none is cut short where a commit ends
    monkeypatch.setattr(planning, "COMMIT_ROWS", 500)
    found = [["01", "02", "03", "04"], ["05"], ["07"], ["08", "09"]]
    assert list(planning.group_into_commits(days, days, rows, 250)) == found


def test_units_are_whole_nights_or_stretches_of_a_large_file() -> None:
    held = {
        day: [delta_tables.File(f"{day}/{i}", n) for i, n in enumerate(sizes)]
        for day, sizes in {"01": [40], "02": [40, 30], "03": [250], "04": [10], "05": [120]}.items()
    }
    found = list(scan_units.plan_units(held, 100, 100))
    assert [(u.nights, u.first, u.rows) for u in found] == [
        ([("01", 40), ("02", 40)], None, 80),
        ([("02", 30)], None, 30),
        ([("03", 100)], 0, 100),
        ([("03", 100)], 100, 100),
        ([("03", 50)], 200, 50),
        ([("04", 10)], None, 10),
        ([("05", 100)], 0, 100),
        ([("05", 20)], 100, 20),
    ]
    assert [u.nights for u in found[0].by_night()] == [[("01", 40)], [("02", 40)]]
    assert found[3].by_night() == [found[3]]


@pytest.mark.parametrize("folder", ["plain", "a*b"], ids=["DuckDB reads", "Arrow reads"])
def test_each_row_of_a_large_file_is_read_once(tmp_path: Path, folder: str) -> None:
    import duckdb

    path = tmp_path / folder / "x.parquet"
    path.parent.mkdir()
    table = pa.table({"id": list(range(1000)), "other": ["x"] * 1000})
    pyarrow.parquet.write_table(table, path, row_group_size=150)
    con, ids = duckdb.connect(), []
    for unit in scan_units.plan_units({"01": [delta_tables.File(str(path), 1000)]}, 170, 170):
        source = unit.source(["id", "not there"])
        assert isinstance(source, scan_units.ParameterisedQuery) is (folder == "plain")
        if isinstance(source, scan_units.ParameterisedQuery):
            for name, value in source.variables.items():
                con.execute(f"SET VARIABLE {name} = {value}")
        rows = con.sql(
            source.text if isinstance(source, scan_units.ParameterisedQuery) else "FROM source"
        ).to_arrow_table()
        assert len(rows) == unit.rows
        ids.extend(rows["id"].to_pylist())
    assert ids == list(range(1000))


def test_one_item_is_made_ahead_and_an_error_comes_through() -> None:
    ready = threading.Event()

    def double(i: int) -> int:
        if i == 2:
            ready.set()
        if i == 3:
            raise ValueError("three")
        return i * 2

    with ThreadPoolExecutor(2) as pool:
        items = score._in_order(pool, double, [1, 2, 3], 1)
        assert next(items) == 2
        assert ready.wait(5), "the second was not begun while the first was in use"
        assert next(items) == 4
        with pytest.raises(ValueError, match="three"):
            next(items)
        assert list(score._in_order(pool, double, [], 1)) == []


class _Spec:
    name = "toy"

    class data:
        key = ("a", "b")


def test_rows_are_put_back_in_order() -> None:
    wanted = pa.table({"a": [f"k{i}" for i in range(5000)], "b": list(range(5000))})
    features = object.__new__(FeatureQuery)
    features.spec = _Spec()  # type: ignore[assignment]
    order = np.random.default_rng(1).permutation(len(wanted))
    found = wanted.append_column("x", wanted.column("b")).take(pa.array(order))
    assert features._in_order(found, wanted).column("x").to_pylist() == list(range(len(wanted)))
