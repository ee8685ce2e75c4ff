"""Small files (manifests, reports) and the digests of big ones, in a folder or on S3."""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core.errors import StorageError
from perennial.core.settings import endpoint_url

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_BYTES = 1 << 20
#: How often S3 is asked before an error counts (with growing pauses: half a minute in all), and how long an answer may
#: take to go on, in seconds.
MAX_ATTEMPTS = 6
TIMEOUT_SECONDS = 30.0
_REMEDY = (
    "check that the disk has room, that the place exists and that this user may use it; then run it again"
)


def is_remote(uri: str) -> bool:
    """Whether ``uri`` is on S3."""
    return uri.startswith("s3://")


def filesystem() -> Any:
    """The S3 filesystem of the environment (``pyarrow.fs.S3FileSystem``)."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    endpoint = endpoint_url()
    return S3FileSystem(
        endpoint_override=endpoint,
        scheme="http" if endpoint and endpoint.startswith("http://") else "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        connect_timeout=5,
        request_timeout=TIMEOUT_SECONDS,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS),
    )


def client(
    service: str = "s3",
    patience: float | None = None,
    attempts: int | None = None,
    region: str | None = None,
) -> Any:
    """A client of AWS's own library, for what one request must decide; patient as `filesystem` where not told.

    Args:
        patience: seconds that an answer may take. attempts: how often a request is made before an error counts.
        region: the environment's where none is given.
    """
    told = tuple((k, v) for k, v in sorted(os.environ.items()) if k.startswith("AWS_"))
    return _client(
        service, TIMEOUT_SECONDS if patience is None else patience, attempts or MAX_ATTEMPTS, region, told
    )


@functools.lru_cache(maxsize=8)  # to make one costs more than most of what it is asked
def _client(
    service: str, patience: float, attempts: int, region: str | None, _environ: tuple[tuple[str, str], ...]
) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=min(5.0, patience),
        read_timeout=patience,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    return boto3.session.Session().client(service, region_name=region, config=config)


def exists(uri: str) -> bool:
    """Whether a file is there.

    Raises:
        StorageError: the place cannot be asked.
    """
    if not is_remote(uri):
        return Path(uri).is_file()
    try:
        return bool(filesystem().get_file_info(uri.removeprefix("s3://")).is_file)
    except OSError as error:
        raise StorageError(f"{uri} cannot be reached: {error}", _REMEDY) from error


def digest(uri: str) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    found = hashlib.sha256()
    for block in _blocks(uri):
        found.update(block)
    return found.hexdigest()


def _blocks(uri: str) -> Iterator[bytes]:
    try:
        with (
            filesystem().open_input_stream(uri.removeprefix("s3://"))
            if is_remote(uri)
            else Path(uri).open("rb") as file
        ):
            while block := file.read(BLOCK_BYTES):
                yield block
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{uri} cannot be read: {error}", _REMEDY) from error


def read_text(uri: str) -> str:
    """The text of a small file.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the place cannot be read.
    """
    return read_bytes(uri).decode()


def read_bytes(uri: str) -> bytes:
    """As `read_text`, for bytes."""
    return b"".join(_blocks(uri))


def write_text(uri: str, text: str) -> str:
    """Write a small file whole or not at all; returns ``uri``.

    Raises:
        StorageError: the place cannot be written.
    """
    return write_bytes(uri, text.encode())


def write_bytes(uri: str, content: bytes) -> str:
    """As `write_text`, for bytes."""
    try:
        if is_remote(uri):
            _put(uri, content)
            return uri
        path = Path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return uri
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {error}", _REMEDY) from error


def _put(uri: str, content: bytes) -> None:
    """Write to S3 in one request. Arrow's stream would write what it holds when it is closed by an error, too."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        client().put_object(Bucket=bucket, Key=key, Body=content)
    except (BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error


def remove(uri: str) -> None:
    """Remove a file, if it is there.

    Raises:
        StorageError: the place cannot be written.
    """
    try:
        if is_remote(uri):
            if exists(uri):
                filesystem().delete_file(uri.removeprefix("s3://"))
        else:
            Path(uri).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{uri} cannot be removed: {error}", _REMEDY) from error


def delete_files(uri: str) -> None:
    """Remove the files of a folder, if there are any. One that somebody else is about to write there stays.

    Raises:
        StorageError: the place cannot be read or written.
    """
    from pyarrow.fs import FileSelector, LocalFileSystem

    store = filesystem() if is_remote(uri) else LocalFileSystem()
    try:
        held = store.get_file_info(FileSelector(uri.removeprefix("s3://"), allow_not_found=True))
    except OSError as error:
        raise StorageError(f"{uri} cannot be read: {error}", _REMEDY) from error
    for file in held:
        if file.is_file and not file.base_name.startswith("."):
            remove(f"{uri}/{file.base_name}")
