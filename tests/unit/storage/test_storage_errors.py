"""What fails in a library while the lake is read or written: words, the file, and a remedy that works."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core.errors import DataError, PerennialError, StorageError
from perennial.core.settings import settings
from perennial.storage import delta_tables, duckdb_session, ledger, locks, object_store
from perennial.storage.ledger import Decision, LedgerKind

DAY = "2024-01-01"


def files(uri: str) -> list[Path]:
    return sorted(Path(uri).rglob("*.parquet"))


def cut(uri: str) -> None:
    for file in files(uri):
        file.write_bytes(file.read_bytes()[:100])


def garble(uri: str) -> None:
    for file in files(uri):
        content = bytearray(file.read_bytes())
        content[4:150] = bytes(b ^ 0xFF for b in content[4:150])
        file.write_bytes(content)


def remove(uri: str) -> None:
    for file in files(uri):
        file.unlink()


def put_folder(uri: str) -> None:
    for file in files(uri):
        file.unlink()
        file.mkdir()


def cut_log(uri: str) -> None:
    record = max(Path(uri, "_delta_log").glob("*.json"))
    record.write_bytes(record.read_bytes()[:50])


def remove_first_record(uri: str) -> None:
    min(Path(uri, "_delta_log").glob("*.json")).unlink()


def remove_log(uri: str) -> None:
    shutil.rmtree(Path(uri, "_delta_log"))


def empty_log(uri: str) -> None:
    for file in Path(uri, "_delta_log").iterdir():
        file.unlink()


def put_file_for_log(uri: str) -> None:
    remove_log(uri)
    Path(uri, "_delta_log").write_text("x")


OF_FILES = [cut, garble, remove, put_folder]
OF_LOG = [cut_log, remove_first_record, remove_log, empty_log, put_file_for_log]


@pytest.fixture
def lake(empty_home: Path) -> str:
    table = pa.table({"x": list(range(2000)), "partition_date": [DAY] * 2000})
    for kind in ("published", "predictions"):
        delta_tables.replace(delta_tables.table_uri(kind, "toy"), table, DAY)
    for _ in range(2):
        record()
    return settings().lake


def record() -> None:
    ledger.append("toy", kind=LedgerKind.TRAINING, decision=Decision.FAILED, reason="r" * 500, actor="test")


def read(uri: str) -> None:
    """Read a table as the steps do."""
    if uri.endswith("/ledger"):
        ledger.verify("toy")
        return
    delta_tables.files_by_partition(uri)
    with duckdb_session.connect() as con:
        assert duckdb_session.create_view(con, "__t", uri)
        with duckdb_session.storage_errors.reading(uri):
            con.sql("SELECT sum(x) FROM __t").fetchall()


@pytest.mark.parametrize("kind", ["published/toy", "predictions/toy", "ledger"])
@pytest.mark.parametrize("damage", [*OF_FILES, *OF_LOG])
def test_a_damaged_table_is_named_with_a_remedy(
    lake: str, kind: str, damage: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"{lake}/{kind}"
    read(uri)
    damage(uri)
    with pytest.raises(StorageError) as error:
        read(uri)
    assert uri in error.value.cause
    remedy = {
        "published/toy": "run the data step",
        "predictions/toy": "run the score step",
        "ledger": "restore the folder from a backup of the lake: only it holds the decisions",
    }[kind]
    if damage in OF_LOG:
        also = "only it holds the decisions" if kind == "ledger" else f"or delete {uri}, and run the steps"
        remedy = f"restore {uri}/_delta_log from a backup"
        assert also in error.value.remedy
    assert remedy in error.value.remedy
    assert not re.search(
        r"\x1b|<unknown>|stack backtrace|Traceback", str(error.value) + "".join(capfd.readouterr())
    )
    assert len(str(error.value).splitlines()) == 2


def test_a_lost_log_is_never_an_empty_table(lake: str) -> None:
    remove_log(f"{lake}/ledger")
    with pytest.raises(StorageError, match="_delta_log"):
        record()
    assert not Path(lake, "ledger", "_delta_log").exists(), "a new chain would hide that the old one is lost"


def test_an_unfinished_first_write_is_an_empty_table(empty_home: Path) -> None:
    uri = delta_tables.table_uri("published", "toy")
    Path(uri, "_delta_log").mkdir(parents=True)
    assert delta_tables.open_table(uri) is None


def in_the_way(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


@pytest.mark.parametrize(
    ("blocked", "work"),
    [
        ("locks", lambda: locks.hold("any").__enter__()),
        ("ledger", record),
        ("published", lambda: delta_tables.replace(
            delta_tables.table_uri("published", "toy"), pa.table({"x": [1], "partition_date": [DAY]}), DAY)),
        ("manifests", lambda: object_store.write_text(f"{settings().lake}/manifests/a.json", "x")),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_made_is_named(
    empty_home: Path, blocked: str, work: Callable[[], Any]
) -> None:
    """A file in place of the folder: unlike permissions, it also stops root."""
    in_the_way(Path(settings().lake, blocked))
    with pytest.raises(StorageError) as error:
        work()
    assert blocked in error.value.cause
    assert "something else is at this address" in error.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(empty_home: Path) -> None:
    folder = Path(settings().lake, "locks")
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied") as error, locks.hold("any"):
        pass
    assert "right to read and write" in error.value.remedy


@pytest.mark.parametrize(
    "kind", [DataError("the rows are wrong", "correct them"), ValueError("bad"), OSError("damaged")]
)
def test_rows_that_cannot_be_read_are_not_blamed_on_the_table_that_is_written(
    empty_home: Path, kind: Exception
) -> None:
    schema = pa.schema([("x", pa.int64()), ("partition_date", pa.string())])

    def stream() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"x": [1], "partition_date": [DAY]}, schema)
        raise kind

    uri = delta_tables.table_uri("predictions", "toy")
    with pytest.raises(type(kind)) as error:
        delta_tables.replace(uri, lambda: pa.RecordBatchReader.from_batches(schema, stream()), DAY)
    assert "cannot be written" not in str(error.value)
    assert isinstance(kind, PerennialError) <= (error.value is kind)
    assert delta_tables.partitions(uri) == []
