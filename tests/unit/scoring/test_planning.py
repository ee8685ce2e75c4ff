"""The plan of a scoring: commits of partitions that follow one another, of a bounded size."""

from __future__ import annotations

import pytest

from perennial.scoring import planning
from perennial.storage.delta_tables import File


def test_a_range_is_committed_in_stretches_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "COMMIT_ROWS", 250)
    days = ["01", "02", "03", "04", "05", "07", "08", "09"]
    rows = {**dict.fromkeys(days, 100), "07": 900}
    found = [["01", "02"], ["03", "04"], ["05"], ["07"], ["08", "09"]]
    assert list(planning.group_into_commits(days, days, rows, 125)) == found
    # a partition that is not to be scored lies between
    assert list(planning.group_into_commits(["01", "03"], days, rows, 125)) == [["01"], ["03"]]
    # five nights would have room, two units of two nights each have four: none is cut short where a commit ends
    monkeypatch.setattr(planning, "COMMIT_ROWS", 500)
    found = [["01", "02", "03", "04"], ["05"], ["07"], ["08", "09"]]
    assert list(planning.group_into_commits(days, days, rows, 250)) == found


def test_a_commit_has_a_bounded_number_of_partitions() -> None:
    """The lake's writer holds something of each, however few rows it has."""
    days = [f"{i:04}" for i in range(2 * planning.COMMIT_PARTITIONS + 1)]
    groups = list(planning.group_into_commits(days, days, dict.fromkeys(days, 1), planning.UNIT_ROWS))
    assert [len(group) for group in groups] == [planning.COMMIT_PARTITIONS] * 2 + [1]
    assert [day for group in groups for day in group] == days


@pytest.mark.parametrize(
    ("units", "columns", "threads"), [(9, 20, 4), (2, 20, 2), (9, 700, 2), (9, 2000, 1), (9, 9000, 1)]
)
def test_few_units_of_wide_rows_are_scored_at_a_time(units: int, columns: int, threads: int) -> None:
    assert planning.scoring_threads(units, columns, 4) == threads


@pytest.mark.parametrize(("columns", "partitions"), [(20, [30]), (2000, [8, 8, 8, 6])])
def test_few_files_of_wide_rows_are_read_by_a_query(columns: int, partitions: list[int]) -> None:
    """Each query has a reader for every column of every file."""
    files = {f"2024-01-{day:02}": [File(f"{day}", 1000)] for day in range(1, 31)}
    commits = planning.plan_commits(files, list(files), None, 1, columns)
    units = [unit for commit in commits for unit in commit.units]
    assert [len(unit.partitions) for unit in units] == partitions
    assert [day for unit in units for day, _ in unit.partitions] == list(files)
