"""DuckDB over the lake: connections, and tables of the lake as relations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from perennial.core.settings import Settings, settings
from perennial.core.sql import quote_identifier, text_literal
from perennial.storage import object_store
from perennial.storage.delta_tables import PARTITION, open_table

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


BATCH_BYTES = 64 << 20


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


def create_view(
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
    if object_store.is_remote(uri) or set("*?") & set(uri):
        # DuckDB's own S3 reader is an extension that it would download, and it takes paths for patterns: Arrow reads,
        # DuckDB pushes its filters down.
        import pyarrow.dataset as ds

        source = found.to_pyarrow_dataset(
            filesystem=table_filesystem(uri) if object_store.is_remote(uri) else None
        )
        keep = None
        for op, day in ((">=", start), ("<=", end)):
            if day:
                part = ds.field(PARTITION) >= day if op == ">=" else ds.field(PARTITION) <= day
                keep = part if keep is None else keep & part
        con.register(view, source if keep is None else source.filter(keep))
        return True
    listed = ", ".join(text_literal(unquote(p.removeprefix("file://"))) for p in paths)
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {quote_identifier(view)} AS SELECT * FROM read_parquet([{listed}], "
        f"hive_partitioning=true, hive_types={{'{PARTITION}': VARCHAR}}, union_by_name=true)"
    )
    return True


def table_filesystem(uri: str) -> Any:
    """The filesystem of a table on S3, rooted at the table, as ``to_pyarrow_dataset`` wants it."""
    from pyarrow.fs import SubTreeFileSystem

    return SubTreeFileSystem(uri.removeprefix("s3://"), object_store.filesystem())


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
    if not create_view(con, "t", uri, version, start, end):
        return None
    listed = ", ".join(quote_identifier(c) for c in columns) if columns else "*"
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
