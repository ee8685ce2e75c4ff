"""Landed files on this machine: copies from S3, decompressed text, and the footers of Parquet files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.core import file_formats
from perennial.feeds import compressed_files
from perennial.feeds.compressed_files import DamagedFileError
from perennial.feeds.feed_schema import FeedSchema, shortened_error
from perennial.storage import object_store, storage_errors

if TYPE_CHECKING:
    import pyarrow as pa


def download(uri: str, path: Path) -> str:
    """Copy a file from S3; returns the SHA-256 of the bytes that were copied."""
    sha256 = hashlib.sha256()
    try:
        with (
            object_store.filesystem().open_input_stream(uri.removeprefix("s3://")) as source,
            path.open("wb") as copy,
        ):
            while block := source.read(object_store.BLOCK_BYTES):
                sha256.update(block)
                copy.write(block)
        return sha256.hexdigest()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_errors.failure(f"{uri} cannot be copied: {error}", error) from error


def decompress(feed: FeedSchema, day: str, uri: str, path: Path, folder: Path) -> Path:
    """The content of a text file; the file itself if it is not compressed.

    Raises:
        DataError: the file is damaged, or holds several files.
        StorageError: the content cannot be written.
    """
    method = file_formats.compression(uri)
    if method is None:
        return path
    target = folder / f"{feed.kind}-{day}.text"
    try:
        compressed_files.decompress(path, method, target)
    except DamagedFileError as error:
        remedy = "ask the feed to deliver it again: one text file, complete"
        raise feed.error(f"{uri} is not readable text: {error}", remedy, day) from error
    except OSError as error:
        raise storage_errors.failure(f"{uri} cannot be decompressed: {error}", error) from error
    return target


def read_footer(feed: FeedSchema, day: str, uri: str, path: Path) -> tuple[pa.Schema, int]:
    """The columns and the number of rows of a Parquet file.

    Raises:
        DataError: it is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise feed.error(f"{uri} is not a parquet file: {shortened_error(feed, error)}",
                         "ask the feed to deliver it again", day) from error  # fmt: skip
