"""Formats of files by the endings of their names."""

from __future__ import annotations

import pytest

from perennial.core import file_formats


@pytest.mark.parametrize(
    ("name", "ending", "is_text", "compression"),
    [
        ("a.parquet", ".parquet", False, None),
        ("A.PARQUET", ".parquet", False, None),
        ("a.csv", ".csv", True, None),
        ("Export 2024.CSV", ".csv", True, None),
        ("auto.data", ".data", True, None),
        ("a.b.Tsv.GZ", ".tsv.gz", True, "gzip"),
        ("a.csv.zst", ".csv.zst", True, "zstd"),
        ("a.zip", ".zip", True, "zip"),
        ("a.txt.zip", ".txt.zip", True, "zip"),
        ("Book.XLSX", ".xlsx", True, None),
        ("a.parquet.gz", "", False, None),
        ("a.csv.bak", "", False, None),
        ("csv", "", False, None),
    ],
)
def test_a_name_tells_the_format_in_any_case(
    name: str, ending: str, is_text: bool, compression: str | None
) -> None:
    assert file_formats.ending(name) == ending
    assert file_formats.is_text(name) == is_text
    assert file_formats.compression(name) == compression
