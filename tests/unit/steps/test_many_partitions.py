"""Ranges of many partitions, most of them small or missing: the cost is counted in commits, queries and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.core.errors import DataError
from perennial.ingestion import publishing, rows, typed_rows
from perennial.ingestion.run import STEP
from perennial.storage import delta_tables, landing, manifests
from support.small_model import SmallModel

DAYS = dates.dates("2020-03-02", "2020-05-10")
#: Ten weeks: files on weekdays.
WEEKDAYS = [day for i, day in enumerate(DAYS) if i % 7 < 5]


def feed(day: str, *amounts: float) -> pa.Table:
    """The rows of a day."""
    ids = [f"{day}-{i}" for i in range(len(amounts))]
    return pa.table({"id": ids, "amount": list(amounts), "y": [1.0] * len(amounts)})


@pytest.fixture
def weekdays(small_model: SmallModel) -> SmallModel:
    """A model whose feed has two rows on each weekday, with labels of their own."""
    small_model.columns = {"id": "string", "amount": "number", "y": "number"}
    small_model.suite = small_model.suite[:2]
    small_model.changes = {"arrival": "optional", "event_time": None, "personal": []}
    small_model.label, small_model.task = {"expression": "y"}, "regression"
    for day in WEEKDAYS:
        small_model.land(feed(day, 1.0, 2.0), day)
    return small_model


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of commits of each table."""
    counts: Counter[str] = Counter()
    overwrite = delta_tables.Writer._overwrite

    def counted(writer: delta_tables.Writer, *args: Any) -> int:
        counts[writer.uri.split("/")[-2]] += 1
        return overwrite(writer, *args)

    monkeypatch.setattr(delta_tables.Writer, "_overwrite", counted)
    return counts


def row_counts(model: SmallModel, kind: str = "published") -> dict[str, int]:
    return delta_tables.rows_by_partition(delta_tables.table_uri(kind, model.spec.name))


def test_a_range_with_gaps_is_published_by_one_commit_a_table(
    weekdays: SmallModel, commits: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    empty_file = landing.empty_file
    monkeypatch.setattr(
        landing, "empty_file", lambda rows, day, *args: fetched.append(day) or empty_file(rows, day, *args)
    )
    result = weekdays.run(DAYS[0], DAYS[-1])
    assert commits == {"published": 1, "labels": 1}
    assert result["partitions"] == DAYS and (result["rows_out"], result["labels"]) == (100, 100)
    assert row_counts(weekdays) == row_counts(weekdays, "labels") == dict.fromkeys(WEEKDAYS, 2)
    assert sorted(manifests.finished("small", STEP)) == DAYS
    assert fetched == [day for day in DAYS if day not in WEEKDAYS]
    assert weekdays.run(DAYS[0], DAYS[-1])["status"] == "unchanged" and commits.total() == 2


def test_what_was_published_before_lies_between(weekdays: SmallModel, commits: Counter[str]) -> None:
    """A rerun, or late files: the partitions between those that are published stay as they are."""
    late = WEEKDAYS[::3]
    contents = {day: (weekdays.landing / "rows" / f"{day}.parquet") for day in late}
    kept = {day: path.read_bytes() for day, path in contents.items()}
    for path in contents.values():
        path.unlink()
    weekdays.run(DAYS[0], DAYS[-1])
    before = delta_tables.files_by_partition(delta_tables.table_uri("published", "small"))
    commits.clear()
    for day, path in contents.items():
        path.write_bytes(kept[day])
    weekdays.run(DAYS[0], DAYS[-1])
    assert commits == {"published": 1, "labels": 1}
    after = delta_tables.files_by_partition(delta_tables.table_uri("published", "small"))
    assert sorted(after) == WEEKDAYS and {day: after[day] for day in before} == before


def test_missing_partitions_that_are_errors_do_not_divide_the_others(
    weekdays: SmallModel, commits: Counter[str]
) -> None:
    weekdays.changes = weekdays.changes | {"arrival": "none"}
    with pytest.raises(DataError, match="20 of 70 partitions were not published"):
        weekdays.run(DAYS[0], DAYS[-1])
    assert commits == {"published": 1, "labels": 1}
    assert row_counts(weekdays) == dict.fromkeys(WEEKDAYS, 2)
    assert sorted(manifests.finished("small", STEP)) == WEEKDAYS


def test_many_stopped_partitions_are_quarantined_by_one_commit(
    weekdays: SmallModel, commits: Counter[str]
) -> None:
    for day in WEEKDAYS[::2]:
        weekdays.land(feed(day, 1.0), day)
    with pytest.raises(DataError, match="25 of 70 partitions were not published"):
        weekdays.run(DAYS[0], DAYS[-1])
    assert commits == {"published": 1, "labels": 1, "quarantine": 1}
    assert [r["partition_date"] for r in weekdays.table("quarantine")] == WEEKDAYS[::2]
    assert all("partition stopped: " in r["reasons"][0] for r in weekdays.table("quarantine"))
    for day in WEEKDAYS[::2]:
        weekdays.land(feed(day, -1.0, 1.0, 1.0), day)
    weekdays.changes = weekdays.changes | {"quarantine_limit": 0.5}
    commits.clear()
    assert weekdays.run(DAYS[0], DAYS[-1])["quarantined"] == 25
    assert commits == {"published": 1, "labels": 1, "quarantine": 1}
    assert [r["feed_date"] for r in weekdays.table("quarantine")] == WEEKDAYS[::2]
    assert row_counts(weekdays) == dict.fromkeys(WEEKDAYS, 2)


def test_one_damaged_file_is_found_by_halves(
    weekdays: SmallModel, commits: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weekdays.landing / "rows" / f"{WEEKDAYS[17]}.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    views = Counter[int]()
    create: Callable[..., Any] = typed_rows.create_landed_view

    def counted(con: Any, feed: Any, landed: Any, *args: Any) -> Any:
        views["all"] += 1
        return create(con, feed, landed, *args)

    monkeypatch.setattr(typed_rows, "create_landed_view", counted)
    with pytest.raises(DataError, match=WEEKDAYS[17]):
        weekdays.run(DAYS[0], DAYS[-1])
    assert views["all"] <= 14, "not one for each file"
    assert row_counts(weekdays) == {day: 2 for day in WEEKDAYS if day != WEEKDAYS[17]}
    assert sorted(manifests.finished("small", STEP)) == [day for day in DAYS if day != WEEKDAYS[17]]


def test_a_commit_has_as_many_partitions_as_fit_in_memory(
    weekdays: SmallModel, commits: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MAX_OPEN_COLUMNS", 80)
    weekdays.run(DAYS[0], DAYS[-1])
    assert commits == {"published": 3, "labels": 3}, "20 partitions of 4 columns each"
    assert row_counts(weekdays) == row_counts(weekdays, "labels") == dict.fromkeys(WEEKDAYS, 2)
    assert weekdays.run(DAYS[0], DAYS[-1])["status"] == "unchanged"


def test_partitions_without_rows_take_no_room_in_a_commit() -> None:
    counts = {day: 2 if day in WEEKDAYS else 0 for day in DAYS}
    groups = list(publishing.divide_into_commits(counts, publishing.MAX_OPEN_COLUMNS // 10))
    assert [sum(bool(n) for n in group.values()) for group in groups] == [10] * 5
    assert {day: n for group in groups for day, n in group.items()} == counts
    assert [len(g) for g in publishing.divide_into_commits({"a": 1, "b": 1}, 10**6)] == [1, 1]
    assert list(publishing.divide_into_commits({}, 3)) == []


def test_pages_of_a_large_range(weekdays: SmallModel) -> None:
    """Partitions without rows have no data doc, and what an earlier run wrote is removed."""
    page = weekdays.run(WEEKDAYS[0])["docs"][0]
    assert Path(page).suffix == ".html"
    (weekdays.landing / "rows" / f"{WEEKDAYS[0]}.parquet").unlink()
    weekdays.run(WEEKDAYS[1])
    assert len(DAYS) > rows.MAX_PAGES
    docs = weekdays.run(DAYS[0], DAYS[-1], force=True)["docs"]
    folder = weekdays.lake / "reports" / "small" / "validation"
    assert sorted(map(str, folder.iterdir())) == docs
    assert docs == [str(folder / f"{day}.json") for day in WEEKDAYS[1:]]


@pytest.mark.parametrize("last", [1, 3, 5, 6])
def test_a_range_that_is_interrupted_between_commits_is_completed_by_the_next_run(
    weekdays: SmallModel, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    monkeypatch.setattr(publishing, "MAX_OPEN_COLUMNS", 80)  # three commits a table
    overwrite, done = delta_tables.Writer._overwrite, Counter[str]()

    def interrupted(writer: delta_tables.Writer, *args: Any) -> int:
        version = overwrite(writer, *args)
        done["commits"] += 1
        if done["commits"] == last:
            raise KeyboardInterrupt
        return version

    with monkeypatch.context() as patch:
        patch.setattr(delta_tables.Writer, "_overwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            weekdays.run(DAYS[0], DAYS[-1])
    assert not manifests.finished("small", STEP)
    assert weekdays.run(DAYS[0], DAYS[-1])["rows_out"] == 100
    assert row_counts(weekdays) == row_counts(weekdays, "labels") == dict.fromkeys(WEEKDAYS, 2)
    assert sorted(manifests.finished("small", STEP)) == DAYS
    assert weekdays.run(DAYS[0], DAYS[-1])["status"] == "unchanged"
