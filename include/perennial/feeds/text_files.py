"""Text files of a feed: their conversion to Parquet with text cells.

DuckDB parses the text. It reads UTF-8 with one kind of line ends, so a file in another encoding, or with carriage
returns within its lines, is rewritten first, in blocks, whatever its size.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from perennial.core import file_formats
from perennial.core.errors import PerennialError
from perennial.core.sql import (
    INTERNAL_PREFIX,
    fold_identifier,
    quote_identifier,
    same_identifier,
    text_literal,
)
from perennial.feeds import _line_rewriting, excel_files, parquet_columns
from perennial.feeds._line_rewriting import MAX_LINE_BYTES, records
from perennial.feeds.feed_schema import FeedSchema, translate_read_error
from perennial.feeds.text_casts import ISO, TextFormat

if TYPE_CHECKING:
    import duckdb

__all__ = ["BLOCK_BYTES", "MARKS", "MAX_LINE_BYTES", "cell_format", "convert", "marked_encoding", "records"]

#: Columns that one pass over a file parses.
COLUMNS_PER_PASS = 500
#: Bytes that are decoded at once.
BLOCK_BYTES = 1 << 20
_REMEDY = (
    "ask the feed for text with a header line, written as data.format declares; or declare how it is written"
)
#: Marks at the beginning of a file, by the encodings that they are part of. That of UTF-32 begins as UTF-16's does.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def cell_format(feed: FeedSchema, uri: str) -> TextFormat:
    """How the cells of a feed's file are written: those of an Excel sheet may be times, which become ISO dates."""
    text_format = feed.text_format
    if file_formats.ending(uri) != file_formats.EXCEL:
        return text_format
    single = {column: (*formats, ISO) for column, formats in text_format.date_formats.items()}
    return replace(text_format, date_format=(*text_format.date_format, ISO), date_formats=single)


def marked_encoding(path: Path) -> str:
    """The encoding that a mark at the beginning of a text file names; empty if there is none."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((encoding for mark, encoding in MARKS if start.startswith(mark)), "")


def convert(
    feed: FeedSchema, day: str, uri: str, path: Path, folder: Path, con: duckdb.DuckDBPyConnection
) -> Path:
    """Convert a text file to Parquet with text cells, so that it is parsed only once.

    Args:
        feed: the file's feed.
        day: partition date.
        uri: where the file landed.
        path: the file without its compression, or a copy of it.
        folder: where the Parquet file goes.
        con: DuckDB connection.

    Returns:
        The Parquet file. A column without a name is not in it, unless the format names it.

    Raises:
        DataError: the file is not text as the format has it.
        StorageError: there is not enough memory or space.
    """
    import duckdb

    if file_formats.ending(uri) == file_formats.EXCEL:
        text = folder / f"{feed.kind}-{day}.sheet.csv"
        excel_files.rewrite(feed, day, uri, path, text)
        feed, path = replace(feed, text_format=excel_files.written_format(feed.text_format)), text
    text_format = feed.text_format
    if encoding := _rewritten_encoding(feed, day, uri, path):
        path = _decoded(feed, day, uri, path, folder / f"{feed.kind}-{day}.utf8.csv", encoding)
    if _line_rewriting.is_needed(text_format):
        plain = folder / f"{feed.kind}-{day}.plain.csv"
        _line_rewriting.rewrite(feed, day, uri, path, plain)
        feed, path = replace(feed, text_format=_line_rewriting.written_format(text_format)), plain
        text_format = feed.text_format
    header = _read_header(feed, day, uri, path)
    names, ignored = _column_names(feed, day, uri, header)
    try:
        path = _with_even_lines(feed, day, uri, path, folder / f"{feed.kind}-{day}.lines.csv")
    except (OSError, EOFError) as error:
        raise _unreadable(feed, day, uri, error) from error
    staged = folder / f"{feed.kind}-{day}.staged.parquet"
    try:
        _copy_to_parquet(con, path, text_format, names, ignored, staged)
    except duckdb.Error as error:
        raise translate_read_error(feed, day, uri, error, "is malformed") from error
    return staged


def _rewritten_encoding(feed: FeedSchema, day: str, uri: str, path: Path) -> str:
    """The encoding from which a file has to be rewritten; empty if DuckDB can read it.

    Raises:
        DataError: the file's mark says that it has another encoding than the format.
    """
    declared = feed.text_format.encoding
    try:
        marked = marked_encoding(path)
    except (OSError, EOFError) as error:
        raise _unreadable(feed, day, uri, error) from error
    if marked and not declared.startswith(marked):
        raise feed.error(
            f"{uri} is not readable text: it begins with the mark of {marked.upper()}, and data.format.encoding is "
            f"{declared}",
            "ask the feed for UTF-8"
            if marked == "utf-32"
            else f"declare encoding: {marked}, or correct the feed",
            day,
        )
    return "" if declared == "utf-8" else marked or declared


def _decoded(feed: FeedSchema, day: str, uri: str, path: Path, target: Path, encoding: str) -> Path:
    """Rewrite a text file in UTF-8; returns the new file.

    Raises:
        DataError: with the line of the first bytes that are not in the encoding.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    try:
        with path.open("rb") as source, target.open("w", encoding="utf-8", newline="") as file:
            while block := source.read(BLOCK_BYTES):
                text = decoder.decode(block)
                file.write(text)
                line += text.count("\n")
            file.write(decoder.decode(b"", final=True))
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding, "replace")
        raise feed.error(
            f"{uri} is not readable text: line {line + before.count(chr(10))} has bytes that are not {encoding}",
            f"ask the feed for {encoding}, or correct data.format.encoding",
            day,
        ) from None
    except (OSError, EOFError) as error:
        raise _unreadable(feed, day, uri, error) from error
    return target


def _unreadable(feed: FeedSchema, day: str, uri: str, error: Exception) -> PerennialError:
    return translate_read_error(feed, day, uri, error, "is not readable text")


def _read_header(feed: FeedSchema, day: str, uri: str, path: Path) -> list[str]:
    """The cells of the header line."""
    try:
        # Bytes that are not UTF-8 are found by DuckDB, which names the line.
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            for _ in range(feed.text_format.skip_lines):
                file.readline()
            csv.field_size_limit(MAX_LINE_BYTES)
            return next(csv.reader(file, **feed.text_format.python_dialect()), [])
    except (OSError, EOFError, csv.Error) as error:
        raise _unreadable(feed, day, uri, error) from error


def _column_names(feed: FeedSchema, day: str, uri: str, header: list[str]) -> tuple[list[str], set[str]]:
    """The names of a file's columns, and which of them are invented, because the header leaves them empty.

    Raises:
        DataError: the header is empty or ambiguous, or a name of the format is not in it.
    """
    text_format = feed.text_format
    if not text_format.header:
        header = [f"column_{i}" for i in range(1, len(header) + 1)]
    elif text_format.duplicate_names == "number":
        header = _numbered(header)
    # If the format is wrong about the header, it is a row.
    shown = f"{len(header)} names" if feed.hides_values else ", ".join(header)[:200]
    named = [name for name in header if name]
    if same_identifier(named) or not named:
        problem = "has a duplicate column name" if named else "has no column name"
        raise feed.error(f"{uri}: the header {problem}: {shown}", _REMEDY, day)
    if not set(feed.columns) & {*named, text_format.unnamed}:
        cells = re.split(r"[,;\t|]", header[0]) if len(header) == 1 else header
        other = next((d for d in ",;\t|" if len(header) == 1 and d in header[0]), None)
        if other and set(feed.columns) & {cell.strip("\"' ") for cell in cells}:
            raise feed.error(
                f"{uri}: the header has cells separated by {other!r}; data.format.delimiter is {text_format.delimiter}",
                f"declare delimiter: {'tab' if other == chr(9) else repr(other)}, or correct the feed", day,
            )  # fmt: skip
    names, ignored = list[str](), set[str]()
    for name in header:
        if not name and text_format.unnamed and text_format.unnamed not in names:
            name = text_format.unnamed
            if name in header:
                raise feed.error(f"{uri}: the header has {name!r}, which data.format.unnamed gives to the column "
                                 "without a name", "rename one of them", day)  # fmt: skip
        elif not name:
            if feed.extra_columns == "stop":
                raise feed.error(f"{uri}: a column without a name is not declared (extra_columns: stop)",
                                 "correct the feed, or name the column with data.format.unnamed", day)  # fmt: skip
            name = f"{INTERNAL_PREFIX}unnamed_{len(names)}"
            while name in header:
                name += "_"
            ignored.add(name)
        names.append(name)
    return names, ignored


def _numbered(header: list[str]) -> list[str]:
    """Names of which the second and later ones that are the same have a number."""
    names, taken = list[str](), {fold_identifier(name) for name in header}
    used = set[str]()
    for name in header:
        unique, number = name, 1
        while unique and fold_identifier(unique) in used | (taken if number > 1 else set()):
            number += 1
            unique = f"{name}_{number}"
        used.add(fold_identifier(unique))
        names.append(unique)
    return names


def _copy_to_parquet(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    text_format: TextFormat,
    names: list[str],
    ignored: set[str],
    staged: Path,
) -> None:
    columns = ", ".join(f"{text_literal(name)}: 'VARCHAR'" for name in names)
    selected = [name for name in names if name not in ignored]
    delimiter, quote, escape = (
        text_literal(character)
        for character in (
            text_format.delimiter_character, text_format.quote_character, text_format.escape_character,
        )
    )  # fmt: skip
    source = (
        f"read_csv({text_literal(str(path))}, columns={{{columns}}}, auto_detect=false, "
        f"header={str(text_format.header).lower()}, skip={text_format.skip_lines}, delim={delimiter}, "
        f"quote={quote}, escape={escape}, compression='none', strict_mode=true, null_padding=false, "
        f"max_line_size={MAX_LINE_BYTES}, buffer_size={MAX_LINE_BYTES}, hive_partitioning=false, "
        "allow_quoted_nulls=false)"
    )
    blocks = parquet_columns.divide(selected, COLUMNS_PER_PASS)
    queries = [f"SELECT {', '.join(map(quote_identifier, block))} FROM {source}" for block in blocks]
    parquet_columns.copy_columns(con, queries, staged, len(selected))


def _with_even_lines(feed: FeedSchema, day: str, uri: str, path: Path, target: Path) -> Path:
    r"""A UTF-8 file in which all lines end with ``\n``, or all with ``\r\n``: DuckDB loses rows of some others.

    Args:
        feed: the file's feed.
        day: partition date.
        uri: where the file landed.
        path: the file.
        target: where the file is rewritten, if necessary.

    Returns:
        The file itself, or the rewritten one, where carriage returns within a line are part of a cell.

    Raises:
        DataError: lines end with carriage returns, and one has a line feed.
    """
    returns = feeds = both = 0
    with path.open("rb") as source:
        last = b""
        while block := source.read(BLOCK_BYTES):
            returns += block.count(b"\r")
            feeds += block.count(b"\n")
            both += block.count(b"\r\n") + (last == b"\r" and block.startswith(b"\n"))
            last = block[-1:]
    if not returns or returns == feeds == both:
        return path
    with path.open("rb") as source:
        start = source.read(BLOCK_BYTES)
    outside = b"".join(part for part, quoted in _parts([start], feed.text_format) if not quoted)
    with path.open("rb") as source, target.open("wb") as file:
        if outside.count(b"\r") - outside.count(b"\r\n") <= outside.count(b"\n"):
            for record in _records(source, feed.text_format):
                file.write(_even_record(record, feed.text_format))
            return target
        for part, quoted in _parts(iter(lambda: source.read(BLOCK_BYTES), b""), feed.text_format):
            if not quoted and b"\n" in part:
                raise feed.error(
                    f"{uri} is malformed: its lines end with carriage returns, and some with line feeds",
                    _REMEDY,
                    day,
                )
            file.write(part if quoted else part.replace(b"\r", b"\n"))
    return target


def _parts(blocks: Iterable[bytes], text_format: TextFormat) -> Iterator[tuple[bytes, bool]]:
    """The parts of a text, quotes included, and whether each is in quotes."""
    quote = text_format.quote_character.encode()
    if not quote:
        yield from ((block, False) for block in blocks)
        return
    sign = b"(" + re.escape(quote) + (rb"|\\.?" if text_format.escape == "backslash" else b"") + b")"
    is_open, rest = False, b""
    for block in blocks:
        parts = re.split(sign, rest + block, flags=re.DOTALL)
        rest = b""
        if parts[-2:] == [b"\\", b""]:  # what follows the backslash is in the next block
            rest = b"\\"
            del parts[-2:]
        for part in parts:
            yield part, is_open or part == quote
            is_open ^= part == quote
    yield rest, is_open


def _records(source: IO[bytes], text_format: TextFormat) -> Iterator[bytes]:
    r"""The records of a file, each with its ``\n``; one in quotes does not end a record."""
    quote = text_format.quote_character.encode()
    record, is_open = b"", False
    while line := source.readline(MAX_LINE_BYTES):
        record += line
        if quote:
            plain = re.sub(rb"\\.", b"", line) if text_format.escape == "backslash" else line
            is_open ^= plain.count(quote) % 2 == 1
        if not is_open or len(record) >= MAX_LINE_BYTES:
            yield record
            record = b""
    if record:
        yield record


def _even_record(record: bytes, text_format: TextFormat) -> bytes:
    """A record that ends with one line feed, and whose cells with carriage returns are quoted."""
    text = record.rstrip(b"\n").rstrip(b"\r")
    end = b"\n" if record.endswith(b"\n") else b""
    quote, delimiter = text_format.quote_character.encode(), text_format.delimiter_character.encode()
    if b"\r" not in text or not quote or not end:
        return text + end
    inner = rb'(?:[^"\\]|\\.)*' if text_format.escape == "backslash" else rb'(?:[^"]|"")*'
    quoted = b'"%b"' % inner
    pattern = rb"(?:^|,)(%b|[^,]*)" % quoted
    pattern = pattern.replace(b",", re.escape(delimiter)).replace(b'"', re.escape(quote))
    cells = re.findall(pattern, text, re.DOTALL)
    if len(delimiter.join(cells)) != len(text):  # text follows a quoted cell
        return text + end
    escape = text_format.escape_character.encode()
    return (
        delimiter.join(
            quote + cell.replace(quote, escape + quote) + quote
            if b"\r" in cell and not cell.startswith(quote)
            else cell
            for cell in cells
        )
        + end
    )
