"""Durations with their unit: ``14 days``, ``8 partitions``, ``3 months``.

A window, a hold-out or a trial is counted in partitions. A cooldown or an age passes between two partitions: there
months are those of the calendar, and so are days and weeks.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Self, get_args

from pydantic_core import CoreSchema, core_schema

from perennial.core.partitions import Cadence, nominal_start

DurationUnit = Literal["partition", "hour", "day", "week", "month"]
#: Regular expression of a duration; JavaScript reads it like Python does.
PATTERN = rf"^(0|[1-9]\d{{0,5}}) ({'|'.join(get_args(DurationUnit))})s?$"
#: Hours that a unit counts for where one is converted into another; a month has those of 31 days.
_HOURS = {"hour": 1, "day": 24, "week": 168, "month": 744}


@dataclass(frozen=True)
class Duration:
    """A number of partitions, hours, days, weeks or months.

    Args:
        count: how many; not negative.
        unit: of what.
    """

    count: int
    unit: DurationUnit

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read a duration as it is written in a spec; ``1 day`` and ``1 days`` are the same.

        Raises:
            ValueError: it is none, or has no unit.
        """
        match = re.fullmatch(PATTERN, text) if isinstance(text, str) and text.isascii() else None
        if match is None:
            number = re.match(r"\d{1,6}\b", str(text))
            count = int(number[0]) if number else 14
            fault = "has no unit" if re.fullmatch(r"\d+", str(text)) else "is not a duration"
            raise ValueError(
                f"{str(text)[:40]} {fault}: write a whole number and its unit, such as {cls(count, 'day')} or "
                f"{cls(count, 'partition')}; units: partitions, hours, days, weeks, months"
            )
        return cls(int(match[1]), match[2])  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.count} {self.unit}{'s' * (self.count != 1)}"

    def __bool__(self) -> bool:
        return self.count > 0

    def partitions(self, cadence: Cadence) -> int:
        """The partitions that are needed to cover the duration: rounded up, and 0 for no time only.

        A day counts 24 hours, a month 31 days: a month of days is 31 partitions, and 90 days are 3 months.
        """
        if self.unit in ("partition", cadence.unit):
            return self.count
        return -(-self.count * _HOURS[self.unit] // _HOURS[cadence.unit])

    def length(self, cadence: Cadence) -> timedelta:
        """The duration as a length of time: a month has 31 days, and a partition the length of the cadence's unit."""
        unit = cadence.unit if self.unit == "partition" else self.unit
        return timedelta(hours=self.count * _HOURS[unit])

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """A field of a spec is read by `parse` and written as text."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(value),
            serialization=core_schema.plain_serializer_function_ser_schema(
                str, return_schema=core_schema.str_schema()
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        """What editors check and complete."""
        examples = ["14 days", "8 partitions", "36 hours", "6 weeks", "3 months"]
        return {"type": "string", "pattern": PATTERN, "examples": examples}

    def after(self, key: str, cadence: Cadence) -> datetime:
        """The moment that is this duration after the start of a partition, by the clock of its zone, without a zone.

        The result can be compared with the `nominal_start` of other partitions. A month later is the same day of the
        next month, or its last day.
        """
        start = nominal_start(key)
        if self.unit == "partition":
            return nominal_start(cadence.shift(key, self.count))
        if self.unit == "month":
            years, month = divmod(start.month - 1 + self.count, 12)
            year = start.year + years
            day = min(start.day, calendar.monthrange(year, month + 1)[1])
            return start.replace(year=year, month=month + 1, day=day)
        return start + timedelta(hours=self.count * _HOURS[self.unit])
