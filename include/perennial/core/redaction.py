"""Texts of libraries' errors about data, without the data that they quote.

DuckDB, Arrow, pandas, XGBoost and Great Expectations quote values, whole rows and parts of files in their messages, in
more forms than patterns could list. So for a model with personal columns nothing of such a message is copied: a new
text is composed from the words of this module, the names that the spec declares, and the line number that DuckDB puts
before the first quote.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from perennial.core.errors import PerennialError, UnexpectedError

P = ParamSpec("P")
R = TypeVar("R")

#: How DuckDB's messages begin.
_CATEGORIES = (
    "Binder Error", "Catalog Error", "Constraint Error", "Conversion Error", "Interrupt Error", "Invalid Input Error",
    "Invalid Type Error", "IO Error", "Not implemented Error", "Out of Memory Error", "Out of Range Error",
    "Parser Error", "Serialization Error", "Syntax Error", "TransactionContext Error",
)  # fmt: skip
#: What a message says, by a phrase of the library; the first that occurs is used.
_PHRASES = {
    "unterminated quote": "a quoted value does not end, or text follows it",
    "Expected Number of Columns": "a row has another number of cells than the header",
    "not utf-8": "the text is not UTF-8",
    "codec can't decode": "the text is not UTF-8",
    "is not valid UTF8": "a text is not UTF-8",
    "Maximum line size": "a line is too long",
    "field larger than field limit": "a cell is too long",
    "No space left": "no space left on device",
    "max_temp_directory_size": "no space left for temporary files",
    "Permission denied": "permission denied",
    "Read-only file system": "read-only file system",
    "Access Denied": "access denied",
    "AccessDenied": "access denied",
    "NoSuchBucket": "there is no such bucket",
    "InvalidAccessKeyId": "the access key is not known",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "Connection refused": "connection refused",
    "error sending request": "no connection",
    "timed out": "no answer in time",
    "Malformed JSON": "a text is not JSON",
    "Overflow": "a number is too large for its type",
    "out of range": "a number is too large for its type",
    "invalid date": "a text is not a date",
    "date field": "a text is not a date",
    "invalid timestamp": "a text is not a timestamp",
    "timestamp field": "a text is not a timestamp",
    "Could not parse": "a text does not have the expected form",
    "Could not convert": "a value cannot be converted",
    "Could not cast": "a value cannot be converted",
    "Failed to cast": "a value cannot be converted",
    "Cast error": "a value cannot be converted",
    "Could not decode": "a text is not encoded as expected",
    "magic bytes": "the file does not end as a Parquet file does",
    "footer": "the file's footer is damaged",
    "No files found that match": "a file is missing",
    "Object at location": "a file is missing",
    "Json error": "a record of the table's log is damaged",
    "No table metadata or protocol": "the beginning of the table's log is missing",
    "thrift": "the file is damaged",
    "Snappy": "compressed data is damaged",
    "not a gzipped file": "the file is not compressed with gzip",
    "CRC check failed": "compressed data is damaged",
    "end-of-stream": "the file ends too early",
    "too small": "the file ends too early",
    "Out of Memory": "not enough memory",
}  # fmt: skip
#: Names of types, as DuckDB's and Arrow's messages about conversions write them.
_TYPES = re.compile(
    r"\bto (?:the destination type )?"
    r"(U?INT(?:8|16|32|64|128)|BOOL|FLOAT|DOUBLE|DECIMAL|VARCHAR|DATE|TIME|TIMESTAMP|INTERVAL|UUID|BLOB|int64|double)\b"
)
_LINE = re.compile(r"(?:Invalid Input Error: )?CSV Error on Line: (\d+)\n")
HINT = "values are not shown: they may be personal data"


def error_text(error: BaseException, *, hide: bool, names: Iterable[str] = ()) -> str:
    """One line about a library's error.

    Args:
        error: the error.
        hide: show nothing that may come from the data, because the model has personal columns.
        names: names that may be shown, such as those of the declared columns.
    """
    if isinstance(error, PerennialError):
        return error.cause
    if hide:
        return f"{redacted_text(error, names)} ({HINT})"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def redacted_text(error: BaseException, names: Iterable[str] = ()) -> str:
    """One line about a library's error that has nothing of its text but words that are listed here.

    Args:
        error: the error.
        names: as for `error_text`.
    """
    text = str(error).strip()
    parts = [next((c for c in _CATEGORIES if text.startswith(c + ":")), type(error).__name__)]
    phrase = next((meaning for words, meaning in _PHRASES.items() if words in text), "")
    if phrase:
        parts.append(phrase)
    if phrase.endswith("converted") and (types := _TYPES.findall(text)):
        parts.append(f"to {types[-1]}")
    if column := next((n for n in names if text.partition("\n")[0].endswith(f"source column {n}")), None):
        parts.append(f"column {column!r}")
    if line := _LINE.match(text):
        parts.append(f"line {line[1]}")
    return f"{parts[0]}{': ' * (len(parts) > 1)}{', '.join(parts[1:])}"


def redacted(error: Exception, *, hide: bool) -> Exception:
    """The error to raise for another one, where values may not be shown.

    Errors of this library have safe texts, but those that caused them, which a traceback prints, have not. Any other
    error may quote the data, so only its kind and where it occurred are kept.

    Args:
        error: what was raised.
        hide: as for `error_text`.

    Returns:
        The error itself, without causes, or a new one. Raise it outside of the ``except`` block; within, it would get
        the original as its context.
    """
    if not hide:
        return error
    if not isinstance(error, PerennialError):
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = ", ".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in reversed(frames))
        cause = f"unexpected {redacted_text(error)}"
        return UnexpectedError(f"{cause}, at {where}", f"report it with this text; {HINT}")
    error.__cause__ = error.__context__ = None
    return error


def redact_errors(hide: Callable[P, bool]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that no error leaves it with values that may not be shown.

    Args:
        hide: whether values may not be shown, from the function's arguments.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                failure = redacted(error, hide=hide(*args, **kwargs))
            try:
                raise failure  # outside of the handler, so that the original does not become its context
            finally:
                del failure  # its traceback refers to this frame

        return call

    return decorate
