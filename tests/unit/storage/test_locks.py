"""The lock in a folder; that on S3 is tested in tests/integration/s3."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from perennial.core.errors import LockHeldError
from perennial.storage import locks
from support import processes


def appear(path: Path, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_holder_at_a_time(house: Path, tmp_path: Path) -> None:
    holder = processes.start(processes.hold, "promote-toy", str(tmp_path / "held"), 60.0)
    appear(tmp_path / "held")
    with (
        pytest.raises(LockHeldError, match="promote-toy is held by another run"),
        locks.hold("promote-toy", timeout=0.2),
    ):
        pass
    with locks.hold("promote-other", timeout=0.2):
        pass  # another lock is free
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    assert processes.wait(holder) == [-signal.SIGKILL]
    with locks.hold("promote-toy", timeout=5):
        pass  # the kernel freed it


def test_it_is_freed_when_the_block_fails(house: Path) -> None:
    with pytest.raises(ZeroDivisionError), locks.hold("x"):
        raise ZeroDivisionError
    with locks.hold("x", timeout=0):
        pass


def test_many_processes_take_turns(house: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    workers = [processes.start(processes.count_up, str(counter), 20) for _ in range(4)]
    assert processes.wait(*workers) == [0] * 4
    assert counter.read_text() == "80"
