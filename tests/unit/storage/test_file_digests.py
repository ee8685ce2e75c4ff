"""Data files are compared with the digests that were recorded when they were written."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perennial.core.errors import StorageError
from perennial.storage import delta_tables, file_digests, object_store
from support import lake

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
Table = tuple[str, list[Path]]


def rows(day: str, count: int = 50) -> pa.Table:
    return pa.table({"id": range(count), "partition_date": [day] * count})


@pytest.fixture
def published(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """A table of three partitions: its URI, and its files in the order of the partitions."""
    monkeypatch.setattr(file_digests, "RECORD_WAIT_SECONDS", 0.2)
    file_digests._verified.clear()
    uri = delta_tables.table_uri("published", "toy")
    for day in DAYS:
        delta_tables.replace(uri, rows(day), day)
    yield uri, [Path(uri, path) for path in delta_tables.file_paths(uri)]
    file_digests._verified.clear()


def flip(path: Path, position: float, bit: int, *, unnoticed: bool = False) -> None:
    """Flip a bit of a file; as a failing disk does, without a change of its time, if ``unnoticed``."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)
    if unnoticed:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def record_of(uri: str, path: Path) -> Path:
    return Path(file_digests._record_uri(uri, path.relative_to(uri).as_posix()))


@settings(max_examples=25, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(range(len(DAYS))), st.floats(0, 0.999), st.integers(0, 7), st.booleans())
def test_a_flipped_bit_of_a_data_file_is_found(
    published: Table, index: int, position: float, bit: int, read_before: bool
) -> None:
    uri, files = published
    file_digests._verified.clear()
    shutil.rmtree(Path(os.environ["PERENNIAL_HOME"], "cache"), ignore_errors=True)
    if read_before:
        assert len(lake.read_table(uri)) == 150
    flip(files[index], position, bit)
    try:
        with pytest.raises(
            StorageError, match=f"{files[index].name} has digest .* was recorded when"
        ) as error:
            lake.read_table(uri)
        assert (error.value.model, error.value.partition) == ("toy", DAYS[index])
        assert "run the data step of that partition again with --force" in error.value.remedy
        others = [d for d in DAYS if d != DAYS[index]]
        assert len(lake.read_table(uri, start=others[0], end=others[0])) == 50
    finally:
        flip(files[index], position, bit)
    assert len(lake.read_table(uri)) == 150


def test_writing_the_partition_again_is_the_remedy(published: Table) -> None:
    uri, files = published
    flip(files[1], 0.5, 3)
    with pytest.raises(StorageError):
        lake.read_table(uri)
    delta_tables.replace(uri, rows(DAYS[1], 7), DAYS[1])
    assert len(lake.read_table(uri)) == 107


def test_a_missing_file_is_named(published: Table) -> None:
    uri, files = published
    files[0].unlink()
    with pytest.raises(StorageError, match=f"{files[0].name} is missing"):
        lake.read_table(uri)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read from end to end."""
    files: list[str] = []
    real = object_store.digest

    def digest(uri: str) -> str:
        files.append(uri[uri.index(delta_tables.PARTITION) :])
        return real(uri)

    monkeypatch.setattr(object_store, "digest", digest)
    return files


def test_a_file_is_hashed_once_on_a_machine(published: Table, hashed: list[str]) -> None:
    uri, files = published
    for _ in range(2):
        lake.read_table(uri)
        assert sorted(hashed) == [f.relative_to(uri).as_posix() for f in files]
    file_digests._verified.clear()  # as in another process
    lake.read_table(uri)
    assert len(hashed) == 3
    delta_tables.replace(uri, rows(DAYS[2]), DAYS[2])
    hashed.clear()
    lake.read_table(uri)
    assert len(hashed) == 1


@pytest.mark.parametrize("content", ["no list", "\0\t\n\t", "a\tb\nc"])
def test_a_damaged_list_of_verified_files_costs_only_time(
    published: Table, hashed: list[str], content: str
) -> None:
    uri, _ = published
    lake.read_table(uri)
    file_digests._verified_files(uri).path.write_text(content)
    file_digests._verified.clear()
    lake.read_table(uri)
    assert len(hashed) == 6


def test_the_list_of_verified_files_is_bounded(
    published: Table, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, _ = published
    lake.read_table(uri)
    monkeypatch.setattr(file_digests, "MAX_LIST_BYTES", 10)
    file_digests._verified.clear()
    lake.read_table(uri)
    assert len(hashed) == 6
    assert len(file_digests._verified_files(uri).path.read_text().splitlines()) == 3


def test_a_file_without_a_record_is_not_believed(published: Table) -> None:
    uri, files = published
    shutil.rmtree(record_of(uri, files[0]).parent)
    with pytest.raises(StorageError, match="has no recorded digest") as error:
        lake.read_table(uri)
    assert "perennial verify --record" in error.value.remedy
    path = files[0].relative_to(uri).as_posix()
    assert file_digests.unrecorded(uri, delta_tables.file_paths(uri)) == [path]
    file_digests.record(uri, [path])
    assert len(lake.read_table(uri)) == 150


@pytest.mark.parametrize(("seconds", "bytes_per_second"), [(20.0, 1e9), (0.001, 10.0)])
def test_a_reader_waits_for_the_record_of_a_commit_under_way(
    published: Table, monkeypatch: pytest.MonkeyPatch, seconds: float, bytes_per_second: float
) -> None:
    uri, files = published
    monkeypatch.setattr(file_digests, "RECORD_WAIT_SECONDS", seconds)
    monkeypatch.setattr(file_digests, "RECORD_BYTES_PER_SECOND", bytes_per_second)
    record = record_of(uri, files[2])
    content = record.read_text()
    record.unlink()

    def write() -> None:
        time.sleep(0.3)
        record.write_text(content)

    writer = threading.Thread(target=write)
    writer.start()
    assert len(lake.read_table(uri)) == 150
    writer.join()


def test_a_commit_killed_before_its_record_is_repaired_by_a_rerun(
    published: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, _ = published

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(file_digests, "record", killed)
        delta_tables.replace(uri, rows(DAYS[0], 9), DAYS[0])
    with pytest.raises(StorageError, match="has no recorded digest"):
        lake.read_table(uri)
    delta_tables.replace(uri, rows(DAYS[0], 9), DAYS[0])
    assert len(lake.read_table(uri)) == 109


def test_earlier_versions_keep_their_digests(published: Table) -> None:
    uri, files = published
    before = delta_tables.version(uri)
    delta_tables.replace(uri, rows(DAYS[0], 9), DAYS[0])
    assert len(lake.read_table(uri, before)) == 150
    flip(files[0], 0.5, 1)
    assert len(lake.read_table(uri)) == 109
    with pytest.raises(StorageError, match="was recorded when"):
        lake.read_table(uri, before)


def test_a_scrub_finds_what_does_not_change_the_time(published: Table) -> None:
    uri, files = published
    lake.read_table(uri)
    flip(files[1], 0.7, 2, unnoticed=True)
    findings = file_digests.scrub(uri, delta_tables.file_paths(uri))
    assert list(findings) == [files[1].relative_to(uri).as_posix()]
    assert "was recorded when it was written" in findings[files[1].relative_to(uri).as_posix()]


def test_many_writers_record_every_file(published: Table) -> None:
    uri, _ = published
    errors: list[BaseException] = []

    def write(day: str) -> None:
        try:
            for count in (3, 5):
                delta_tables.replace(uri, rows(day, count), day)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(day,)) for day in (*DAYS, "2024-01-04")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert file_digests.unrecorded(uri, delta_tables.file_paths(uri)) == []
    assert len(lake.read_table(uri)) == 20
