"""Compressed text files: their content, once its checksum has been compared."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from perennial.core import file_formats
from perennial.core.file_formats import Compression

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_BYTES = 1 << 20


class DamagedFileError(Exception):
    """A compressed file is not complete, its checksum is wrong, or it is not one file; the text says which."""


def blocks(source: IO[bytes], method: Compression) -> Iterator[bytes]:
    """Decompress a file in blocks.

    Nothing is certain about the content before the last block: only then is the checksum compared.

    Args:
        source: the file; for zip it must be seekable.
        method: how it is compressed.

    Raises:
        DamagedFileError: the file cannot be decompressed, or holds several files.
    """
    try:
        with _OPENERS[method](source) as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
    except (
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        ValueError,
        NotImplementedError,
        RuntimeError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno:  # the disk, not the content
            raise
        raise DamagedFileError(f"the {method} file is damaged: {error}") from error


def decompress(path: Path, method: Compression, target: Path) -> None:
    """Write the content of a compressed file to ``target``.

    Raises:
        DamagedFileError: as `blocks`; nothing of the content may be used.
        OSError: the file cannot be read, or the content not written.
    """
    with path.open("rb") as source, target.open("wb") as file:
        for block in blocks(source, method):
            file.write(block)


def _open_gzip(source: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    return cast("contextlib.AbstractContextManager[IO[bytes]]", gzip.GzipFile(fileobj=source))


def _open_bzip2(source: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    return cast("contextlib.AbstractContextManager[IO[bytes]]", bz2.BZ2File(source))


def _open_zstd(source: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    import pyarrow as pa

    stream: Any = pa.CompressedInputStream(pa.PythonFile(cast(Any, source), mode="r"), "zstd")
    return cast("contextlib.AbstractContextManager[IO[bytes]]", stream)


@contextlib.contextmanager
def _open_zip(source: IO[bytes]) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(source) as archive:
        # macOS adds a folder of its own to each archive.
        members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
        if len(members) != 1:
            names = ", ".join(m.filename for m in members[:5]) + (", …" if len(members) > 5 else "")
            raise DamagedFileError(
                f"the zip file holds {len(members)} files, not one" + (f": {names}" if names else "")
            )
        if file_formats.ending(members[0].filename) == ".parquet":
            raise DamagedFileError(f"the zip file holds {members[0].filename}, no text: land it without zip")
        with archive.open(members[0]) as file:
            yield file


_OPENERS: dict[Compression, Callable[[IO[bytes]], contextlib.AbstractContextManager[IO[bytes]]]] = {
    "gzip": _open_gzip,
    "zstd": _open_zstd,
    "bzip2": _open_bzip2,
    "zip": _open_zip,
}
