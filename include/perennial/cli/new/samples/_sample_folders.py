"""Folders of part files as samples: the parts as one file, which the rest of `perennial new` reads."""

from __future__ import annotations

from pathlib import Path

import duckdb

from perennial.core import file_formats
from perennial.core.errors import DataError, PerennialError
from perennial.core.redaction import redacted_text
from perennial.core.sql import text_literal
from perennial.storage import part_folders

__all__ = ["as_file", "check"]


def check(path: Path) -> None:
    """Refuse a folder that is no partition of parquet files.

    Raises:
        PerennialError: it is not complete, or its parts are text.
        DataError: it cannot be read as one partition.
    """
    folder = part_folders.find(str(path))
    missing = folder.missing() if folder else "it does not exist"
    if folder is None or missing:
        raise PerennialError(
            f"{path} is not complete: {missing}", "wait for its writer, or give another sample"
        )
    if folder.fault:
        raise DataError(
            f"{path} cannot be read: {folder.fault}", "give one file, or one folder of part files"
        )
    if any(file_formats.is_text(folder.format_name(name)) for name in folder.parts):
        raise PerennialError(f"{path} holds text files", "give one of these files as the sample")


def as_file(con: duckdb.DuckDBPyConnection, path: Path, target: Path) -> Path:
    """A sample as one file: a folder's parts, in order, are copied to ``target``; a file stays as it is.

    Raises:
        DataError: a part cannot be read.
    """
    folder = part_folders.find(str(path))
    if folder is None:
        return path
    target.mkdir(parents=True, exist_ok=True)
    copy = target / f"{path.name.removesuffix('.parquet')}.parquet"
    parts = ", ".join(text_literal(f"{path}/{name}") for name in folder.parts)
    source = f"read_parquet([{parts}], hive_partitioning=false, union_by_name=true)"
    try:
        con.execute(f"COPY (SELECT * FROM {source}) TO {text_literal(str(copy))} (FORMAT parquet)")
    except duckdb.Error as error:
        raise DataError(f"{path} cannot be read: {redacted_text(error)}", "give another sample") from error
    return copy
