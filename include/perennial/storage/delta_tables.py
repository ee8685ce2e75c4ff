"""Tables of the lake (Delta): partitions are replaced whole and atomically, a version can be read for ever.

Every table has the column ``partition_date`` (ISO date as text), its partition column.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Collection, Iterable
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

# deltalake's writer reads ahead of itself with every worker it has: 13 million rows took 1.1 GB to write with two, and
# take 0.27 GB with one, in about the same time. Read when its runtime starts, at the first operation.
os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
PARTITION = "partition_date"
ATTEMPTS = 12


def table_uri(kind: str, model: str) -> str:
    """The URI of a model's table of one kind: published, labels, quarantine, predictions, served, monitoring."""
    return f"{settings().lake}/{kind}/{model}"


def open_table(uri: str, version: int | None = None) -> DeltaTable | None:
    """The table at a version (the latest when not given), or None where nothing was written yet.

    Raises:
        StorageError: it cannot be read.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    if odd := sorted(set("[]%") & set(uri)):
        raise StorageError(
            f"{uri} has {' and '.join(odd)} in it, which Delta tables cannot have in their path",
            "set PERENNIAL_LAKE to another place",
        )
    if not object_store.is_remote(uri) and not Path(uri, "_delta_log").is_dir():
        return None
    try:
        return DeltaTable(uri, version=version, storage_options=settings().storage_options)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        what = uri if version is None else f"{uri} at version {version}"
        raise StorageError(
            f"{what} cannot be read: {error}",
            "check the lake's address and permissions; a version that was vacuumed is gone",
        ) from error


def version(uri: str) -> int | None:
    """The latest version of a table; None where nothing was written yet."""
    found = open_table(uri)
    return None if found is None else found.version()


def partitions(uri: str, version: int | None = None) -> list[str]:
    """The partition dates that a table holds, in order."""
    found = open_table(uri, version)
    return sorted(p[PARTITION] for p in found.partitions()) if found else []


class File(NamedTuple):
    """One Parquet file of a table, and how many rows it holds."""

    path: str
    rows: int


def files_by_partition(uri: str, version: int | None = None) -> dict[str, list[File]]:
    """The files of each partition, by date, both in order; the table is opened once."""
    found = open_table(uri, version)
    files: dict[str, list[File]] = {}
    if found:
        actions = found.get_add_actions(flatten=True)
        columns = (f"partition.{PARTITION}", "path", "num_records")
        for day, path, rows in zip(*(actions[c].to_pylist() for c in columns), strict=True):
            files.setdefault(day, []).append(File(f"{uri}/{unquote(path)}", int(rows or 0)))
    return {day: sorted(files[day]) for day in sorted(files)}


def fingerprint(
    uri: str, start: str | None = None, end: str | None = None, version: int | None = None
) -> str:
    """What names the content of the partitions ``start`` to ``end``: it changes when one of them is replaced.

    Returns:
        As `names` of the files that hold them; empty where none do.
    """
    held = files_by_partition(uri, version)
    return files_digest(
        f for day, found in held.items() if (start or day) <= day <= (end or day) for f in found
    )


def files_digest(held: Iterable[File]) -> str:
    """SHA-256 over the names of files (Delta never writes a file twice); empty where there are none."""
    found = sorted(f.path.rsplit("/", 1)[1] for f in held)
    return hashlib.sha256("\n".join(found).encode()).hexdigest() if found else ""


def replace(
    uri: str,
    data: pa.Table | Callable[[], pa.RecordBatchReader],
    start: str,
    end: str | None = None,
    *,
    distinct: Collection[str] = (),
) -> int:
    """As `Writer.replace`, once."""
    return Writer(uri, distinct).replace(data, start, end)


class Writer:
    """Writes to a table, which stays open from one commit to the next: one of a year takes 20 ms to open.

    Args:
        distinct: columns whose values hardly repeat; no dictionary of them is tried, which halves the cost of writing.
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
            data: rows with a ``partition_date`` within the range; a function that opens the stream anew where rows do
                not fit in memory, since a commit that collides with another writer's is tried again.

        Returns:
            The version that holds the rows.

        Raises:
            StorageError: the lake cannot be written, or other writers won too often.
        """
        from deltalake import ColumnProperties, CommitProperties, WriterProperties, write_deltalake
        from deltalake.exceptions import CommitFailedError, DeltaError

        plain = dict.fromkeys(self.distinct, ColumnProperties(dictionary_enabled=False))
        properties = WriterProperties(
            compression="SNAPPY", max_row_group_size=262_144, column_properties=plain or None
        )
        end = end or start
        for day in (start, end):
            dates.parse_date(day)
        where = (
            f"{PARTITION} = '{start}'"
            if start == end
            else f"{PARTITION} >= '{start}' AND {PARTITION} <= '{end}'"
        )
        for attempt in range(ATTEMPTS):
            table, self._table = self._table, None
            try:
                rows = data() if callable(data) else data
                if table is None and (table := open_table(self.uri)) is None:
                    _create(self.uri, rows.schema)
                    table = open_table(self.uri)
                assert table is not None
                write_deltalake(
                    table,  # it knows its new version afterwards
                    rows,
                    mode="overwrite",
                    predicate=where,
                    partition_by=[PARTITION],
                    schema_mode="merge",
                    writer_properties=properties,
                    # A table that is not the latest any more must be opened anew.
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
                self._table = table
                return int(table.version())
            except CommitFailedError as error:
                if attempt == ATTEMPTS - 1:
                    raise StorageError(
                        f"{self.uri}: other writers won {ATTEMPTS} times",
                        "run it again when they are done",
                        partition=start,
                    ) from error
                time.sleep(random.uniform(0.02, 0.1 * (attempt + 1)))
            except (DeltaError, OSError) as error:
                if "already exists" in str(error) and attempt < ATTEMPTS - 1:  # two first writers at once
                    time.sleep(random.uniform(0.05, 0.2))
                    continue
                raise StorageError(
                    f"{self.uri} cannot be written: {error}",
                    "check that the disk has room and that this user "
                    "may write; then run it again: nothing was published",
                    partition=start,
                ) from error
        raise AssertionError("unreachable")


def _create(uri: str, schema: pa.Schema) -> None:
    """Make an empty table, unless another writer is quicker.

    A first write that made the table itself would overwrite whole what a writer of another partition has just made.
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
        # Old versions are what training pins: vacuum must not take them within two years.
        configuration={"delta.deletedFileRetentionDuration": "interval 730 days"},
    )
