"""Delta tables of the lake: partitions are replaced atomically, and each version remains readable.

Every table has the column ``partition_date`` (ISO date as text), by which it is partitioned.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from perennial.core import dates
from perennial.core.errors import StorageError
from perennial.core.settings import settings
from perennial.storage import object_store

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

# deltalake's writer reads ahead with each worker thread: writing 13 million rows needed 1.1 GB with two threads and
# needs 0.27 GB with one, in about the same time. The variable is read when its runtime starts, at the first operation.
os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
#: The partition column of every table.
PARTITION = "partition_date"
#: Attempts at a commit that conflicts with other writers.
MAX_ATTEMPTS = 12


def table_uri(kind: str, model: str) -> str:
    """The URI of a model's table.

    Args:
        kind: ``published``, ``labels``, ``quarantine``, ``predictions``, ``served``, ``monitoring``.
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
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    # deltalake panics on brackets, and reads from another folder than it writes to if there is a percent sign.
    if refused := sorted(set("[]%") & set(uri)):
        raise StorageError(
            f"{uri} contains {' and '.join(refused)}, which the path of a Delta table must not contain",
            "set PERENNIAL_LAKE to another folder or address",
        )
    if not object_store.is_remote(uri) and not Path(uri, "_delta_log").is_dir():
        return None
    try:
        return DeltaTable(uri, version=version, storage_options=settings().storage_options)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        name = uri if version is None else f"{uri} at version {version}"
        raise StorageError(
            f"{name} cannot be read: {error}",
            "check the lake's address and permissions; a version that was vacuumed is gone",
        ) from error


def version(uri: str) -> int | None:
    """The latest version of a table; None where nothing has been written yet."""
    table = open_table(uri)
    return None if table is None else table.version()


def partitions(uri: str, version: int | None = None) -> list[str]:
    """The dates of a table's partitions, in order."""
    table = open_table(uri, version)
    return sorted(p[PARTITION] for p in table.partitions()) if table else []


class File(NamedTuple):
    """A Parquet file of a table: its path or URI, and its number of rows."""

    path: str
    rows: int


def files_by_partition(uri: str, version: int | None = None) -> dict[str, list[File]]:
    """The files of each partition, by date; dates and files are in order."""
    table = open_table(uri, version)
    files: dict[str, list[File]] = {}
    if table:
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
) -> int:
    """Replace partitions once, as `Writer.replace` does."""
    return Writer(uri, distinct).replace(data, start, end)


class Writer:
    """Writes to a table and keeps it open between commits.

    Opening a table is slow: 20 ms for a year of daily partitions.

    Args:
        uri: the table; the first write creates it.
        distinct: columns with mostly distinct values; they are written without a dictionary, in half the time.
    """

    def __init__(self, uri: str, distinct: Collection[str] = ()) -> None:
        self.uri = uri
        self.distinct = distinct
        self._table: DeltaTable | None = None

    def replace(
        self,
        data: pa.Table | Callable[[], pa.RecordBatchReader],
        start: str,
        end: str | None = None,
    ) -> int:
        """Replace the partitions ``start`` to ``end`` (both included) by ``data`` in one commit.

        Args:
            data: rows with a ``partition_date`` within the range. Where they do not fit in memory, a function that
                opens a stream of them: it is called again when the commit collides with another writer's.
            start: first partition date.
            end: last partition date; ``start`` when not given.

        Returns:
            The version that holds the rows.

        Raises:
            StorageError: the lake cannot be written, or conflicts with other writers persist.
        """
        from deltalake.exceptions import CommitFailedError, DeltaError

        end = end or start
        for day in (start, end):
            dates.parse_date(day)
        predicate = (
            f"{PARTITION} = '{start}'"
            if start == end
            else f"{PARTITION} >= '{start}' AND {PARTITION} <= '{end}'"
        )
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self._overwrite(data() if callable(data) else data, predicate)
            except CommitFailedError as error:
                if attempt == MAX_ATTEMPTS - 1:
                    raise StorageError(
                        f"{self.uri}: the commit conflicted with other writers {MAX_ATTEMPTS} times",
                        "run it again when the other runs have ended",
                        partition=start,
                    ) from error
                time.sleep(random.uniform(0.02, 0.1 * (attempt + 1)))
            except (DeltaError, OSError) as error:
                if (
                    "already exists" in str(error) and attempt < MAX_ATTEMPTS - 1
                ):  # two writers created the table
                    time.sleep(random.uniform(0.05, 0.2))
                    continue
                raise StorageError(
                    f"{self.uri} cannot be written: {error}",
                    "check that the disk has room and that this user "
                    "may write; then run it again: nothing was published",
                    partition=start,
                ) from error
        raise AssertionError("unreachable")

    def _overwrite(self, rows: pa.Table | pa.RecordBatchReader, predicate: str) -> int:
        """Overwrite the rows that match ``predicate`` in one commit; returns the table's new version."""
        from deltalake import ColumnProperties, CommitProperties, WriterProperties, write_deltalake

        # After a failed commit the open table is not the latest version, and must be opened again.
        table, self._table = self._table, None
        if table is None and (table := open_table(self.uri)) is None:
            _create(self.uri, rows.schema)
            table = open_table(self.uri)
        assert table is not None
        plain = dict.fromkeys(self.distinct, ColumnProperties(dictionary_enabled=False))
        write_deltalake(
            table,  # updated to its new version by the call
            rows,
            mode="overwrite",
            predicate=predicate,
            partition_by=[PARTITION],
            schema_mode="merge",
            writer_properties=WriterProperties(
                compression="SNAPPY", max_row_group_size=262_144, column_properties=plain or None
            ),
            # deltalake's own retries would write to an outdated version of the table.
            commit_properties=CommitProperties(max_commit_retries=0),
        )
        self._table = table
        return int(table.version())


def _create(uri: str, schema: pa.Schema) -> None:
    """Create an empty table, unless another writer has created it.

    If the first write created the table, it could overwrite what a writer of another partition has just written.
    """
    from deltalake import DeltaTable

    if not object_store.is_remote(uri):
        Path(uri).mkdir(parents=True, exist_ok=True)
    DeltaTable.create(
        uri,
        schema,
        mode="ignore",
        partition_by=[PARTITION],
        storage_options=settings().storage_options,
        # Trainings pin old versions: vacuum must keep them for two years.
        configuration={"delta.deletedFileRetentionDuration": "interval 730 days"},
    )
