"""Text files with lines that DuckDB cannot read, rewritten record by record as plain comma-separated text.

These are files with runs of spaces between cells, comments, a footer, or rows that are longer than the header.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from perennial.feeds.feed_schema import FeedSchema, translate_read_error
from perennial.feeds.text_casts import TextFormat

#: The longest line of a text file, in bytes.
MAX_LINE_BYTES = 16 << 20
#: The number of a record's last line, and its cells.
_Record = tuple[int, list[str]]


def is_needed(text_format: TextFormat) -> bool:
    """Whether files in a format are rewritten."""
    return bool(
        text_format.delimiter == "whitespace"
        or text_format.comment != "none"
        or text_format.footer_lines
        or text_format.skip_after_header
        or text_format.extra_cell != "none"
    )


def written_format(text_format: TextFormat) -> TextFormat:
    """The format of the text that `rewrite` writes."""
    return replace(
        text_format, delimiter=",", quote='"', escape="doubled", encoding="utf-8", skip_lines=0, comment="none",
        footer_lines=0, extra_cell="none", skip_after_header=0,
    )  # fmt: skip


def rewrite(feed: FeedSchema, day: str, uri: str, path: Path, target: Path) -> None:
    """Rewrite a UTF-8 file.

    Args:
        feed: the file's feed.
        day: partition date.
        uri: where the file landed.
        path: the file.
        target: where the text goes.

    Raises:
        DataError: it is not text as the format has it; with the line.
    """
    try:
        with (
            path.open(encoding="utf-8-sig", newline="") as source,
            target.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(_even_records(feed, day, uri, source))
    except UnicodeDecodeError:
        raise feed.error(
            f"{uri} is not readable text: it has bytes that are not UTF-8",
            "ask the feed for UTF-8, or declare data.format.encoding",
            day,
        ) from None
    except (OSError, EOFError, csv.Error) as error:
        raise translate_read_error(feed, day, uri, error, "is not readable text") from error


def _even_records(feed: FeedSchema, day: str, uri: str, lines: Iterable[str]) -> Iterator[list[str]]:
    """The header and the rows, each with equally many cells.

    Raises:
        DataError: a row has another number of cells.
    """
    text_format = feed.text_format
    rows = _without_footer(records(lines, text_format), text_format.footer_lines)
    _, header = next(rows, (0, list[str]()))
    rows = islice(rows, text_format.skip_after_header, None)
    first = next(rows, None)
    if text_format.extra_cell != "none" and first and len(first[1]) == len(header) + 1:
        header = ["", *header] if text_format.extra_cell == "first" else [*header, ""]
    if header:
        yield header
    for line, cells in chain([first] if first else [], rows):
        if len(cells) != len(header):
            raise feed.error(
                f"{uri} is malformed: line {line} has {len(cells)} cells, and the first one {len(header)}",
                "correct the feed, or how data.format says that it is written", day,
            )  # fmt: skip
        yield cells


def _without_footer(rows: Iterable[_Record], footer_lines: int) -> Iterator[_Record]:
    """All but the last records."""
    pending: deque[_Record] = deque()
    for row in rows:
        pending.append(row)
        if len(pending) > footer_lines:
            yield pending.popleft()


def records(lines: Iterable[str], text_format: TextFormat, *, strict: bool = False) -> Iterator[_Record]:
    """The records of a text that are no comments, not empty and after the skipped lines, each with its last line."""
    csv.field_size_limit(MAX_LINE_BYTES)
    numbers: list[int] = [0]
    dialect = text_format.python_dialect() | {"strict": strict}
    for cells in csv.reader(_without_comments(lines, text_format, numbers), **dialect):
        if any(cells) or len(cells) > 1:
            yield numbers[0], cells


def _without_comments(lines: Iterable[str], text_format: TextFormat, numbers: list[int]) -> Iterator[str]:
    """The lines that are read; the number of the latest one is in ``numbers``."""
    comment, quote = text_format.comment, text_format.quote_character
    spaced, is_open = text_format.delimiter == "whitespace", False
    for number, line in enumerate(lines, 1):
        numbers[0] = number
        if number <= text_format.skip_lines:
            continue
        if comment != "none" and not is_open and line.lstrip().startswith(comment):
            continue
        if quote:
            is_open ^= line.count(quote) % 2 == 1
        yield line.replace("\t", " ").strip(" \r\n") + "\n" if spaced else line
