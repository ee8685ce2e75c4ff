"""Feeds that are queries: the rows of a partition are copied from the database to a Parquet file, and go on as one.

The copy has the declared columns with their declared types. Its rows are sorted by all columns, because a database
promises no order: the same rows give the same copy, and the same digest, whichever order they were delivered in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.core.errors import DatabaseError, DataError, PerennialError
from perennial.core.partitions import Cadence
from perennial.core.sql import SQL_TYPES, copy_to_parquet, quote_identifier, text_literal
from perennial.databases import access
from perennial.databases.connections import Database, QueryColumn
from perennial.feeds import column_names
from perennial.feeds.feed_schema import FeedSchema, translate_read_error
from perennial.spec.sources import QuerySource
from perennial.storage import duckdb_session, landing
from perennial.storage.landing import Fingerprint, LandedFile

#: Rows of the sorted copy that are read at once for its digest.
_DIGEST_ROWS = 65_536


@dataclass(frozen=True)
class Arrival:
    """What is there of a partition of a feed.

    Attributes:
        fingerprint: of the file, or of a query's rows; None if nothing is there, or it cannot be read.
        rows: the copy of a query's rows; a file is fetched later, if it is needed.
        error: why a query failed.
    """

    fingerprint: Fingerprint | None
    rows: LandedFile | None = None
    error: PerennialError | None = None

    def discard(self) -> None:
        """Remove the copy, because the same rows were published before."""
        if self.rows:
            self.rows.path.unlink()


class Arrivals:
    """Looks up what is there of the partitions of a feed; a query is run for that.

    Args:
        feed: the feed.
        source: its files, or its query.
        folder: where copies of a query's rows go.
    """

    def __init__(self, feed: FeedSchema, source: str | QuerySource, folder: Path) -> None:
        self._feed, self._source, self._folder = feed, source, folder
        self._unreachable: DatabaseError | None = None

    def look_up(self, days: Iterable[str]) -> Iterator[tuple[str, Arrival]]:
        """Look up partitions, by their dates; files in parallel, since each waits for the storage.

        Raises:
            StorageError: the landing area cannot be read.
        """
        source = self._source
        if not isinstance(source, str):
            with QueryReader(self._feed, source) as reader:
                yield from ((day, self._run_query(reader, day)) for day in days)
            return
        uris = {day: landing.source_uri(source, day) for day in days}
        with ThreadPoolExecutor(8, thread_name_prefix="arrival") as pool:
            fingerprints = pool.map(landing.fingerprint, uris.values())
            yield from ((day, Arrival(read)) for day, read in zip(uris, fingerprints, strict=True))

    def _run_query(self, reader: QueryReader, day: str) -> Arrival:
        if down := self._unreachable:  # so that a range does not wait for each of its partitions
            return Arrival(None, error=type(down)(down.cause, down.remedy, model=down.model, partition=day))
        try:
            if reader.source.ready and not reader.is_ready(day):
                return Arrival(None, error=self._not_ready(reader.source, day))
            rows = reader.fetch(day, self._folder)
        except PerennialError as error:
            if isinstance(error, DatabaseError) and (type(error) is DatabaseError or not reader.is_open):
                self._unreachable = error
            return Arrival(None, error=error)
        return Arrival(Fingerprint(rows.digest), rows)

    def _not_ready(self, source: QuerySource, day: str) -> DataError | None:
        """The error about rows that are not complete; labels are no error, as those of a file that has not landed."""
        if self._feed.kind == "labels":
            return None
        cause = f"{describe(self._feed, source, day)} is not ready, as source.ready says"
        return self._feed.error(cause, "wait for the feed, then run this date again", day)


def describe(feed: FeedSchema, source: str | QuerySource, day: str) -> str:
    """What messages call the source of a partition: the URI of a file, the key and the connection of a query."""
    if isinstance(source, str):
        return landing.source_uri(source, day)
    section = "data" if feed.kind == "rows" else "label"
    return f"the query {section}.source of connection {source.connection}"


def bounds(cadence: Cadence, key: str) -> tuple[datetime, datetime]:
    """The moments in UTC between which the rows of a partition lie; the second is not part of it."""
    return cadence.start_of(key), cadence.end_of(key)


class QueryReader:
    """Reads partitions of a query one after another, by one connection; a context manager, which closes it.

    It connects when the database is needed for the first time.

    Args:
        feed: what the query must give.
        source: the query.

    Attributes:
        source: the query.
    """

    def __init__(self, feed: FeedSchema, source: QuerySource) -> None:
        self.source = source
        self._feed = feed
        self._open = ExitStack()
        self._database: Database | None = None
        self._sorter: duckdb.DuckDBPyConnection | None = None
        self._columns: list[QueryColumn] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, because the database accepted the login."""
        return self._database is not None

    def _begin(self) -> Database:
        """The database, ready for a partition, whatever became of the one before."""
        if self._database is None:
            opening = access.open_database(self.source.connection, hide=self._feed.hides_values)
            self._database = self._open.enter_context(opening)
        else:
            self._database.begin()
        return self._database

    def is_ready(self, day: str) -> bool:
        """Whether the rows of a partition are there: ``ready`` is true; without it, the query has a row.

        Args:
            day: partition date.

        Raises:
            DatabaseError: as for `fetch`.
        """
        start, end = bounds(self._feed.cadence, day)
        some = self.source.ready or f"SELECT 1 AS __row FROM (\n{self.source.sql}\n) AS __some LIMIT 1"
        return _is_true(self._begin().first_cell(some, start, end))

    def fetch(self, day: str, folder: Path) -> LandedFile:
        """Copy the rows of a partition from the database, and check its columns.

        Args:
            day: partition date.
            folder: where the copy goes.

        Raises:
            DataError: the partition has not ended; the query's columns are not those declared; or a value is not.
            DatabaseError: the database does not answer, or not in time; or it refuses the login or the query.
            StorageError: the disk of the working folder is full.
        """
        feed = self._feed
        start, end = bounds(feed.cadence, day)
        if end > datetime.now(UTC):
            raise feed.error(
                f"the partition has not ended: its rows are complete after {end:%Y-%m-%d %H:%M} UTC",
                "run it again after that", day,
            )  # fmt: skip
        name, path = describe(feed, self.source, day), folder / f"{feed.kind}-{day}.parquet"
        try:
            self._write_copy(day, name, start, end, path)
        except PerennialError as error:
            if error.partition is None:
                cause = error.cause if name in error.cause else f"{name}: {error.cause}"
                raise type(error)(cause, error.remedy, model=feed.model, partition=day) from None
            raise
        with pq.ParquetFile(path) as file:
            types = tuple(str(file.schema_arrow.field(column).type) for column in _columns(feed))
            rows, digest = file.metadata.num_rows, content_digest(file)
        undeclared = {c.name: c.type or "a column" for c in self._columns if c.name not in feed.columns}
        names = [column.name for column in self._columns]
        return LandedFile(day, name, path, names, rows, digest, (), types, undeclared=undeclared)

    def _write_copy(self, day: str, name: str, start: datetime, end: datetime, path: Path) -> None:
        """Write the sorted copy of the rows between two moments."""
        feed, database = self._feed, self._begin()
        self._columns = self._columns or database.columns(self.source.sql)
        check_columns(feed, day, name, self._columns)
        delivered = path.with_suffix(".delivered.parquet")
        with closing(database.read(self.source.sql, start, end, _columns(feed))) as batches:
            texts = _copy(batches, feed, delivered)
        if self._sorter is None:
            self._sorter = self._open.enter_context(duckdb_session.connect())
        _sort(self._sorter, feed, day, name, delivered, path, texts)
        delivered.unlink()


def is_ready(feed: FeedSchema, source: QuerySource, day: str) -> bool:
    """Whether the rows of one partition are there; see `QueryReader.is_ready`."""
    with QueryReader(feed, source) as reader:
        return reader.is_ready(day)


def _is_true(cell: Any) -> bool:
    """Whether a cell says that a partition is ready, as for Airflow's SqlSensor."""
    return cell not in (None, 0, "", "0")


def check_query(feed: FeedSchema, source: QuerySource) -> None:
    """Compare the columns of a query with those declared; the database plans the query and reads no row.

    Args:
        feed: what the query must give.
        source: the query.

    Raises:
        DataError: the query's columns are not those declared.
        DatabaseError: the database does not answer, or refuses the login or the query.
    """
    with access.open_database(source.connection, hide=feed.hides_values) as database:
        check_columns(feed, "", describe(feed, source, ""), database.columns(source.sql))
        if source.ready:
            database.columns(source.ready)


def copy_sample(connection: str, sql: str, limit: int, folder: Path) -> Path:
    """Copy rows of a query without placeholders to a Parquet file, for a new model.

    Args:
        connection: name of the connection.
        sql: the query.
        limit: rows at most.
        folder: where the file goes.

    Raises:
        DataError: the query has no column of a type that a spec can declare, or a value is not of its column's type.
        DatabaseError: as for `fetch`.
    """
    name, moment = f"the query of connection {connection}", datetime(2000, 1, 1, tzinfo=UTC)
    with access.open_database(connection, hide=True) as database:
        feed = FeedSchema("the sample", "rows", database.suggest_types(sql), hides_values=True)
        if not feed.columns:
            raise DataError(f"{name} has no column that can be read", "convert its columns in the query")
        delivered, path = folder / "delivered.parquet", folder / "query.parquet"
        some = f"SELECT * FROM (\n{sql}\n) AS __some LIMIT {limit}"
        with closing(database.read(some, moment, moment, feed.columns)) as batches:
            texts = _copy(batches, feed, delivered)
    with duckdb_session.connect() as con:
        _sort(con, feed, "", name, delivered, path, texts)
    delivered.unlink()
    return path


def check_columns(feed: FeedSchema, day: str, name: str, columns: list[QueryColumn]) -> None:
    """Refuse a query whose columns are not those declared.

    Args:
        feed: what the query must give.
        day: partition date, for the error.
        name: what the error calls the query.
        columns: the query's columns.

    Raises:
        DataError: a column is missing, occurs twice or has another type.
    """
    schema = pa.schema([(column.name, pa.string()) for column in columns])
    column_names.check_columns(feed, day, name, schema, is_text=True)
    wrong = [
        f"column {c.name!r} is declared {feed.columns[c.name]}; the query gives {c.type}"
        for c in columns
        if c.name in feed.columns and feed.columns[c.name] not in c.matches and c.name != feed.row_number
    ]
    if wrong:
        omitted = len(wrong) - column_names.MAX_PROBLEMS_LISTED
        more = f"; and {omitted} more" if omitted > 0 else ""
        raise feed.error(
            f"{name}: {'; '.join(wrong[: column_names.MAX_PROBLEMS_LISTED])}{more}",
            "convert the column in the query, by CAST, or declare another type", day,
        )  # fmt: skip


def _columns(feed: FeedSchema) -> dict[str, str]:
    """The declared columns that the query gives, with their types."""
    return {column: declared for column, declared in feed.columns.items() if column != feed.row_number}


def _copy(batches: Iterator[pa.RecordBatch], feed: FeedSchema, path: Path) -> set[str]:
    """Write batches to a Parquet file; returns the columns of dates and times that arrived as text."""
    first = next(batches, None)
    if first is None:
        schema = pa.schema([(column, pa.string()) for column in _columns(feed)])
        pq.write_table(schema.empty_table(), path)
        return set()
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    return {
        item.name
        for item in first.schema
        if pa.types.is_string(item.type) and feed.columns[item.name] in ("date", "timestamp")
    }


def _sort(
    con: duckdb.DuckDBPyConnection, feed: FeedSchema, day: str, name: str, delivered: Path, path: Path,
    texts: set[str],
) -> None:  # fmt: skip
    """Write the sorted copy of what was delivered, with the declared types."""
    cells = {column: _cast(column, declared, column in texts) for column, declared in _columns(feed).items()}
    source = f"read_parquet({text_literal(str(delivered))}, hive_partitioning=false)"
    try:
        if texts:
            _refuse_other_texts(
                con, feed, day, name, source, {c: cell for c, cell in cells.items() if c in texts}
            )
        selected = ", ".join(f"{cell} AS {quote_identifier(column)}" for column, cell in cells.items())
        order = ", ".join(str(i) for i in range(1, len(cells) + 1))
        query = f"SELECT {selected} FROM {source} ORDER BY {order}"
        con.execute(copy_to_parquet(query, str(path), len(cells)))
    except duckdb.Error as error:
        raise translate_read_error(feed, day, name, error, "cannot be sorted") from error


def _cast(column: str, declared: str, is_text: bool) -> str:
    cell = quote_identifier(column)
    if not is_text:
        return f"{cell}::{SQL_TYPES[declared]}"
    if declared == "date":
        return f"CASE WHEN length({cell}) = 10 THEN TRY_CAST({cell} AS DATE) END"
    moment = f"(TRY_CAST({cell} AS TIMESTAMPTZ) AT TIME ZONE 'UTC')"
    return f"CASE WHEN isfinite({moment}) THEN {moment} END"


def _refuse_other_texts(
    con: duckdb.DuckDBPyConnection, feed: FeedSchema, day: str, name: str, source: str, cells: dict[str, str]
) -> None:
    """Refuse texts that are no dates or times, in columns that are declared as such.

    Raises:
        DataError: there are some.
    """
    counted = ", ".join(
        f"count(*) FILTER ({quote_identifier(c)} IS NOT NULL AND ({cell}) IS NULL)"
        for c, cell in cells.items()
    )
    counts = con.execute(f"SELECT {counted} FROM {source}").fetchone() or ()
    wrong = [
        f"column {column!r} is declared {feed.columns[column]}; {count} texts of it are not"
        for column, count in zip(cells, counts, strict=True)
        if count
    ]
    if wrong:
        raise feed.error(
            f"{name}: {'; '.join(wrong)}",
            "let the query give text such as 2024-05-01 or 2024-05-01 06:30:00 (UTC, or with an offset), or null", day,
        )  # fmt: skip


def content_digest(file: pq.ParquetFile) -> str:
    """SHA-256 of the rows of a file, in their order: of names, types and values, not of how Parquet stores them."""
    schema = file.schema_arrow
    # One for each part of each column, so that the digest does not depend on how the rows are divided into batches.
    parts = {part: [hashlib.sha256() for _ in schema] for part in ("valid", "lengths", "values")}
    for batch in file.iter_batches(_DIGEST_ROWS):
        for i, column in enumerate(batch.columns):
            for part, content in _content(column):
                parts[part][i].update(content)
    whole = hashlib.sha256()
    for i, item in enumerate(schema):
        name = f"{item.name}\0{item.type}".encode()
        whole.update(
            hashlib.sha256(name).digest() + b"".join(hashes[i].digest() for hashes in parts.values())
        )
    return whole.hexdigest()


def _content(column: pa.Array[Any]) -> Iterator[tuple[str, Any]]:
    """The bytes of which cells have a value, of the values (zero if missing), and of the lengths of texts."""
    yield "valid", column.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8).tobytes()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.fill_null("").cast(pa.large_string())
        _, offsets, data = texts.buffers()
        starts = np.frombuffer(memoryview(offsets or b""), dtype=np.int64)[
            texts.offset : texts.offset + len(texts) + 1
        ]
        yield "lengths", np.diff(starts).tobytes()
        if data and len(starts):
            yield "values", data.slice(int(starts[0]), int(starts[-1] - starts[0]))
        return
    if pa.types.is_boolean(column.type):
        yield "values", column.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8).tobytes()
        return
    if pa.types.is_floating(column.type):
        yield "values", column.fill_null(0.0).to_numpy(zero_copy_only=False).tobytes()
        return
    integers = column.cast(pa.int32() if pa.types.is_date32(column.type) else pa.int64())
    yield "values", integers.fill_null(0).to_numpy(zero_copy_only=False).tobytes()


__all__ = [
    "Arrival",
    "Arrivals",
    "QueryReader",
    "bounds",
    "check_columns",
    "check_query",
    "content_digest",
    "copy_sample",
    "describe",
    "is_ready",
]
