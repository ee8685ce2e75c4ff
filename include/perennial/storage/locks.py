"""Locks shared by all users of a lake: ``flock`` in a folder, conditional writes on S3."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from perennial.core.errors import LockHeldError
from perennial.core.settings import settings
from perennial.storage import object_store, storage_errors

#: Seconds after which a lock on S3 that was not renewed expires. It is renewed every third of this time. The clocks of
#: two machines must differ by less than two thirds of it.
LEASE_SECONDS = 120.0
#: S3's error codes where another process wrote first, and where the object does not exist.
_CONDITION_FAILED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_NOT_FOUND = ("NoSuchKey", "404")
_TAKEN_OVER = "another run acquired it after the lease had expired"


@contextmanager
def hold(name: str, timeout: float = 60) -> Iterator[None]:
    """Hold a lock while the block runs. The lock is not reentrant.

    In a folder, the kernel frees the lock when its holder dies. On S3 it is renewed while the block runs, and a lock
    whose holder died can be acquired once its lease has expired.

    Args:
        name: name of the lock, unique in the lake.
        timeout: seconds to wait for it.

    Raises:
        LockHeldError: another run held it for longer than ``timeout``; or, on S3, took it over during the block,
            because it could not be renewed for the length of a lease.
        StorageError: the lake cannot be reached.
    """
    lake = settings().lake
    deadline = time.monotonic() + timeout
    with _on_s3(lake, name, deadline) if lake.startswith("s3://") else _in_folder(lake, name, deadline):
        yield


def _held_by_another(name: str) -> LockHeldError:
    return LockHeldError(
        f"the lock {name} is held by another run", "wait for the other run to end, then run this again"
    )


@contextmanager
def _in_folder(lake: str, name: str, deadline: float) -> Iterator[None]:
    path = Path(lake) / "locks" / f"{name}.lock"
    with _opened(path) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _held_by_another(name) from None
                time.sleep(0.05)
        yield


def _opened(path: Path) -> TextIO:
    """Open a lock's file.

    Raises:
        StorageError: it cannot be created or opened.
    """
    with storage_errors.writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")


@contextmanager
def _on_s3(lake: str, name: str, deadline: float) -> Iterator[None]:
    with _translate_s3_errors(name):
        lease = _S3Lease(lake, name)
        while not lease.acquire():
            if time.monotonic() > deadline:
                raise _held_by_another(name)
            time.sleep(0.2)
    renewal = threading.Thread(target=lease.renew_until_stopped, name=f"lock {name}", daemon=True)
    renewal.start()
    completed = False
    try:
        yield
        completed = True
    finally:
        lease.stop.set()
        renewal.join()
        lease.release()
        if completed and lease.lost_because:
            raise LockHeldError(
                f"the lock {name} was lost while it was held: {lease.lost_because}",
                "check the connection to the lake, and what the other run did; then run this again",
            )


class _S3Lease:
    """A lock as an object on S3 that names its holder and when the lease expires.

    Every change is a conditional write, so that of several processes exactly one acquires it. The object carries a
    token of its holder, because S3 may carry out a write and report it as failed. Releasing writes the object and does
    not delete it: not every S3 has conditional deletes, and a repeated delete could hit the next holder's object.

    Args:
        lake: URI of the lake.
        name: name of the lock.

    Attributes:
        etag: of the object as this process wrote it last; empty before the first write.
        expires_at: when others may acquire the lock, by this process's monotonic clock.
        stop: set to end the renewal.
        lost_because: why the lock is not held any more; empty while it is.
    """

    def __init__(self, lake: str, name: str) -> None:
        # all attempts of one renewal must fit into the lease
        timeout = max(1.0, min(10.0, LEASE_SECONDS / 12))
        self._s3: Any = object_store.client(timeout=timeout, max_attempts=4)
        bucket, _, prefix = lake.removeprefix("s3://").partition("/")
        self._object = {"Bucket": bucket, "Key": f"{prefix}/locks/{name}.lock".lstrip("/")}
        self._token = uuid.uuid4().hex
        self.etag = ""
        self.expires_at = 0.0
        self.stop = threading.Event()
        self.lost_because = ""

    def acquire(self) -> bool:
        """Write the lock if it is free, or if its lease has expired; returns whether it was acquired."""
        etag, content = self._read()
        if etag is not None and content["until"] >= time.time() and content.get("token") != self._token:
            return False
        try:
            return self._write({"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag})
        except Exception:
            self.release()  # S3 may have carried out the write nevertheless
            raise

    def renew_until_stopped(self) -> None:
        """Renew the lease until `stop` is set; a renewal that fails is repeated until the lease expires."""
        from botocore.exceptions import BotoCoreError, ClientError

        pause = LEASE_SECONDS / 3
        while not self.stop.wait(pause):
            try:
                if not self._write({"IfMatch": self.etag}):
                    self.lost_because = _TAKEN_OVER
                    return
                pause = LEASE_SECONDS / 3
            except (BotoCoreError, ClientError) as error:
                pause = LEASE_SECONDS / 30
                if time.monotonic() > self.expires_at:
                    self.lost_because = f"it could not be renewed: {error}"
                    return

    def release(self) -> None:
        """Free the lock if this process holds it; if that fails, the lease expires instead."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            etag, content = self._read()
            if etag is not None and content.get("token") == self._token:
                self._write({"IfMatch": etag}, free=True)
            elif self.etag and not self.lost_because and etag is not None:
                self.lost_because = _TAKEN_OVER
        except (BotoCoreError, ClientError, ValueError) as error:
            if self.etag and not self.lost_because and time.monotonic() > self.expires_at:
                self.lost_because = f"it could not be renewed: {error}"

    def _read(self) -> tuple[str | None, dict[str, Any]]:
        """The object's etag and content; no etag where the lock was never held."""
        from botocore.exceptions import BotoCoreError, ClientError

        for attempts_left in (2, 1, 0):
            try:
                answer = self._s3.get_object(**self._object)
                return str(answer["ETag"]), json.loads(answer["Body"].read())
            except ClientError as error:
                if error.response["Error"]["Code"] in _NOT_FOUND:
                    return None, {}
                raise
            except BotoCoreError:  # the client does not repeat a request whose body broke off
                if not attempts_left:
                    raise
        raise AssertionError("unreachable")

    def _write(self, condition: dict[str, str], *, free: bool = False) -> bool:
        """Write the object if a condition holds; returns whether it now has this content.

        Args:
            condition: the header of the conditional write.
            free: mark the lock as free.
        """
        from botocore.exceptions import ClientError

        sent = time.monotonic()
        content = {
            "token": "" if free else self._token,
            "last": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "until": 0 if free else time.time() + LEASE_SECONDS,
        }
        try:
            etag = str(self._s3.put_object(**self._object, Body=json.dumps(content), **condition)["ETag"])
        except ClientError as error:
            if error.response["Error"]["Code"] not in (*_CONDITION_FAILED, *_NOT_FOUND):
                raise
            # Either another process wrote first, or S3 carried out a request that it reported as failed, and refused
            # its repetition.
            stored_etag, stored = self._read()
            if stored_etag is None or stored != content:
                return False
            etag = stored_etag
        self.etag, self.expires_at = etag, sent + LEASE_SECONDS
        return True


@contextmanager
def _translate_s3_errors(name: str) -> Iterator[None]:
    """Raise errors of S3's client as a `StorageError`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, ValueError, KeyError) as error:
        raise storage_errors.failure(f"the lock {name} cannot be acquired: {error}", error) from error
