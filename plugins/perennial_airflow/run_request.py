"""What a run was triggered for: its partitions, the fields of its trigger form, and who or what started it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.core.dates import DateRange, parse_date
from perennial.core.errors import PerennialError

if TYPE_CHECKING:
    from airflow.sdk import Context

#: The actor of runs that no person started.
SCHEDULER = "scheduler"


@dataclass(frozen=True)
class PartitionRange:
    """The partitions of one run.

    Attributes:
        start: the first partition.
        end: the last partition, itself included; None for a single partition.
        scheduled: whether the partition is the run's own key, and not from the trigger form.
    """

    start: str
    end: str | None = None
    scheduled: bool = False

    @property
    def single(self) -> bool:
        """Whether it is one partition."""
        return self.end is None

    @property
    def last(self) -> str:
        """The last partition."""
        return self.end or self.start

    def keys(self) -> list[str]:
        """Every partition of the range, in order."""
        return DateRange(self.start, self.last).dates()


def partitions(context: Context) -> PartitionRange:
    """The partitions that a run of `data` or `score` is for.

    Raises:
        PerennialError: neither a partition key nor ``start`` is given, both are, or one is not a date.
    """
    key, start, end = partition_key(context), param(context, "start"), param(context, "end")
    if key and (start or end):
        raise PerennialError(
            f"the run has partition key {key} and also start {start} and end {end}", "give one of them"
        )
    if key:
        return PartitionRange(parse_date(key, "the partition key").isoformat(), scheduled=True)
    if not start:
        raise PerennialError(
            f"the run has neither a partition key nor a first partition (end: {end})",
            "trigger with a partition key (one date, YYYY-MM-DD), or fill in start, and end for a range",
        )
    requested = PartitionRange(start, None if end in (None, start) else end)
    requested.keys()  # refuses what is not a date, a reversed range and one that is too long
    return requested


def as_of(context: Context) -> PartitionRange:
    """The partition up to which a run of `train` or `monitor` reads.

    Raises:
        PerennialError: neither a partition key nor ``as_of`` is given, they differ, or it is not a date.
    """
    key, day = partition_key(context), param(context, "as_of")
    if key and day and key != day:
        raise PerennialError(f"the run has partition key {key} and also as_of {day}", "give one of them")
    if not (partition := key or day):
        raise PerennialError(
            "the run has neither a partition key nor a date as_of",
            "trigger with a partition key (one date, YYYY-MM-DD), or fill in as_of",
        )
    return PartitionRange(parse_date(partition, "as_of").isoformat(), scheduled=key is not None)


def partition_key(context: Context) -> str | None:
    """The run's partition key; None where it has none."""
    return context["dag_run"].partition_key or None


def param(context: Context, name: str) -> Any:
    """A field of the trigger form; None where it was left empty."""
    value = context["params"].get(name)
    return None if value == "" else value


def forced(context: Context) -> bool:
    """Whether finished work is to be done again."""
    return bool(param(context, "force"))


def actor(context: Context) -> str:
    """Name of the user who started the run, or `SCHEDULER`."""
    return context["dag_run"].triggering_user_name or SCHEDULER


def is_backfill(context: Context) -> bool:
    """Whether the run belongs to a backfill."""
    return _run_type(context) == "backfill"


def is_asset_triggered(context: Context) -> bool:
    """Whether an asset event started the run."""
    return _run_type(context) == "asset_triggered"


def is_scheduled(context: Context) -> bool:
    """Whether the DAG's schedule started the run, for one partition."""
    return _run_type(context) == "scheduled" and partition_key(context) is not None


def _run_type(context: Context) -> str:
    run_type = context["dag_run"].run_type
    return str(getattr(run_type, "value", run_type))


def reason(context: Context) -> str:
    """Why a retraining was requested: from the asset events that started the run, or else from the trigger form."""
    events = [event for group in context["triggering_asset_events"].values() for event in group]
    reasons = [str(event.extra["reason"]) for event in events if event.extra.get("reason")]
    return "; ".join(dict.fromkeys(reasons)) or str(param(context, "reason") or "")
