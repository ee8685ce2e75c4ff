"""A folder of part files in the place of one file is one partition, read once its writer is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from perennial.core.errors import DataError, DataReplacedError
from perennial.lifecycle import backlog
from perennial.spec.constraints import check_template
from perennial.storage import landing, part_folders
from support.small_model import COLUMNS, DAY, SmallModel, rows

NEXT = "2020-03-02"


def land(
    model: SmallModel, parts: Mapping[str, pa.Table | bytes | str], day: str = DAY, ending: str = ".parquet"
) -> Path:
    """Write a folder as Spark does, except for what marks it as complete."""
    folder = model.landing / "rows" / f"{day}{ending}"
    for name, part in parts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(part, pa.Table):
            pq.write_table(part, path)
        else:
            path.write_bytes(part if isinstance(part, bytes) else part.encode())
    return folder


def spark(table: pa.Table, pieces: int = 4) -> dict[str, pa.Table | bytes | str]:
    """The files that Spark writes, in no order."""
    size = -(-table.num_rows // pieces)
    uuid = "c0ffee00-1234"
    parts: dict[str, Any] = {}
    for i in reversed(range(pieces)):
        name = f"part-{i:05}-{uuid}-c000.snappy.parquet"
        parts |= {f".{name}.crc": b"crc", name: table.slice(i * size, size)}
    return parts | {
        "_SUCCESS": b"",
        "._SUCCESS.crc": b"crc",
        "_metadata": b"no part",
        "_common_metadata": b"no part",
    }


def csv(table: pa.Table) -> str:
    lines = [",".join(table.column_names), *(",".join(map(str, row.values())) for row in table.to_pylist())]
    return "\n".join(lines) + "\n"


def test_parts_are_one_partition_in_the_order_of_their_names(small_model: SmallModel) -> None:
    table = rows(amount=[-1.0] + [1.0] * 39)
    folder = land(small_model, spark(table))
    result = small_model.run()
    assert (result["rows_in"], result["rows_out"], result["quarantined"]) == (40, 39, 1)
    assert {r["id"] for r in small_model.table()} == set(table["id"].to_pylist()[1:])
    assert small_model.run()["status"] == "unchanged"
    # the same content again, with other names, as Spark writes it
    for path in sorted(folder.glob("part-*")):
        path.rename(path.with_name(path.name.replace("c0ffee", "decaf0")))
    assert small_model.run()["status"] == "unchanged"
    (folder / "part-00004-x.parquet").write_bytes(
        (folder / "part-00003-decaf000-1234-c000.snappy.parquet").read_bytes()
    )
    result = small_model.run()
    assert (result["rows_in"], result["quarantined"]) == (50, 11), "ten rows twice"


def test_a_range_of_folders_and_files(small_model: SmallModel) -> None:
    land(small_model, spark(rows()))
    small_model.land(rows(NEXT), NEXT)
    land(small_model, spark(rows("2020-03-03"), 7), "2020-03-03")
    assert small_model.run(DAY, "2020-03-03")["rows_out"] == 120
    for day in (DAY, NEXT, "2020-03-03"):
        published = {r["id"] for r in small_model.table() if r["partition_date"] == day}
        assert published == set(rows(day)["id"].to_pylist())


@pytest.mark.parametrize("source", [".parquet", ""])
def test_rows_are_numbered_across_the_parts(small_model: SmallModel, source: str) -> None:
    """Also where a column hides the reader's own numbers, and in folders without an ending."""
    small_model.columns = {**COLUMNS, "line": "integer"}
    template = "{landing}/rows/{date}" + (source or "/")
    small_model.label = {"expression": "count"}
    small_model.task = "regression"
    small_model.changes = {"key": ["line"], "row_number": "line", "source": template}
    for day in (DAY, NEXT):
        table = rows(day)
        if day == NEXT:
            table = table.append_column("file_row_number", pa.array([0] * 40))
            table = table.append_column("file_index", pa.array([0] * 40))
        land(small_model, spark(table), day, source)
    small_model.run(DAY, NEXT)
    for row in small_model.table():
        assert row["id"] == f"{row['partition_date']}-{row['line'] - 1}"


def test_parts_of_different_types_lose_no_value(small_model: SmallModel) -> None:
    """Of integers and floats, DuckDB would make floats, which do not have 2^53 + 1."""
    table = rows(n=30)
    parts = {
        "part-0.parquet": table.slice(0, 10).set_column(3, "count", pa.array([2**53 + 1] * 10)),
        "part-1.parquet": table.slice(10, 10).set_column(3, "count", pa.array([None, 2.5, *[7.0] * 8])),
        "part-2.parquet": table.slice(20, 10).set_column(3, "count", pa.array(["8"] * 10)).append_column(
            "new", [[1]] * 10
        ),
    }  # fmt: skip
    land(small_model, parts)
    assert small_model.run()["quarantined"] == 1
    assert [r["count"] for r in sorted(small_model.table(), key=lambda r: int(r["id"][11:]))] == [
        *[2**53 + 1] * 10, None, *[7] * 8, *[8] * 10,
    ]  # fmt: skip


def test_text_parts(small_model: SmallModel) -> None:
    import gzip

    small_model.changes = {"source": "{landing}/rows/{date}.csv"}
    table = rows()
    parts = {
        "part-0.csv": csv(table.slice(0, 10)), "part-1.csv.gz": gzip.compress(csv(table.slice(10, 20)).encode()),
        "000002_0": csv(table.slice(30)), "part-3.csv": "", "_SUCCESS": "",
    }  # fmt: skip
    folder = land(small_model, parts, ending=".csv")
    assert small_model.run()["rows_out"] == 40
    (folder / "part-4.csv").write_text("id,at\nx,2020-03-01\n")
    with pytest.raises(DataError, match=r"part-4\.csv: column 'amount' \(number\) is missing"):
        small_model.run()


@pytest.mark.parametrize("writer", ["pyarrow", "duckdb"])
def test_folders_of_other_writers_have_no_mark(small_model: SmallModel, writer: str) -> None:
    folder = small_model.landing / "rows" / f"{DAY}.parquet"
    folder.parent.mkdir(parents=True)
    if writer == "pyarrow":
        ds.write_dataset(rows(), folder, format="parquet", max_rows_per_file=7, max_rows_per_group=7)
    else:
        import duckdb

        with duckdb.connect() as con:
            con.execute(f"SET temp_directory='{small_model.folder}'")
            con.register("t", rows())
            con.execute(f"COPY t TO '{folder}' (FORMAT parquet, PER_THREAD_OUTPUT true)")
    assert small_model.run()["rows_out"] == 40


def test_a_folder_that_is_being_written_has_not_landed(small_model: SmallModel) -> None:
    complete = spark(rows())
    incomplete = {k: v for k, v in complete.items() if "SUCCESS" not in k}
    folder = land(small_model, {**incomplete, "_temporary/0/part-00009.parquet": b"PAR1"})
    assert landing.fingerprint(str(folder)) is None and not landing.has_landed(str(folder))
    with pytest.raises(
        DataError, match="has not landed: the folder has no _SUCCESS, and a folder _temporary: it is being"
    ):
        small_model.run()
    assert landing.list_landed(small_model.spec.data.source) == {}
    (folder / "_SUCCESS").touch()
    assert list(landing.list_landed(small_model.spec.data.source)) == [DAY]
    land(small_model, incomplete, NEXT)  # perhaps a copy that goes on
    with pytest.raises(DataError, match="no _SUCCESS, which the folders beside it have"):
        small_model.run(NEXT)
    assert backlog.unpublished(small_model.spec, NEXT).overdue == [DAY]
    (small_model.landing / "rows" / "2020-03-03.parquet").mkdir()
    with pytest.raises(DataError, match="has not landed: the folder holds no files"):
        small_model.run("2020-03-03")


def test_a_folder_without_parts_holds_no_rows(small_model: SmallModel) -> None:
    land(small_model, {"_SUCCESS": b""})
    with pytest.raises(DataError, match=r"row_count_to_be_between.*: observed 0"):
        small_model.run()
    land(small_model, {"part-00000.parquet": rows(n=0)})
    with pytest.raises(DataError, match=r"row_count_to_be_between.*: observed 0"):
        small_model.run()


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"hour=00/part-0.parquet": rows(n=4)}, "it holds the folder hour=00"),
        (
            {"part-0.parquet": rows(n=4), "b.csv": csv(rows(n=4))},
            "different formats: part-0.parquet and b.csv",
        ),
        ({"part-0.parquet": rows(n=4), "_delta_log/0.json": "{}"}, "it is a Delta table"),
        ({"part-0.parquet": rows(n=4), "part-1.parquet": b"PAR1 no"}, "part-1.parquet is not a parquet file"),
        (
            {"part-0.parquet": rows(n=4), "part-1.parquet": rows(n=4, kind=None)},
            "part-1.parquet: column 'kind'",
        ),
    ],
)
def test_a_folder_that_is_no_partition_is_refused_by_name(
    small_model: SmallModel, parts: dict[str, Any], match: str
) -> None:
    land(small_model, parts)
    with pytest.raises(DataError, match=match):
        small_model.run()
    assert not small_model.table()


@pytest.mark.parametrize("change", ["part", "new part", "folder"])
def test_a_folder_that_is_replaced_while_it_is_read(
    small_model: SmallModel, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    from perennial.ingestion import run
    from perennial.validation import validator

    folder, real = land(small_model, spark(rows())), validator.validate

    def validate(*args: Any, **kwargs: Any) -> Any:
        findings = real(*args, **kwargs)
        part = min(folder.glob("part-*"))
        if change == "part":
            max(folder.glob("part-*")).replace(part)
        elif change == "new part":
            (folder / "part-99999.parquet").write_bytes(part.read_bytes())
        else:
            folder.rename(folder.with_name("old"))
            land(small_model, spark(rows(), 2))
        return findings

    monkeypatch.setattr(run.validator, "validate", validate)
    with pytest.raises(DataReplacedError, match="was replaced while it was read"):
        small_model.run()
    assert not small_model.table()


def test_templates_and_digests() -> None:
    check_template("{landing}/sales/dt={date}/", dated=True)
    with pytest.raises(ValueError, match="ends with one of"):
        check_template("{landing}/places/", dated=False)
    assert landing.source_uri("s3://b/dt={date}/", DAY) == f"s3://b/dt={DAY}"
    assert part_folders.digest(["a" * 64, "b" * 64]) != part_folders.digest(["b" * 64, "a" * 64])


def test_folders_by_date_are_listed_by_their_date(small_model: SmallModel) -> None:
    for day, name in ((DAY, "x.parquet"), (NEXT, "part-0.parquet")):
        path = small_model.landing / "sales" / f"dt={day}" / name
        path.parent.mkdir(parents=True)
        pq.write_table(rows(day), path)
    assert list(landing.list_landed("{landing}/sales/dt={date}/")) == [DAY, NEXT]
    small_model.changes = {"source": "{landing}/sales/dt={date}/"}
    assert small_model.run(DAY, NEXT)["rows_out"] == 80


def test_a_folder_that_failed_is_due_again_once_a_part_changes(small_model: SmallModel) -> None:
    folder = land(small_model, spark(rows(amount=[-1.0] * 40)))
    with pytest.raises(DataError, match="would go to quarantine"):
        small_model.run()
    assert backlog.unpublished(small_model.spec, DAY).failed == [DAY]
    part = min(folder.glob("part-*"))
    part.write_bytes(part.read_bytes())
    assert backlog.unpublished(small_model.spec, DAY).overdue == [DAY]
