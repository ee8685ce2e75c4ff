"""What the lake, small files and the lock make of an S3 that fails: the right content or a clear error, no halves."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core.errors import LockHeldError, StorageError
from perennial.steps import dispatch
from perennial.storage import delta_tables, locks, manifests, object_store
from support import lake, toys
from support.trouble import Proxy

DAY = "2024-01-01"
TEXT = "ü" * 4000


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids), "partition_date": [DAY] * len(ids)})


def ids(uri: str) -> list[int]:
    return sorted(lake.read_table(uri)["id"].to_pylist())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon, so that what happens then is seen soon."""
    from perennial.core.settings import Settings

    monkeypatch.setattr(object_store, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(object_store, "TIMEOUT_SECONDS", 1.0)
    patient = Settings.storage_options.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Settings,
        "storage_options",
        property(lambda self: patient(self) | {"max_retries": "1", "retry_timeout": "3s", "timeout": "1s"}),
    )


# --- small files


@pytest.mark.parametrize("kind", ["busy", "slow", "lie", "silent"])
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_small_file_survives_what_passes(
    proxy: Proxy, bucket: Any, kind: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"s3://{bucket.name}/x.json"
    monkeypatch.setattr(object_store, "TIMEOUT_SECONDS", 0.5)
    proxy.add(kind, method=method, seconds=1)
    object_store.write_text(place, TEXT)
    assert object_store.read_text(place) == TEXT
    assert proxy.done == [f"{kind} {method} /{bucket.name}/x.json"]


def test_a_truncated_answer_is_read_again(proxy: Proxy, bucket: Any) -> None:
    place = f"s3://{bucket.name}/x.json"
    object_store.write_text(place, TEXT)
    proxy.add("short", 2, "GET")
    assert object_store.read_text(place) == TEXT
    assert len(proxy.done) == 2


@pytest.mark.parametrize("kind", ["busy", "short", "silent", "forbidden"])
def test_a_small_file_that_cannot_be_read_is_told(
    proxy: Proxy, bucket: Any, kind: Any, impatient: None
) -> None:
    place = f"s3://{bucket.name}/x.json"
    object_store.write_text(place, TEXT)
    proxy.add(kind, 99, "GET")
    with pytest.raises(StorageError, match=r"x\.json cannot be read.*\n.*What to do"):
        object_store.read_text(place)
    with pytest.raises(StorageError, match="cannot be read"):
        object_store.digest(place)


@pytest.mark.parametrize("kind", ["busy", "slow", "silent", "forbidden"])
def test_a_small_file_is_written_whole_or_not_at_all(
    proxy: Proxy, bucket: Any, kind: Any, impatient: None
) -> None:
    place = f"s3://{bucket.name}/x.json"
    object_store.write_text(place, "before")
    proxy.add(kind, 99, "PUT", seconds=2)
    with pytest.raises(StorageError, match=r"x\.json cannot be written"):
        object_store.write_text(place, TEXT)
    proxy.faults.clear()
    assert object_store.read_text(place) in ("before", TEXT)
    object_store.write_text(place, TEXT)
    assert object_store.read_text(place) == TEXT


# --- tables


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("busy", r"\.parquet"),
        ("lie", r"\.parquet"),
        ("lie", r"_delta_log/0+0\.json"),
        ("lie", r"_delta_log/0+1\.json"),
        ("silent", r"_delta_log/0+1\.json"),
    ],
)
def test_a_partition_is_there_once_whatever_passes(proxy: Proxy, bucket: Any, kind: Any, path: str) -> None:
    uri = delta_tables.table_uri("published", "toy")
    proxy.add(kind, 1, "PUT", path)
    delta_tables.replace(uri, rows(1, 2, 3), DAY)
    assert len(proxy.done) == 1
    assert ids(uri) == [1, 2, 3]
    delta_tables.replace(uri, rows(4), DAY)
    assert ids(uri) == [4]


@pytest.mark.parametrize("kind", ["busy", "silent", "short"])
def test_a_table_is_read_whole_whatever_passes(proxy: Proxy, bucket: Any, kind: Any) -> None:
    uri = delta_tables.table_uri("published", "toy")
    delta_tables.replace(uri, rows(*range(5000)), DAY)
    for path in (r"_delta_log/.*\.json", r"\.parquet"):
        proxy.add(kind, 1, "GET", path)
    assert ids(uri) == list(range(5000))
    assert len(proxy.done) == 2


@pytest.mark.parametrize(
    ("kind", "path"),
    [("busy", r"\.parquet"), ("slow", "_delta_log"), ("silent", "_delta_log"), ("forbidden", "_delta_log")],
)
def test_a_partition_that_cannot_be_written_stays_as_it_was(
    proxy: Proxy, bucket: Any, kind: Any, path: str, impatient: None
) -> None:
    uri = delta_tables.table_uri("published", "toy")
    before = delta_tables.replace(uri, rows(1), DAY)
    proxy.add(kind, 99, "PUT", path, seconds=2)
    with pytest.raises(StorageError, match="What to do"):
        delta_tables.replace(uri, rows(2), DAY)
    proxy.faults.clear()
    if delta_tables.version(uri) == before:
        assert ids(uri) == [1]
    else:  # the commit was made, and its answers were lost: nobody recorded what its file holds
        with pytest.raises(StorageError, match="has no recorded digest"):
            ids(uri)
    delta_tables.replace(uri, rows(2), DAY)
    assert ids(uri) == [2]


# --- the lock


@pytest.mark.parametrize("kind", ["busy", "slow", "lie", "silent"])
def test_a_lock_is_had_whatever_passes(
    proxy: Proxy, bucket: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE_SECONDS", 12.0)
    for method in ("PUT", "GET"):
        proxy.add(kind, 1, method, r"\.lock", seconds=1.3)
        # had at once: what was written under a false report is known as one's own
        with locks.hold("x", timeout=0), pytest.raises(LockHeldError), locks.hold("x", timeout=0):
            pass
        proxy.add(kind, 1, method, r"\.lock", seconds=1.3)
        with locks.hold("x", timeout=0):  # overtaken by If-Match this time
            proxy.add(kind, 1, "PUT", r"\.lock", seconds=1.3)  # hits the giving back
        with locks.hold("x", timeout=0):
            pass
    assert len(proxy.done) == 6


def test_a_lock_that_failed_to_be_taken_is_free(
    proxy: Proxy, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.add("lie", 4, "PUT", r"\.lock")  # each attempt of the client: written, and reported as failed
    with pytest.raises(StorageError, match="lock x cannot be acquired"), locks.hold("x", timeout=0):
        pass
    with locks.hold("x", timeout=0):
        pass


def test_two_never_hold_a_lock_of_which_the_giving_back_was_reported_as_failed(
    proxy: Proxy, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most, held = [0], [0], [0]

    def work() -> None:
        for _ in range(4):
            with locks.hold("x", timeout=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.05)
                inside[0] -= 1
                held[0] += 1

    proxy.add("lie", 6, "PUT", r"\.lock", every=3)
    proxy.add("busy", 6, "GET", r"\.lock", every=3)
    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
    assert (most, held) == ([1], [12])
    assert len(proxy.done) == 12


def test_a_lock_that_cannot_be_renewed_is_lost_and_told(
    proxy: Proxy, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.5)
    with pytest.raises(LockHeldError, match="was lost while it was held"):  # noqa: SIM117
        with locks.hold("x", timeout=0):
            proxy.add("busy", 999, "", r"\.lock")
            time.sleep(4)
            proxy.faults.clear()
            monkeypatch.setattr(locks, "LEASE_SECONDS", 60.0)
            with locks.hold("x", timeout=5):  # the next one takes it over
                time.sleep(1.5)


# --- a step


def test_a_night_on_a_bad_network_gives_the_same_content(proxy: Proxy, bucket: Any, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", toys.unique())
    toys.land(spec, days=2)
    clean = dispatch.run("data", spec, start=toys.FIRST)
    content = toys.content_of("published", spec.name)
    proxy.add("busy", 4, every=5)
    proxy.add("lie", 4, "PUT", every=2)
    proxy.add("silent", 4, every=6)
    proxy.add("short", 4, "GET", every=3)
    for _ in range(16):  # what was not healed within the step is a clear error, and the task's retry heals it
        try:
            again = dispatch.run("data", spec, start=toys.FIRST, force=True)
            break
        except StorageError as error:
            assert "What to do" in str(error)
            with proxy.paused():
                toys.nothing_half_written(spec)
    assert len(proxy.done) == 16
    assert again["rows_out"] == clean["rows_out"]
    assert toys.content_of("published", spec.name) == content
    assert manifests.read(spec.name, "data", toys.FIRST) is not None
    assert dispatch.run("data", spec, start=toys.FIRST)["status"] == "unchanged"


def test_a_truncated_partition_is_not_taken_for_a_whole_one(
    proxy: Proxy, bucket: Any, tmp_path: Path, impatient: None
) -> None:
    spec = toys.model(tmp_path / "models", toys.unique())
    toys.land(spec, days=2)
    proxy.add("short", 99, "GET", rf"landing/{spec.name}/.*\.parquet")
    with pytest.raises(StorageError, match=r"cannot be (copied|read): AWS Error NETWORK_CONNECTION"):
        dispatch.run("data", spec, start=toys.FIRST)
    assert manifests.read(spec.name, "data", toys.FIRST) is None
    assert delta_tables.version(delta_tables.table_uri("published", spec.name)) is None
    proxy.faults.clear()
    assert dispatch.run("data", spec, start=toys.FIRST)["rows_out"] == toys.ROWS
