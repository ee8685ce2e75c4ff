"""Units of work: each row of the published files once, in order."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet
import pytest

from perennial.features import scan_units
from perennial.storage import delta_tables, file_digests


def test_units_are_whole_partitions_or_stretches_of_a_large_file() -> None:
    files = {
        day: [delta_tables.File(f"{day}/{i}", n) for i, n in enumerate(sizes)]
        for day, sizes in {"01": [40], "02": [40, 30], "03": [250], "04": [10], "05": [120]}.items()
    }
    units = list(scan_units.plan_units(files, 100, 100))
    assert [(u.partitions, u.first, u.rows) for u in units] == [
        ([("01", 40), ("02", 40)], None, 80),
        ([("02", 30)], None, 30),
        ([("03", 100)], 0, 100),
        ([("03", 100)], 100, 100),
        ([("03", 50)], 200, 50),
        ([("04", 10)], None, 10),
        ([("05", 100)], 0, 100),
        ([("05", 20)], 100, 20),
    ]
    assert [u.partitions for u in units[0].split_by_partition()] == [[("01", 40)], [("02", 40)]]
    assert units[3].split_by_partition() == [units[3]]


def test_a_unit_has_a_bounded_number_of_files() -> None:
    files = {f"{day:02}": [delta_tables.File(f"{day:02}/0", 10)] for day in range(1, 6)}
    units = list(scan_units.plan_units(files, 1000, 1000, unit_files=2))
    assert [u.partitions for u in units] == [[("01", 10), ("02", 10)], [("03", 10), ("04", 10)], [("05", 10)]]


@pytest.mark.parametrize("folder", ["plain", "a*b"], ids=["DuckDB reads", "Arrow reads"])
def test_each_row_of_a_large_file_is_read_once(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "x.parquet"
    path.parent.mkdir()
    table = pa.table({"id": list(range(1000)), "other": ["x"] * 1000})
    pyarrow.parquet.write_table(table, path, row_group_size=150)
    file_digests.record(str(path.parents[1]), [f"{folder}/x.parquet"])
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
