"""Landed files as one typed, streaming relation.

A partition lands as one file, parquet or CSV, in a folder or on S3. Whatever its size, it is read as a stream: a
parquet file where it lies; a text file, and anything on S3, through a copy in the working folder, because it is read
more than once. Types are those that the spec declares: a parquet column of another type is refused; a text cell that
cannot be read as its type makes its row one for quarantine.
"""

from __future__ import annotations

import csv
import gzip
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core import dates
from perennial.core.errors import DataError, PerennialError, StorageError
from perennial.core.settings import settings
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.storage import object_store

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

#: A row may happen on its partition's date or, for the sake of time zones, the day after; not later.
MAX_DAY_OFFSET = 2

#: The longest line of a text file.
LINE_BYTES = 16 << 20
SHOWN = 6  # problems of one file that its error lists
_MISSING_TEXTS = "('', 'NA', 'N/A', 'NULL', 'null', 'None', 'NaN', 'nan')"
_VIRTUAL = ("file_index", "file_row_number", "filename")


@dataclass(frozen=True)
class LandedFile:
    """One partition's file.

    Attributes:
        day: partition date. uri: where it landed. path: what is read, on this machine.
        columns: the file's columns, in its order. rows: how many, where the file itself says so.
    """

    day: str
    uri: str
    path: Path
    columns: list[str]
    rows: int | None


@dataclass
class FeedSchema:
    """What one kind of file must hold.

    Attributes:
        model: whose feed it is. what: ``rows`` or ``labels``.
        columns: declared type of each column. extra: what a column that is not declared does.
        personal: columns whose values no message may show.
    """

    model: str
    what: str
    columns: Mapping[str, str]
    extra: str = "ignore"
    personal: list[str] = field(default_factory=list)

    def error(self, cause: str, remedy: str, day: str) -> DataError:
        """A failure of one partition of this feed."""
        return DataError(cause, remedy, model=self.model, partition=day)


@contextmanager
def temporary_folder(home: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; what a killed run left is removed a day later."""
    import tempfile

    root = home / "tmp"
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob("data-*"):
        if left.stat().st_mtime < time.time() - 86_400:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir=root) as folder:
        yield Path(folder)


def fetch_file(
    feed: FeedSchema, day: str, uri: str, folder: Path, con: duckdb.DuckDBPyConnection
) -> LandedFile:
    """Fetch one partition's file, if it must be fetched, and check its columns.

    Raises:
        FileNotFoundError: it has not landed.
        DataError: it cannot be read, or its columns are not those declared.
    """
    path = Path(uri)
    text = uri.endswith((".csv", ".csv.gz"))
    if object_store.is_remote(uri):
        path = (
            folder
            / f"{feed.what}-{day}{'.csv.gz' if uri.endswith('.gz') else '.csv' if text else '.parquet'}"
        )
        _fetch(uri, path)
    if path.stat().st_size == 0:
        raise feed.error(f"{uri} is empty: zero bytes", "ask the feed to deliver it again", day)
    if text:
        path = _stage(feed, day, uri, path, folder, con)
    schema, rows = _footer(feed, day, uri, path)
    _check_columns(feed, day, uri, schema, text)
    return LandedFile(day, uri, path, list(schema.names), rows)


def _fetch(uri: str, path: Path) -> None:
    try:
        with (
            object_store.filesystem().open_input_stream(uri.removeprefix("s3://")) as source,
            path.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, object_store.BLOCK_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{uri} cannot be copied: {error}", "check the connection, and that the working folder has "
                           "room; then run it again") from error  # fmt: skip


def _stage(
    feed: FeedSchema, day: str, uri: str, path: Path, folder: Path, con: duckdb.DuckDBPyConnection
) -> Path:
    """A text file as parquet, every cell still text: read, split and checked for its shape once."""
    import duckdb

    opener = gzip.open if uri.endswith(".gz") else open
    again = 'ask the feed for UTF-8 text, comma-separated, quoted by ", with a header line'
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(LINE_BYTES)
            header = next(csv.reader(file), [])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise feed.error(f"{uri} is not readable text: {error}", again, day) from error
    if len(header) != len({h.lower() for h in header}) or not all(header):
        raise feed.error(
            f"{uri}: its header names a column twice, or not at all: {', '.join(header)[:200]}", again, day
        )
    staged = folder / f"{feed.what}-{day}.staged.parquet"
    columns = ", ".join(f"{text_literal(h)}: 'VARCHAR'" for h in header)
    try:
        con.execute(
            f"COPY (SELECT * FROM read_csv({text_literal(str(path))}, columns={{{columns}}}, auto_detect=false, "
            f"header=true, delim=',', quote='\"', escape='\"', strict_mode=true, null_padding=false, "
            f"max_line_size={LINE_BYTES}, buffer_size={LINE_BYTES}, "
            f"allow_quoted_nulls=false)) TO {text_literal(str(staged))} (FORMAT parquet, COMPRESSION snappy)"
        )
    except duckdb.Error as error:
        raise read_error(feed, day, uri, error, "is malformed") from error
    return staged


def read_error(
    feed: FeedSchema, day: str, uri: str, error: Exception, what: str = "cannot be read to its end"
) -> PerennialError:
    """The failure that an engine's error stands for: of this machine, or of the file."""
    text = str(error)
    if "Out of Memory" in text:
        return StorageError(f"{uri}: the memory allowed is not enough: {_told(error)}",
                            "raise PERENNIAL_MEMORY_MB, or lower PERENNIAL_THREADS; then run it again",
                            model=feed.model, partition=day)  # fmt: skip
    if "No space left" in text or "max_temp_directory_size" in text:
        return StorageError(f"{uri}: the disk of the working folder is full", "make room, then run it again: nothing "
                            "was published", model=feed.model, partition=day)  # fmt: skip
    return feed.error(f"{uri} {what}: {_told(error)}", "ask the feed to deliver it again", day)


def _told(error: Exception) -> str:
    """What an engine says, without the row it quotes: a row may hold personal data."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [
        line
        for line in lines
        if not line.startswith(("Original Line", "Possible", "*", "file", "CSV Options"))
    ]
    return " ".join(kept[:2])[:300]


def _footer(feed: FeedSchema, day: str, uri: str, path: Path) -> tuple[pa.Schema, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise feed.error(f"{uri} is not a parquet file: {str(error).splitlines()[0][:200]}",
                         "ask the feed to deliver it again", day) from error  # fmt: skip


def _check_columns(feed: FeedSchema, day: str, uri: str, schema: pa.Schema, text: bool) -> None:
    """Refuse missing, retyped, ambiguous and (if the spec says so) extra columns, all in one message."""
    found = {f.name: f.type for f in schema}
    lower = [n.lower() for n in schema.names]
    problems = []
    for column, kind in feed.columns.items():
        if column not in found:
            close = next((n for n in schema.names if n.lower() == column.lower()), None)
            problems.append(
                f"column {column!r} ({kind}) is missing" + (f"; the file has {close!r}" if close else "")
            )
        elif lower.count(column.lower()) > 1:
            problems.append(
                f"column {column!r} is there more than once (names that differ in case only count as one)"
            )
        elif not text and not type_matches(found[column], kind):
            problems.append(f"column {column!r} is declared {kind}; the file has {found[column]}")
    extra = [n for n in schema.names if n not in feed.columns]
    if feed.extra == "stop" and extra:
        problems.append(
            f"column {extra[0]!r} is not declared (extra_columns: stop)"
            + (f", nor are {len(extra) - 1} more" if extra[1:] else "")
        )
    if clash := [n for n in _VIRTUAL if n in lower]:
        problems.append(f"column {clash[0]!r} has a name that the reader uses itself")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise feed.error(f"{uri}: {'; '.join(problems[:SHOWN])}{more}",
                         "mend the feed, or change data.columns and the model that is built upon it", day)  # fmt: skip


def type_matches(found: Any, kind: str) -> bool:
    import pyarrow.types as t

    if t.is_dictionary(found):
        found = found.value_type
    if t.is_null(found):  # a writer's type of a column without a single value
        return True
    match kind:
        case "string":
            return bool(t.is_string(found) or t.is_large_string(found) or t.is_string_view(found))
        case "integer":
            return bool(t.is_integer(found))
        case "number":
            return bool(t.is_integer(found) or t.is_floating(found) or t.is_decimal(found))
        case "boolean":
            return bool(t.is_boolean(found))
        case "date":
            return bool(t.is_date(found))
    return bool(t.is_timestamp(found))


def create_view(
    con: duckdb.DuckDBPyConnection, feed: FeedSchema, landed: list[LandedFile], name: str = "rows"
) -> dict[str, str]:
    """Make the files the view ``name``: typed columns, ``__file`` (index into ``landed``), ``__row`` (its place in the
    file), ``__future`` (the first moment that is too late for a row of the partition).

    Returns:
        For text files, the SQL condition of a cell that cannot be read as its type, by column.
    """
    paths = ", ".join(text_literal(str(file.path)) for file in landed)
    source = f"read_parquet([{paths}], union_by_name={str(len(landed) > 1).lower()}, hive_partitioning=false)"
    raw = dict(
        con.execute(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {source})").fetchall()
    )
    text = landed[0].uri.endswith((".csv", ".csv.gz"))
    unread: dict[str, str] = {}
    selected = ["file_index::BIGINT AS __file", "file_row_number AS __row", f"{_future(landed)} AS __future"]
    for i, (column, kind) in enumerate(feed.columns.items()):
        cell = quote_identifier(column)
        value = _text_value(cell, kind) if text else _value(cell, kind, raw[column])
        selected.append(f"{value} AS {cell}")
        given = f"trim({cell}) NOT IN {_MISSING_TEXTS}" if text else "TRUE"
        if (text and kind != "string") or raw[column] in ("UBIGINT", "HUGEINT", "UHUGEINT"):
            selected.append(f"{cell} IS NOT NULL AND {given} AND ({value}) IS NULL AS __unread_{i}")
            unread[column] = f"__unread_{i}"
    if text:
        selected += [f"{quote_identifier(c)} AS {quote_identifier('__text_' + c)}" for c in unread]
    con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {', '.join(selected)} FROM {source}")
    return unread


def _future(landed: list[LandedFile]) -> str:
    """SQL of the first moment that is too late for a row of its partition."""
    limits = ", ".join(f"TIMESTAMP '{dates.add_days(file.day, MAX_DAY_OFFSET)} 00:00:00'" for file in landed)
    return f"({limits})" if len(landed) == 1 else f"([{limits}])[file_index::BIGINT + 1]"


def _value(cell: str, kind: str, raw: str) -> str:
    """A parquet column as its declared type. NaN is a missing value, times are in UTC."""
    if kind == "number":
        return (
            f"CASE WHEN NOT isnan({cell}::DOUBLE) THEN {cell}::DOUBLE END"
            if raw in ("DOUBLE", "FLOAT")
            else f"{cell}::DOUBLE"
        )
    if kind == "timestamp" and raw == "TIMESTAMP WITH TIME ZONE":
        return f"({cell} AT TIME ZONE 'UTC')"
    return (
        f"TRY_CAST({cell} AS {SQL_TYPES[kind]})"
        if raw in ("UBIGINT", "HUGEINT", "UHUGEINT")
        else f"{cell}::{SQL_TYPES[kind]}"
    )


def _text_value(cell: str, kind: str) -> str:
    """A text cell as its declared type; null where it is missing or cannot be read as that."""
    if kind == "string":
        return f"nullif({cell}, '')"
    found = f"trim({cell})"
    if kind == "integer":  # a cast alone would round 1.5 to 2
        return f"CASE WHEN regexp_full_match({found}, '[+-]?[0-9]+') THEN TRY_CAST({found} AS BIGINT) END"
    if kind == "number":
        return f"CASE WHEN NOT isnan(TRY_CAST({found} AS DOUBLE)) THEN TRY_CAST({found} AS DOUBLE) END"
    if kind == "date":
        return f"CASE WHEN length({found}) = 10 THEN TRY_CAST({found} AS DATE) END"
    if kind == "timestamp":  # with the offset that it may carry; a cast to TIMESTAMP would drop it
        return f"(TRY_CAST({found} AS TIMESTAMPTZ) AT TIME ZONE 'UTC')"
    return f"TRY_CAST({found} AS BOOLEAN)"


def source_uri(template: str, day: str | None = None) -> str:
    """Fill a spec's path template for one partition date."""
    values = {"landing": settings().landing}
    if day:
        values |= {"date": day, "year": day[:4], "month": day[5:7], "day": day[8:10]}
    for name, value in values.items():
        template = template.replace("{" + name + "}", value)
    return template
