"""Tables of the lake (Delta): partitions are replaced whole and atomically, a version can be read for ever.

Every table has the column ``partition_date`` (ISO date as text), its partition column.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from perennial import files
from perennial.errors import StorageError
from perennial.literals import identifier, text_literal
from perennial.settings import Settings, settings

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from deltalake import DeltaTable

# deltalake's writer reads ahead of itself with every worker it has: 13 million rows took 1.1 GB to write with two, and
# take 0.27 GB with one, in about the same time. Read when its runtime starts, at the first operation.
os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
PARTITION = "partition_date"
BATCH_BYTES = 64 << 20
ATTEMPTS = 12


def table(kind: str, model: str) -> str:
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
    if not files.is_remote(uri) and not Path(uri, "_delta_log").is_dir():
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


def contents(uri: str, version: int | None = None) -> dict[str, list[File]]:
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
    held = contents(uri, version)
    return names(f for day, found in held.items() if (start or day) <= day <= (end or day) for f in found)


def names(held: Iterable[File]) -> str:
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
            files.parse_date(day)
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

    if not files.is_remote(uri):
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


def connect(threads: int | None = None, memory_share: float = 0.4) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection within the step's memory, spilling into the working folder, in UTC.

    Args:
        memory_share: the part of ``PERENNIAL_MEMORY_MB`` that DuckDB's buffers may take; the rest is the process's.
    """
    import duckdb

    here: Settings = settings()
    spill = here.home / "tmp"
    spill.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect(config={"threads": threads or here.threads, "autoinstall_known_extensions": False})
    con.execute(f"SET memory_limit='{max(128, int(here.memory_mb * memory_share))}MiB'")
    con.execute(f"SET temp_directory={text_literal(str(spill))}")
    con.execute("SET TimeZone='UTC'; SET preserve_insertion_order=true; SET enable_progress_bar=false")
    # The kernel caches files already; a second cache would fill the memory that is allowed.
    con.execute("SET enable_external_file_cache=false")
    # What a file holds is asked for when a statement is made and when it runs: a sixth of the time of small files.
    con.execute("SET parquet_metadata_cache=true")
    return con


def relation(
    con: duckdb.DuckDBPyConnection,
    view: str,
    uri: str,
    version: int | None = None,
    start: str | None = None,
    end: str | None = None,
) -> bool:
    """Make the partitions ``start`` to ``end`` of a table a streaming view of DuckDB.

    Returns:
        Whether there is anything to read; where not, no view is made.
    """
    found = open_table(uri, version)
    if found is None:
        return False
    wanted = [(PARTITION, op, day) for op, day in ((">=", start), ("<=", end)) if day]
    paths = sorted(found.file_uris(partition_filters=wanted or None))
    if not paths:
        return False
    if files.is_remote(uri) or set("*?") & set(uri):
        # DuckDB's own S3 reader is an extension that it would download, and it takes paths for patterns: Arrow reads,
        # DuckDB pushes its filters down.
        import pyarrow.dataset as ds

        source = found.to_pyarrow_dataset(filesystem=ds_filesystem(uri) if files.is_remote(uri) else None)
        keep = None
        for op, day in ((">=", start), ("<=", end)):
            if day:
                part = ds.field(PARTITION) >= day if op == ">=" else ds.field(PARTITION) <= day
                keep = part if keep is None else keep & part
        con.register(view, source if keep is None else source.filter(keep))
        return True
    listed = ", ".join(text_literal(unquote(p.removeprefix("file://"))) for p in paths)
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {identifier(view)} AS SELECT * FROM read_parquet([{listed}], "
        f"hive_partitioning=true, hive_types={{'{PARTITION}': VARCHAR}}, union_by_name=true)"
    )
    return True


def ds_filesystem(uri: str) -> Any:
    """The filesystem of a table on S3, rooted at the table, as ``to_pyarrow_dataset`` wants it."""
    from pyarrow.fs import SubTreeFileSystem

    return SubTreeFileSystem(uri.removeprefix("s3://"), files.filesystem())


def stream(
    uri: str,
    version: int | None = None,
    start: str | None = None,
    end: str | None = None,
    columns: list[str] | None = None,
    rows: int = 131_072,
) -> pa.RecordBatchReader | None:
    """The partitions ``start`` to ``end`` as a stream of record batches; None where there is nothing.

    Args:
        rows: how many rows a batch has, about: the small files of single nights come together.
    """
    import pyarrow as pa

    con = connect(threads=1)  # whoever consumes the stream keeps the other cores busy
    if not relation(con, "t", uri, version, start, end):
        return None
    listed = ", ".join(identifier(c) for c in columns) if columns else "*"
    source = con.sql(f"SELECT {listed} FROM t").to_arrow_reader(rows)

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from _together(source, rows)
        finally:
            con.close()  # a step that reads many ranges must not hold the memory of all of them

    return pa.RecordBatchReader.from_batches(source.schema, batches())


def _together(source: pa.RecordBatchReader, rows: int) -> Iterator[pa.RecordBatch]:
    """The stream in batches of about ``rows`` rows, or of `BATCH_BYTES` where rows are long."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    count = size = 0
    for batch in source:
        if held and (count + batch.num_rows > rows or size + batch.nbytes > BATCH_BYTES):
            yield from pa.Table.from_batches(held).combine_chunks().to_batches()
            held, count, size = [], 0, 0
        if batch.num_rows:
            held.append(batch)
            count += batch.num_rows
            size += batch.nbytes
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()
