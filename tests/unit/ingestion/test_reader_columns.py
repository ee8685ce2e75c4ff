"""Columns with the names of the reader's own, and names that it would change, are read as they are or refused."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.errors import DataError
from perennial.storage import delta_tables
from support import lake
from support.small_model import SmallModel, rows

VIRTUAL = {"file_index": "integer", "file_row_number": "integer", "filename": "string"}


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_columns_of_the_reader(small_model: SmallModel, ending: str) -> None:
    """In two files that are read together, each with a key twice: the first row of each file is kept."""
    days = ["2020-03-01", "2020-03-02"]
    small_model.columns |= VIRTUAL
    small_model.changes = {"source": f"{{landing}}/rows/{{date}}.{ending}"}
    for day in days:
        ids = [f"{day}-{i}" for i in range(39)] + [f"{day}-0"]
        table = rows(
            day, id=ids, file_index=[7] * 40, file_row_number=list(range(40, 0, -1)), filename=["x"] * 40
        )
        content = "\n".join([",".join(table.column_names), *(
            ",".join(map(str, row.values())) for row in table.to_pylist())]) + "\n"  # fmt: skip
        small_model.land(table if ending == "parquet" else content, day, ending=ending)
    result = small_model.run(*days)
    assert (result["rows_out"], result["quarantined"]) == (78, 2)
    published = [
        r for r in small_model.table() if r["partition_date"] == days[1] and r["id"] == f"{days[1]}-0"
    ]
    assert [(r["file_index"], r["file_row_number"], r["filename"]) for r in published] == [(7, 40, "x")]


def test_an_undeclared_column_of_the_reader(small_model: SmallModel) -> None:
    small_model.land(rows(file_row_number=[1] * 40, filename=["x"] * 40, __file=[9] * 40, __path=["y"] * 40))
    assert small_model.run()["rows_out"] == 40


def test_a_column_whose_name_duckdb_gives_to_another(small_model: SmallModel) -> None:
    """Of ``kind`` and ``KIND`` it calls the second one ``KIND_1``, and what has this name ``KIND_1_1``."""
    small_model.columns |= {"kind_1": "string"}
    del small_model.columns["kind"]
    small_model.suite = []
    table = rows()
    columns = [*table.columns, pa.array(["wrong"] * 40), pa.array(["right"] * 40)]
    small_model.landing.joinpath("rows").mkdir(parents=True)
    path = small_model.landing / "rows" / "2020-03-01.parquet"
    pq.write_table(pa.table(columns, names=[*table.column_names, "KIND", "kind_1"]), path)
    with pytest.raises(DataError, match=r"'kind' occurs more than once, and DuckDB would call .* 'kind_1'"):
        small_model.run()


def test_a_folder_above_the_lake_replaces_no_column(
    small_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB's hive partitioning would read ``kind=c`` as a column."""
    small_model.lake = small_model.folder / "kind=c" / "partition_date=2000-01-01" / "lake"
    monkeypatch.setenv("PERENNIAL_LAKE", str(small_model.lake))
    small_model.land(rows())
    small_model.run()
    table = lake.find_table(delta_tables.table_uri("published", "small"))
    assert table is not None
    assert set(table["kind"].to_pylist()) == {"a", "b"} and set(table["partition_date"].to_pylist()) == {
        "2020-03-01"
    }
