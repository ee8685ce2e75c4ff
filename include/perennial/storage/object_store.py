"""Small files (manifests, reports) in a folder or on S3: atomic writes, reads, digests.

A URI is a local path, or ``s3://bucket/key``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from perennial.core.errors import StorageError
from perennial.core.settings import endpoint_url
from perennial.storage import leftovers, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_BYTES = 1 << 20
#: Attempts at a request to S3, with growing pauses: half a minute in total.
MAX_ATTEMPTS = 6
#: Seconds without a byte after which a request to S3 counts as failed.
TIMEOUT_SECONDS = 30.0


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


def check_reachable(uri: str, seconds: float) -> None:
    """Check by one request that S3 answers, for a reader who does not wait as long as a step does.

    Args:
        uri: path or S3 URI; nothing is checked for a path.
        seconds: time for an answer.

    Raises:
        StorageError: S3 does not answer in time, or refuses.
    """
    if not is_remote(uri):
        return
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    try:
        client(timeout=seconds, max_attempts=1).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        raise storage_errors.failure(f"{uri} cannot be reached: {error}", error) from error


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
        raise storage_errors.failure(f"{uri} cannot be reached: {error}", error) from error


class FileStat(NamedTuple):
    """Size of a file in bytes, and when it was last written, in nanoseconds since 1970."""

    size: int
    modified_ns: int


def stat(uri: str, *, copied: bool = False) -> FileStat | None:
    """Size and time of a file; None if it does not exist.

    Args:
        uri: path or S3 URI.
        copied: whether others copy files there. A copy may keep the time of its original, so the time counts at which
            the file got there.

    Raises:
        StorageError: S3 cannot be reached.
    """
    try:
        if not is_remote(uri):
            return _local_stat(Path(uri).stat(), copied)
        info = filesystem().get_file_info(uri.removeprefix("s3://"))
        return FileStat(info.size, info.mtime_ns) if info.is_file else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_errors.failure(f"{uri} cannot be reached: {error}", error) from error


def _local_stat(status: os.stat_result, copied: bool) -> FileStat:
    # The time of the inode's last change is a copy's own.
    changed = status.st_ctime_ns if copied else 0
    return FileStat(status.st_size, max(status.st_mtime_ns, changed))


def list_files(folder: str, *, recursive: bool = False, copied: bool = False) -> dict[str, FileStat]:
    """List the files of a folder by their path below it, without those that are being written; none if it is missing.

    Args:
        folder: path or S3 URI.
        recursive: also list its subfolders.
        copied: as for `stat`.

    Raises:
        StorageError: the folder cannot be read.
    """
    try:
        if not is_remote(folder):
            return dict(_list_local(Path(folder), "", recursive, copied))
        from pyarrow.fs import FileSelector

        root = folder.removeprefix("s3://").rstrip("/")
        infos = filesystem().get_file_info(FileSelector(root, allow_not_found=True, recursive=recursive))
    except OSError as error:
        raise storage_errors.failure(f"{folder} cannot be read: {error}", error) from error
    return {i.path[len(root) + 1 :]: FileStat(i.size, i.mtime_ns) for i in infos if i.is_file}


def list_folders(folder: str) -> list[str]:
    """The names of the folders in a folder, the last one in order first; none if it is missing.

    Raises:
        StorageError: the folder cannot be read.
    """
    try:
        if not is_remote(folder):
            names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        else:
            from pyarrow.fs import FileSelector, FileType

            selector = FileSelector(folder.removeprefix("s3://").rstrip("/"), allow_not_found=True)
            infos = filesystem().get_file_info(selector)
            names = [info.base_name for info in infos if info.type == FileType.Directory]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_errors.failure(f"{folder} cannot be read: {error}", error) from error
    return sorted((name for name in names if not name.startswith(".")), reverse=True)


def _list_local(folder: Path, prefix: str, recursive: bool, copied: bool) -> Iterator[tuple[str, FileStat]]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if recursive and entry.is_dir():
                yield from _list_local(folder / entry.name, f"{prefix}{entry.name}/", recursive, copied)
                continue
            with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                if entry.is_file():
                    yield prefix + entry.name, _local_stat(entry.stat(), copied)


def digest(uri: str) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    if is_remote(uri):
        sha256 = hashlib.sha256()
        for block in _blocks(uri):
            sha256.update(block)
        return sha256.hexdigest()
    try:
        with Path(uri).open("rb") as file:  # faster than reading blocks in Python
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_errors.read_error(uri, error) from error


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
        raise storage_errors.failure(f"{uri} cannot be read: {error}", error) from error


def read_text(uri: str) -> str:
    """Read the text of a small file.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    return read_bytes(uri).decode()


def read_bytes(uri: str) -> bytes:
    """Read the bytes of a small file; raises what `read_text` does."""
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return b"".join(_blocks(uri))
        except StorageError as error:
            # Arrow does not repeat a request that S3 answers by an error longer than the file.
            if "Failed to flush response stream" not in error.cause:
                raise
            time.sleep(0.1)
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
        temporary = leftovers.temporary_file(path)
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
        raise storage_errors.failure(f"{uri} cannot be written: {error}", error) from error


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
        raise storage_errors.failure(f"{uri} cannot be deleted: {error}", error) from error


def delete_files(uri: str) -> None:
    """Delete the files of a folder, if there are any, except those that another process is writing.

    Raises:
        StorageError: the folder cannot be read, or a file cannot be deleted.
    """
    for name in list_files(uri):
        delete_file(f"{uri}/{name}")
