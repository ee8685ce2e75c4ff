"""Runs of the data step that are killed, at once, or on a full disk: nothing half-written, and a rerun completes."""

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
#: Where a run is killed: before each write of the step, and after the last one. The calls of `replace_partitions` are
#: the partition's quarantine, its rows, its labels, and their quarantine.
POINTS = [
    "validation.data_docs.write_data_doc:1",
    "ingestion.publishing.replace_partitions:1",
    "ingestion.publishing.replace_partitions:2",
    "ingestion.publishing.replace_partitions:3",
    "ingestion.publishing.replace_partitions:4",
    "storage.manifests.write:1",
    "storage.manifests.write:1 after",
    "ingestion.data_profile.write_profile:1 before",
]


def start(small_model: Any, *fault: Any) -> BaseProcess:
    """Run the step for the second partition in another process."""
    return processes.start(
        processes.data_step, small_model.spec.model_dump_json(), small_model.spec.suite, NEXT, *fault
    )


@pytest.fixture
def two_partitions(small_model: Any, make_rows: Any) -> Any:
    import pyarrow as pa

    small_model.land(make_rows())
    small_model.run()
    small_model.land(make_rows(NEXT, amount=[-1.0] + [float(i) for i in range(39)]), NEXT)
    ids = [f"{DAY}-{i}" for i in range(40)]
    small_model.land(pa.table({"id": [*ids, None], "value": [float(i) for i in range(41)]}), DAY, "labels")
    return small_model


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_leaves_nothing_half_done(two_partitions: Any, point: str) -> None:
    where, _, moment = point.partition(" ")
    function, _, nth = where.partition(":")
    child = start(two_partitions, "", f"perennial.{function}", moment or "before", int(nth))
    assert processes.wait(child) == [-signal.SIGKILL]
    rows = [r for r in two_partitions.table() if r["partition_date"] == NEXT]
    assert len(rows) in (0, 39), "whole or not there"
    if not moment:
        assert manifests.read("small", "data", NEXT) is None, "the manifest is written last"
    two_partitions.run(NEXT)
    assert len([r for r in two_partitions.table() if r["partition_date"] == NEXT]) == 39
    assert len(two_partitions.table("labels")) == 40
    assert [r["id"] for r in two_partitions.table("quarantine")] == [f"{NEXT}-0", None]
    assert two_partitions.run(NEXT)["status"] == "unchanged"
    assert not list((two_partitions.folder / "lake").rglob(".*.json.*")), "no temporary file is left"


@pytest.mark.slow
def test_two_runs_of_one_partition_at_once(two_partitions: Any, tmp_path: Path) -> None:
    answers = [tmp_path / f"answer-{i}.json" for i in range(3)]
    assert processes.wait(*[start(two_partitions, str(answer)) for answer in answers]) == [0, 0, 0]
    assert {json.loads(answer.read_text())["rows_out"] for answer in answers} == {39}
    assert len([r for r in two_partitions.table() if r["partition_date"] == NEXT]) == 39
    assert len(two_partitions.table("labels")) == 40
    assert len(two_partitions.table("quarantine")) == 2
    # The run that wrote its manifest last need not be the one that wrote its rows last: the next one then notices.
    assert two_partitions.run(NEXT)["rows_out"] == 39
    assert two_partitions.run(NEXT)["status"] == "unchanged"


@pytest.mark.parametrize("kind", ["published", "quarantine", "labels"])
def test_a_lake_that_cannot_be_written_is_named(
    two_partitions: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, as the writer reports it: the error says what to do, and the next run completes."""
    original = delta_tables.Writer.replace

    def full(writer: delta_tables.Writer, *args: Any, **kwargs: Any) -> int:
        if f"/{kind}/" in writer.uri:
            raise StorageError(
                f"{writer.uri} cannot be written: No space left on device", "check that the disk has room"
            )
        return original(writer, *args, **kwargs)

    monkeypatch.setattr(delta_tables.Writer, "replace", full)
    with pytest.raises(StorageError, match="No space left on device"):
        two_partitions.run(NEXT)
    assert manifests.read("small", "data", NEXT) is None
    monkeypatch.setattr(delta_tables.Writer, "replace", original)
    assert two_partitions.run(NEXT)["rows_out"] == 39


def test_stale_temporary_folders_are_removed(two_partitions: Any) -> None:
    import time

    stale = two_partitions.folder / "home" / "tmp" / "data-stale"
    stale.mkdir(parents=True)
    (stale / "rows.parquet").write_bytes(b"x")
    old = time.time() - 3 * 86400
    os.utime(stale, (old, old))
    two_partitions.run(NEXT)
    assert not stale.exists()
    assert list((two_partitions.folder / "home" / "tmp").glob("data-*")) == []
