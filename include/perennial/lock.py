"""A lock that everything sharing one lake respects: ``flock`` in a folder, a conditional write on S3."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perennial.errors import BusyError, StorageError
from perennial.settings import settings

LEASE_SECONDS = 600
#: What S3 answers when somebody else wrote first.
_LOST = ("PreconditionFailed", "ConditionalRequestConflict")


@contextmanager
def hold(name: str, timeout: float = 60) -> Iterator[None]:
    """Hold the lock called ``name`` while the block runs.

    In a folder the kernel frees it when its holder dies. On S3 a holder that died is overtaken after its lease.

    Raises:
        BusyError: somebody else held it for longer than ``timeout`` seconds.
    """
    lake = settings().lake
    deadline = time.monotonic() + timeout
    with _on_s3(lake, name, deadline) if lake.startswith("s3://") else _in_folder(lake, name, deadline):
        yield


def _busy(name: str) -> BusyError:
    return BusyError(
        f"the lock {name} is held by another run", "wait for the other run to end, then run this again"
    )


@contextmanager
def _in_folder(lake: str, name: str, deadline: float) -> Iterator[None]:
    path = Path(lake) / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _busy(name) from None
                time.sleep(0.05)
        yield


@contextmanager
def _on_s3(lake: str, name: str, deadline: float) -> Iterator[None]:
    import boto3

    s3: Any = boto3.client("s3")
    bucket, _, prefix = lake.removeprefix("s3://").partition("/")
    place = {"Bucket": bucket, "Key": f"{prefix}/locks/{name}.lock".lstrip("/")}
    with _told(name):
        while (mine := _take(s3, place)) is None:
            if time.monotonic() > deadline:
                raise _busy(name)
            time.sleep(0.2)
    try:
        yield
    finally:
        with _told(name):
            _let_go(s3, place, mine)


def _take(s3: Any, place: dict[str, str]) -> str | None:
    """Write the lock, or take over one whose lease has run out; its tag, or None where somebody else holds it."""
    from botocore.exceptions import ClientError

    content = json.dumps(
        {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "until": time.time() + LEASE_SECONDS,
        }
    )
    try:
        return str(s3.put_object(**place, Body=content, IfNoneMatch="*")["ETag"])
    except ClientError as error:
        if error.response["Error"]["Code"] not in _LOST:
            raise
    try:
        held = s3.get_object(**place)
        if json.loads(held["Body"].read())["until"] < time.time():
            return str(s3.put_object(**place, Body=content, IfMatch=held["ETag"])["ETag"])
    except ClientError as error:  # the holder let go, or somebody else overtook it first: try again
        if error.response["Error"]["Code"] not in (*_LOST, "NoSuchKey"):
            raise
    return None


def _let_go(s3: Any, place: dict[str, str], mine: str) -> None:
    """Remove the lock, unless it was taken over."""
    from botocore.exceptions import ClientError

    try:
        if s3.head_object(**place)["ETag"] == mine:
            s3.delete_object(**place)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
            raise


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what S3's client raises into our own error."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise StorageError(
            f"the lock {name} cannot be had: {error}",
            "check the lake's address, its credentials and the connection; then run this again",
        ) from error
