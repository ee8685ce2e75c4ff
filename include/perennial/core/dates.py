"""Dates as text, YYYY-MM-DD, and moments in UTC as text. Partitions have their own module, `core.partitions`."""

from __future__ import annotations

from datetime import UTC, datetime

from perennial.core.partitions import DAILY


def dates(start: str, end: str | None = None) -> list[str]:
    """Every date from ``start`` to ``end``, both included.

    Raises:
        PerennialError: not dates, end before start, or more than ten years.
    """
    return DAILY.keys(start, end or start)


def add_days(day: str, days: int) -> str:
    """The date ``days`` after ``day``."""
    return DAILY.shift(day, days)


def utc_now() -> str:
    """The current time as `utc_timestamp` writes it."""
    return utc_timestamp(datetime.now(UTC))


def utc_timestamp(moment: datetime) -> str:
    """Write a moment in UTC as YYYY-MM-DDThh:mm:ssZ; such texts sort by time.

    Args:
        moment: a datetime with a time zone.
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
