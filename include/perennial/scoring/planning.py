"""Plan scoring: divide partitions into commits and scan units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from perennial.features.scan_units import ScanUnit, plan_units
from perennial.storage import duckdb_session
from perennial.storage.delta_tables import File

#: Most rows of a scan unit. The step's memory depends on it, in addition to 200 MiB for libraries.
UNIT_ROWS = 131_072
#: Most rows of a commit of several partitions.
COMMIT_ROWS = 2 * UNIT_ROWS
#: Most partitions of a commit: the lake's writer needs 0.2 MiB for each of them until the commit ends.
COMMIT_PARTITIONS = 256


@dataclass(frozen=True)
class Commit:
    """Partitions whose predictions are written in one commit.

    Attributes:
        days: their dates, in order, with no other published partition in between.
        units: the units of their rows, in order.
    """

    days: list[str]
    units: list[ScanUnit]


def scoring_threads(units: int, columns: int, most: int) -> int:
    """The number of units that are scored in parallel.

    Args:
        units: number of units.
        columns: number of columns of the rows.
        most: threads that the step may use.
    """
    return min(units, duckdb_session.threads_for(columns, most))


def plan_commits(
    files: Mapping[str, Sequence[File]],
    days: list[str],
    split_after: str | None,
    threads: int,
    columns: int,
) -> list[Commit]:
    """Divide partitions into commits, and commits into scan units.

    Args:
        files: the files of all published partitions of the range, by date, in order.
        days: dates of the partitions to score, in order.
        split_after: last date on which only the champion serves; None if it serves all of them.
        threads: number of units that are scored in parallel.
        columns: number of columns of the rows.
    """
    rows = {day: sum(f.rows for f in listed) for day, listed in files.items()}
    # Rows that two versions share are read into memory instead of streamed.
    max_rows = UNIT_ROWS if split_after is None else UNIT_ROWS // 2
    # At least two units per thread, so that no thread is idle for long at the end.
    unit_rows = max(UNIT_ROWS // 4, min(max_rows, sum(rows[d] for d in days) // (2 * threads)))
    unit_files = duckdb_session.files_at_once(columns)
    return [
        Commit(group, list(plan_units({d: files[d] for d in group}, unit_rows, max_rows, unit_files)))
        for part in split_at_date(days, split_after or "")
        for group in group_into_commits(part, list(files), rows, unit_rows)
    ]


def split_at_date(days: list[str], last: str) -> Iterator[list[str]]:
    """Split dates into those up to ``last`` and those after it, without empty parts."""
    for part in ([d for d in days if d <= last], [d for d in days if d > last]):
        if part:
            yield part


def group_into_commits(
    days: list[str], published: list[str], rows: Mapping[str, int], unit_rows: int
) -> Iterator[list[str]]:
    """Group partitions into commits; no other published partition lies between those of a group.

    A group has at most `COMMIT_PARTITIONS`, and at most `COMMIT_ROWS` rows, unless a single partition has more, because
    the lake's writer buffers a partition until all partitions of the commit are written. Units are filled, since each
    has a fixed cost.

    Args:
        days: dates of the partitions, in order; at least one.
        published: dates of all published partitions, in order.
        rows: rows of each partition, by date.
        unit_rows: most rows of a unit.
    """
    index = {day: i for i, day in enumerate(published)}
    max_units = max(1, COMMIT_ROWS // unit_rows)
    group: list[str] = []
    units = room = 0
    for day in days:
        needed = 0 if rows[day] <= room else -(-rows[day] // unit_rows)
        full = units + needed > max_units or len(group) == COMMIT_PARTITIONS
        if group and (full or index[day] != index[group[-1]] + 1):
            yield group
            group, units, room, needed = [], 0, 0, -(-rows[day] // unit_rows)
        group.append(day)
        units += needed
        room = max(0, (unit_rows if needed else room) - rows[day])
    yield group
