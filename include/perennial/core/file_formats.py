"""Formats of landed files, by the endings of their names, in any case."""

from __future__ import annotations

from typing import Literal

__all__ = ["COMPRESSIONS", "ENDINGS", "EXCEL", "Compression", "compression", "ending", "is_text"]

Compression = Literal["gzip", "zstd", "bzip2", "zip"]
#: Compressions of text files by the last ending of the name.
COMPRESSIONS: dict[str, Compression] = {
    ".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".zip": "zip",
}  # fmt: skip
_TEXT = (".csv", ".tsv", ".txt", ".tab", ".dat", ".data")
#: The ending of Excel workbooks, of which one sheet is read as text.
EXCEL = ".xlsx"
#: What the names of landed files end with.
ENDINGS = (".parquet", *_TEXT, *(text + end for end in COMPRESSIONS for text in _TEXT), ".zip", EXCEL)


def ending(name: str) -> str:
    """The longest of `ENDINGS` that a name has, in any case; empty if it has none."""
    return max((e for e in ENDINGS if name.lower().endswith(e)), key=len, default="")


def is_text(name: str) -> bool:
    """Whether a file is text, compressed or not, or a workbook."""
    return ending(name) not in ("", ".parquet")


def compression(name: str) -> Compression | None:
    """How a text file is compressed; None if it is not."""
    return next((method for end, method in COMPRESSIONS.items() if ending(name).endswith(end)), None)
