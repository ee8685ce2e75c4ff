"""Partition dates as text, YYYY-MM-DD: parsing, ranges, shifts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from itertools import pairwise

from perennial.core.errors import PerennialError


def parse_date(text: str, what: str = "a partition date") -> date:
    """``YYYY-MM-DD`` as a date.

    Raises:
        PerennialError: anything else.
    """
    try:
        found = date.fromisoformat(text)
        if found.isoformat() != text:  # Python also reads 20240101 and 2024-W01-1
            raise ValueError
        return found
    except (TypeError, ValueError):
        raise PerennialError(f"{what} is {str(text)[:40]!r}, not a date", "write it as YYYY-MM-DD") from None


def dates(start: str, end: str | None = None) -> list[str]:
    """Every partition date from ``start`` to ``end``, both included.

    Raises:
        PerennialError: not dates, end before start, or more than 3,660 days.
    """
    first, last = parse_date(start, "start"), parse_date(end or start, "end")
    if last < first:
        raise PerennialError(f"end {end} is before start {start}", "swap them")
    if (last - first).days > 3660:
        raise PerennialError(f"{start} to {end} is more than ten years", "give a shorter range")
    return [(first + timedelta(days=i)).isoformat() for i in range((last - first).days + 1)]


def add_days(day: str, days: int) -> str:
    """The date ``days`` after ``day``."""
    return (parse_date(day) + timedelta(days=days)).isoformat()


def contiguous_ranges(days: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Dates as ranges without gaps, first and last of each."""
    ordered = sorted(set(days))
    if not ordered:
        return
    start = ordered[0]
    for day, after in pairwise(ordered):
        if add_days(day, 1) != after:
            yield start, day
            start = after
    yield start, ordered[-1]
