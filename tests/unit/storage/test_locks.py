"""Locks of a lake in a folder; those on S3 are tested in tests/integration/s3/test_locks.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.lock_contract import LockContract


class TestFolderLock(LockContract):
    @pytest.fixture(autouse=True)
    def lake(self, empty_home: Path) -> None:
        pass

    def free_lock_of_dead_holder(self, pid: int) -> None:
        pass  # the kernel has freed it
