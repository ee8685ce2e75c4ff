"""Words for errors that no module foresaw: what happened, where, and what to do, without values of the data.

The text of a library's error may quote rows. What is shown of it is what `redaction` allows, and where it occurred.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import traceback
from pathlib import Path

from perennial.core import redaction
from perennial.core.errors import (
    OutOfMemoryError,
    PerennialError,
    RegistryError,
    RegistryRequestError,
    StorageError,
    StorageFaultError,
    UnexpectedError,
)
from perennial.core.settings import settings

__all__ = [
    "NO_ACCESS",
    "OTHER_ADDRESS",
    "is_failure",
    "is_file_library_error",
    "lake_file",
    "log_traceback",
    "origin",
    "registry_error_kind",
    "repair",
    "storage_error_kind",
    "translate",
]

log = logging.getLogger("perennial")
_PACKAGE = Path(__file__).resolve().parents[1]
#: Bases of the errors of libraries, by the module that a user knows them by. Named, because importing them is slow.
_OUT_OF_MEMORY = {"builtins.MemoryError", "duckdb.OutOfMemoryException", "_duckdb.OutOfMemoryException"}
#: Errors of DuckDB about a statement, and not about what it reads.
_WRONG_SQL = {f"_duckdb.{kind}Exception" for kind in ("Binder", "Parser", "Catalog", "Syntax")}
_STORAGE = {"_internal.DeltaError", "deltalake.exceptions.DeltaError", "botocore.exceptions.BotoCoreError",
            "botocore.exceptions.ClientError"}  # fmt: skip
_FILE_LIBRARIES = {"duckdb.Error", "_duckdb.Error", "pyarrow.lib.ArrowException", "_internal.DeltaError"}
_MLFLOW = {"mlflow.exceptions.MlflowException", "requests.exceptions.RequestException"}
#: Phrases of libraries' texts about files for which this user, or these credentials, have no right.
NO_ACCESS = (
    "Permission denied", "os error 13", "Read-only file system", "os error 30", "Access Denied", "AccessDenied",
    "ACCESS_DENIED", "InvalidAccessKeyId", "INVALID_ACCESS_KEY_ID", "SignatureDoesNotMatch",
    "SIGNATURE_DOES_NOT_MATCH", "Forbidden", "Unable to locate credentials",
)  # fmt: skip
#: Phrases of their texts about an address at which there is nothing, or something else than expected.
OTHER_ADDRESS = (
    "NoSuchBucket", "NO_SUCH_BUCKET", "no such bucket", "Not a directory", "os error 20", "Is a directory",
    "is directory", "os error 21", "File exists", "os error 17", "Invalid table location",
)  # fmt: skip
#: Numbers of the system's errors of the same kinds.
_FAULTS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
#: MLflow's refusals, as error codes and as HTTP statuses. Its other codes also stand for failures of its database.
_REFUSALS = (
    "ENDPOINT_NOT_FOUND", "CUSTOMER_UNAUTHORIZED", "FEATURE_DISABLED", "INVALID_PARAMETER_VALUE", "INVALID_STATE",
    "PERMISSION_DENIED", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "UNAUTHENTICATED",
)  # fmt: skip
_REFUSED = (401, 403, 404, 405)
#: Errors of requests that say that the address, or the server's certificate, is wrong.
_WRONG_ADDRESS = {
    f"requests.exceptions.{k}" for k in ("InvalidURL", "InvalidSchema", "MissingSchema", "SSLError")
}
#: What Rust code raises (the Delta library, polars) when it fails in a way that it did not foresee.
_PANIC = "PanicException"


#: How a damaged table of the lake is repaired, by its folder in the lake.
_REPAIRS = {
    "published": "run the data step of that partition again with --force",
    "labels": "run the data step of the partition that the labels came with again with --force",
    "quarantine": "run the data step of that partition again with --force",
    "predictions": "run the score step of that partition again with --force",
    "served": "run the score step of that partition again with --force",
    "monitoring": "run the monitor step of that partition again with --force",
    "references": "delete the folder of this reference table: its landed file is copied again",
    "ledger": "restore the folder from a backup of the lake: only it holds the decisions",
}


def lake_file(error: BaseException) -> str | None:
    """The Parquet file of the lake that an error of a library is about, if its text names one."""
    path = re.search(re.escape(settings().lake) + r"/[^\"'\n]*?\.parquet", str(error))
    return path[0] if path else None


def repair(uri: str) -> str | None:
    """What to do about a damaged table or file of the lake; None if it is not in the lake."""
    lake = settings().lake
    remedy = _REPAIRS.get(uri.removeprefix(f"{lake}/").split("/")[0]) if uri.startswith(lake) else None
    return remedy if remedy is None or "restore" in remedy else f"restore it from a backup, or {remedy}"


def is_file_library_error(error: BaseException) -> bool:
    """Whether an error is one of DuckDB, Arrow or the Delta library."""
    bases = {f"{base.__module__}.{base.__name__}" for base in type(error).__mro__}
    is_of_files = bases & _FILE_LIBRARIES and not bases & (_OUT_OF_MEMORY | _WRONG_SQL)
    return bool(is_of_files) or type(error).__name__ == _PANIC


def is_failure(error: BaseException) -> bool:
    """Whether an error is a failure of the work, and not the end of the process or of the task."""
    return isinstance(error, Exception) or type(error).__name__ == _PANIC


def storage_error_kind(error: BaseException, text: str | None = None) -> type[StorageError]:
    """The class for an error of the system or of a library about a file: `StorageFaultError` if time does not heal it.

    Args:
        error: what was raised.
        text: its text, without paths; the whole text when not given.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return StorageFaultError if error.errno in _FAULTS else StorageError
    text = str(error) if text is None else text
    return StorageFaultError if any(phrase in text for phrase in NO_ACCESS + OTHER_ADDRESS) else StorageError


def registry_error_kind(
    error: BaseException | None = None, *, status: int | None = None, code: str = ""
) -> type[RegistryError]:
    """The class for a failure of MLflow: `RegistryRequestError` if it refuses, or something else is at its address.

    Args:
        error: what its client raised, if it did.
        status: HTTP status that it answered.
        code: MLflow's error code.
    """
    bases = {f"{base.__module__}.{base.__name__}" for base in type(error).__mro__}
    refused = status in _REFUSED or (code or getattr(error, "error_code", "")) in _REFUSALS
    return RegistryRequestError if refused or bases & _WRONG_ADDRESS else RegistryError


def translate(
    error: BaseException,
    task: str,
    *,
    hide: bool = True,
    model: str | None = None,
    partition: str | None = None,
) -> PerennialError:
    """The error in words; a `PerennialError` is returned as it is.

    Args:
        error: what was raised.
        task: what failed, such as ``step data``.
        hide: quote nothing of a library's text, because it may hold personal values.
        model: name of the model.
        partition: the partition concerned.
    """
    if isinstance(error, PerennialError):
        return error
    log_traceback(error)
    kind, cause, remedy = _words(error, hide=hide)
    return kind(f"{task} failed: {cause}", remedy, model=model, partition=partition)


def _words(error: BaseException, *, hide: bool) -> tuple[type[PerennialError], str, str]:
    bases = {f"{base.__module__}.{base.__name__}" for base in type(error).__mro__}
    if bases & _OUT_OF_MEMORY or "bad_alloc" in str(error):
        return (
            OutOfMemoryError,
            f"it needs more memory than it has ({origin(error)})",
            "raise PERENNIAL_MEMORY_MB, or the memory of the compute profile; or free memory on this machine",
        )
    if isinstance(error, OSError) or is_file_library_error(error):
        file = lake_file(error)
        if file is not None:
            cause = f"{file} cannot be read: {redaction.redacted_text(error)}"
            return StorageFaultError, cause, str(repair(file))
    if isinstance(error, OSError) and error.errno is not None:
        name = f"{error.filename}: " if error.filename else ""
        return (
            storage_error_kind(error),
            f"{name}{os.strerror(error.errno)} ({origin(error)})",
            "check that it exists, that this user has access to it and that the disk has room; then run it again",
        )
    if bases & _STORAGE:
        return (
            storage_error_kind(error),
            f"the lake or the landing area cannot be used ({origin(error)})",
            "check its address, its credentials and the connection; then run it again",
        )
    if bases & _MLFLOW:
        return (
            registry_error_kind(error),
            f"MLflow cannot be used ({origin(error)})",
            "check that MLflow runs and that MLFLOW_TRACKING_URI is its address; then run it again",
        )
    if "xgboost.core.XGBoostError" in bases:
        refused = re.search(r"Check failed: ([^\n]*)", str(error))
        detail = f": {refused[1]}" if refused and not hide else ""
        return (
            PerennialError,
            f"XGBoost refuses the features, the labels or training.params{detail} ({origin(error)})",
            "check training.params, and that features and labels are numbers that the task allows; if they are, "
            "report it with this text",
        )
    quoted = "" if hide or not str(error).strip() else f": {redaction.error_text(error, hide=False)}"
    return (
        UnexpectedError,
        f"unexpected {origin(error)}{quoted}",
        "this is probably a defect: report it with this text; PERENNIAL_DEBUG=1 adds the traceback to the log",
    )


def origin(error: BaseException) -> str:
    """What an error was and where it was raised, with the place in Perennial that led to it; no value of the data.

    Such as ``TypeError in pandas/core/nanops.py:85, from perennial/ingestion/data_profile.py:91``.
    """
    frames = traceback.extract_tb(error.__traceback__)
    text = redaction.redacted_text(error)
    if not frames:
        return text
    ours = [f for f in frames if Path(f.filename).is_relative_to(_PACKAGE)]
    text += f" in {_location(frames[-1])}"
    return text if not ours or ours[-1] is frames[-1] else f"{text}, from {_location(ours[-1])}"


def _location(frame: traceback.FrameSummary) -> str:
    path = Path(frame.filename)
    folders = path.parts
    for root in ("site-packages", "include", "plugins"):
        if root in folders:
            path = Path(*folders[len(folders) - folders[::-1].index(root) :])
            break
    else:
        path = Path(*folders[-2:])
    return f"{path.as_posix()}:{frame.lineno}"


def log_traceback(error: BaseException) -> None:
    """Log the code that led to an error, without its text: at level debug, or always if PERENNIAL_DEBUG is set."""
    level = logging.ERROR if os.environ.get("PERENNIAL_DEBUG", "").strip() else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    lines = []
    cause: BaseException | None = error
    while cause is not None:
        frames = "".join(traceback.format_tb(cause.__traceback__))
        lines.append(f"{type(cause).__name__} (its text may quote data, and is not shown)\n{frames}")
        cause = cause.__cause__ or cause.__context__
    log.log(level, "%s", "caused by ".join(lines))
