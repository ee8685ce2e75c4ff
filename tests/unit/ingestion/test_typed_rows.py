"""Typed rows of landed text: the same values however many columns are parsed and cast at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from perennial.core.sql import quote_identifier
from perennial.feeds import text_files
from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion import typed_rows
from perennial.storage import landing


def landed_view(
    folder: Path, columns: dict[str, str], lines: list[str]
) -> tuple[duckdb.DuckDBPyConnection, dict[str, str]]:
    """The view of a text file in little memory, and its cast failures."""
    (folder / "a.csv").write_text("\n".join(lines))
    con = duckdb.connect()
    con.execute(f"SET memory_limit='300MB'; SET threads=2; SET TimeZone='UTC'; SET temp_directory='{folder}'")
    feed = FeedSchema("m", "rows", columns)
    file = landing.fetch_file(feed, "2024-03-04", str(folder / "a.csv"), folder, con)
    return con, typed_rows.create_landed_view(con, feed, [file], typed=folder / "typed.parquet")


def test_a_text_file_may_have_many_columns(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(1200)]
    cells = [["1.5"] * 1200, ["x", *["NA"] * 1199], [*["-2e3"] * 1199, "1,5"], [""] * 1200]
    lines = [",".join(names), *(",".join(f'"{cell}"' for cell in row) for row in cells)]
    con, failures = landed_view(tmp_path, dict.fromkeys(names, "number"), lines)
    sums = ", ".join(f"sum({name})" for name in names)
    expected = (1.5 - 2000, *[1.5 - 2000] * 1198, 1.5)
    assert con.execute(f"SELECT {sums} FROM __rows").fetchone() == expected
    assert list(failures) == ["c0", "c1199"]
    failed = ", ".join(f"list(__row) FILTER ({condition})" for condition in failures.values())
    assert con.execute(f"SELECT {failed} FROM __rows").fetchone() == ([1], [2])


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("number", {"1.5": 1.5, " 2 ": 2.0, "x": "x", "1,5": "1,5", "nan": None, "N/A": None, "": None}),
        ("integer", {"+7": 7, "1.5": "1.5", "9223372036854775808": "9223372036854775808", " NULL ": None}),
        ("boolean", {"true": True, "no": False, "maybe": "maybe", "None": None}),
        ("date", {"2024-02-29": "2024-02-29", "2023-02-29": "!", "infinity": "!", "NA": None}),
        ("timestamp", {"2024-02-29T12:00:00+02:00": "2024-02-29 10:00:00", "infinity": "!", "-infinity": "!"}),
    ],
)  # fmt: skip
def test_a_cell_is_its_value_or_missing_or_kept_as_text(
    tmp_path: Path, kind: str, cells: dict[str, Any]
) -> None:
    con, failures = landed_view(tmp_path, {"c": kind}, ["c", *(f'"{cell}"' for cell in cells)])
    rows = con.execute(f"SELECT c, {failures['c']}, __uncast_c FROM __rows ORDER BY __row").fetchall()
    for (cell, expected), (value, failed, text) in zip(cells.items(), rows, strict=True):
        if failed:
            assert value is None and text == cell and expected in (cell, "!")
        else:
            assert text is None
            assert (str(value) if kind in ("date", "timestamp") and value else value) == expected


KINDS = {
    "n": "number",
    "i": "integer",
    "ok": "boolean",
    "on": "date",
    "at": "timestamp",
    "s": "string",
    "row": "integer",
}
#: Rows of more than one row group.
ROWS = 5000


def typed_table(folder: Path) -> tuple[list[tuple[Any, ...]], list[str]]:
    """The typed rows of a text file with cells that cannot be read, and the columns that have some."""
    folder.mkdir()
    lines = ["s,n,i,ok,on,at,extra"]
    for i in range(ROWS):
        number = "?" if i % 1000 == 7 else f"{i}.5"
        lines.append(
            f't{i},{number},{i},{i % 2 == 0},2024-01-{i % 28 + 1:02d},2024-01-01 00:00:{i % 60:02d},"a,b"'
        )
    lines[4001] = "t,1.5,2.5,true,,2024-02-30 00:00:00,x"
    (folder / "a.csv").write_text("\n".join(lines))
    con = duckdb.connect(config={"threads": 2})
    con.execute("SET TimeZone='UTC'")
    feed = FeedSchema("m", "rows", KINDS, row_number="row")
    file = landing.fetch_file(feed, "2024-03-04", str(folder / "a.csv"), folder, con)
    failures = typed_rows.create_landed_view(con, feed, [file], typed=folder / "typed.parquet")
    names = [*KINDS, "__file", "__row", "__future", *(typed_rows.UNCAST_PREFIX + c for c in failures)]
    selected = ", ".join(map(quote_identifier, names))
    return con.execute(f"SELECT {selected} FROM __rows").fetchall(), list(failures)


@pytest.mark.parametrize("columns", [1, 3])
def test_columns_that_are_read_some_at_a_time_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    rows, failing = typed_table(tmp_path / "whole")
    assert failing == ["n", "i", "at"]
    assert [row[7:9] for row in rows] == [(0, i) for i in range(ROWS)]  # __file, __row, in the file's order
    assert [i for i, row in enumerate(rows) if row[10] == "?"] == list(range(7, ROWS, 1000))
    assert (rows[4000][1], rows[4000][11:]) == (None, ("2.5", "2024-02-30 00:00:00"))
    monkeypatch.setattr(typed_rows, "COLUMNS_PER_CAST", columns)
    monkeypatch.setattr(text_files, "COLUMNS_PER_PASS", columns + 1)
    assert typed_table(tmp_path / "parts") == (rows, failing)
    assert [path.name for path in (tmp_path / "parts").glob("*.parquet")].count("typed.parquet") == 1
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 2  # the text and the typed rows
