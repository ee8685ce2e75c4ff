"""Excel sheets, rewritten row by row as text whose cells are as the feed's format has them."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from perennial.core.errors import PerennialError
from perennial.feeds.feed_schema import FeedSchema, translate_read_error
from perennial.feeds.text_casts import TextFormat

#: Rows of a sheet among which its header is.
HEAD_ROWS = 50


def written_format(text_format: TextFormat) -> TextFormat:
    """The format of the text that `rewrite` writes."""
    return replace(
        text_format, delimiter=",", quote='"', escape="doubled", encoding="utf-8", skip_lines=0, sheet=None,
        comment="none", extra_cell="none",
    )  # fmt: skip


def filled_sheets(path: Path) -> list[tuple[str, int]]:
    """The names of a workbook's sheets that have a header and a row, and the number of rows before the header.

    The header is the first of the widest rows at the beginning. Empty if it is no workbook.

    Args:
        path: the workbook.
    """
    import openpyxl

    sheets = []
    try:
        with contextlib.closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as workbook:
            for sheet in workbook.worksheets:
                widths = [
                    max((i for i, value in enumerate(row, 1) if value is not None), default=0)
                    for row in sheet.iter_rows(max_row=HEAD_ROWS, values_only=True)
                ]
                widest = max(widths, default=0)
                if len([width for width in widths if width]) > 1:
                    sheets.append((str(sheet.title), widths.index(widest)))
    except Exception:  # openpyxl raises errors of many kinds about a damaged workbook
        return []
    return sheets


def rewrite(feed: FeedSchema, day: str, uri: str, path: Path, target: Path) -> None:
    """Rewrite a sheet as comma-separated UTF-8 text; empty rows, and empty columns at the right, are left out.

    Args:
        feed: the file's feed.
        day: partition date.
        uri: where the file landed.
        path: the file, or a copy of it.
        target: where the text goes.

    Raises:
        DataError: it is no workbook, has no such sheet, or a row is longer than the header.
    """
    import openpyxl

    sheet = feed.text_format.sheet
    try:
        # an open file: the path of a copy has another ending
        with (
            path.open("rb") as source,
            contextlib.closing(openpyxl.load_workbook(source, read_only=True, data_only=True)) as workbook,
        ):
            if sheet is not None and sheet not in workbook.sheetnames:
                names = ", ".join(repr(name) for name in workbook.sheetnames)
                raise feed.error(f"{uri} has no sheet {sheet!r}; it has {names}",
                                 "correct data.format.sheet, or the feed", day)  # fmt: skip
            rows = (workbook[sheet] if sheet is not None else workbook.worksheets[0]).iter_rows(
                values_only=True
            )
            with target.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows(_text_rows(feed, day, uri, rows))
    except PerennialError:
        raise
    except OSError as error:
        raise translate_read_error(feed, day, uri, error, "is not an Excel workbook") from error
    except Exception as error:  # openpyxl raises errors of many kinds about a damaged workbook
        raise feed.error(
            f"{uri} is not an Excel workbook: {type(error).__name__}", "ask the feed to deliver it again", day
        ) from error


def _text_rows(feed: FeedSchema, day: str, uri: str, rows: Iterable[tuple[Any, ...]]) -> Iterator[list[str]]:
    """The header and the rows as texts, each with as many cells as the header.

    Raises:
        DataError: a row has a value right of the header.
    """
    width = 0
    for number, row in enumerate(rows, 1):
        if number <= feed.text_format.skip_lines:
            continue
        cells = [_text(value, feed.text_format) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if not cells:
            continue
        width = width or len(cells)
        if len(cells) > width:
            raise feed.error(f"{uri} is malformed: row {number} has {len(cells)} cells, and the header {width}",
                             "correct the sheet, or data.format.skip_lines", day)  # fmt: skip
        yield cells + [""] * (width - len(cells))


def _text(value: Any, text_format: TextFormat) -> str:
    """A cell as text; numbers with the format's decimal sign, times as ISO 8601."""
    if value is None:
        return ""
    if isinstance(value, bool):
        words = text_format.true_values if value else text_format.false_values
        return words[0] if words else str(value).lower()
    if isinstance(value, float):
        return repr(value).replace(".", text_format.decimal)
    if isinstance(value, dt.datetime):
        return value.isoformat(" ")
    return str(value)
