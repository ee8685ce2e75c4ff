"""A lock that everything sharing one lake respects: ``flock`` in a folder, a conditional write on S3."""

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
from typing import Any

from perennial.core.errors import LockHeldError, StorageError
from perennial.core.settings import settings
from perennial.storage import object_store

#: A holder on S3 that says nothing for so long counts as dead. It speaks three times within it. Machines' clocks may
#: differ by less than two thirds of it.
LEASE_SECONDS = 120.0
#: What S3 answers when somebody else wrote first.
_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_GONE = ("NoSuchKey", "404")


@contextmanager
def hold(name: str, timeout: float = 60) -> Iterator[None]:
    """Hold the lock called ``name`` while the block runs.

    In a folder the kernel frees it when its holder dies. On S3 it is renewed while the block runs, and a holder that
    died is overtaken after its lease.

    Raises:
        BusyError: somebody else held it for longer than ``timeout`` seconds; or, on S3, overtook it during the block,
            because it could not be renewed for the length of a lease.
        StorageError: the lake cannot be reached.
    """
    lake = settings().lake
    deadline = time.monotonic() + timeout
    with _on_s3(lake, name, deadline) if lake.startswith("s3://") else _in_folder(lake, name, deadline):
        yield


def _busy(name: str) -> LockHeldError:
    return LockHeldError(
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
    with _translate_s3_errors(name):
        lease = _S3Lease(lake, name)
        while not lease.take():
            if time.monotonic() > deadline:
                raise _busy(name)
            time.sleep(0.2)
    renewing = threading.Thread(target=lease.keep, name=f"lock {name}", daemon=True)
    renewing.start()
    done = False
    try:
        yield
        done = True
    finally:
        lease.stop.set()
        renewing.join()
        lease.give_back()
        if done and lease.lost:
            raise LockHeldError(
                f"the lock {name} was lost while it was held: {lease.lost}",
                "check the connection to the lake, and what the other run did; then run this again",
            )


class _S3Lease:
    """The object on S3 that is the lock: who holds it, and until when.

    Nothing but conditional writes change it, so whoever holds it, one write decides. A write that S3 carried out and
    then reported as failed is told by its token. The object stays when the lock is free: removing it could not be made
    conditional everywhere, and a removal that is repeated could take it from the next holder.
    """

    def __init__(self, lake: str, name: str) -> None:
        # all attempts of one renewal must fit into the lease
        self.s3: Any = object_store.client(patience=max(1.0, min(10.0, LEASE_SECONDS / 12)), attempts=4)
        bucket, _, prefix = lake.removeprefix("s3://").partition("/")
        self.place = {"Bucket": bucket, "Key": f"{prefix}/locks/{name}.lock".lstrip("/")}
        self.token = uuid.uuid4().hex
        self.tag = ""
        #: Until when nobody else may take it, by the clock of this process (monotonic).
        self.until = 0.0
        self.stop = threading.Event()
        #: Why it is not held any more.
        self.lost = ""

    def take(self) -> bool:
        """Write the lock if it is free, or its lease has run out; whether it is held now."""
        found, held = self._read()
        if found is not None and held["until"] >= time.time() and held.get("token") != self.token:
            return False
        try:
            return self._put({"IfNoneMatch": "*"} if found is None else {"IfMatch": found})
        except Exception:
            self.give_back()  # it may have been written all the same
            raise

    def keep(self) -> None:
        """Renew it until `stop`; a renewal that fails is tried again while the lease runs."""
        from botocore.exceptions import BotoCoreError, ClientError

        pause = LEASE_SECONDS / 3
        while not self.stop.wait(pause):
            try:
                if not self._put({"IfMatch": self.tag}):
                    self.lost = "another run overtook it"
                    return
                pause = LEASE_SECONDS / 3
            except (BotoCoreError, ClientError) as error:
                pause = LEASE_SECONDS / 30
                if time.monotonic() > self.until:
                    self.lost = f"it could not be renewed: {error}"
                    return

    def give_back(self) -> None:
        """Free it, if it is this holder's. What fails here is left to the lease: the work is done."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found, held = self._read()
            if found is not None and held.get("token") == self.token:
                self._put({"IfMatch": found}, free=True)
            elif self.tag and not self.lost and found is not None:
                self.lost = "another run overtook it"
        except (BotoCoreError, ClientError, ValueError) as error:
            if self.tag and not self.lost and time.monotonic() > self.until:
                self.lost = f"it could not be renewed: {error}"

    def _read(self) -> tuple[str | None, dict[str, Any]]:
        """The lock's tag and content; no tag where nobody ever held it."""
        from botocore.exceptions import BotoCoreError, ClientError

        for left in (2, 1, 0):
            try:
                answer = self.s3.get_object(**self.place)
                return str(answer["ETag"]), json.loads(answer["Body"].read())
            except ClientError as error:
                if error.response["Error"]["Code"] in _GONE:
                    return None, {}
                raise
            except BotoCoreError:  # a body that ends in its midst is not tried again by the client
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _put(self, condition: dict[str, str], *, free: bool = False) -> bool:
        """Write it under a condition; whether what lies there now is what was written."""
        from botocore.exceptions import ClientError

        sent = time.monotonic()
        content = {
            "token": "" if free else self.token,
            "last": self.token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "until": 0 if free else time.time() + LEASE_SECONDS,
        }
        try:
            tag = str(self.s3.put_object(**self.place, Body=json.dumps(content), **condition)["ETag"])
        except ClientError as error:
            if error.response["Error"]["Code"] not in (*_LOST, *_GONE):
                raise
            # Either somebody else was quicker, or S3 carried out a request that it reported as failed, and refused the
            # repetition.
            found, held = self._read()
            if found is None or held != content:
                return False
            tag = found
        self.tag, self.until = tag, sent + LEASE_SECONDS
        return True


@contextmanager
def _translate_s3_errors(name: str) -> Iterator[None]:
    """Turn what S3's client raises into our own error."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, ValueError, KeyError) as error:
        raise StorageError(
            f"the lock {name} cannot be had: {error}",
            "check the lake's address, its credentials and the connection; then run this again",
        ) from error
