"""The ledger: a chain of hashes that shows tampering, and that many writers do not break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.errors import LedgerError, StorageError
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
from support import processes


def add(model: str = "toy", **more: Any) -> dict[str, Any]:
    return ledger.append(
        model,
        **{"kind": LedgerKind.TRAINING, "decision": Decision.ACCEPTED, "reason": "why", "actor": "test"}
        | more,
    )


def rewrite(change: Any) -> None:
    """What somebody with write access to the lake could do to the table."""
    from deltalake import DeltaTable, write_deltalake

    table = DeltaTable(ledger.uri()).to_pyarrow_table()
    rows = change(sorted(table.to_pylist(), key=lambda r: r["sequence"]))
    write_deltalake(
        ledger.uri(), pa.Table.from_pylist(rows, table.schema), mode="overwrite", partition_by=["model"]
    )


def test_records_are_chained_and_kept_whole(empty_home: Path) -> None:
    assert ledger.records("toy") == []
    assert ledger.verify("toy") == 0
    first = add(
        evidence={"loss": 0.25, "rows": [1, 2], "none": None}, partition="2024-01-01", model_version="3"
    )
    second = add(reason='ünïcode, "quotes" and\nlines', kind="promotion")
    records = ledger.records("toy")
    assert [r["sequence"] for r in records] == [1, 2]
    assert records[0] == first
    assert records[0]["previous"] == ledger.GENESIS
    assert records[1]["previous"] == first["hash"]
    assert records[1]["reason"] == second["reason"]
    assert records[0]["evidence"] == {"loss": 0.25, "rows": [1, 2], "none": None}
    assert ledger.records("toy", LedgerKind.PROMOTION) == [second]
    assert ledger.verify("toy") == 2


def test_each_model_has_its_own_chain(empty_home: Path) -> None:
    add("one")
    add("two")
    add("one")
    assert [ledger.verify(m) for m in ("one", "two", "three")] == [2, 1, 0]


@pytest.mark.parametrize("field", [f for f in ledger.FIELDS if f not in ("sequence", "model", "evidence")])
def test_a_changed_record_is_found(empty_home: Path, field: str) -> None:
    for _ in range(3):
        add()
    rewrite(lambda rows: [r | ({field: "f" * 64} if r["sequence"] == 2 else {}) for r in rows])
    with pytest.raises(LedgerError, match="record 2"):
        ledger.verify("toy")


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [r | ({"evidence": '{"loss": 0.1}'} if r["sequence"] == 2 else {}) for r in rows],
        lambda rows: [rows[0], rows[2]],
        lambda rows: rows[1:],
        lambda rows: rows[:-1],
        lambda rows: [*rows, rows[-1] | {"sequence": 4}],
        lambda rows: [rows[1] | {"sequence": 1}, rows[0] | {"sequence": 2}, rows[2]],
        lambda rows: [],
    ],
    ids=[
        "evidence",
        "middle removed",
        "first removed",
        "last removed",
        "slipped in",
        "swapped",
        "all removed",
    ],
)
def test_tampering_is_found(empty_home: Path, change: Any) -> None:
    for n in range(3):
        add(evidence={"loss": n})
    rewrite(change)
    with pytest.raises(LedgerError):
        ledger.verify("toy")


def files() -> list[Path]:
    """The files of the three records of `toy`, in order."""
    found = sorted(Path(ledger.uri(), "model=toy").glob("*.parquet"), key=lambda f: int(read(f)["sequence"]))
    assert len(found) == 3
    return found


def read(file: Path) -> dict[str, Any]:
    """The record of a file."""
    (record,) = pq.ParquetFile(file).read().to_pylist()
    return dict(record)


def edit(file: Path, **changes: str) -> None:
    """Change a record in its file, beside the table's log."""
    schema = pq.ParquetFile(file).schema_arrow
    pq.write_table(pa.Table.from_pylist([read(file) | changes], schema), file)


def remove_last() -> None:
    """Remove the last record, and the log of its commit, as if it had never been."""
    files()[2].unlink()
    max(Path(ledger.uri(), "_delta_log").glob("*.json")).unlink()


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda: edit(files()[0], reason="another"), "record 1 of the ledger was changed"),
        (lambda: edit(files()[2], decision="rejected"), "record 3 of the ledger was changed"),
        (lambda: shutil.copy(files()[0], files()[1]), "record 1 of the ledger was changed, or one before it"),
        (lambda: files()[1].unlink(), "cannot be read"),
        (lambda: files()[2].unlink(), "cannot be read"),
        (remove_last, "the ledger has 2 records and had 3"),
        (lambda: shutil.rmtree(ledger.uri()), "the ledger has 0 records and had 3"),
        (lambda: Path(ledger.head_uri("toy")).write_text("{}"), "does not hold the number and the hash"),
    ],
    ids=["edited", "last edited", "overwritten", "deleted", "last deleted", "last deleted with its log", "all deleted",
         "its head edited"],
)  # fmt: skip
def test_files_that_somebody_edited_or_deleted_are_found(
    empty_home: Path, tamper: Callable[[], Any], message: str
) -> None:
    add("other")
    for n in range(3):
        add(evidence={"loss": n})
    assert ledger.verify("toy") == 3
    tamper()
    with pytest.raises((LedgerError, StorageError), match=message):
        ledger.verify("toy")


def test_what_is_appended_later_does_not_hide_that_records_are_gone(empty_home: Path) -> None:
    for n in range(3):
        add(evidence={"loss": n})
    remove_last()
    for n in range(2):
        add(evidence={"loss": n + 10})
    with pytest.raises(LedgerError, match="record 3 of the ledger is not the one that was appended") as error:
        ledger.verify("toy")
    assert ledger.head_uri("toy") in error.value.remedy
    Path(ledger.head_uri("toy")).unlink()
    assert ledger.verify("toy") == 4
    last = add()
    assert json.loads(Path(ledger.head_uri("toy")).read_text()) == {"sequence": 5, "hash": last["hash"]}


def test_a_file_that_is_not_of_the_table_is_no_record(empty_home: Path) -> None:
    for n in range(3):
        add(evidence={"loss": n})
    shutil.copy(files()[2], files()[2].with_name("part-9.parquet"))
    assert ledger.verify("toy") == len(ledger.records("toy")) == 3


def test_writers_at_once_keep_the_chain(empty_home: Path) -> None:
    """Two models' first records at once: only one of them creates the table."""
    writers = [processes.start(processes.append_records, model, 4) for model in ("one", "two", "one", "two")]
    assert processes.wait(*writers) == [0] * 4
    assert ledger.verify("one") == ledger.verify("two") == 8


def test_a_record_is_written_while_the_table_gets_other_properties(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a merge of another model: Deltalake refuses a commit that began before."""
    import deltalake

    add()
    write, refused = deltalake.write_deltalake, []

    def write_late(uri: str, *rows: Any, **options: Any) -> None:
        table = deltalake.DeltaTable(uri)
        if not refused:
            deltalake.DeltaTable(uri).alter.set_table_properties(
                {"delta.logRetentionDuration": "interval 9 days"}
            )
        try:
            write(table, *rows, **options)
        except deltalake.exceptions.CommitFailedError as error:
            refused.append(str(error))
            raise

    monkeypatch.setattr(deltalake, "write_deltalake", write_late)
    add()
    assert len(refused) == 1 and "Metadata changed" in refused[0]
    assert ledger.verify("toy") == len(ledger.records("toy")) == 2


def test_an_append_reads_no_records(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("other")
    add()
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_read", lambda *_: pytest.fail("all records were read"))
        add("other")
        add()
    assert [ledger.verify(m) for m in ("toy", "other")] == [2, 2]
    Path(ledger.head_uri("toy")).unlink()  # as after an append that was interrupted
    add()
    assert ledger.verify("toy") == 3 and json.loads(ledger.head("toy"))["sequence"] == 3
