"""Rows that are written in the format of a sample are read back equal."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.cli.new.file_writer import file_bytes
from perennial.feeds.feed_schema import FeedSchema
from perennial.feeds.text_casts import TextFormat
from perennial.storage import duckdb_session, landing

CELLS = ["007", "a,b;c|d\te", 'say "hi"', "it's", "back\\slash", "ü € ß", " x ", "1.234,5", "=1+1"]


@pytest.mark.parametrize(
    ("ending", "text_format"),
    [
        (".csv", TextFormat()),
        (".csv", TextFormat(delimiter=";", encoding="cp1252")),
        (".tsv", TextFormat(delimiter="tab", encoding="utf-16")),
        (".txt", TextFormat(delimiter="|", quote="'", skip_lines=3)),
        (".csv", TextFormat(escape="backslash")),
        (".csv", TextFormat(delimiter="~", quote="none")),
        (".csv.gz", TextFormat(delimiter="space")),
        (".csv.zst", TextFormat()),
        (".csv.bz2", TextFormat()),
        (".tsv.zip", TextFormat(delimiter="tab", encoding="iso-8859-15")),
        (".dat", TextFormat(delimiter="whitespace", comment="#")),
        (".csv", TextFormat(comment="=", extra_cell="first", footer_lines=2)),
        (".data", TextFormat(header=False)),
        (".data", TextFormat(delimiter="whitespace", quote="'", header=False)),
        (".xlsx", TextFormat(sheet="Übersicht", skip_lines=2)),
        (".xlsx", TextFormat(sheet="Rows", header=False)),
        (".parquet", TextFormat()),
    ],
)
def test_rows_are_read_back_equal(
    empty_home: Path, tmp_path: Path, ending: str, text_format: TextFormat
) -> None:
    names = ["größe, m", "n"] if text_format.header else ["column_1", "column_2"]
    # Where spaces and tabs separate cells, a tab within a cell becomes a space.
    cells = [c.replace("\t", " ") for c in CELLS] if text_format.delimiter == "whitespace" else CELLS
    table = pa.table([cells, [str(i) for i in range(len(cells))]], names=names)
    path = tmp_path / f"a{ending}"
    path.write_bytes(file_bytes(table, ending, text_format))
    feed = FeedSchema("m", "rows", dict.fromkeys(table.column_names, "string"), text_format=text_format)
    file = landing.fetch_file(feed, "2024-01-01", str(path), tmp_path, duckdb_session.connect())
    assert pq.read_table(file.path).equals(table)
    assert file_bytes(table, ending, text_format) == path.read_bytes() or ending == ".xlsx"
