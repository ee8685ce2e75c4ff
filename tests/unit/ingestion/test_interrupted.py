"""Runs that are killed, run into each other, or find the disk full: nothing half-written, and a rerun completes."""

from __future__ import annotations

import json
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from perennial.core.errors import StorageError
from perennial.storage import delta_tables, manifests
from support import processes

DAY, NEXT = "2020-03-01", "2020-03-02"
#: Where a run is cut: before each thing that the step writes, and after the last of the lake and of all. The
#: calls of publish.replace are the night's quarantine, its rows, its labels, and their quarantine.
POINTS = ["datadocs.write:1", "publish.replace:1", "publish.replace:2", "publish.replace:3", "publish.replace:4",
          "profile.write:1", "manifest.write:1", "manifest.write:1 after"]  # fmt: skip


def start(place: Any, *cut: Any) -> BaseProcess:
    """The second night's step in a process of its own."""
    return processes.start(processes.night, place.spec.model_dump_json(), place.spec.suite, NEXT, *cut)


@pytest.fixture
def two_nights(place: Any, make_rows: Any) -> Any:
    import pyarrow as pa

    place.land(make_rows())
    place.run()
    place.land(make_rows(NEXT, amount=[-1.0] + [float(i) for i in range(39)]), NEXT)
    ids = [f"{DAY}-{i}" for i in range(40)]
    place.land(pa.table({"id": [*ids, "nobody"], "value": [float(i) for i in range(41)]}), DAY, "labels")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_leaves_nothing_half_done(two_nights: Any, point: str) -> None:
    where, _, moment = point.partition(" ")
    function, _, nth = where.partition(":")
    child = start(two_nights, "", f"perennial.{function}", moment or "before", int(nth))
    assert processes.wait(child) == [-signal.SIGKILL]
    night = [r for r in two_nights.table() if r["partition_date"] == NEXT]
    assert len(night) in (0, 39), "whole or not there"
    if not moment:
        assert manifests.read("small", "data", NEXT) is None, "the manifest is written last"
    two_nights.run(NEXT)
    assert len([r for r in two_nights.table() if r["partition_date"] == NEXT]) == 39
    assert len(two_nights.table("labels")) == 40
    assert [r["id"] for r in two_nights.table("quarantine")] == [f"{NEXT}-0", "nobody"]
    assert two_nights.run(NEXT)["status"] == "unchanged"
    assert not list((two_nights.folder / "lake").rglob(".*.json.*")), "no temporary file is left"


@pytest.mark.slow
def test_two_runs_of_one_partition_at_once(two_nights: Any, tmp_path: Path) -> None:
    answers = [tmp_path / f"answer-{i}.json" for i in range(3)]
    assert processes.wait(*[start(two_nights, str(answer)) for answer in answers]) == [0, 0, 0]
    assert {json.loads(answer.read_text())["rows_out"] for answer in answers} == {39}
    assert len([r for r in two_nights.table() if r["partition_date"] == NEXT]) == 39
    assert len(two_nights.table("labels")) == 40
    assert len(two_nights.table("quarantine")) == 2
    assert two_nights.run(NEXT)["status"] == "unchanged"


@pytest.mark.parametrize("kind", ["published", "quarantine", "labels"])
def test_a_lake_that_cannot_be_written_names_itself(
    two_nights: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, as the writer reports it: the error says what to do, and the next run completes."""
    original = delta_tables.replace

    def full(uri: str, *args: Any, **kwargs: Any) -> int:
        if f"/{kind}/" in uri:
            raise StorageError(
                f"{uri} cannot be written: No space left on device", "check that the disk has room"
            )
        return original(uri, *args, **kwargs)

    monkeypatch.setattr(delta_tables, "replace", full)
    with pytest.raises(StorageError, match="No space left on device"):
        two_nights.run(NEXT)
    assert manifests.read("small", "data", NEXT) is None
    monkeypatch.setattr(delta_tables, "replace", original)
    assert two_nights.run(NEXT)["rows_out"] == 39


def test_what_a_killed_run_left_in_the_working_folder_is_removed(two_nights: Any) -> None:
    import time

    left = two_nights.folder / "home" / "tmp" / "data-left"
    left.mkdir(parents=True)
    (left / "rows.parquet").write_bytes(b"x")
    old = time.time() - 3 * 86400
    os.utime(left, (old, old))
    two_nights.run(NEXT)
    assert not left.exists()
    assert list((two_nights.folder / "home" / "tmp").glob("data-*")) == []
