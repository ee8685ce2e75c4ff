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

from perennial.errors import BusyError
from perennial.settings import settings

LEASE_SECONDS = 600


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
    from botocore.exceptions import ClientError

    s3: Any = boto3.client("s3")
    bucket, _, prefix = lake.removeprefix("s3://").partition("/")
    key = f"{prefix}/locks/{name}.lock".lstrip("/")
    token = uuid.uuid4().hex
    while True:
        content = {
            "token": token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "until": time.time() + LEASE_SECONDS,
        }
        try:
            mine = s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(content), IfNoneMatch="*")["ETag"]
            break
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise
        try:
            held = s3.get_object(Bucket=bucket, Key=key)
            if json.loads(held["Body"].read())["until"] < time.time():
                mine = s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(content), IfMatch=held["ETag"])[
                    "ETag"
                ]
                break
        except ClientError as error:  # the holder let go, or somebody else overtook it first: try again
            if error.response["Error"]["Code"] not in (
                "NoSuchKey",
                "PreconditionFailed",
                "ConditionalRequestConflict",
            ):
                raise
        if time.monotonic() > deadline:
            raise _busy(name)
        time.sleep(0.2)
    try:
        yield
    finally:
        if s3.head_object(Bucket=bucket, Key=key)["ETag"] == mine:
            s3.delete_object(Bucket=bucket, Key=key)
