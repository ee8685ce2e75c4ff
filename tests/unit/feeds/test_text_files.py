"""Text in any format that a spec can declare is read back equal, or refused by name."""

from __future__ import annotations

import datetime as dt
import io
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings

from perennial.core.errors import DataError
from perennial.feeds import text_files
from perennial.feeds.feed_schema import FeedSchema
from perennial.feeds.text_casts import TextFormat
from perennial.ingestion import typed_rows
from perennial.storage import landing
from support.feeds.text_tables import TextTable, text_tables

DAY = "2024-03-04"


@pytest.fixture(scope="module")
def con(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    folder = tmp_path_factory.mktemp("duckdb")
    con.execute(f"SET memory_limit='300MB'; SET threads=2; SET TimeZone='UTC'; SET temp_directory='{folder}'")
    return con


def read(
    con: duckdb.DuckDBPyConnection, content: bytes, feed: FeedSchema, name: str = "a.csv"
) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
    """The rows of a file, and the number of unreadable cells of each column."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        file = landing.fetch_file(feed, DAY, str(path), Path(folder), con)
        failures = typed_rows.create_landed_view(con, feed, [file], typed=Path(folder) / "typed.parquet")
        columns = ", ".join(f'"{column}"' for column in feed.columns)
        rows = con.execute(f"SELECT {columns} FROM __rows ORDER BY __row").fetchall()
        counts = {
            column: con.execute(f"SELECT count(*) FROM __rows WHERE {condition}").fetchall()[0][0]
            for column, condition in failures.items()
        }
        return rows, {column: n for column, n in counts.items() if n}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=text_tables())
def test_a_table_in_any_format_is_read_back(con: duckdb.DuckDBPyConnection, table: TextTable) -> None:
    feed = FeedSchema("m", "rows", table.kinds, text_format=table.text_format)
    rows, unreadable = read(con, table.content(), feed)
    assert unreadable == {}
    assert rows == table.rows


def cells(con: duckdb.DuckDBPyConnection, kind: str, texts: list[str], **text_format: Any) -> list[Any]:
    """The values of a column of texts; an unreadable one is the text "!"."""
    feed = FeedSchema("m", "rows", {"i": "string", "c": kind}, text_format=TextFormat(**text_format))
    content = "i|c\n" + "".join(f"{i}|{text}\n" for i, text in enumerate(texts))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.csv").write_text(content, "utf-8")
        file = landing.fetch_file(feed, DAY, f"{folder}/a.csv", Path(folder), con)
        failures = typed_rows.create_landed_view(con, feed, [file], typed=Path(folder) / "typed.parquet")
        rows = con.execute(f"SELECT c, {failures.get('c', 'FALSE')} FROM __rows ORDER BY __row").fetchall()
    return [
        "!" if failed else str(value) if kind in ("date", "timestamp") and value else value
        for value, failed in rows
    ]


PIPE: dict[str, Any] = {"delimiter": "|", "quote": "none"}
GERMAN = PIPE | {"decimal": ",", "thousands": "."}


@pytest.mark.parametrize(
    ("kind", "written", "texts"),
    [
        ("integer", PIPE, {"5.0": 5, "1e3": 1000, "1.25e2": 125, "1.5": "!", "1_000": "!", "1e-3": "!", "0x1F": "!",
                           "9007199254740993.0": 9007199254740993, "9223372036854775808": "!", "1,000": "!"}),
        ("number", PIPE, {"1_000": "!", "1e400": "!", "-inf": float("-inf"), "1.": 1.0, ".5": 0.5, ".": "!", "-": "!"}),
        ("number", GERMAN, {"1.234,5": 1234.5, "1.234": 1234.0, "12.34": "!", "1,5": 1.5, "10.01.2000": "!"}),
        ("integer", GERMAN, {"1.234": 1234, "1.234,0": 1234, "1,5": "!", "-12.34.567": -1234567}),
        ("number", PIPE | {"thousands": "space"}, {"1 234.5": 1234.5, "1\u202f234": 1234.0, "1 2": "!"}),
        ("number", PIPE | {"nulls": ("-", "-999")}, {"-": None, " - ": None, "-999": None, "-999.5": -999.5}),
        ("string", PIPE | {"nulls": ("\\N", "<NA>")}, {"\\N": None, "<NA>": None, "NA": "NA", "x": "x"}),
        ("date", PIPE, {"2024-02-29": "2024-02-29", "2023-02-29": "!", "infinity": "!", "-infinity": "!", "epoch": "!",
                        "2024-02-29 00:00:00": "2024-02-29", "2024-02-29 10:00": "!", "2024-03-01 (BC)": "!"}),
        ("timestamp", PIPE, {"infinity": "!", "-infinity": "!", "epoch": "!", "2024-03-01 (BC)": "!",
                             "12024-03-01": "!", "2024-02-29T12:00:00+02:00": "2024-02-29 10:00:00"}),
        ("date", PIPE | {"date_format": ("%d.%m.%Y",)}, {"29.2.2024": "2024-02-29", "29.02.24": "!", "02.29.2024": "!",
                                                         "2024-02-29": "!"}),
        ("date", PIPE | {"date_format": ("%Y%m%d",)}, {"20240229": "2024-02-29", "2024229": "!"}),
        ("date", PIPE | {"date_format": ("%d.%m.%Y %H:%M", "iso")}, {"29.02.2024 00:00": "2024-02-29",
                              "29.02.2024 01:00": "!", "2024-02-29": "2024-02-29"}),
        ("date", PIPE | {"date_format": ("%YQ%q", "%b %Y")}, {"2024Q1": "2024-01-01", "2024Q4": "2024-10-01",
                                              "2024Q5": "!", "Feb 2024": "2024-02-01", "2024-02-01": "!"}),
        ("timestamp", PIPE | {"date_format": ("%d %b %Y %H:%M%z",)}, {"29 Feb 2024 12:00+02:00": "2024-02-29 10:00:00",
                              "29 FEB 2024 12:00Z": "2024-02-29 12:00:00", "29 Foo 2024 12:00Z": "!"}),
        ("timestamp", PIPE | {"date_formats": {"c": ("epoch_seconds",)}}, {"1700000000.5": "2023-11-14 22:13:20.500000",
                              "1.7e+09": "2023-11-14 22:13:20", "99999999999999999999": "!", "2024-01-01": "!"}),
        ("boolean", PIPE, {"Yes": True, "0": False, "t": True, "J": "!"}),
        ("boolean", PIPE | {"true_values": ("J", "Ja"), "false_values": ("N",)}, {"j": True, "JA": True, "n": False,
                                                                                 "true": "!", "": None}),
    ],
)  # fmt: skip
def test_cells(
    con: duckdb.DuckDBPyConnection, kind: str, written: dict[str, Any], texts: dict[str, Any]
) -> None:
    assert dict(zip(texts, cells(con, kind, list(texts), **written), strict=True)) == texts


@pytest.mark.parametrize(
    ("content", "text_format", "message"),
    [
        (b"a;b\n1;2\n", {}, r"cells separated by ';'; data.format.delimiter is ,"),
        ("a,b\n1,2\n".encode("utf-16"), {}, r"begins with the mark of UTF-16, and data.format.encoding is utf-8"),
        ("a,b\n1,2\n".encode("utf-32"), {}, r"mark of UTF-32"),
        (b"a,b\n1,2\n3,M\xfcller\n", {}, r"Line: 3 .*not utf-8"),
        (b"a,b\n1,2\n3,\x81\n", {"encoding": "cp1252"}, r"line 3 has bytes that are not cp1252"),
        ("a,b\n1,2\n3,4\n".encode("utf-16")[:-1], {"encoding": "utf-16"}, r"line 3 has bytes that are not utf-16"),
        (b"a,b,a\n1,2,3\n", {}, r"the header has a duplicate column name: a, b, a"),
        (b",\n1,2\n", {}, r"the header has no column name"),
        (b",a,b\n0,1,2\n", {"unnamed": "a"}, r"the header has 'a', which data.format.unnamed gives"),
        (b"a,b\n1,2\n3\n", {}, r"Line: 3"),
        (b"a,b\r1,2\r3,x\ny\r", {}, r"lines end with carriage returns, and some with line feeds"),
        (b'a,b\n1,"2\n', {}, r"Line: 2"),
        (b"# x\na b\n1  2\n\n3\n", {"delimiter": "whitespace", "comment": "#"}, "line 5 has 1 cells"),
        (b"a,b\n1,2,\n3,4,5,6\n", {"extra_cell": "last"}, r"line 3 has 4 cells, and the first one 3"),
        (b"a,b\n1,\xff\n", {"comment": "#"}, r"bytes that are not UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(
    con: duckdb.DuckDBPyConnection, content: bytes, text_format: dict[str, Any], message: str
) -> None:
    feed = FeedSchema("m", "rows", {"a": "integer", "b": "string"}, text_format=TextFormat(**text_format))
    with pytest.raises(DataError, match=message):
        read(con, content, feed)


@pytest.mark.parametrize(
    "content",
    [b"a,b\r\r\n1,x\r\r\n2,y\r\r\n", b"a,b\n1,x\r\n2,y\n", b"a,b\r\n1,x\n2,y", b'a,b\r1,"x"\r2,y\r',
     b",a,b,\n0,1,x,\n0,2,y,\n"],
)  # fmt: skip
def test_line_ends_and_columns_without_names(con: duckdb.DuckDBPyConnection, content: bytes) -> None:
    feed = FeedSchema("m", "rows", {"a": "integer", "b": "string"})
    assert read(con, content, feed) == ([(1, "x"), (2, "y")], {})


def test_a_carriage_return_within_a_line_is_part_of_the_cell(con: duckdb.DuckDBPyConnection) -> None:
    feed = FeedSchema("m", "rows", {"a": "string", "b": "string"})
    content = b'a,b\n1\r,x\ry\n"2""\r",z\nq""\r"",s\n'
    assert read(con, content, feed)[0] == [("1\r", "x\ry"), ('2"\r', "z"), ('q""\r""', "s")]


def test_a_column_without_a_name_is_an_extra_column(con: duckdb.DuckDBPyConnection) -> None:
    feed = FeedSchema("m", "rows", {"a": "integer"}, extra_columns="stop")
    with pytest.raises(DataError, match="a column without a name is not declared"):
        read(con, b",a\n0,1\n", feed)
    feed = FeedSchema("m", "rows", {"a": "integer", "i": "integer"}, extra_columns="stop",
                      text_format=TextFormat(unnamed="i"))  # fmt: skip
    assert read(con, b",a\n0,1\n", feed)[0] == [(1, 0)]


def test_a_name_of_the_file_like_one_of_the_library(con: duckdb.DuckDBPyConnection) -> None:
    feed = FeedSchema("m", "rows", {"a": "integer"})
    assert read(con, b"__unnamed_1,,a\n0,1,2\n", feed)[0] == [(2,)]


@pytest.mark.parametrize("block", [7, 64])
def test_a_file_larger_than_a_block(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
    values = [(i, f'é"{i}\r\n😀') for i in range(50)]
    lines = ["a,b", *('{},"{}"'.format(i, text.replace('"', '""')) for i, text in values)]
    feed = FeedSchema(
        "m", "rows", {"a": "integer", "b": "string"}, text_format=TextFormat(encoding="utf-16-be")
    )
    for line_end in ("\n", "\r\n", "\r"):
        assert read(con, (line_end.join(lines) + line_end).encode("utf-16-be"), feed) == (values, {})


def workbook(rows: list[list[Any]], sheet: str = "Daten") -> bytes:
    """A workbook whose second sheet has rows."""
    book = openpyxl.Workbook()
    book.create_sheet(sheet)
    for row in rows:
        book[sheet].append(row)
    target = io.BytesIO()
    book.save(target)
    return target.getvalue()


EXCEL = [
    ["id", "at", "on", "x", "n", "ok", "text", None],
    [1, dt.datetime(2024, 3, 4, 10, 30), dt.date(2024, 3, 4), 1.5, 7, True, "Müller, A", None],
    [None] * 7,
    ["2", "04.03.2024 11:00", "05.03.2024", "1.234,5", "-", "falsch", None],
]  # fmt: skip
EXCEL_KINDS = {"id": "integer", "at": "timestamp", "on": "date", "x": "number", "n": "integer", "ok": "boolean",
               "text": "string"}  # fmt: skip
EXCEL_FORMAT = TextFormat(
    sheet="Daten", decimal=",", thousands=".", nulls=("-",), true_values=("wahr",), false_values=("falsch",),
    date_format=("%d.%m.%Y",), date_formats={"at": ("%d.%m.%Y %H:%M",)}, delimiter=";", encoding="latin-1",
)  # fmt: skip


@pytest.mark.parametrize("skip", [0, 2])
def test_an_excel_sheet(con: duckdb.DuckDBPyConnection, skip: int) -> None:
    feed = FeedSchema("m", "rows", EXCEL_KINDS, text_format=replace(EXCEL_FORMAT, skip_lines=skip))
    content = workbook([*[["Report"]] * skip, *EXCEL])
    assert read(con, content, feed, "a.xlsx") == (
        [(1, dt.datetime(2024, 3, 4, 10, 30), dt.date(2024, 3, 4), 1.5, 7, True, "Müller, A"),
         (2, dt.datetime(2024, 3, 4, 11), dt.date(2024, 3, 5), 1234.5, None, False, None)], {},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK no workbook", "is not an Excel workbook: BadZipFile"),
        (workbook(EXCEL, "Other"), "has no sheet 'Daten'; it has 'Sheet', 'Other'"),
        (workbook([*EXCEL, ["3", None, None, None, None, None, None, None, 5]]), "row 5 has 9 cells, and the header 7"),
    ],
)  # fmt: skip
def test_an_excel_sheet_that_cannot_be_read(
    con: duckdb.DuckDBPyConnection, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(con, content, FeedSchema("m", "rows", EXCEL_KINDS, text_format=EXCEL_FORMAT), "a.xlsx")


@pytest.mark.parametrize(
    ("content", "text_format", "rows"),
    [
        (b"1,2\n3,4\n", {"header": False}, [("1", "2"), ("3", "4")]),
        (b"#c\n# d\n 1  'x  y'\n\n2\t''\ntotal 9", {"delimiter": "whitespace", "quote": "'", "comment": "#",
                                                 "footer_lines": 1, "header": False}, [("1", "x  y"), ("2", None)]),
        (b'a,b\n1,"x\n#y"\n#2,z\n', {"comment": "#"}, [("1", "x\n#y")]),
        (b'"a" "b"\n"r1" 2 3\n"r2" 4 5\n', {"delimiter": "space", "extra_cell": "first"}, [("2", "3"), ("4", "5")]),
        (b"a,b\n1,2,\n3,4,\n", {"extra_cell": "last"}, [("1", "2"), ("3", "4")]),
        (b"a,b\n1,2\n3,4\n", {"extra_cell": "last"}, [("1", "2"), ("3", "4")]),
        (b"a,A,a,a_2\n1,2,3,4\n", {"duplicate_names": "number"}, [("1", "2", "3", "4")]),
    ],
)  # fmt: skip
def test_lines_that_are_not_plain(
    con: duckdb.DuckDBPyConnection,
    tmp_path: Path,
    content: bytes,
    text_format: dict[str, Any],
    rows: list[Any],
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    names = ["column_1", "column_2"] if text_format.get("header") is False else ["a"]
    feed = FeedSchema("m", "rows", dict.fromkeys(names, "string"), text_format=TextFormat(**text_format))
    file = text_files.convert(feed, DAY, "a.csv", tmp_path / "a.csv", tmp_path, con)
    assert con.execute(f"SELECT * FROM '{file}'").fetchall() == rows
