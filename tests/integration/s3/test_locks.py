"""Locks of a lake on S3: objects that a lease keeps with their holder."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from perennial.core.errors import LockHeldError, StorageError
from perennial.storage import locks
from support.lock_contract import LockContract

ANOTHER = {"token": "another run's"}


def lock_objects(bucket: Any) -> list[Any]:
    return [o for o in bucket.objects.all() if o.key.endswith(".lock")]


def lock_content(bucket: Any) -> dict[str, Any]:
    (lock,) = lock_objects(bucket)
    return dict(json.loads(lock.get()["Body"].read()))


class TestS3Lock(LockContract):
    writers = 3
    turns = 5
    bucket: Any

    @pytest.fixture(autouse=True)
    def lake(self, bucket: Any) -> None:
        self.bucket = bucket

    def free_lock_of_dead_holder(self, pid: int) -> None:
        with pytest.raises(LockHeldError), locks.hold("promote-toy", timeout=0.5):
            pass  # its lease has not expired
        (lock,) = [o for o in lock_objects(self.bucket) if "promote-toy" in o.key]
        content = json.loads(lock.get()["Body"].read())
        assert content["pid"] == pid
        lock.put(Body=json.dumps(content | {"until": time.time() - 1}))


def test_the_object_names_its_holder_and_stays_when_the_lock_is_free(bucket: Any) -> None:
    with locks.hold("x"):
        assert lock_content(bucket)["pid"] == os.getpid()
    assert lock_content(bucket)["until"] == 0


def test_a_lock_that_was_overtaken_is_not_taken_from_its_new_holder(bucket: Any) -> None:
    content = ANOTHER | {"until": time.time() + 60}
    with pytest.raises(LockHeldError, match="lock x was lost while it was held: another run acquired it"):  # noqa: SIM117
        with locks.hold("x"):
            lock_objects(bucket)[0].put(Body=json.dumps(content))
    assert lock_content(bucket) == content
    lock_objects(bucket)[0].delete()
    with locks.hold("x"):
        lock_objects(bucket)[0].delete()  # one that is gone is no error


def test_an_error_in_the_block_is_raised_also_where_the_lock_was_lost(bucket: Any) -> None:
    with pytest.raises(ZeroDivisionError), locks.hold("x"):
        raise ZeroDivisionError
    assert lock_content(bucket)["until"] == 0
    with pytest.raises(ZeroDivisionError), locks.hold("x", timeout=0):
        lock_objects(bucket)[0].put(Body=json.dumps(ANOTHER | {"until": time.time() + 60}))
        raise ZeroDivisionError


def test_a_lock_is_renewed_while_it_is_held(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.5)
    with locks.hold("x"):
        until = lock_content(bucket)["until"]
        time.sleep(2.5)
        with pytest.raises(LockHeldError), locks.hold("x", timeout=0):
            pass
        assert lock_content(bucket)["until"] > until + 1
    with locks.hold("x", timeout=0):
        pass


def test_a_missing_bucket_is_a_storage_error(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_LAKE", "s3://no-such-bucket/lake")
    with pytest.raises(StorageError, match="lock x cannot be acquired"), locks.hold("x", timeout=1):
        pass
