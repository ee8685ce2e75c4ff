"""DuckDB over the lake: connections with a memory limit, and views of the lake's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from perennial.core.settings import settings
from perennial.core.sql import quote_identifier, text_literal
from perennial.storage import object_store
from perennial.storage.delta_tables import PARTITION, open_table

if TYPE_CHECKING:
    import duckdb


def connect(threads: int | None = None, memory_share: float = 0.4) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection in UTC, with a share of the step's memory; it spills to the working folder.

    Args:
        threads: threads of DuckDB; ``PERENNIAL_THREADS`` when not given.
        memory_share: share of ``PERENNIAL_MEMORY_MB`` for DuckDB's buffers; the process needs the rest.
    """
    import duckdb

    current = settings()
    spill = current.home / "tmp"
    spill.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect(
        config={"threads": threads or current.threads, "autoinstall_known_extensions": False}
    )
    con.execute(f"SET memory_limit='{max(128, int(current.memory_mb * memory_share))}MiB'")
    con.execute(f"SET temp_directory={text_literal(str(spill))}")
    con.execute("SET TimeZone='UTC'; SET preserve_insertion_order=true; SET enable_progress_bar=false")
    # The kernel caches files already; a second cache would use up the memory limit.
    con.execute("SET enable_external_file_cache=false")
    # Otherwise metadata is read both when a statement is planned and when it runs: a sixth of the time of small files.
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
    """Create a view of the partitions ``start`` to ``end`` of a table; it streams their files.

    Args:
        con: the connection that gets the view; a view of that name is replaced.
        view: name of the view.
        uri: the table.
        version: version of the table; the latest when not given.
        start: first partition date; that of the table when not given.
        end: last partition date; that of the table when not given.

    Returns:
        Whether there is anything to read; if not, no view is created.
    """
    table = open_table(uri, version)
    if table is None:
        return False
    bounds = [(PARTITION, op, day) for op, day in ((">=", start), ("<=", end)) if day]
    paths = sorted(table.file_uris(partition_filters=bounds or None))
    if not paths:
        return False
    if object_store.is_remote(uri) or set("*?") & set(uri):
        # DuckDB would download an extension to read S3, and treats * and ? in paths as wildcards: so Arrow reads, and
        # DuckDB pushes its filters down.
        import pyarrow.dataset as ds

        source = table.to_pyarrow_dataset(
            filesystem=table_filesystem(uri) if object_store.is_remote(uri) else None
        )
        within = None
        for _, op, day in bounds:
            bound = ds.field(PARTITION) >= day if op == ">=" else ds.field(PARTITION) <= day
            within = bound if within is None else within & bound
        con.register(view, source if within is None else source.filter(within))
        return True
    listed = ", ".join(text_literal(unquote(p.removeprefix("file://"))) for p in paths)
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {quote_identifier(view)} AS SELECT * FROM read_parquet([{listed}], "
        f"hive_partitioning=true, hive_types={{'{PARTITION}': VARCHAR}}, union_by_name=true)"
    )
    return True


def table_filesystem(uri: str) -> Any:
    """The Arrow filesystem of a table on S3, rooted at the table, as ``to_pyarrow_dataset`` needs it."""
    from pyarrow.fs import SubTreeFileSystem

    return SubTreeFileSystem(uri.removeprefix("s3://"), object_store.filesystem())
