"""Delta tables of the lake: partitions are replaced atomically, and each version remains readable.

The digest of each file is recorded when it is written; who reads files calls `perennial.storage.file_digests.verify`.

Every table has the column ``partition_date`` (ISO date as text), by which it is partitioned.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import unquote

from perennial.core.errors import StorageError, StorageFaultError
from perennial.core.partitions import PartitionRange, contiguous_ranges, nominal_start
from perennial.core.settings import settings
from perennial.core.sql import row_group_rows
from perennial.storage import _column_types, file_digests, object_store, storage_errors

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

# deltalake's writer reads ahead with each worker thread: writing 13 million rows needed 1.1 GB with two threads and
# needs 0.27 GB with one, in about the same time. The variable is read when its runtime starts, at the first operation.
os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
#: The partition column of every table.
PARTITION = "partition_date"
#: Property of a table: what its rows mean.
DEFINITION = "perennial.definition"
#: Properties of every table. Deltalake would forget versions after 30 days: it then deletes the log, without which no
#: version can be read, not only files. And it would copy the least and the greatest value of each column to the log,
#: where they stay after the rows.
TABLE_PROPERTIES = {
    "delta.deletedFileRetentionDuration": "interval 730 days",
    "delta.logRetentionDuration": "interval 730 days",
    "delta.enableExpiredLogCleanup": "false",
    "delta.dataSkippingNumIndexedCols": "0",
}
#: Kinds of tables that a model has.
KINDS = ("published", "labels", "quarantine", "predictions", "served", "monitoring")
#: Rows of a row group of a narrow table.
MAX_GROUP_ROWS = 262_144
#: Columns from which the dictionaries of all columns need more memory than a row group.
WIDE_TABLE = 250
#: Attempts at a commit that conflicts with other writers.
MAX_ATTEMPTS = 12


def table_uri(kind: str, model: str) -> str:
    """The URI of a model's table.

    Args:
        kind: one of `KINDS`.
        model: name of the model.
    """
    return f"{settings().lake}/{kind}/{model}"


def open_table(uri: str, version: int | None = None) -> DeltaTable | None:
    """Open a table.

    Args:
        uri: a folder or an S3 URI.
        version: version of the table; the latest when not given.

    Returns:
        The table, or None where nothing has been written yet.

    Raises:
        StorageError: it cannot be read.
    """
    # deltalake panics on brackets, and reads from another folder than it writes to if there is a percent sign.
    if refused := sorted(set("[]%") & set(uri)):
        raise StorageFaultError(
            f"{uri} contains {' and '.join(refused)}, which the path of a Delta table must not contain",
            "set PERENNIAL_LAKE to another folder or address",
        )
    table = _open_if_there(uri, version)
    if table is None and _has_files(uri):
        # Writers create the log before other files: since it was looked for, another task may have created the table.
        table = _open_if_there(uri, version)
        if table is None:
            raise StorageFaultError(  # an empty table must not be taken for one whose log was lost
                f"{uri} has files, but the log of its versions (_delta_log) is missing or empty",
                storage_errors.lost_log_remedy(uri),
            )
    return table


def _open_if_there(uri: str, version: int | None) -> DeltaTable | None:
    """The table; None if it has no log."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    if not object_store.is_remote(uri) and not Path(uri, "_delta_log").is_dir():
        return None
    try:
        return DeltaTable(uri, version=version, storage_options=settings().storage_options)
    except TableNotFoundError:
        return None
    except BaseException as error:
        if not storage_errors.is_storage_failure(error):
            raise
        name = uri if version is None else f"{uri} at version {version}"
        failure = storage_errors.read_error(name, error)
        if version is not None and "ersion" in str(error):
            failure.remedy += "; or the version was vacuumed, and is gone"
        raise failure from error


def _has_files(uri: str) -> bool:
    """Whether there are files of rows.

    Raises:
        StorageError: they cannot be listed, or the table's folder is a file.
    """
    remote = object_store.is_remote(uri)
    if not remote and Path(uri).is_file():
        raise storage_errors.read_error(uri, NotADirectoryError(errno.ENOTDIR, "", uri))
    if "/references/" in uri:  # a reference table is copied again from its landed file, and needs no repair
        return False
    if not remote:
        return Path(uri, "_delta_log").is_file() or any(Path(uri).rglob("*.parquet"))
    from pyarrow.fs import FileSelector

    with storage_errors.reading(uri):
        selector = FileSelector(uri.removeprefix("s3://"), allow_not_found=True, recursive=True)
        return any(file.extension == "parquet" for file in object_store.filesystem().get_file_info(selector))


def version(uri: str) -> int | None:
    """The latest version of a table; None where nothing has been written yet."""
    table = open_table(uri)
    return None if table is None else table.version()


def arrow_schema(table: DeltaTable) -> pa.Schema:
    """The columns of a table."""
    import pyarrow as pa

    return pa.schema(cast(Any, table.schema().to_arrow()))


def partitions(uri: str, version: int | None = None) -> list[str]:
    """The dates of a table's partitions, in order."""
    table = open_table(uri, version)
    return sorted(p[PARTITION] for p in table.partitions()) if table else []


def file_paths(uri: str) -> list[str]:
    """The files of a table's latest version, by path in the table, in order."""
    table = open_table(uri)
    if table is None:
        return []
    return sorted(unquote(path) for path in table.get_add_actions(flatten=True)["path"].to_pylist())


class File(NamedTuple):
    """A Parquet file of a table: its path or URI, and its number of rows."""

    path: str
    rows: int


def files_by_partition(uri: str, version: int | None = None) -> dict[str, list[File]]:
    """The files of each partition, by date; dates and files are in order."""
    table = open_table(uri, version)
    return _files(table, uri) if table else {}


def _files(table: DeltaTable, uri: str) -> dict[str, list[File]]:
    files: dict[str, list[File]] = {}
    with storage_errors.reading(uri):
        actions = table.get_add_actions(flatten=True)
    columns = (f"partition.{PARTITION}", "path", "num_records")
    for day, path, rows in zip(*(actions[c].to_pylist() for c in columns), strict=True):
        files.setdefault(day, []).append(File(f"{uri}/{unquote(path)}", int(rows or 0)))
    return {day: sorted(files[day]) for day in sorted(files)}


def rows_by_partition(uri: str, version: int | None = None) -> dict[str, int]:
    """The number of rows of each partition, by date, in order."""
    return {day: sum(f.rows for f in files) for day, files in files_by_partition(uri, version).items()}


class PartitionGroup(NamedTuple):
    """Partitions that follow one another, processed together.

    Attributes:
        start: date of the first partition.
        end: date of the last partition.
        rows: rows of all of them.
        partitions: how many there are.
    """

    start: str
    end: str
    rows: int
    partitions: int


def group_by_rows(rows: Mapping[str, int], max_rows: int) -> Iterator[PartitionGroup]:
    """Group adjacent partitions up to a number of rows; a larger partition forms its own group.

    Args:
        rows: rows of each partition by date, in order.
        max_rows: rows that a group of several partitions has at most.
    """
    group: list[str] = []
    total = 0
    for day, count in rows.items():
        if group and total + count > max_rows:
            yield PartitionGroup(group[0], group[-1], total, len(group))
            group, total = [], 0
        group.append(day)
        total += count
    if group:
        yield PartitionGroup(group[0], group[-1], total, len(group))


def partitions_digest(
    uri: str, start: str | None = None, end: str | None = None, version: int | None = None
) -> str:
    """Compute a digest of partitions that changes when one of them is replaced.

    Args:
        uri: the table.
        start: first partition date; that of the table when not given.
        end: last partition date; that of the table when not given.
        version: version of the table; the latest when not given.

    Returns:
        The `files_digest` of their files; empty if there are none.
    """
    by_day = files_by_partition(uri, version).items()
    return files_digest(
        file for day, files in by_day if (start or day) <= day <= (end or day) for file in files
    )


def files_digest(files: Iterable[File]) -> str:
    """SHA-256 over the names of files (Delta never reuses a name); empty if there are none."""
    names = sorted(f.path.rsplit("/", 1)[1] for f in files)
    return hashlib.sha256("\n".join(names).encode()).hexdigest() if names else ""


def replace(
    uri: str,
    data: pa.Table | Callable[[], pa.RecordBatchReader],
    start: str,
    end: str | None = None,
    *,
    distinct: Collection[str] = (),
    days: Collection[str] = (),
    properties: Mapping[str, str] | None = None,
) -> int:
    """Replace partitions once, as `Writer.replace` does."""
    return Writer(uri, distinct, properties).replace(data, start, end, days=days)


def remove_rows(uri: str, days: Collection[str]) -> None:
    """Remove the rows of partitions that have any.

    Raises:
        StorageError: as `Writer.replace`.
    """
    table = open_table(uri)
    present = sorted(set(days) & set(partitions(uri)))
    if table is not None and present:
        Writer(uri).replace(arrow_schema(table).empty_table(), present[0], present[-1], days=present)


class Writer:
    """Writes to a table and keeps it open between commits.

    Opening a table is slow: 20 ms for a year of daily partitions.

    Columns that the table does not have are added to it. Rows with another type than the table's are refused;
    `generations` changes the types of a table.

    Args:
        uri: the table; the first write creates it.
        distinct: columns with mostly distinct values; they are written without a dictionary, in half the time.
        properties: properties of a table that the first write creates.
    """

    def __init__(
        self, uri: str, distinct: Collection[str] = (), properties: Mapping[str, str] | None = None
    ) -> None:
        self.uri = uri
        self.distinct = distinct
        self.properties = properties or {}
        self._table: DeltaTable | None = None

    def open(self) -> DeltaTable | None:
        """The table as it was when it was opened or last written; None where nothing has been written yet."""
        if self._table is None:
            self._table = open_table(self.uri)
        return self._table

    def replace(
        self,
        data: pa.Table | Callable[[], pa.RecordBatchReader],
        start: str,
        end: str | None = None,
        *,
        days: Collection[str] = (),
        condition: str = "",
    ) -> int:
        """Replace the partitions ``start`` to ``end`` (both included) by ``data`` in one commit.

        Args:
            data: rows with a ``partition_date`` within the range. Where they do not fit in memory, a function that
                opens a stream of them: it is called again when the commit collides with another writer's.
            start: first partition date.
            end: last partition date; ``start`` when not given.
            days: the partitions of the range that are replaced; all of them when not given. Another run may write the
                others at the same time.
            condition: SQL condition of the rows of these partitions that are replaced, which ``data`` must satisfy; all
                of them when empty.

        Returns:
            The version that holds the rows.

        Raises:
            StorageError: the lake cannot be written, conflicts with other writers persist, or a column has another
                type in the table; nothing was written.
            Exception: what the stream of ``data`` raised.
        """
        from deltalake.exceptions import CommitFailedError

        end = end or start
        for day in (start, end):
            nominal_start(day)
        predicate = _partitions_condition(days or PartitionRange.between(start, end))
        if condition:
            predicate = f"{predicate} AND {condition}"
        source: list[Exception] = []
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self._overwrite(_observed(data(), source) if callable(data) else data, predicate)
            except CommitFailedError as error:
                if attempt == MAX_ATTEMPTS - 1:
                    raise self._conflict(start) from error
                time.sleep(random.uniform(0.02, 0.1 * (attempt + 1)))
            except BaseException as error:
                if source:  # the rows could not be read: the writer reports only the text of that
                    raise source[0] from None
                if not storage_errors.is_storage_failure(error):
                    raise
                if (
                    "already exists" in str(error) and attempt < MAX_ATTEMPTS - 1
                ):  # two writers created the table
                    time.sleep(random.uniform(0.05, 0.2))
                    continue
                raise storage_errors.write_error(self.uri, error, partition=start) from error
        raise AssertionError("unreachable")

    def _conflict(self, start: str) -> StorageError:
        return StorageError(
            f"{self.uri}: the commit conflicted with other writers {MAX_ATTEMPTS} times",
            "run it again when the other runs have ended",
            partition=start,
        )

    def files_by_partition(self) -> dict[str, list[File]]:
        """The files of each partition in the version last written, by date."""
        return _files(self._table, self.uri) if self._table else {}

    def _overwrite(self, rows: pa.Table | pa.RecordBatchReader, predicate: str) -> int:
        """Overwrite the rows that match ``predicate`` in one commit; returns the table's new version."""
        from deltalake import ColumnProperties, CommitProperties, WriterProperties, write_deltalake

        # After a failed commit the open table is not the latest version, and must be opened again.
        table, self._table = self._table, None
        if table is None and (table := open_table(self.uri)) is None:
            create(self.uri, rows.schema, self.properties)
            table = open_table(self.uri)
        assert table is not None
        self._check_definition(table, rows.schema)
        plain = dict.fromkeys(
            _plain_columns(self.distinct, rows.schema), ColumnProperties(dictionary_enabled=False)
        )
        write_deltalake(
            table,  # updated to its new version by the call
            rows,
            mode="overwrite",
            predicate=predicate,
            partition_by=[PARTITION],
            schema_mode="merge",
            writer_properties=WriterProperties(
                compression="SNAPPY",
                # A row group is in memory until it is complete.
                max_row_group_size=min(MAX_GROUP_ROWS, 2 * row_group_rows(len(rows.schema))),
                column_properties=plain or None,
            ),
            # deltalake's own retries would write to an outdated version of the table.
            commit_properties=CommitProperties(max_commit_retries=0),
        )
        file_digests.record_commit(table, self.uri)
        self._table = table
        return int(table.version())

    def _check_definition(self, table: DeltaTable, schema: pa.Schema) -> None:
        """Refuse rows that have other types, or another meaning, than those of the table.

        Steps compare the spec with the table before they write: this is for a table that changed while a step ran.
        """
        stored = table.metadata().configuration.get(DEFINITION)
        conflicts = [str(c) for c in _column_types.changes(table, schema)]
        if stored is not None and stored != self.properties.get(DEFINITION, stored):
            conflicts.append(f"its rows are {stored}, and these are {self.properties[DEFINITION]}")
        if conflicts:
            raise StorageError(
                f"{self.uri}: {'; '.join(conflicts)}; nothing was written",
                "run this again with the present spec; `perennial check` compares the spec with the table",
            )


def _plain_columns(distinct: Collection[str], schema: pa.Schema) -> list[str]:
    """The columns that are written without a dictionary: of a wide table all but texts, since each needs memory."""
    import pyarrow as pa

    if len(schema) <= WIDE_TABLE:
        return list(distinct)
    texts = {field.name for field in schema if pa.types.is_string(field.type)}
    return [name for name in schema.names if name in distinct or name not in texts]


def _observed(rows: pa.RecordBatchReader, failures: list[Exception]) -> pa.RecordBatchReader:
    """The same stream; what it raises is also added to ``failures``."""
    import pyarrow as pa

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from rows
        except Exception as error:
            failures.append(error)
            raise

    return pa.RecordBatchReader.from_batches(rows.schema, batches())


def _partitions_condition(days: Collection[str] | PartitionRange) -> str:
    """SQL condition of the rows of some partitions."""
    spans = [days] if isinstance(days, PartitionRange) else list(contiguous_ranges(days))
    if len(spans) == 1:
        start, end = spans[0].start, spans[0].end
        return (
            f"{PARTITION} = '{start}'"
            if start == end
            else f"({PARTITION} >= '{start}' AND {PARTITION} <= '{end}')"
        )
    # Deltalake takes twice as long for the ranges of a feed without weekends, joined by OR.
    return f"{PARTITION} IN ({', '.join(repr(day) for day in sorted(set(days)))})"


def create(
    uri: str,
    schema: pa.Schema,
    properties: Mapping[str, str],
    *,
    partition_by: Sequence[str] = (PARTITION,),
    reason: str = "",
) -> None:
    """Create an empty table.

    Where another writer has created it, nothing happens. If the first write created the table, it could overwrite what
    a writer of another partition has just written.

    Args:
        uri: the table.
        schema: its columns, with ``partition_date``.
        properties: properties of the table.
        partition_by: columns that the table is partitioned by.
        reason: why a table that exists is replaced by an empty one, in one commit. Its old versions stay readable.
    """
    from deltalake import CommitProperties, DeltaTable

    with storage_errors.writing(uri):
        if not object_store.is_remote(uri):
            Path(uri).mkdir(parents=True, exist_ok=True)
        DeltaTable.create(
            uri,
            schema,
            mode="overwrite" if reason else "ignore",
            partition_by=list(partition_by),
            storage_options=settings().storage_options,
            configuration={**TABLE_PROPERTIES, **properties},
            raise_if_key_not_exists=False,  # the properties are ours
            commit_properties=CommitProperties({"perennial.reason": reason}, 0) if reason else None,
        )
