"""Tests that every kind of lock must pass; test classes inherit from `LockContract` and set up the lake."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from perennial.core.errors import LockHeldError
from perennial.storage import locks
from support import processes


class LockContract:
    """Tests of `perennial.storage.locks` on one kind of lake.

    Attributes:
        writers: processes that compete for a lock.
        turns: how often each of them takes it.
    """

    writers = 4
    turns = 20

    @pytest.fixture(autouse=True)
    def lake(self) -> None:
        """Set up an empty lake; subclasses override it."""
        raise NotImplementedError

    def free_lock_of_dead_holder(self, pid: int) -> None:
        """Make the lock of a killed process available; subclasses override it.

        Args:
            pid: id of the process, which held the lock ``promote-toy``.
        """
        raise NotImplementedError

    def test_one_holder_at_a_time(self, tmp_path: Path) -> None:
        holder = processes.start(processes.hold, "promote-toy", str(tmp_path / "held"), 60.0)
        deadline = time.monotonic() + 60
        while not (tmp_path / "held").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with (
            pytest.raises(LockHeldError, match="promote-toy is held by another run"),
            locks.hold("promote-toy", timeout=0.5),
        ):
            pass
        with locks.hold("promote-other", timeout=0.5):
            pass  # another lock is free
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        assert processes.wait(holder) == [-signal.SIGKILL]
        self.free_lock_of_dead_holder(holder.pid)
        with locks.hold("promote-toy", timeout=5):
            pass

    def test_it_is_not_reentrant(self) -> None:
        with locks.hold("x"), pytest.raises(LockHeldError), locks.hold("x", timeout=0):
            pass

    def test_it_is_free_after_the_block(self) -> None:
        for _ in range(2):
            with locks.hold("x", timeout=0):
                pass

    def test_it_is_free_after_a_block_that_fails(self) -> None:
        with pytest.raises(ZeroDivisionError), locks.hold("x"):
            raise ZeroDivisionError
        with locks.hold("x", timeout=0):
            pass

    def test_many_processes_take_turns(self, tmp_path: Path) -> None:
        counter = tmp_path / "counter"
        counter.write_text("0")
        writers = [processes.start(processes.count_up, str(counter), self.turns) for _ in range(self.writers)]
        assert processes.wait(*writers) == [0] * self.writers
        assert counter.read_text() == str(self.writers * self.turns)
