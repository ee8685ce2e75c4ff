"""Landed files as one typed, streaming relation.

A partition lands as one file, Parquet or CSV, in a folder or on S3, and is streamed whatever its size. A local Parquet
file is read in place. A text file, or any file on S3, is copied to the working folder first, because it is read more
than once. Types are those that the spec declares: a Parquet column of another type is refused, and a row with a text
cell that cannot be cast to its type goes to quarantine.
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
from typing import TYPE_CHECKING

from perennial.core import dates
from perennial.core.errors import DataError, PerennialError, StorageError
from perennial.core.settings import settings
from perennial.core.sql import MISSING_MARKERS, SQL_TYPES, quote_identifier, text_literal
from perennial.storage import object_store

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

#: Days after the partition's date from which an event time is too late: the day after is allowed for time zones.
MAX_DAY_OFFSET = 2
#: The longest line of a text file, in bytes.
MAX_LINE_BYTES = 16 << 20
#: Problems of one file that its error message lists.
MAX_PROBLEMS_LISTED = 6
#: The text of a cell before its cast is in a column named by this prefix and the column's name.
TEXT_PREFIX = "__text_"
_MISSING = f"({', '.join(text_literal(marker) for marker in MISSING_MARKERS)})"
#: Columns that DuckDB's reader adds to those of a file.
_READER_COLUMNS = ("file_index", "file_row_number", "filename")
#: Parquet's integer types that DuckDB reads as a type wider than BIGINT.
_WIDE_INTEGERS = ("UBIGINT", "HUGEINT", "UHUGEINT")


@dataclass(frozen=True)
class LandedFile:
    """One partition's file.

    Attributes:
        day: partition date.
        uri: where it landed.
        path: the local file that is read: the landed file itself, or a copy of it.
        columns: the file's columns, in its order.
        rows: number of rows, from the file's footer.
    """

    day: str
    uri: str
    path: Path
    columns: list[str]
    rows: int | None


@dataclass
class FeedSchema:
    """The columns that the files of one feed must have.

    Attributes:
        model: name of the model that the feed belongs to.
        kind: ``rows`` or ``labels``.
        columns: declared type of each column.
        extra_columns: ``ignore`` columns that are not declared, or ``stop`` the partition.
        personal: columns of personal data, whose values no message may show.
    """

    model: str
    kind: str
    columns: Mapping[str, str]
    extra_columns: str = "ignore"
    personal: list[str] = field(default_factory=list)

    def error(self, cause: str, remedy: str, day: str) -> DataError:
        """Create the error that stops one partition of this feed."""
        return DataError(cause, remedy, model=self.model, partition=day)


@contextmanager
def temporary_folder(home: Path) -> Iterator[Path]:
    """Create a folder for one run and remove it afterwards.

    Folders of killed runs that are older than a day are removed, too.

    Args:
        home: the working folder.
    """
    import tempfile

    root = home / "tmp"
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob("data-*"):
        if stale.stat().st_mtime < time.time() - 86_400:
            shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir=root) as folder:
        yield Path(folder)


def fetch_file(
    feed: FeedSchema, day: str, uri: str, folder: Path, con: duckdb.DuckDBPyConnection
) -> LandedFile:
    """Fetch one partition's file to this machine, and check its columns.

    Args:
        feed: what the file must hold.
        day: partition date.
        uri: where the file lands.
        folder: where copies go.
        con: DuckDB connection that converts text files.

    Raises:
        FileNotFoundError: the file has not landed.
        DataError: the file cannot be read, or its columns are not those declared.
        StorageError: the file cannot be copied.
    """
    path = Path(uri)
    is_text = _is_text(uri)
    if object_store.is_remote(uri):
        suffix = ".parquet" if not is_text else ".csv.gz" if uri.endswith(".gz") else ".csv"
        path = folder / f"{feed.kind}-{day}{suffix}"
        _download(uri, path)
    if path.stat().st_size == 0:
        raise feed.error(f"{uri} is empty: zero bytes", "ask the feed to deliver it again", day)
    if is_text:
        path = _convert_text(feed, day, uri, path, folder, con)
    schema, rows = _read_footer(feed, day, uri, path)
    _check_columns(feed, day, uri, schema, is_text)
    return LandedFile(day, uri, path, list(schema.names), rows)


def _is_text(uri: str) -> bool:
    return uri.endswith((".csv", ".csv.gz"))


def _download(uri: str, path: Path) -> None:
    try:
        with (
            object_store.filesystem().open_input_stream(uri.removeprefix("s3://")) as source,
            path.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, object_store.BLOCK_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{uri} cannot be copied: {error}", "check the connection, and that the disk of the working "
                           "folder has room; then run it again") from error  # fmt: skip


def _convert_text(
    feed: FeedSchema, day: str, uri: str, path: Path, folder: Path, con: duckdb.DuckDBPyConnection
) -> Path:
    """Convert a text file to Parquet with text cells, so that it is parsed only once."""
    import duckdb

    opener = gzip.open if uri.endswith(".gz") else open
    remedy = 'ask the feed for UTF-8 text, comma-separated, quoted by ", with a header line'
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(MAX_LINE_BYTES)
            header = next(csv.reader(file), [])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise feed.error(f"{uri} is not readable text: {error}", remedy, day) from error
    if len(header) != len({h.lower() for h in header}) or not all(header):
        raise feed.error(
            f"{uri}: the header has a duplicate or an empty column name: {', '.join(header)[:200]}",
            remedy,
            day,
        )
    staged = folder / f"{feed.kind}-{day}.staged.parquet"
    columns = ", ".join(f"{text_literal(h)}: 'VARCHAR'" for h in header)
    try:
        con.execute(
            f"COPY (SELECT * FROM read_csv({text_literal(str(path))}, columns={{{columns}}}, auto_detect=false, "
            f"header=true, delim=',', quote='\"', escape='\"', strict_mode=true, null_padding=false, "
            f"max_line_size={MAX_LINE_BYTES}, buffer_size={MAX_LINE_BYTES}, "
            f"allow_quoted_nulls=false)) TO {text_literal(str(staged))} (FORMAT parquet, COMPRESSION snappy)"
        )
    except duckdb.Error as error:
        raise translate_read_error(feed, day, uri, error, "is malformed") from error
    return staged


def translate_read_error(
    feed: FeedSchema, day: str, uri: str, error: Exception, problem: str = "cannot be read to its end"
) -> PerennialError:
    """Translate DuckDB's error on a file to a `StorageError` (this machine) or a `DataError` (the file).

    Args:
        feed: the file's feed.
        day: partition date that the error stops.
        uri: where the file landed.
        error: what DuckDB raised.
        problem: what is wrong with the file, if the file is the cause.
    """
    text = str(error)
    if "Out of Memory" in text:
        return StorageError(f"{uri}: there is not enough memory to read it: {_without_row(error)}",
                            "raise PERENNIAL_MEMORY_MB, or lower PERENNIAL_THREADS; then run it again",
                            model=feed.model, partition=day)  # fmt: skip
    if "No space left" in text or "max_temp_directory_size" in text:
        return StorageError(f"{uri}: the disk of the working folder is full", "free some disk space, then run it "
                            "again: nothing was published", model=feed.model, partition=day)  # fmt: skip
    return feed.error(f"{uri} {problem}: {_without_row(error)}", "ask the feed to deliver it again", day)


def _without_row(error: Exception) -> str:
    """DuckDB's message without the row that it quotes, which may hold personal data."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    quoting = ("Original Line", "Possible", "*", "file", "CSV Options")
    return " ".join([line for line in lines if not line.startswith(quoting)][:2])[:300]


def _read_footer(feed: FeedSchema, day: str, uri: str, path: Path) -> tuple[pa.Schema, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise feed.error(f"{uri} is not a parquet file: {str(error).splitlines()[0][:200]}",
                         "ask the feed to deliver it again", day) from error  # fmt: skip


def _check_columns(feed: FeedSchema, day: str, uri: str, schema: pa.Schema, is_text: bool) -> None:
    """Refuse missing, retyped, ambiguous and (if the spec says so) extra columns, all in one message."""
    types = {f.name: f.type for f in schema}
    lower = [n.lower() for n in schema.names]
    problems = []
    for column, declared in feed.columns.items():
        if column not in types:
            close = next((n for n in schema.names if n.lower() == column.lower()), None)
            problems.append(
                f"column {column!r} ({declared}) is missing" + (f"; the file has {close!r}" if close else "")
            )
        elif lower.count(column.lower()) > 1:
            problems.append(f"column {column!r} occurs more than once (names are compared without case)")
        elif not is_text and not type_matches(types[column], declared):
            problems.append(f"column {column!r} is declared {declared}; the file has {types[column]}")
    extra = [n for n in schema.names if n not in feed.columns]
    if feed.extra_columns == "stop" and extra:
        problems.append(
            f"column {extra[0]!r} is not declared (extra_columns: stop)"
            + (f", nor are {len(extra) - 1} more" if extra[1:] else "")
        )
    if clash := [n for n in _READER_COLUMNS if n in lower]:
        problems.append(f"column {clash[0]!r} has a name that is reserved for the reader")
    if problems:
        omitted = len(problems) - MAX_PROBLEMS_LISTED
        more = f"; and {omitted} more" if omitted > 0 else ""
        raise feed.error(f"{uri}: {'; '.join(problems[:MAX_PROBLEMS_LISTED])}{more}",
                         "correct the feed, or change data.columns and the model that uses them", day)  # fmt: skip


def type_matches(arrow_type: pa.DataType, declared: str) -> bool:
    """Whether a Parquet column of an Arrow type can be read as the declared type."""
    import pyarrow.types as t

    if t.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if t.is_null(arrow_type):  # the type of a column that has no values
        return True
    match declared:
        case "string":
            return bool(
                t.is_string(arrow_type) or t.is_large_string(arrow_type) or t.is_string_view(arrow_type)
            )
        case "integer":
            return bool(t.is_integer(arrow_type))
        case "number":
            return bool(t.is_integer(arrow_type) or t.is_floating(arrow_type) or t.is_decimal(arrow_type))
        case "boolean":
            return bool(t.is_boolean(arrow_type))
        case "date":
            return bool(t.is_date(arrow_type))
    return bool(t.is_timestamp(arrow_type))


def create_landed_view(
    con: duckdb.DuckDBPyConnection, feed: FeedSchema, landed: list[LandedFile], name: str = "rows"
) -> dict[str, str]:
    """Create a view of landed files with their columns cast to the declared types.

    The view has three more columns: ``__file`` (index into ``landed``), ``__row`` (the row's number in its file) and
    ``__future`` (the first moment that is too late for a row of the partition).

    Args:
        con: DuckDB connection.
        feed: the declared columns.
        landed: files of one format.
        name: name of the view.

    Returns:
        The cast failures: by column, the SQL condition that a cell has a value that cannot be cast to the declared
        type. Only columns where that can happen: those of text files, and integers wider than 64 bits.
    """
    paths = ", ".join(text_literal(str(file.path)) for file in landed)
    source = f"read_parquet([{paths}], union_by_name={str(len(landed) > 1).lower()}, hive_partitioning=false)"
    file_types = dict(
        con.execute(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {source})").fetchall()
    )
    is_text = _is_text(landed[0].uri)
    cast_failures: dict[str, str] = {}
    selected = ["file_index::BIGINT AS __file", "file_row_number AS __row", f"{_future(landed)} AS __future"]
    for i, (column, declared) in enumerate(feed.columns.items()):
        cell = quote_identifier(column)
        value = _cast_text(cell, declared) if is_text else _cast(cell, declared, file_types[column])
        selected.append(f"{value} AS {cell}")
        has_value = f"trim({cell}) NOT IN {_MISSING}" if is_text else "TRUE"
        if (is_text and declared != "string") or file_types[column] in _WIDE_INTEGERS:
            selected.append(f"{cell} IS NOT NULL AND {has_value} AND ({value}) IS NULL AS __cast_failed_{i}")
            cast_failures[column] = f"__cast_failed_{i}"
    if is_text:
        selected += [f"{quote_identifier(c)} AS {quote_identifier(TEXT_PREFIX + c)}" for c in cast_failures]
    con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {', '.join(selected)} FROM {source}")
    return cast_failures


def _future(landed: list[LandedFile]) -> str:
    """SQL of the first moment that is too late for a row of its partition."""
    limits = ", ".join(f"TIMESTAMP '{dates.add_days(file.day, MAX_DAY_OFFSET)} 00:00:00'" for file in landed)
    return f"({limits})" if len(landed) == 1 else f"([{limits}])[file_index::BIGINT + 1]"


def _cast(cell: str, declared: str, file_type: str) -> str:
    """SQL of a Parquet cell as its declared type. NaN is a missing value, times are in UTC."""
    if declared == "number":
        number = f"{cell}::DOUBLE"
        return (
            f"CASE WHEN NOT isnan({number}) THEN {number} END" if file_type in ("DOUBLE", "FLOAT") else number
        )
    if declared == "timestamp" and file_type == "TIMESTAMP WITH TIME ZONE":
        return f"({cell} AT TIME ZONE 'UTC')"
    if file_type in _WIDE_INTEGERS:
        return f"TRY_CAST({cell} AS {SQL_TYPES[declared]})"
    return f"{cell}::{SQL_TYPES[declared]}"


def _cast_text(cell: str, declared: str) -> str:
    """SQL of a text cell as its declared type; null where it is missing or cannot be cast."""
    if declared == "string":
        return f"nullif({cell}, '')"
    text = f"trim({cell})"
    if declared == "integer":  # a plain cast would round 1.5 to 2
        return f"CASE WHEN regexp_full_match({text}, '[+-]?[0-9]+') THEN TRY_CAST({text} AS BIGINT) END"
    if declared == "number":
        return f"CASE WHEN NOT isnan(TRY_CAST({text} AS DOUBLE)) THEN TRY_CAST({text} AS DOUBLE) END"
    if declared == "date":
        return f"CASE WHEN length({text}) = 10 THEN TRY_CAST({text} AS DATE) END"
    if declared == "timestamp":  # a cast to TIMESTAMP would drop the offset that the text may carry
        return f"(TRY_CAST({text} AS TIMESTAMPTZ) AT TIME ZONE 'UTC')"
    return f"TRY_CAST({text} AS BOOLEAN)"


def source_uri(template: str, day: str | None = None) -> str:
    """Fill in a path template of the spec.

    Args:
        template: path with ``{landing}``, ``{date}``, ``{year}``, ``{month}`` and ``{day}``.
        day: partition date; without one, only ``{landing}`` is filled in.
    """
    values = {"landing": settings().landing}
    if day:
        values |= {"date": day, "year": day[:4], "month": day[5:7], "day": day[8:10]}
    for name, value in values.items():
        template = template.replace("{" + name + "}", value)
    return template
