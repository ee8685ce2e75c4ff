"""What is due and not done in each stage of the loop, found by looking at what exists.

Nothing is remembered: the landing area, the manifests and the ledger are listed anew each time, each folder once, so
that the cost of one partition does not grow with the lake. Each scheduled run of a stage does some of what is overdue
(`most_per_run`); monitoring counts it; ``perennial missing`` prints it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal

from perennial.core import unexpected_errors
from perennial.core.durations import Duration
from perennial.core.errors import DataError, PerennialError, SpecError, time_heals
from perennial.core.partitions import first_tick, nominal_start
from perennial.ingestion.run import LABELS_STEP, STEP, label_inputs, row_inputs
from perennial.lifecycle import champion
from perennial.spec.model_spec import ModelSpec
from perennial.spec.sections import Step
from perennial.spec.sources import QuerySource
from perennial.storage import delta_tables, landing, ledger, manifests, object_store
from perennial.storage.ledger import LedgerKind, LedgerRecord
from perennial.storage.object_store import FileStat

Stage = Literal["published", "labelled", "scored", "monitored"]
#: Overdue partitions that a scheduled run does in addition to its own, the earliest first.
MAX_PER_RUN: dict[Stage, int] = {"published": 7, "labelled": 7, "scored": 7, "monitored": 2}
#: Latest partitions of a query that a scheduled run asks again if they were published without rows.
RECHECKED = 7
#: So many times as many where partitions are hours: otherwise a weekend's downtime would take days to catch up.
HOURLY_FACTOR = 6
#: Seconds after its publication at which a partition without predictions is overdue: its own run may be queued.
PENDING_SECONDS = 3600.0
#: Stands for a file that is missing.
_NO_FILE = FileStat(0, 0)
log = logging.getLogger("perennial")


@dataclass(frozen=True)
class Backlog:
    """The partitions of one stage that are due and not done, by date, in order.

    Attributes:
        stage: the stage.
        overdue: those that can be done.
        failed: those that failed before from the same inputs; they are due again when these change.
        next_batch: the overdue partitions that the next scheduled run does: those that have not failed come first.
    """

    stage: Stage
    overdue: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    next_batch: list[str] = field(default_factory=list)


def of_all_stages(spec: ModelSpec, until: str) -> dict[Stage, Backlog]:
    """The backlog of every stage, by stage.

    Args:
        spec: the model.
        until: last partition date whose run was due.
    """
    return {
        "published": unpublished(spec, until),
        "labelled": unlabelled(spec, until),
        "scored": unscored(spec, until),
        "monitored": unmonitored(spec, until),
    }


def unpublished(spec: ModelSpec, until: str) -> Backlog:
    """Files of rows that landed and were not published.

    Args:
        spec: the model.
        until: last partition date.
    """
    landed = _landed(spec, spec.data.source, until)
    if spec.data.arrival == "optional" and isinstance(spec.data.source, str):
        landed = _with_missing(spec, landed, until)
    landed = {day: landed[day] for day in landed if is_kept(spec, "rows", day, until)}
    undone = _undone(spec, STEP, "published", landed)
    files = {day: landed[day] for day in undone if _is_due(spec, day)}
    return _backlog(spec, "published", STEP, files, row_inputs(spec))


def empty(spec: ModelSpec, until: str) -> list[str]:
    """Recent partitions of a query that were published without rows, which may have come since.

    Args:
        spec: the model.
        until: last partition date.
    """
    if isinstance(spec.data.source, str):
        return []
    days = spec.cadence.keys(spec.cadence.shift(until, 1 - RECHECKED), until)
    return [day for day, record in manifests.read_all(spec.name, STEP, days).items() if not record.rows_in]


def unlabelled(spec: ModelSpec, until: str) -> Backlog:
    """Files of labels that landed, are due and were not published, by the date of their rows.

    Args:
        spec: the model.
        until: last partition date with which labels are due.
    """
    if spec.label.source is None:
        return Backlog("labelled")
    last = spec.cadence.shift(until, -spec.label_delay)
    landed = _landed(spec, spec.label.source, last)
    landed = {day: landed[day] for day in landed if is_kept(spec, "rows", day, until)}
    undone, published = _undone(spec, LABELS_STEP, "labels", landed), manifests.finished(spec.name, STEP)
    # Whether a query has labels is not known before it is run: only those of rows that are there are missing.
    known = isinstance(spec.label.source, str)
    files = {day: landed[day] for day in undone if day in published or (known and _is_due(spec, day))}
    return _backlog(spec, "labelled", LABELS_STEP, files, label_inputs(spec))


def _landed(spec: ModelSpec, source: str | QuerySource, until: str) -> dict[str, FileStat | None]:
    """The partitions of a feed that can be published, by date, in order, with their files.

    Args:
        spec: the model.
        source: the feed's files, or its query, which can be run for each partition of the schedule.
        until: last partition date.
    """
    if isinstance(source, str):
        return {day: stat for day, stat in landing.list_landed(source, spec.cadence).items() if day <= until}
    first, end = spec.first_partition, spec.last_partition
    last = min(until, end) if end else until
    return dict.fromkeys(spec.cadence.range(first, last)) if first <= last else {}


def unscored(spec: ModelSpec, until: str, *, published_before: float | None = None) -> Backlog:
    """Partitions that were published since the first promotion and not scored, or scored from other rows.

    A partition stays unscored if its scoring failed, or if the event of its publication was lost: Airflow drops events
    for a paused DAG (airflow 38891), and may not process those of partitions (airflow 56749).

    Args:
        spec: the model.
        until: last partition date.
        published_before: only partitions that were published before this moment, in seconds since 1970.
    """
    promoted = ledger.records(spec.name, LedgerKind.PROMOTION)
    if not promoted:
        return Backlog("scored")
    latest = float("inf") if published_before is None else published_before * 1e9
    first = _first_scored(spec, promoted)
    published = {
        day: written
        for day, written in manifests.finished(spec.name, STEP).items()
        if first <= day <= until and written <= latest and is_kept(spec, "rows", day, until)
    }
    scored = manifests.finished(spec.name, "score")
    due = {d for d in published if d not in scored} | _scored_from_other_rows(spec, published, scored)
    files = {day: FileStat(0, published[day]) for day in sorted(due)}
    return _backlog(spec, "scored", "score", files, _champion_inputs(spec))


def is_kept(
    spec: ModelSpec, what: Literal["rows", "predictions", "served", "reports"], day: str, as_of: str
) -> bool:
    """Whether a partition is not older than the spec keeps; what is older is not done again when it was deleted.

    Args:
        spec: the model.
        what: key of `retention` in the spec.
        day: the partition.
        as_of: the partition up to which there is anything.
    """
    longest: Duration | None = getattr(spec.retention, what)
    return longest is None or day > spec.cadence.shift(as_of, -longest.partitions(spec.cadence))


def before_monitoring(spec: ModelSpec, as_of: str) -> dict[Stage, Backlog]:
    """The backlog of every stage before the monitoring of a date, without what may be queued, by stage.

    Args:
        spec: the model.
        as_of: the partition date.
    """
    published_before = datetime.now(UTC).timestamp() - PENDING_SECONDS
    return {
        "published": unpublished(spec, as_of),
        "labelled": unlabelled(spec, as_of),
        "scored": unscored(spec, as_of, published_before=published_before),
        "monitored": unmonitored(spec, spec.cadence.shift(as_of, -1)),
    }


def unmonitored(spec: ModelSpec, until: str) -> Backlog:
    """Scored partitions with a scheduled verdict that is missing.

    Args:
        spec: the model.
        until: last partition date.
    """
    promoted = ledger.records(spec.name, LedgerKind.PROMOTION)
    if not promoted:
        return Backlog("monitored")
    first, done = _first_scored(spec, promoted), manifests.finished(spec.name, "monitor")
    due = {
        day: FileStat(0, scored)
        for day, scored in sorted(manifests.finished(spec.name, "score").items())
        if first <= day <= until
        and day not in done
        and has_tick(spec, spec.schedule.monitor, day)
        and is_kept(spec, "predictions", day, until)
    }
    return _backlog(spec, "monitored", "monitor", due, _champion_inputs(spec))


def most_per_run(spec: ModelSpec, stage: Stage) -> int:
    """The overdue partitions that a scheduled run of a stage does at most."""
    return MAX_PER_RUN[stage] * (HOURLY_FACTOR if spec.cadence.unit == "hour" else 1)


def work_off(
    spec: ModelSpec, step: Step, days: Iterable[str], do: Callable[[str], None], started: float
) -> list[str]:
    """Do overdue partitions one after the other, until half of the step's timeout has passed.

    Whatever fails is only logged, because the run's own partition must not fail with it.

    Args:
        spec: the model.
        step: the step that does them.
        days: their dates.
        do: does one of them; it records its own failures.
        started: when the step began, by ``time.monotonic()``.

    Returns:
        Dates of the partitions that were done.
    """
    done: list[str] = []
    deadline = started + spec.step_limits(step).timeout_minutes * 60 / 2
    for day in days:
        if monotonic() > deadline:
            log.info("The step %s has no time left for overdue partitions from %s on.", step, day)
            break
        try:
            do(day)
            done.append(day)
        except PerennialError as error:
            log.warning("Overdue partition %s: the step %s failed: %s", day, step, error)
        except BaseException as error:
            if not unexpected_errors.is_failure(error):
                raise
            # the text may quote values of rows
            log.warning("Overdue partition %s: the step %s failed with %s", day, step, type(error).__name__)
    if done:
        log.info("The step %s did overdue partitions: %s.", step, ", ".join(done))
    return done


def record_failure(
    spec: ModelSpec,
    step: str,
    day: str,
    inputs: Mapping[str, Any],
    stat: FileStat | None,
    error: Exception,
    *,
    queried: bool = False,
) -> None:
    """Record that a partition failed, so that it is not repeated before its inputs have changed.

    Only what the data or the spec caused counts as lasting; anything else may work the next time.

    Args:
        spec: the model.
        step: name of the step in manifests.
        day: partition date.
        inputs: what the result depends on besides the file.
        stat: size and time of the file that it failed from; None if it did not read one.
        error: the error.
        queried: whether the rows came from a query: they may have changed since, so it is tried again.
    """
    retry = queried or time_heals(error) or not isinstance(error, DataError | SpecError)
    manifests.record_failure(spec.name, step, day, _with_stat(inputs, stat), retry=retry)


def record_champion_failure(
    spec: ModelSpec, step: Literal["score", "monitor"], day: str, error: Exception
) -> None:
    """Record that a partition was not scored, or not monitored, as `record_failure` does."""
    inputs = _champion_inputs(spec)
    # Such a failure depends on what the step before has done.
    before = object_store.stat(manifests.uri(spec.name, STEP if step == "score" else "score", day))
    stat = None if before is None else FileStat(0, before.modified_ns)
    record_failure(spec, step, day, inputs, stat, error)


def _champion_inputs(spec: ModelSpec) -> dict[str, Any]:
    """What a failure of scoring or monitoring depends on: the champion, and the spec."""
    changes = champion.changes(ledger.records(spec.name, *champion.CHAMPION_CHANGES))
    return {"champion": changes[-1]["model_version"] if changes else None, "spec": spec.digest}


def _backlog(
    spec: ModelSpec,
    stage: Stage,
    step: str,
    due: Mapping[str, FileStat | None],
    inputs: Mapping[str, Any],
) -> Backlog:
    """Separate the partitions that failed from the same inputs from the others.

    Args:
        spec: the model.
        stage: the stage.
        step: name of its step in manifests.
        due: partitions that are due, by date, in order, with the file that they are made from; None for a query.
        inputs: what they depend on besides the file.
    """
    failures = manifests.failures(spec.name, step, due)
    same = {d: f for d, f in failures.items() if f.inputs == _with_stat(inputs, due[d])}
    failed = [day for day in due if day in same and not same[day].retry]
    overdue = [day for day in due if day not in failed]
    batch = sorted(overdue, key=lambda day: (day in same, day))[: most_per_run(spec, stage)]
    return Backlog(stage, overdue, failed, sorted(batch))


def _undone(spec: ModelSpec, step: str, kind: str, days: Mapping[str, FileStat | None]) -> list[str]:
    """The dates without a manifest, and those whose rows are no longer in the table, as in a new generation of it."""
    done, present = (
        manifests.finished(spec.name, step),
        set(delta_tables.partitions(delta_tables.table_uri(kind, spec.name))),
    )
    absent = [day for day in days if day in done and day not in present and days[day] != _NO_FILE]
    records = manifests.read_all(spec.name, step, absent)
    # All rows of a partition may be in quarantine, or there may have been none; a file may have landed since.
    due = {d for d, r in records.items() if (r.rows_out or r.inputs.get("source", "") is None)}
    return [d for d in days if d not in done or d in due]


def _with_missing(
    spec: ModelSpec, landed: Mapping[str, FileStat | None], until: str
) -> dict[str, FileStat | None]:
    """Add the partitions without a file, which are published without rows, since the first one that was published."""
    first = min([*manifests.finished(spec.name, STEP), spec.cadence.shift(until, 1)])
    days = dict(landed)
    while first <= until:
        days.setdefault(first, _NO_FILE)
        first = spec.cadence.shift(first, 1)
    return dict(sorted(days.items()))


def _with_stat(inputs: Mapping[str, Any], stat: FileStat | None) -> dict[str, Any]:
    return dict(inputs) | {"file": None if stat is None else list(stat)}


def _first_scored(spec: ModelSpec, promotions: Iterable[LedgerRecord]) -> str:
    """The partition after the one as of which the first champion was trained."""
    return spec.cadence.shift(min(record["partition"] for record in promotions), 1)


def _scored_from_other_rows(
    spec: ModelSpec, published: Mapping[str, int], scored: Mapping[str, int]
) -> set[str]:
    """Partitions that were published again after they were scored, with other rows."""
    later = [day for day, written in published.items() if day in scored and written > scored[day]]
    if not later:
        return set()
    files = delta_tables.files_by_partition(delta_tables.table_uri("published", spec.name))
    records = manifests.read_all(spec.name, "score", later)
    return {
        day
        for day, record in records.items()
        if record.inputs.get("rows") != delta_tables.files_digest(files.get(day, []))
    }


def _is_due(spec: ModelSpec, day: str) -> bool:
    """Whether a partition is within the schedule, and has a scheduled run."""
    within = spec.first_partition <= day <= (spec.last_partition or day)
    return within and has_tick(spec, spec.schedule.data, day)


def has_tick(spec: ModelSpec, cron: str, day: str) -> bool:
    """Whether a schedule has a run for a partition: a tick while the one after it lasts, by the clock of its zone."""
    end, end_of_next = (nominal_start(spec.cadence.shift(day, n)) for n in (1, 2))
    return first_tick(cron, end) < end_of_next
