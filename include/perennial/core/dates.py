"""Partition dates as text, YYYY-MM-DD: parsing, shifting, ranges; and moments in UTC as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Self

from perennial.core.errors import PerennialError

#: The longest range that is written out as single dates.
MAX_DAYS = 3660


@dataclass(frozen=True, order=True)
class DateRange:
    """A range of partition dates, written ``start..end``.

    Args:
        start: first date, YYYY-MM-DD.
        end: last date, YYYY-MM-DD; part of the range.

    Raises:
        PerennialError: either text is not a date, or end is before start.
    """

    start: str
    end: str

    def __post_init__(self) -> None:
        first = parse_date(self.start, "start")
        if parse_date(self.end, "end") < first:
            raise PerennialError(f"end {self.end} is before start {self.start}", "swap them")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``start..end``, or one date as the range of that day.

        Raises:
            PerennialError: the text is neither a range nor a date, or end is before start.
        """
        start, separator, end = text.partition("..")
        return cls(start, end if separator else start)

    def __str__(self) -> str:
        return f"{self.start}..{self.end}"

    def __contains__(self, day: object) -> bool:
        return isinstance(day, str) and self.start <= day <= self.end

    @property
    def days(self) -> int:
        """The number of dates in the range."""
        return (date.fromisoformat(self.end) - date.fromisoformat(self.start)).days + 1

    @property
    def compact(self) -> str:
        """The range as ``start..end``; only the date for a range of one date."""
        return self.start if self.start == self.end else str(self)

    def dates(self) -> list[str]:
        """Every date of the range, in order.

        Raises:
            PerennialError: there are more than `MAX_DAYS`.
        """
        if self.days > MAX_DAYS:
            raise PerennialError(f"{self.start} to {self.end} is more than ten years", "give a shorter range")
        first = date.fromisoformat(self.start)
        return [(first + timedelta(days=i)).isoformat() for i in range(self.days)]

    def shift(self, days: int) -> Self:
        """The same range, moved ``days`` days later."""
        return type(self)(add_days(self.start, days), add_days(self.end, days))


def parse_date(text: str, name: str = "a partition date") -> date:
    """Read a date written as YYYY-MM-DD.

    Args:
        text: the date.
        name: name of the date in the error message.

    Raises:
        PerennialError: the text is not a date in this format.
    """
    try:
        day = date.fromisoformat(text)
        if day.isoformat() != text:  # Python also reads 20240101 and 2024-W01-1
            raise ValueError
        return day
    except (TypeError, ValueError):
        raise PerennialError(f"{name} is {str(text)[:40]!r}, not a date", "write it as YYYY-MM-DD") from None


def dates(start: str, end: str | None = None) -> list[str]:
    """Every partition date from ``start`` to ``end``, both included.

    Raises:
        PerennialError: not dates, end before start, or more than `MAX_DAYS` dates.
    """
    return DateRange(start, end or start).dates()


def add_days(day: str, days: int) -> str:
    """The date ``days`` after ``day``."""
    return (parse_date(day) + timedelta(days=days)).isoformat()


def contiguous_ranges(days: Iterable[str]) -> Iterator[DateRange]:
    """Group dates into ranges without gaps, in order."""
    ordered = sorted(set(days))
    if not ordered:
        return
    start = ordered[0]
    for day, following in pairwise(ordered):
        if add_days(day, 1) != following:
            yield DateRange(start, day)
            start = following
    yield DateRange(start, ordered[-1])


def utc_now() -> str:
    """The current time as `utc_timestamp` writes it."""
    return utc_timestamp(datetime.now(UTC))


def utc_timestamp(moment: datetime) -> str:
    """Write a moment in UTC as YYYY-MM-DDThh:mm:ssZ; such texts sort by time.

    Args:
        moment: a datetime with a time zone.
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
