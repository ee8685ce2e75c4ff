"""The Delta table that holds the ledger, and its files.

Each append writes one small file. `merge` makes larger ones of them, with the same records. The table's log says which
sequence numbers each file has, so that a reader opens only the files that it needs.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import unquote

from perennial.core.settings import settings
from perennial.storage import delta_tables, object_store, storage_errors
from perennial.storage.ledger_table.chain import FIELDS, LedgerRecord

if TYPE_CHECKING:
    import pyarrow as pa

#: Small files of a model from which they are merged, and the size that merged files grow to.
MERGED_FILES, MERGED_BYTES = 100, 4 << 20
#: Hours for which files that were merged stay, for those who have begun to read them.
MERGED_HOURS = 7 * 24
#: Properties of the table: its log, which shows how it was changed, is kept; and has statistics of all columns, by
#: which the files of some records are found.
PROPERTIES = {"delta.enableExpiredLogCleanup": "false", "delta.dataSkippingNumIndexedCols": "-1"}


class LedgerFile(NamedTuple):
    """A file of the table, as the table's log describes it.

    Attributes:
        path: in the table.
        rows: number of records.
        first: lowest number of a record; 0 if the log does not say.
        last: highest number of a record; 0 if the log does not say.
        last_hash: highest hash: that of the record, if there is one only.
        kinds: first and last kind of records in the order of letters; None if the log does not say.
    """

    path: str
    rows: int
    first: int
    last: int
    last_hash: str
    kinds: tuple[str, str] | None


def uri() -> str:
    """The ledger's table."""
    return f"{settings().lake}/ledger"


def append(row: dict[str, Any]) -> None:
    """Append one row to the table; its model's lock is held.

    Raises:
        StorageError: the lake cannot be written.
    """
    from deltalake.exceptions import CommitFailedError

    with storage_errors.writing(uri(), model=row["model"], partition=row["partition"] or None):
        if delta_tables.open_table(uri()) is None:
            delta_tables.create(uri(), schema(), PROPERTIES, partition_by=["model"])
        try:
            _write(row)
        except CommitFailedError:
            # `merge`, of any model, gave the table its properties meanwhile: Deltalake does not try again then
            if not any(file.last >= row["sequence"] for file in of_model(row["model"])):
                _write(row)


def _write(row: dict[str, Any]) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    write_deltalake(
        uri(),
        pa.Table.from_pylist([row], schema()),
        mode="append",
        partition_by=["model"],
        storage_options=settings().storage_options,
    )


def schema() -> pa.Schema:
    """Columns of the table."""
    import pyarrow as pa

    return pa.schema([pa.field(f, pa.int64() if f == "sequence" else pa.string()) for f in (*FIELDS, "hash")])


def models() -> set[str]:
    """Names of the models that have records."""
    table = delta_tables.open_table(uri())
    return {part["model"] for part in table.partitions()} if table else set()


def of_model(model: str, kinds: Collection[str] = ()) -> list[LedgerFile]:
    """Files that may have a model's records of some kinds (all if none is given)."""
    table = delta_tables.open_table(uri())
    if table is None:
        return []
    actions = table.get_add_actions(flatten=True)
    known = actions.schema.names  # without files there are no statistics
    columns = ("path", "num_records", "min.sequence", "max.sequence", "max.hash", "min.kind", "max.kind")
    values = [
        actions[name].to_pylist() if name in known else [None] * actions.num_rows
        for name in ("partition.model", *columns)
    ]
    return [
        LedgerFile(unquote(path), rows or 1, first or 0, last or 0, digest or "", low and (low, high))
        for name, path, rows, first, last, digest, low, high in zip(*values, strict=True)
        if name == model and (not kinds or low is None or any(low <= kind <= high for kind in kinds))
    ]


def having(files: Iterable[LedgerFile], sequences: Collection[int]) -> list[LedgerFile]:
    """The files that may have records with some numbers."""
    ordered = sorted(sequences)
    return [
        file
        for file in files
        if not file.last or bisect_left(ordered, file.first) < bisect_right(ordered, file.last)
    ]


def read(model: str, files: Collection[LedgerFile], condition: Any = None) -> list[LedgerRecord]:
    """The records of some files that fit a condition, in order."""
    columns = [f for f in (*FIELDS, "hash") if f != "model"]
    rows = read_columns(model, files, columns, condition).to_pylist()
    rows.sort(key=lambda row: row["sequence"])
    return [cast("LedgerRecord", {"model": model, **r, "evidence": json.loads(r["evidence"])}) for r in rows]


def read_columns(
    model: str, files: Collection[LedgerFile], columns: list[str], condition: Any = None
) -> pa.Table:
    """Columns of the records of some files that fit a condition, an expression of Arrow.

    Raises:
        StorageError: a file is missing or damaged.
    """
    import pyarrow.dataset

    stored = schema().remove(0)  # the model is the partition, and not in the files
    if not files:
        return pyarrow.dataset.dataset(stored.empty_table()).to_table(columns=columns)
    remote = object_store.is_remote(uri())
    with storage_errors.reading(uri(), model=model):
        # The log's statistics say which files are needed: a tenth of the time that the table's own reader takes.
        dataset = pyarrow.dataset.dataset(
            [f"{uri().removeprefix('s3://')}/{file.path}" for file in files],
            schema=stored,
            filesystem=object_store.filesystem() if remote else None,
            format="parquet",
        )
        return dataset.to_table(columns=columns, filter=condition)


def merge(model: str) -> bool:
    """Make larger files of a model's small ones, if there are many; the records stay as they are.

    Files of the model that were merged a week ago are deleted: nobody reads an older version of the table. Those of
    other models stay: their chains may be broken, and these files the only whole copy. A table of an earlier release
    gets the properties that it lacks; Deltalake would delete its log after 30 days.

    Returns:
        Whether it was done.

    Raises:
        StorageError: the lake cannot be read or written.
    """
    table = delta_tables.open_table(uri())
    if table is None:
        return False
    wanted, present = {**delta_tables.TABLE_PROPERTIES, **PROPERTIES}, table.metadata().configuration
    missing = {name: value for name, value in wanted.items() if present.get(name) != value}
    with storage_errors.writing(uri(), model=model):
        if missing:
            table.alter.set_table_properties(missing, raise_if_not_exists=False)
        if sum(file.rows == 1 for file in of_model(model)) < MERGED_FILES:
            return False
        table.optimize.compact(partition_filters=[("model", "=", model)], target_size=MERGED_BYTES)
        unneeded = table.vacuum(retention_hours=MERGED_HOURS, dry_run=True, enforce_retention_duration=False)
        for path in unneeded:
            if unquote(path).startswith(f"model={model}/"):
                object_store.delete_file(f"{uri()}/{path}")
    return True


def other_changes() -> list[str]:
    """Changes of the table that did more than append or merge, in words.

    A chain alone cannot show that its last record was removed.
    """
    table = delta_tables.open_table(uri())
    with storage_errors.reading(uri()):
        history = table.history() if table else []
    return [
        f"the ledger's table was changed by {commit.get('operation')} in its version {commit.get('version')}: "
        "records may be missing"
        for commit in history
        if not _only_adds_rows(commit)
    ]


def _only_adds_rows(commit: dict[str, Any]) -> bool:
    """Whether a commit of the table removed no rows."""
    mode = str(commit.get("operationParameters", {}).get("mode", "")).lower()
    return commit.get("operation") in (
        "OPTIMIZE",
        "SET TBLPROPERTIES",
        "VACUUM START",
        "VACUUM END",
    ) or mode in (
        "append",
        "errorifexists",
        "ignore",  # creates the table where there is none
    )
