"""Partitions in the names of a sample's files, and how long a partition is by its dates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median

from perennial.core import file_formats
from perennial.core.partitions import DAILY, MAX_PARTITIONS, WEEKDAYS, Cadence, Unit, date_of
from perennial.storage import object_store

__all__ = ["FileDates", "file_dates", "suggest_cadence"]

#: Dates that show how far apart they are.
FEWEST_DATES = 3
#: Median of days between two dates above which a feed is not one of days, or of weeks.
DAILY_GAP, WEEKLY_GAP = 2, 8
#: Hours, dates and months in the names of files, and the placeholders of a path template that stand for them.
_KEYS: dict[Unit, tuple[tuple[str, str], ...]] = {
    "hour": (
        (r"(?<!\d)(\d{4})-(\d{2})-(\d{2})([T_/ -])(\d{2})(?!\d)", "{date}<sep>{hour}"),
        (r"(?<!\d)(\d{4})(\d{2})(\d{2})([T_-]?)(\d{2})(?!\d)", "{year}{month}{day}<sep>{hour}"),
        (r"year=(\d{4})/month=(\d{2})/day=(\d{2})(/hour=)(\d{2})", "year={year}/month={month}/day={day}<sep>{hour}"),
    ),
    "day": (
        (r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d)", "{date}"),
        (r"year=(\d{4})/month=(\d{2})/day=(\d{2})", "year={year}/month={month}/day={day}"),
        (r"(?<!\d)(\d{4})/(\d{2})/(\d{2})(?!\d)", "{year}/{month}/{day}"),
        (r"(?<!\d)(\d{4})_(\d{2})_(\d{2})(?!\d)", "{year}_{month}_{day}"),
        (r"(?<!\d)(\d{4})(\d{2})(\d{2})(?!\d)", "{year}{month}{day}"),
    ),
    "month": (
        (r"year=(\d{4})/month=(\d{2})(?!\d)", "year={year}/month={month}"),
        (r"(?<!\d)(\d{4})-(\d{2})(?![\d-])", "{year}-{month}"),
        (r"(?<!\d)(\d{4})_(\d{2})(?![\d_])", "{year}_{month}"),
        (r"(?<!\d)(\d{4})/(\d{2})(?!\d)", "{year}/{month}"),
        (r"(?<!\d)((?:19|20)\d{2})(\d{2})(?!\d)", "{year}{month}"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class FileDates:
    """The partition dates in the names of a sample's files.

    Attributes:
        days: partition date of each file.
        template: path template of the files below the landing area; None if their names differ in more than a date, or
            two have the same date.
        landed: whether the files are in the landing area, and each is a partition.
        cadence: of the partitions.
    """

    days: tuple[str, ...]
    template: str | None
    landed: bool
    cadence: Cadence = DAILY


def file_dates(paths: tuple[Path, ...], landing_area: str) -> FileDates | None:
    """The partitions in the names of files; None unless each has one.

    Hours only if some files have the same date. Dates a week or more apart are those of weeks or months.
    """
    home = Path(landing_area) if not object_store.is_remote(landing_area) else None
    landed = home is not None and all(p.is_relative_to(home) for p in paths)
    names = [path.relative_to(home).as_posix() if landed and home else path.name for path in paths]
    for unit in ("hour", "day", "month"):
        keys_in_names = [_key_in(name, unit) for name in names]
        keys = [key for key, _ in filter(None, keys_in_names)]
        if len(keys) < len(paths) or (unit == "hour" and len({key[:10] for key in keys}) == len(keys)):
            continue
        templates = {
            template + _ending(path, landed)
            for path, (_, template) in zip(paths, filter(None, keys_in_names), strict=True)
        }
        one_each = len(templates) == 1 and len(set(keys)) == len(keys)
        if unit == "hour" and not one_each:
            continue
        cadence = (
            suggest_cadence([date.fromisoformat(key) for key in keys]) if unit == "day" else Cadence(unit)
        )
        of_cadence = [
            key if cadence.unit == unit else cadence.key_of(date.fromisoformat(key)) for key in keys
        ]
        if unit == "day":  # a month with the date of another day than its first has no template
            starts = (date_of(k) == key for k, key in zip(of_cadence, keys, strict=True))
            one_each = one_each and all(starts)
        template = templates.pop() if one_each else None
        return FileDates(tuple(of_cadence), template, landed and one_each, cadence)
    return None


def _key_in(name: str, unit: Unit) -> tuple[str, str] | None:
    """The key in the name of a file, and the name with placeholders; None if it has none."""
    for pattern, placeholder in _KEYS[unit]:
        match = re.search(pattern, name)
        if match is None:
            continue
        groups = list(match.groups())
        separator = groups.pop(3) if unit == "hour" else ""
        key = "-".join(groups[:3]) + (f"T{groups[3]}" if unit == "hour" else "")
        if Cadence(unit).is_key(key):
            return key, name[: match.start()] + placeholder.replace("<sep>", separator) + name[match.end() :]
    return None


def _ending(path: Path, landed: bool) -> str:
    """What a template has after the name of a folder of part files."""
    if not path.is_dir() or file_formats.ending(path.name) == ".parquet":
        return ""
    return "/" if landed else ".parquet"


def suggest_cadence(days: Sequence[date]) -> Cadence:
    """The cadence of a feed by its dates: days, unless they are a week or more apart.

    Args:
        days: the dates of partitions, or of events.
    """
    ordered = sorted({*days})
    if len(ordered) < FEWEST_DATES:
        return DAILY
    gap = median((b - a).days for a, b in pairwise(ordered))
    if gap <= DAILY_GAP:
        # dates between them count, too: a range of partitions has them
        dates = (ordered[-1] - ordered[0]).days + 1
        return DAILY if dates <= MAX_PARTITIONS["day"] else Cadence("week")
    if gap > WEEKLY_GAP:
        return Cadence("month")
    weekdays = {day.weekday() for day in ordered}
    return Cadence("week", WEEKDAYS[weekdays.pop()] if len(weekdays) == 1 else "monday")
