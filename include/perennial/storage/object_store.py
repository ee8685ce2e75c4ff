"""Small files (manifests, reports) in a folder or on S3: atomic writes, reads, digests.

A URI is a local path, or ``s3://bucket/key``.
"""

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
#: Attempts at a request to S3, with growing pauses: half a minute in total.
MAX_ATTEMPTS = 6
#: Seconds without a byte after which a request to S3 counts as failed.
TIMEOUT_SECONDS = 30.0
_REMEDY = (
    "check that the disk has room and that this user has access to the folder or bucket; then run it again"
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
    timeout: float | None = None,
    max_attempts: int | None = None,
    region: str | None = None,
) -> Any:
    """A boto3 client, for requests that Arrow's filesystem cannot make, such as conditional writes.

    Args:
        service: AWS's name of the service.
        timeout: seconds to wait for a response; `TIMEOUT_SECONDS` by default.
        max_attempts: attempts at a request; `MAX_ATTEMPTS` by default.
        region: AWS region; the environment's by default.
    """
    environment = tuple((k, v) for k, v in sorted(os.environ.items()) if k.startswith("AWS_"))
    return _client(
        service,
        TIMEOUT_SECONDS if timeout is None else timeout,
        max_attempts or MAX_ATTEMPTS,
        region,
        environment,
    )


@functools.lru_cache(maxsize=8)  # creating a client is slower than most requests
def _client(
    service: str, timeout: float, max_attempts: int, region: str | None, _environ: tuple[tuple[str, str], ...]
) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=min(5.0, timeout),
        read_timeout=timeout,
        retries={"mode": "standard", "total_max_attempts": max_attempts},
    )
    return boto3.session.Session().client(service, region_name=region, config=config)


def exists(uri: str) -> bool:
    """Whether a file exists.

    Raises:
        StorageError: S3 cannot be reached.
    """
    if not is_remote(uri):
        return Path(uri).is_file()
    try:
        return bool(filesystem().get_file_info(uri.removeprefix("s3://")).is_file)
    except OSError as error:
        raise StorageError(f"{uri} cannot be reached: {error}", _REMEDY) from error


def digest(uri: str) -> str:
    """SHA-256 of a file's bytes, read in blocks.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    sha256 = hashlib.sha256()
    for block in _blocks(uri):
        sha256.update(block)
    return sha256.hexdigest()


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
    """Read the text of a small file.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    return read_bytes(uri).decode()


def read_bytes(uri: str) -> bytes:
    """Read the bytes of a small file; raises what `read_text` does."""
    return b"".join(_blocks(uri))


def write_text(uri: str, text: str) -> str:
    """Write a small text file atomically; returns ``uri``.

    Raises:
        StorageError: it cannot be written.
    """
    return write_bytes(uri, text.encode())


def write_bytes(uri: str, content: bytes) -> str:
    """Write bytes atomically; returns ``uri``, and raises what `write_text` does."""
    try:
        if is_remote(uri):
            _write_to_s3(uri, content)
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


def _write_to_s3(uri: str, content: bytes) -> None:
    """Write to S3 in one request: Arrow's stream would store a partial file after an error."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        client().put_object(Bucket=bucket, Key=key, Body=content)
    except (BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error


def delete_file(uri: str) -> None:
    """Delete a file, if it exists.

    Raises:
        StorageError: it cannot be deleted.
    """
    try:
        if is_remote(uri):
            if exists(uri):
                filesystem().delete_file(uri.removeprefix("s3://"))
        else:
            Path(uri).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{uri} cannot be deleted: {error}", _REMEDY) from error


def delete_files(uri: str) -> None:
    """Delete the files of a folder, if there are any, except those that another process is writing.

    Raises:
        StorageError: the folder cannot be read, or a file cannot be deleted.
    """
    from pyarrow.fs import FileSelector, LocalFileSystem

    store = filesystem() if is_remote(uri) else LocalFileSystem()
    try:
        files = store.get_file_info(FileSelector(uri.removeprefix("s3://"), allow_not_found=True))
    except OSError as error:
        raise StorageError(f"{uri} cannot be read: {error}", _REMEDY) from error
    for file in files:
        if file.is_file and not file.base_name.startswith("."):
            delete_file(f"{uri}/{file.base_name}")
