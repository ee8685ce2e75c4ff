"""Errors of libraries while a table or file is read or written, as a `StorageError` with a remedy that fits.

DuckDB, Arrow, deltalake and boto3 have no common error, and their texts hold backtraces, colours, and sometimes values
of the data. So only known phrases of them are passed on (`perennial.core.redaction`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from perennial.core import unexpected_errors
from perennial.core.errors import PerennialError, StorageError, StorageFaultError
from perennial.core.redaction import redacted_text
from perennial.core.settings import settings

_OTHER_ADDRESS = "check PERENNIAL_LAKE and PERENNIAL_LANDING: something else is at this address"
#: What to do, by phrases of the libraries' messages; the first that occurs decides.
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("No space left", "os error 28", "Disk quota", "max_temp_directory_size"),
        "free space on the disk, or move the folder to a larger one; then run it again",
    ),
    (
        unexpected_errors.NO_ACCESS,
        "give this user, or these AWS credentials, the right to read and write there; then run it again",
    ),
    (unexpected_errors.OTHER_ADDRESS, _OTHER_ADDRESS),
    (
        ("Connection refused", "error sending request", "timed out", "dns error", "Connect", "connect",
         "Could not resolve", "EndpointConnectionError", "Generic S3 error", "SlowDown", "SLOW_DOWN",
         "InternalError", "INTERNAL_FAILURE", "ServiceUnavailable", "SERVICE_UNAVAILABLE", "NETWORK_CONNECTION"),
        "check the address (PERENNIAL_LAKE, AWS_ENDPOINT_URL), its server and the connection; then run it again",
    ),
)  # fmt: skip
_ERRNO_PHRASES = {
    errno.ENOSPC: "No space left",
    errno.EDQUOT: "Disk quota",
    errno.EACCES: "Permission denied",
    errno.EPERM: "Permission denied",
    errno.EROFS: "Read-only file system",
    errno.ENOTDIR: "Not a directory",
    errno.EISDIR: "Is a directory",
    errno.EEXIST: "File exists",
}
_TYPES_REMEDY = (
    "the rows and the table have columns of other types: `perennial check` names them; declare the types as before, or "
    "give the model another name"
)
_OTHER_REMEDY = "run it again; if it fails again, report it with this text"


@contextmanager
def reading(uri: str, *, model: str | None = None, partition: str | None = None) -> Iterator[None]:
    """Raise what fails while a table, or a file of one, is read in the block as a `StorageError`.

    Args:
        uri: the table or file.
        model: name of the model.
        partition: the partition concerned.
    """
    try:
        yield
    except BaseException as error:
        if not is_storage_failure(error):
            raise
        raise read_error(uri, error, model=model, partition=partition) from error


@contextmanager
def writing(uri: str, *, model: str | None = None, partition: str | None = None) -> Iterator[None]:
    """Raise what fails while a table is written in the block as a `StorageError`; arguments as for `reading`."""
    try:
        yield
    except BaseException as error:
        if not is_storage_failure(error):
            raise
        raise write_error(uri, error, model=model, partition=partition) from error


def read_error(
    uri: str, error: BaseException, *, model: str | None = None, partition: str | None = None
) -> StorageError:
    """The error for a table or file that cannot be read."""
    file = unexpected_errors.lake_file(error) or uri
    remedy, kind = _remedy(error), unexpected_errors.storage_error_kind(error, _text(error))
    repair = None
    if file.endswith(".parquet") and remedy in (None, _OTHER_ADDRESS):
        repair = unexpected_errors.repair(file)
    elif remedy is None:
        repair = (
            lost_log_remedy(uri) if type(error).__name__ == "DeltaError" else unexpected_errors.repair(uri)
        )
    return (StorageFaultError if repair else kind)(
        f"{file} cannot be read: {_reason(error)}",
        repair or remedy or _OTHER_REMEDY,
        model=model,
        partition=partition,
    )


def lost_log_remedy(uri: str) -> str:
    """What to do about a table whose log of versions is damaged or lost."""
    if "/references/" in uri:
        return str(unexpected_errors.repair(uri))
    remedy = f"restore {uri}/_delta_log from a backup"
    if uri.endswith("/ledger"):
        return f"{remedy}: only it holds the decisions"
    return f"{remedy}; or delete {uri}, and run the steps that wrote to it for all of its dates with --force"


def write_error(
    uri: str, error: BaseException, *, model: str | None = None, partition: str | None = None
) -> StorageError:
    """The error for a table that cannot be written; its earlier version is still there."""
    remedy, kind = _remedy(error), unexpected_errors.storage_error_kind(error, _text(error))
    if remedy is None:
        words = ("chema", "Cannot cast", "Cast error", "Fail to merge", "fail to merge")
        is_type = any(word in str(error) for word in words)
        remedy, kind = (_TYPES_REMEDY, StorageFaultError) if is_type else (_OTHER_REMEDY, kind)
    return kind(
        f"{uri} cannot be written: {_reason(error)}",
        f"{remedy}. Nothing of these rows was written",
        model=model,
        partition=partition,
    )


def failure(
    cause: str, error: BaseException, *, model: str | None = None, partition: str | None = None
) -> StorageError:
    """The error for an error of a filesystem or of S3, with its remedy; of the class that says whether time heals it.

    Args:
        cause: what is wrong.
        error: what was raised.
        model: name of the model.
        partition: the partition concerned.
    """
    kind = unexpected_errors.storage_error_kind(error, _text(error))
    return kind(cause, _remedy(error) or _OTHER_REMEDY, model=model, partition=partition)


def is_storage_failure(error: BaseException) -> bool:
    """Whether an error is one of a library that reads and writes files, and not of this library."""
    return not isinstance(error, PerennialError) and (
        isinstance(error, OSError) or unexpected_errors.is_file_library_error(error)
    )


def _reason(error: BaseException) -> str:
    """Why, in words that hold no values: those of the system, or known phrases of the library."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return os.strerror(error.errno)
    text = redacted_text(error)
    return text if ":" in text else f"it is missing, damaged or locked ({text})"


def _remedy(error: BaseException) -> str | None:
    """The remedy for a phrase in an error's text, or for its number; None if neither is known."""
    text = _text(error)
    return next((remedy for phrases, remedy in _REMEDIES if any(p in text for p in phrases)), None)


def _text(error: BaseException) -> str:
    """An error's text in the phrases of the tables, without the names of the lake and of the landing area."""
    if isinstance(error, OSError) and error.errno is not None:
        return _ERRNO_PHRASES.get(error.errno, "")
    text = str(error)
    for path in (unexpected_errors.lake_file(error), settings().lake, settings().landing):
        text = text.replace(path, "") if path else text  # a folder may be called "connect"
    return text
