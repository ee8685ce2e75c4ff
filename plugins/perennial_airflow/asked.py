"""What a run was asked to do: for which partition or range, by whom, and with which wishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.core.dates import dates, parse_date
from perennial.core.errors import PerennialError

if TYPE_CHECKING:
    from airflow.sdk import Context

SCHEDULER = "scheduler"


@dataclass(frozen=True)
class Span:
    """Partition dates of one run, both ends included.

    Attributes:
        end: None for a single partition.
        scheduled: the dates are the run's own partition key, not a person's start and end.
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
        """The last partition date."""
        return self.end or self.start


def span(context: Context) -> Span:
    """The partitions that a run of `data` or `score` is for.

    Raises:
        PerennialError: none was given, two were, or one is no date.
    """
    key, start, end = partition_key(context), wish(context, "start"), wish(context, "end")
    if key and (start or end):
        raise PerennialError(
            f"the run has partition key {key} and also start {start} and end {end}", "give one of them"
        )
    if key:
        return Span(parse_date(key, "the partition key").isoformat(), scheduled=True)
    if not start:
        raise PerennialError(
            f"nothing says which partition to work on (end: {end})",
            "trigger with a partition key (one date, YYYY-MM-DD), or fill in start, and end for a range",
        )
    dates(start, end)
    return Span(start, None if end in (None, start) else end)


def as_of(context: Context) -> Span:
    """The one partition that a run of `train` or `monitor` looks back from.

    Raises:
        PerennialError: none was given, two different ones were, or it is no date.
    """
    key, day = partition_key(context), wish(context, "as_of")
    if key and day and key != day:
        raise PerennialError(f"the run has partition key {key} and also as_of {day}", "give one of them")
    if not (found := key or day):
        raise PerennialError(
            "nothing says up to which partition to look",
            "trigger with a partition key (one date, YYYY-MM-DD), or fill in as_of",
        )
    return Span(parse_date(found, "as_of").isoformat(), scheduled=key is not None)


def partition_key(context: Context) -> str | None:
    """The run's partition key, if it has one."""
    return context["dag_run"].partition_key or None


def wish(context: Context, name: str) -> Any:
    """A field of the trigger form; None where it was left empty."""
    value = context["params"].get(name)
    return None if value == "" else value


def forced(context: Context) -> bool:
    """Whether to do again what is done."""
    return bool(wish(context, "force"))


def actor(context: Context) -> str:
    """Who started the run."""
    return context["dag_run"].triggering_user_name or SCHEDULER


def is_backfill(context: Context) -> bool:
    """Whether the run belongs to a backfill."""
    return _kind(context) == "backfill"


def by_event(context: Context) -> bool:
    """Whether an asset event started the run, and no person."""
    return _kind(context) == "asset_triggered"


def _kind(context: Context) -> str:
    kind = context["dag_run"].run_type
    return str(getattr(kind, "value", kind))


def reason(context: Context) -> str:
    """Why a retraining was asked for: from the event that started the run, else from the trigger form."""
    events = [event for found in context["triggering_asset_events"].values() for event in found]
    said = [str(event.extra["reason"]) for event in events if event.extra.get("reason")]
    return "; ".join(dict.fromkeys(said)) or str(wish(context, "reason") or "")
