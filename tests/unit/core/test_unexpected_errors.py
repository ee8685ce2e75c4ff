"""Errors that no module foresaw: words, a place, a remedy, and no value of the data."""

from __future__ import annotations

import errno
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import requests
import xgboost
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from deltalake.exceptions import DeltaError
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from perennial.core import unexpected_errors
from perennial.core.errors import (
    DataError,
    OutOfMemoryError,
    PerennialError,
    RegistryError,
    RegistryRequestError,
    StorageError,
    StorageFaultError,
    UnexpectedError,
)
from support import canary


class PanicException(BaseException):
    pass


def spill_beyond_limit() -> None:
    con = duckdb.connect(config={"memory_limit": "5MB", "temp_directory": "", "threads": 1})
    con.sql("SELECT list(i) FROM range(10000000) t(i)").fetchall()


def fill_disk() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)


def panic() -> None:
    raise PanicException("called `Option::unwrap()` on a `None` value")


FAILURES: list[tuple[Callable[[], Any], type[PerennialError], str, str]] = [
    (spill_beyond_limit, OutOfMemoryError, "it needs more memory than it has", "PERENNIAL_MEMORY_MB"),
    (lambda: np.zeros(2**55), OutOfMemoryError, "it needs more memory than it has", "PERENNIAL_MEMORY_MB"),
    (fill_disk, StorageError, "No space left on device", "the disk has room"),
    (lambda: Path("/nowhere/x").read_text(), StorageFaultError, "/nowhere/x: No such file", "check that it exists"),
    (lambda: requests.get("http://127.0.0.1:9", timeout=1), RegistryError, "MLflow cannot be used", "MLFLOW_TRACKING"),
    (lambda: {}[canary.TEXT], UnexpectedError, "unexpected KeyError in ", "report it with this text"),
    (lambda: json.loads(canary.TEXT), UnexpectedError, "unexpected JSONDecodeError in json/decoder.py:", "report it"),
    (lambda: duckdb.connect().sql(f"SELECT '{canary.TEXT}'::DATE").fetchall(), UnexpectedError,
     "unexpected Conversion Error: a text is not a date in ", "report it"),
    (lambda: xgboost.DMatrix(np.array([[math.inf]])), PerennialError,
     "XGBoost refuses the features, the labels or training.params (XGBoostError in ", "training.params"),
    (panic, UnexpectedError, "unexpected PanicException in ", "report it"),
]  # fmt: skip


@pytest.mark.parametrize(("work", "kind", "cause", "remedy"), FAILURES)
def test_every_error_becomes_words(
    work: Callable[[], Any], kind: type[PerennialError], cause: str, remedy: str
) -> None:
    with pytest.raises(BaseException) as raised:
        work()
    assert unexpected_errors.is_failure(raised.value)
    error = unexpected_errors.translate(raised.value, "step data", model="toy", partition="2024-01-01")
    assert type(error) is kind
    assert str(error).startswith("model toy, partition 2024-01-01: step data failed: ")
    assert cause in error.cause and remedy in error.remedy
    assert not canary.find(str(error).encode())


def test_what_is_no_failure_passes() -> None:
    assert not unexpected_errors.is_failure(KeyboardInterrupt())
    assert not unexpected_errors.is_failure(SystemExit(1))
    error = DataError("x", "y")
    assert unexpected_errors.translate(error, "step data") is error


def test_the_text_is_quoted_where_nothing_is_personal() -> None:
    error = unexpected_errors.translate(KeyError("amount"), "step data", hide=False)
    assert error.cause == "step data failed: unexpected KeyError: 'amount'"


def test_the_traceback_is_logged_for_who_asks_and_quotes_no_value(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def translate() -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="perennial"):
            try:
                json.loads(canary.TEXT)
            except ValueError as error:
                unexpected_errors.translate(error, "step data")
        return caplog.text

    assert translate() == ""
    monkeypatch.setenv("PERENNIAL_DEBUG", "1")
    text = translate()
    assert "json/decoder.py" in text and "raise JSONDecodeError" in text
    assert not canary.find(text.encode())


def test_numbers_of_the_system_are_words() -> None:
    for number in (errno.EACCES, errno.EROFS, errno.EIO):
        error = unexpected_errors.translate(OSError(number, "?", "/lake"), "step data")
        assert isinstance(error, StorageError) and error.cause.startswith("step data failed: /lake: ")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "?"), StorageError),
        (OSError(errno.EIO, "?"), StorageError),
        (OSError(errno.ETIMEDOUT, "?"), StorageError),
        (OSError(errno.EACCES, "?"), StorageFaultError),
        (OSError(errno.EROFS, "?"), StorageFaultError),
        (OSError(errno.ENOENT, "?"), StorageFaultError),
        (EndpointConnectionError(endpoint_url="http://s3"), StorageError),
        (ClientError({"Error": {"Code": "SlowDown"}}, "GetObject"), StorageError),
        (ClientError({"Error": {"Code": "InternalError"}}, "GetObject"), StorageError),
        (ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject"), StorageFaultError),
        (ClientError({"Error": {"Code": "NoSuchBucket"}}, "GetObject"), StorageFaultError),
        (NoCredentialsError(), StorageFaultError),
        (DeltaError("Generic S3 error: Server returned non-2xx status code: 503"), StorageError),
        (
            DeltaError("Generic S3 error: Server returned non-2xx status code: 403 Forbidden"),
            StorageFaultError,
        ),
        (requests.ConnectionError(), RegistryError),
        (requests.ReadTimeout(), RegistryError),
        (requests.exceptions.SSLError(), RegistryRequestError),
        (requests.exceptions.MissingSchema(), RegistryRequestError),
        (MlflowException("?", error_code=TEMPORARILY_UNAVAILABLE), RegistryError),
        (MlflowException("?", error_code=BAD_REQUEST), RegistryError),  # its database may be busy
        (MlflowException("?", error_code=PERMISSION_DENIED), RegistryRequestError),
        (MlflowException("?", error_code=RESOURCE_DOES_NOT_EXIST), RegistryRequestError),
    ],
    ids=repr,
)
def test_errors_of_libraries_are_sorted_by_whether_time_heals_them(
    error: Exception, kind: type[PerennialError]
) -> None:
    assert type(unexpected_errors.translate(error, "step data")) is kind
