"""DuckDB over the lake: connections with limits, their lock for SQL that people wrote, views of the lake's tables."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from perennial.core.settings import settings
from perennial.core.sql import fold_identifier, quote_identifier, text_literal
from perennial.storage import file_digests, object_store, storage_errors
from perennial.storage.delta_tables import PARTITION, open_table

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable

#: Seconds that one statement of SQL that people wrote may run, or take for its next rows: a task's default time.
STATEMENT_SECONDS = 3600.0
#: Columns that the threads of a query read together: each thread has memory for every column, some 100 KB.
_THREAD_COLUMNS = 2048
#: Columns of the files that a query reads, each file's counted: it has a reader for every one of them.
_OPEN_COLUMNS = 16_384
#: Seconds between two interrupts of a connection whose time is over.
_TURN_SECONDS = 0.2


def connect(threads: int | None = None, memory_share: float = 0.4) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection in UTC, with a share of the step's memory; it spills to the working folder.

    Args:
        threads: threads of DuckDB; ``PERENNIAL_THREADS`` when not given.
        memory_share: share of ``PERENNIAL_MEMORY_MB`` for DuckDB's buffers; the process needs the rest.
    """
    import duckdb

    current = settings()
    # Not the folder above, which holds the copies of landed files that other runs made.
    spill = current.home / "tmp" / "spill"
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


def threads_for(columns: int, most: int | None = None) -> int:
    """The threads of queries of so many columns: one where they are very many, since each needs memory for all of them.

    Args:
        columns: columns of a row.
        most: threads that may be used; ``PERENNIAL_THREADS`` when not given.
    """
    return min(most or settings().threads, max(1, _THREAD_COLUMNS // max(1, columns)))


def files_at_once(columns: int) -> int:
    """The files of so many columns that one query reads at most."""
    return max(1, _OPEN_COLUMNS // max(1, columns))


def connect_small() -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection in UTC for a few rows, as `perennial check` needs: it writes nothing to disk."""
    import duckdb

    con = duckdb.connect(
        config={"threads": 2, "autoinstall_known_extensions": False, "memory_limit": "512MiB"}
    )
    con.execute("SET TimeZone='UTC'; SET enable_progress_bar=false; SET temp_directory=''")
    return con


def lock(con: duckdb.DuckDBPyConnection, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Lock a connection for SQL that people wrote: for good, and before that SQL is planned.

    It can read no file but those given and those of the folder to which it spills, loads no extension, sees no Python
    variable and changes no setting. S3 URIs are not files for DuckDB: Arrow reads them.

    Args:
        con: the connection.
        files: local files that it may read and write.
        folders: local folders whose files it may read and write.
    """
    for setting, paths in (("allowed_paths", files), ("allowed_directories", folders)):
        if local := sorted({path for path in paths if not object_store.is_remote(path)}):
            con.execute(f"SET {setting}=[{', '.join(map(text_literal, local))}]")
    con.execute(
        "SET python_enable_replacements=false; SET enable_external_access=false; SET lock_configuration=true"
    )


@contextmanager
def time_limit(con: duckdb.DuckDBPyConnection, seconds: float = STATEMENT_SECONDS) -> Iterator[None]:
    """Interrupt what a connection runs within the block once the time is over; DuckDB has no time limit of its own.

    DuckDB notices between chunks of rows. Entering and leaving costs microseconds.

    Raises:
        TimeoutError: the time was over, whatever the block made of the interruption.
    """
    ticket = _WATCHDOG.add(con, time.monotonic() + seconds)
    cause: Exception | None = None
    try:
        yield
    except Exception as error:
        cause = error
    finally:
        expired = _WATCHDOG.remove(ticket)
    if expired:
        raise TimeoutError(f"it ran for more than {seconds:g} seconds") from cause
    if cause:
        raise cause


class _Watchdog:
    """One thread that interrupts the connections whose time is over."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadlines: dict[object, tuple[float, duckdb.DuckDBPyConnection]] = {}
        self._expired: set[object] = set()
        self._thread: threading.Thread | None = None
        self._wakes_at = 0.0

    def add(self, con: duckdb.DuckDBPyConnection, deadline: float) -> object:
        """Watch a connection; returns the ticket that ends this."""
        ticket = object()
        with self._changed:
            self._deadlines[ticket] = deadline, con
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sql-time-limit", daemon=True)
                self._thread.start()
            elif deadline < self._wakes_at:
                self._changed.notify()
        return ticket

    def remove(self, ticket: object) -> bool:
        """Stop watching; returns whether the time was over."""
        with self._changed:
            self._deadlines.pop(ticket, None)
            expired = ticket in self._expired
            self._expired.discard(ticket)
            return expired

    def _run(self) -> None:
        with self._changed:
            while True:
                wait = self._interrupt_expired()
                self._wakes_at = time.monotonic() + wait
                self._changed.wait(wait)

    def _interrupt_expired(self) -> float:
        """Interrupt what is over; returns the seconds until the next deadline.

        A function of its own, so that the waiting thread refers to no connection and keeps none open.
        """
        moment = time.monotonic()
        for ticket, (deadline, con) in self._deadlines.items():
            if deadline <= moment:
                self._expired.add(ticket)
                con.interrupt()  # again at each turn: a statement may only just begin
        waits = [max(deadline - moment, _TURN_SECONDS) for deadline, _ in self._deadlines.values()]
        return min(waits, default=STATEMENT_SECONDS)


_WATCHDOG = _Watchdog()
# A forked process has no thread, and perhaps a lock that it held.
os.register_at_fork(after_in_child=_WATCHDOG.__init__)  # type: ignore[misc]


def create_view(
    con: duckdb.DuckDBPyConnection,
    view: str,
    uri: str,
    version: int | None = None,
    start: str | None = None,
    end: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> bool:
    """Create a view of the partitions ``start`` to ``end`` of a table; it streams their files.

    Args:
        con: the connection that gets the view; a view of that name is replaced.
        view: name of the view.
        uri: the table.
        version: version of the table; the latest when not given.
        start: first partition date; that of the table when not given.
        end: last partition date; that of the table when not given.
        columns: SQL types of columns that the view has in any case: null where the files do not have them.

    Returns:
        Whether there is anything to read; if not, no view is created.

    Raises:
        StorageError: the table cannot be read, or a file is not what was written.
    """
    table = open_table(uri, version)
    if table is None:
        return False
    with storage_errors.reading(uri):
        return _create_view(con, view, uri, table, start, end, columns or {})


def _create_view(
    con: duckdb.DuckDBPyConnection,
    view: str,
    uri: str,
    table: DeltaTable,
    start: str | None,
    end: str | None,
    columns: Mapping[str, str],
) -> bool:
    """As `create_view`, of an open table."""
    bounds = [(PARTITION, op, day) for op, day in ((">=", start), ("<=", end)) if day]
    uris = table.file_uris(partition_filters=bounds or None)
    paths = sorted(unquote(file.removeprefix("file://")) for file in uris)
    if not paths:
        return False
    file_digests.verify(uri, ["/".join(path.rsplit("/", 2)[1:]) for path in paths])
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
        files = f"{view}_files"
        con.register(files, source if within is None else source.filter(within))
        selected, text = "*", quote_identifier(files)
    else:
        listed = ", ".join(text_literal(p) for p in paths)
        # Not by hive_partitioning: any folder above the lake whose name has "=", such as env=prod, would replace the
        # column of that name.
        selected = f"* EXCLUDE (__path), regexp_extract(__path, '.*/{PARTITION}=([^/]*)/', 1) AS {PARTITION}"
        text = f"read_parquet([{listed}], hive_partitioning=false, union_by_name=true, filename='__path')"
    present = (
        {fold_identifier(c) for c in con.sql(f"SELECT * FROM {text} LIMIT 0").columns} if columns else set()
    )
    absent = {c: kind for c, kind in columns.items() if fold_identifier(c) not in present}
    nulls = "".join(f", CAST(NULL AS {kind}) AS {quote_identifier(c)}" for c, kind in absent.items())
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {quote_identifier(view)} AS SELECT {selected}{nulls} FROM {text}"
    )
    return True


def table_filesystem(uri: str) -> Any:
    """The Arrow filesystem of a table on S3, rooted at the table, as ``to_pyarrow_dataset`` needs it."""
    from pyarrow.fs import SubTreeFileSystem

    return SubTreeFileSystem(uri.removeprefix("s3://"), object_store.filesystem())
