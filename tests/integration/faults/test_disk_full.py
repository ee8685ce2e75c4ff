"""A disk that is full: the error says so, what was there stays readable, and a rerun completes the work."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perennial.core import dates
from perennial.core.errors import StorageError
from perennial.core.settings import settings
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import ledger, manifests, object_store
from perennial.storage.ledger import Decision, LedgerKind
from support import processes, toys


@pytest.fixture
def small_disk(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A lake on a disk of 32 megabytes; its ballast file is what a test fills it with."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        monkeypatch.setenv("PERENNIAL_LAKE", str(disk / "lake"))
        yield disk / "ballast"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(ballast: Path, leave: int) -> None:
    """Leave about ``leave`` bytes."""
    stat = os.statvfs(ballast.parent)
    ballast.write_bytes(b"x" * max(0, stat.f_bavail * stat.f_frsize - leave))


@pytest.mark.usefixtures("without_data_profile")
@pytest.mark.parametrize("leave", [0, 8_000, 60_000])
def test_data_on_a_full_disk(small_disk: Path, tmp_path: Path, leave: int) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    toys.land(spec, days=3)
    second = dates.add_days(toys.FIRST, 1)
    dispatch.run("data", spec, start=toys.FIRST)
    before = toys.content_of("published", "toy")
    fill(small_disk, leave)
    try:
        dispatch.run("data", spec, start=second)
    except StorageError as error:
        assert "free space" in error.remedy
    else:
        assert leave > 8_000
    published = toys.content_of("published", "toy")
    assert [r for r in published if r["partition_date"] == toys.FIRST] == before
    assert len(published) in (toys.ROWS, 2 * toys.ROWS)
    small_disk.unlink()
    assert dispatch.run("data", spec, start=second)["rows_out"] == toys.ROWS
    assert len(toys.content_of("published", "toy")) == 2 * toys.ROWS


@pytest.mark.parametrize("leave", [0, 6_000])
def test_score_and_ledger_on_a_full_disk(world: Any, small_disk: Path, leave: int) -> None:
    import shutil

    shutil.copytree(world.home / "lake", settings().lake)
    spec, (one, two) = world.spec, (toys.FIRST, dates.add_days(toys.FIRST, 1))
    dispatch.run("score", spec, start=one)
    before = toys.content_of("predictions", spec.name)
    records = ledger.verify(spec.name)
    fill(small_disk, leave)
    with pytest.raises(StorageError, match="What to do"):
        dispatch.run("score", spec, start=two)
    assert toys.content_of("predictions", spec.name) == before
    assert manifests.read(spec.name, "score", two) is None
    if not leave:
        with pytest.raises(StorageError, match="What to do"):
            ledger.append(
                spec.name,
                kind=LedgerKind.TRAINING,
                decision=Decision.ACCEPTED,
                reason="x" * 20_000,
                actor="test",
            )
        assert ledger.verify(spec.name) == records
    small_disk.unlink()
    assert dispatch.run("score", spec, start=two)["rows_out"] == toys.ROWS
    champion = registry.get_champion(spec)
    assert champion is not None
    assert champion.version == world.result["version"]


@pytest.mark.parametrize("size", [0, 300, 1_500])
def test_files_that_cannot_grow(world: Any, tmp_path: Path, size: int) -> None:
    """The same for any user: a process that may write no file beyond a size."""
    spec = world.spec
    answer = tmp_path / "answer.json"
    process = processes.start(
        processes.limited_step, str(spec.folder), "score", {"start": toys.FIRST}, str(answer), size
    )
    assert processes.wait(process)[0] != 0
    if answer.exists() and answer.stat().st_size and size:
        assert answer.read_text().startswith('{"error": "StorageError"')  # the answer itself may be cut off
    assert toys.content_of("predictions", spec.name) == []
    assert manifests.read(spec.name, "score", toys.FIRST) is None
    assert dispatch.run("score", spec, start=toys.FIRST)["rows_out"] == toys.ROWS


def test_training_that_finds_no_room_for_its_rows(
    make_model: Callable[..., ModelSpec], tmp_path: Path
) -> None:
    spec = make_model(training={"rounds": 3})
    toys.publish(spec)
    answer = tmp_path / "answer.json"
    arguments = {"as_of": toys.LAST}
    process = processes.start(
        processes.limited_step, str(spec.folder), "train", arguments, str(answer), 10_000
    )
    assert processes.wait(process) == [3]
    said = json.loads(answer.read_text())
    assert said["error"] == "StorageError", said
    assert f"model {spec.name}, partition {toys.LAST}" in said["text"]
    assert manifests.read(spec.name, "train", toys.LAST) is None
    assert dispatch.run("train", spec, as_of=toys.LAST)["status"] == "trained"


def test_a_small_file_on_a_full_device(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(StorageError, match="cannot be written"):
        object_store.write_text("/dev/full/x.json", "x")
