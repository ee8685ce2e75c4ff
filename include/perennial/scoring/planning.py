"""Which partitions a scoring has to do, and how they are grouped into units of work."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from perennial.core.dates import utc_timestamp
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, manifests

#: Rows scored at a time, and rows a commit: what the memory of the step depends on, beside 200 MiB of libraries.
UNIT_ROWS = 131_072


COMMIT_ROWS = 2 * UNIT_ROWS


#: Seconds after which a night that was published and not scored is left behind, and not just about to be scored.
CATCH_UP_DELAY_SECONDS = 3600


def find_unscored_partitions(spec: ModelSpec, day: str) -> list[str]:
    """Nights before ``day`` that were published and not scored, since the last one that was.

    A night is left behind where nobody heard of its publication: Airflow drops events for a DAG that is paused
    (airflow 38891), and may strand those of partitions (airflow 56749); or where its scoring failed.
    One look only: a night that still cannot be scored then, or that a later one overtook within `PATIENCE`, is for a
    person's backfill.
    """
    scored = [d for d in delta_tables.partitions(delta_tables.table_uri("predictions", spec.name)) if d < day]
    if not scored:
        return []
    found = [
        d
        for d in delta_tables.partitions(delta_tables.table_uri("published", spec.name))
        if scored[-1] < d < day
    ]
    before = utc_timestamp(datetime.now(UTC) - timedelta(seconds=CATCH_UP_DELAY_SECONDS))
    done = {d: manifests.read(spec.name, "data", d) for d in found}
    return [d for d, m in done.items() if m and m.finished_at < before]


def split_at_date(todo: list[str], since: str) -> Iterator[list[str]]:
    """The partitions up to ``since`` and those after it, which other arms serve, where there are any."""
    for days in ([d for d in todo if d <= since], [d for d in todo if d > since]):
        if days:
            yield days


def group_into_commits(
    todo: list[str], present: list[str], rows: dict[str, int], size: int
) -> Iterator[list[str]]:
    """Stretches of ``todo`` with no other published partition between: one commit each.

    A stretch has up to `COMMIT_ROWS` rows, more only where a single partition has: the lake's writer holds what it
    writes to a partition until all of them are done. It has whole units: one cut short costs as much to begin.

    Args:
        size: rows of a unit at most.
    """
    index = {d: i for i, d in enumerate(present)}
    most = max(1, COMMIT_ROWS // size)
    held: list[str] = []
    used = room = 0
    for day in todo:
        needed = 0 if rows[day] <= room else -(-rows[day] // size)
        if held and (index[day] != index[held[-1]] + 1 or used + needed > most):
            yield held
            held, used, room, needed = [], 0, 0, -(-rows[day] // size)
        held.append(day)
        used += needed
        room = max(0, (size if needed else room) - rows[day])
    yield held
