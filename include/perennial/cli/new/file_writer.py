"""Write rows of a sample as a file of the sample's own format, whose cells stay as they were."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import zipfile
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from perennial.core import file_formats
from perennial.feeds.text_casts import TextFormat

__all__ = ["file_bytes"]


def file_bytes(table: pa.Table, ending: str, text_format: TextFormat) -> bytes:
    """The bytes of a file with some rows.

    Args:
        table: the rows; of a text file or a workbook, all cells are texts.
        ending: what the name of the file ends with.
        text_format: how text is written.
    """
    if ending == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    if ending == file_formats.EXCEL:
        return _workbook(table, text_format)
    # Lines that are no rows; what they say is of no importance.
    footer = f"total{text_format.delimiter_character}\n" * text_format.footer_lines
    text = "\n" * text_format.skip_lines + _text(table, text_format) + footer
    return _compressed(text.encode(text_format.encoding), ending)


def _text(table: pa.Table, text_format: TextFormat) -> str:
    # Unquoted, an empty cell would be a space more, and a text might begin as a comment does.
    all_quoted = text_format.delimiter == "whitespace" or text_format.comment != "none"
    plain = text_format.quote_character == '"' and text_format.escape == "doubled"
    if plain and not (all_quoted or text_format.skip_after_header):
        buffer = io.BytesIO()
        options = pc.WriteOptions(
            quoting_style="needed",
            delimiter=text_format.delimiter_character,
            include_header=text_format.header,
        )
        pc.write_csv(table, buffer, options)
        return buffer.getvalue().decode()
    lines = io.StringIO()
    quote, backslash = text_format.quote_character, text_format.escape == "backslash"
    # A backslash escapes in quoted cells only.
    quoting: Literal[0, 1, 3] = (
        csv.QUOTE_NONE if not quote else csv.QUOTE_ALL if backslash or all_quoted else csv.QUOTE_MINIMAL
    )
    writer = csv.writer(
        lines,
        delimiter=text_format.delimiter_character,
        quotechar=quote or None,
        quoting=quoting,
        doublequote=not backslash,
        escapechar="\\" if quote and backslash else None,
        lineterminator="\n",
    )
    if text_format.header:
        writer.writerow(table.column_names)
        writer.writerows([["unit"] * table.num_columns] * text_format.skip_after_header)
    writer.writerows(
        zip(*(["" if v is None else v for v in c.to_pylist()] for c in table.columns), strict=True)
    )
    return lines.getvalue()


def _compressed(content: bytes, ending: str) -> bytes:
    match file_formats.compression(f"file{ending}"):
        case "gzip":
            return gzip.compress(content, mtime=0)
        case "bzip2":
            return bz2.compress(content)
        case "zstd":
            return pa.compress(content, "zstd", asbytes=True)
        case "zip":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(zipfile.ZipInfo("rows.csv"), content)
            return buffer.getvalue()
    return content


def _workbook(table: pa.Table, text_format: TextFormat) -> bytes:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    workbook = openpyxl.Workbook(write_only=True)
    sheet = workbook.create_sheet(text_format.sheet or "rows")
    for _ in range(text_format.skip_lines):
        sheet.append([None])
    if text_format.header:
        sheet.append(table.column_names)
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        cells = [WriteOnlyCell(sheet, value) for value in row]
        for cell in cells:
            cell.data_type = "s" if cell.value is not None else "n"  # a text that begins with = is no formula
        sheet.append(cells)
    buffer = io.BytesIO()
    workbook.save(buffer)
    return buffer.getvalue()
