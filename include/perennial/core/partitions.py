"""Partitions of an hour, a day, a week or a month: their keys, borders, neighbours and ranges.

The key of a partition is the start of its interval, written as short as the cadence allows: ``2024-05-01T05``,
``2024-05-01``, ``2024-05``; a week has the key of its first day. Days, weeks and months are those of the calendar in
the cadence's time zone: a day has 23 or 25 hours when clocks change. Hours are hours of UTC in each zone, because an
hour of a clock may occur twice. Keys of one cadence sort by time. The functions of this module that have no cadence
read a key by its form, as a date without a zone; only a week looks like a day there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Literal, Self, get_args
from zoneinfo import ZoneInfo

from croniter import croniter

from perennial.core.errors import PerennialError

Unit = Literal["hour", "day", "week", "month"]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)
#: How keys are written.
FORMS: dict[Unit, str] = {
    "hour": "YYYY-MM-DDThh",
    "day": "YYYY-MM-DD",
    "week": "YYYY-MM-DD",
    "month": "YYYY-MM",
}
_EXAMPLES = {"hour": ", such as 2024-05-01T05", "month": ", such as 2024-05"}
#: The keys as `datetime.strftime` writes them.
KEY_FORMATS: dict[Unit, str] = {
    "hour": "%Y-%m-%dT%H",
    "day": "%Y-%m-%d",
    "week": "%Y-%m-%d",
    "month": "%Y-%m",
}
#: Regular expressions of keys, a week's among those of days.
SHAPES: dict[Unit, re.Pattern[str]] = {
    "hour": re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}"),
    "day": re.compile(r"\d{4}-\d{2}-\d{2}"),
    "month": re.compile(r"\d{4}-\d{2}"),
}
#: A regular expression of the keys of every cadence.
KEY_PATTERN = r"\d{4}-\d{2}(?:-\d{2}(?:T\d{2})?)?"
#: Most partitions of a range that is written out: ten years of days, a year of hours.
MAX_PARTITIONS: dict[Unit, int] = {"hour": 8784, "day": 3660, "week": 3660, "month": 3660}
#: Time after a partition's end at which an event is too late for it: the clock of who writes the feed may differ.
LATE_AFTER = timedelta(days=1)


@dataclass(frozen=True)
class Cadence:
    """How often a partition begins.

    Args:
        unit: length of a partition.
        week_starts: weekday on which weeks begin.
        timezone: IANA name of the zone whose days, weeks and months they are.
    """

    unit: Unit = "day"
    week_starts: Weekday = "monday"
    timezone: str = "UTC"

    @property
    def zone(self) -> str:
        """IANA name of the time zone of keys and borders: UTC for hours, whatever the feed's zone is."""
        return "UTC" if self.unit == "hour" else self.timezone

    def parse(self, text: str, name: str = "a partition") -> str:
        """Read a key.

        Args:
            text: the key.
            name: name of the key in the error message.

        Raises:
            PerennialError: the text is not a key of this cadence.
        """
        try:
            moment = _parse(text)
        except (TypeError, ValueError):
            moment = None
        if moment is not None and _unit_of(text) == ("day" if self.unit == "week" else self.unit):
            if self._key_at(moment) == text:
                return text
            raise PerennialError(
                f"{name} is {text}, a {WEEKDAYS[moment.weekday()].capitalize()}, and the weeks of this feed begin on "
                f"{self.week_starts.capitalize()}",
                f"write the first day of the week, {self._key_at(moment)}",
            )
        noun = {"hour": "an hour", "day": "a date", "week": "the first day of a week", "month": "a month"}
        raise PerennialError(
            f"{name} is {str(text)[:40]!r}, not {noun[self.unit]}",
            f"write it as {FORMS[self.unit]}{_EXAMPLES.get(self.unit, '')}",
        )

    def is_key(self, text: str) -> bool:
        """Whether a text is a key of this cadence."""
        try:
            self.parse(text)
        except PerennialError:
            return False
        return True

    def key_of(self, moment: datetime | date) -> str:
        """The key of the partition that a moment, or the beginning of a date in the cadence's zone, lies in."""
        if not isinstance(moment, datetime):
            return self._key_at(datetime.combine(moment, time.min))
        key = self._key_at(moment.astimezone(ZoneInfo(self.zone)))
        if self.zone == "UTC":
            return key
        # Where clocks change about midnight, a date may occur twice with another between: borders decide.
        if moment < self.start_of(key):
            return self.shift(key, -1)
        return key if moment < self.end_of(key) else self.shift(key, 1)

    def first_on_or_after(self, day: date) -> str:
        """The key of the first partition that begins on a date or later."""
        key = self.key_of(day)
        return key if _parse(key).date() >= day else self.shift(key, 1)

    def last_on_or_before(self, day: date) -> str:
        """The key of the last partition that begins on a date or earlier."""
        return self._key_at(datetime.combine(day, time.max))

    def shift(self, key: str, partitions: int) -> str:
        """The key of the partition that is ``partitions`` later."""
        return self._from_index(self.index(key) + partitions)

    def index(self, key: str) -> int:
        """The number of a partition, which is one more than that of the partition before it."""
        return self._index_of(_parse(self.parse(key)))

    def start_of(self, key: str) -> datetime:
        """The start of a partition, in UTC; of two midnights, where clocks are set back then, the first."""
        try:
            return _parse(self.parse(key)).replace(tzinfo=ZoneInfo(self.zone)).astimezone(UTC)
        except OverflowError:
            raise PerennialError("a partition is outside the years 1 to 9999", "check the year") from None

    def end_of(self, key: str) -> datetime:
        """The end of a partition, which is the start of the next one, in UTC."""
        return self.start_of(self.shift(key, 1))

    def event_limit(self, key: str) -> datetime:
        """The time from which an event is too late for a partition, in UTC without a zone.

        It is `LATE_AFTER` the partition's end.
        """
        return (self.end_of(key) + LATE_AFTER).replace(tzinfo=None)

    def range(self, start: str, end: str | None = None) -> PartitionRange:
        """The range of partitions from ``start`` to ``end``, both included."""
        return PartitionRange(start, start if end is None else end, self)

    def keys(self, start: str, end: str | None = None) -> list[str]:
        """Every key from ``start`` to ``end``, both included.

        Raises:
            PerennialError: not keys, end before start, or more than `MAX_PARTITIONS` keys.
        """
        return self.range(start, end).keys()

    def contiguous_ranges(self, keys: Iterable[str]) -> Iterator[PartitionRange]:
        """Group keys into ranges without gaps, in order."""
        ordered = sorted(set(keys))
        if not ordered:
            return
        start = ordered[0]
        for key, following in pairwise(ordered):
            if self.index(key) + 1 != self.index(following):
                yield self.range(start, key)
                start = following
        yield self.range(start, ordered[-1])

    def latest(self) -> str:
        """The latest partition that can exist now: that of today.

        In UTC that of today where on Earth the day begins first (UTC+14): the zone of the feed's files may be another.
        """
        ahead = timedelta(hours=14 if self.zone == "UTC" else 0)
        return self.key_of(datetime.now(UTC) + ahead)

    def last_ended(self, moment: datetime) -> str:
        """The latest partition that has ended at a moment."""
        return self.shift(self.key_of(moment), -1)

    def refuse_future(self, key: str, name: str = "the partition") -> None:
        """Refuse a partition that cannot exist yet, such as one with a mistyped year.

        Results of such a partition would count as the latest ones until its time has come.

        Args:
            key: the partition.
            name: name of the key in the error message.

        Raises:
            PerennialError: the partition is in the future.
        """
        if key > self.latest():
            date_word = "date" if self.unit == "day" else "partition"
            raise PerennialError(
                f"{name} {key} is in the future",
                f"check the year; the latest {date_word} that can have data is {self.latest()}",
            )

    def _key_at(self, moment: datetime) -> str:
        """The key of the partition in which the clock of its zone shows a time."""
        return self._from_index(self._index_of(moment))

    def _index_of(self, moment: datetime) -> int:
        if self.unit == "month":
            return moment.year * 12 + moment.month - 1
        day = moment.toordinal()
        if self.unit == "hour":
            return day * 24 + moment.hour
        return day if self.unit == "day" else (day - 1 - WEEKDAYS.index(self.week_starts)) // 7

    def _from_index(self, index: int) -> str:
        try:
            if self.unit == "month":
                moment = datetime(index // 12, index % 12 + 1, 1)
            elif self.unit == "hour":
                moment = datetime.fromordinal(index // 24) + timedelta(hours=index % 24)
            else:
                week = self.unit == "week"
                moment = datetime.fromordinal(
                    index * 7 + 1 + WEEKDAYS.index(self.week_starts) if week else index
                )
        except (ValueError, OverflowError):
            raise PerennialError("a partition is outside the years 1 to 9999", "check the year") from None
        return _write(moment, self.unit)


DAILY = Cadence()


@dataclass(frozen=True, order=True)
class PartitionRange:
    """A range of partitions, written ``start..end``.

    Args:
        start: key of the first partition.
        end: key of the last partition, which is part of the range.
        cadence: of the partitions.

    Raises:
        PerennialError: a text is not a key, or end is before start.
    """

    start: str
    end: str
    cadence: Cadence = field(default=DAILY, compare=False)

    def __post_init__(self) -> None:
        first = self.cadence.parse(self.start, "start")
        if self.cadence.parse(self.end, "end") < first:
            raise PerennialError(f"end {self.end} is before start {self.start}", "swap them")

    @classmethod
    def parse(cls, text: str, cadence: Cadence | None = None) -> Self:
        """Read ``start..end``, or one key as the range of that partition.

        Args:
            text: the range.
            cadence: of the partitions; read from the form of the keys when not given, weeks as days.

        Raises:
            PerennialError: the text is neither a range nor a key, or end is before start.
        """
        start, separator, end = text.partition("..")
        return cls(start, end if separator else start, cadence or cadence_of(start))

    @classmethod
    def between(cls, start: str, end: str) -> Self:
        """The range of two keys; its cadence is read from their form, weeks as days."""
        return cls(start, end, cadence_of(start))

    def __str__(self) -> str:
        return f"{self.start}..{self.end}"

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.start <= key <= self.end

    def __len__(self) -> int:
        return self.cadence.index(self.end) - self.cadence.index(self.start) + 1

    def __iter__(self) -> Iterator[str]:
        """The keys in order, however many there are."""
        first = self.cadence.index(self.start)
        return (self.cadence._from_index(first + i) for i in range(len(self)))

    @property
    def compact(self) -> str:
        """The range as ``start..end``; only the key for a range of one partition."""
        return self.start if self.start == self.end else str(self)

    def keys(self) -> list[str]:
        """Every key of the range, in order.

        Raises:
            PerennialError: there are more than `MAX_PARTITIONS`.
        """
        limit, unit = MAX_PARTITIONS[self.cadence.unit], self.cadence.unit
        if len(self) > limit:
            noun = "dates" if unit == "day" else f"{unit}s"
            years = " (ten years)" if unit == "day" else ""
            raise PerennialError(
                f"{self.start} to {self.end} are {len(self):,} {noun}; a range has at most {limit:,}{years}",
                "divide it into shorter ranges",
            )
        return list(self)

    def shift(self, partitions: int) -> Self:
        """The same range, moved ``partitions`` later."""
        shift = self.cadence.shift
        return type(self)(shift(self.start, partitions), shift(self.end, partitions), self.cadence)


def nominal_start(key: str) -> datetime:
    """The start of a partition by the clock of its zone, whatever that is; without a zone.

    Raises:
        PerennialError: the text is not a key.
    """
    return _parse(cadence_of(key).parse(key))


def first_tick(cron: str, start: datetime) -> datetime:
    """The first time at or after a moment that a cron expression has, by the same clock as the moment.

    Args:
        cron: the cron expression.
        start: the moment, without fractions of a second.
    """
    # croniter's next tick is later than its start
    tick: datetime = croniter(cron, start - timedelta(seconds=1)).get_next(datetime)
    return tick


def date_of(key: str) -> str:
    """The date on which a partition begins, as YYYY-MM-DD."""
    return nominal_start(key).date().isoformat()


def contiguous_ranges(keys: Iterable[str]) -> Iterator[PartitionRange]:
    """Group keys into ranges without gaps, in order; by the form of the keys, so that each week is a range."""
    ordered = sorted(set(keys))
    return cadence_of(ordered[0]).contiguous_ranges(ordered) if ordered else iter(())


def cadence_of(key: str) -> Cadence:
    """The cadence of a key by its form: a week counts as a day, and so does what is not a key."""
    return Cadence(_unit_of(key) or "day")


def days_between(start: str, end: str) -> int:
    """Whole days from the start of one partition to the start of another, by the calendar; may be negative."""
    difference = nominal_start(end) - nominal_start(start)
    return int(difference / timedelta(days=1))


def _unit_of(text: object) -> Unit | None:
    """The unit of a key by its form, weeks as days; None if it has the form of none."""
    return next((u for u, shape in SHAPES.items() if isinstance(text, str) and shape.fullmatch(text)), None)


def _parse(text: str) -> datetime:
    """The start of a partition by the form of its key, without a zone.

    Raises:
        ValueError, TypeError: the text is not a key.
    """
    unit = _unit_of(text)
    if unit is None or not text.isascii():
        raise ValueError(text)
    return datetime.fromisoformat(f"{text}-01" if unit == "month" else text)


def _write(moment: datetime, unit: Unit) -> str:
    """A key; `datetime.strftime` writes years before 1000 with fewer than four digits."""
    length = {"hour": 13, "month": 7}.get(unit, 10)
    return moment.isoformat()[:length]
