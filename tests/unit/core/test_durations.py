"""Durations: how they are written, how many partitions they are, and when they have passed."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.core.durations import PATTERN, Duration, DurationUnit
from perennial.core.partitions import Cadence, Unit, nominal_start

CADENCES = [Cadence(unit) for unit in get_args(Unit)]
FIRST = {"hour": "2024-01-31T05", "day": "2024-01-31", "week": "2024-01-29", "month": "2024-01"}
durations = st.builds(Duration, st.integers(0, 3650), st.sampled_from(get_args(DurationUnit)))
cadences = st.sampled_from(CADENCES)


@given(durations)
def test_a_duration_is_read_as_it_is_written(duration: Duration) -> None:
    assert Duration.parse(str(duration)) == duration
    for form in ("", "s"):
        text = f"{duration.count} {duration.unit}{form}"
        assert Duration.parse(text) == duration and re.search(PATTERN, text)
    assert bool(duration) == (duration.count > 0)


@given(durations, durations, cadences)
def test_partitions_cover_a_duration_and_no_shorter_number_does(
    duration: Duration, other: Duration, cadence: Cadence
) -> None:
    count = duration.partitions(cadence)
    assert (count == 0) == (duration.count == 0)
    assert Duration(count, "partition").partitions(cadence) == count
    assert Duration(count, cadence.unit).partitions(cadence) == count
    hourly = duration.partitions(Cadence("hour"))
    if duration.unit != "partition":
        assert Duration(count, cadence.unit).partitions(Cadence("hour")) >= hourly
        assert count == 0 or Duration(count - 1, cadence.unit).partitions(Cadence("hour")) < hourly
    if other.unit == duration.unit and other.count >= duration.count:
        assert other.partitions(cadence) >= count


@given(durations, cadences)
def test_a_duration_has_passed_after_as_many_partitions(duration: Duration, cadence: Cadence) -> None:
    first, count = FIRST[cadence.unit], duration.partitions(cadence)
    end = duration.after(first, cadence)
    if duration.unit == "partition":
        assert nominal_start(cadence.shift(first, count)) == end
    elif "month" not in (duration.unit, cadence.unit):  # those of the calendar are of any length
        passed = (nominal_start(cadence.shift(first, n)) >= end for n in range(max(count - 1, 0), count + 1))
        assert list(passed)[-1] and (count == 0 or not next(passed, False))


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("36 hours", (36, 2, 1, 1)),
        ("28 days", (672, 28, 4, 1)),
        ("90 days", (2160, 90, 13, 3)),
        ("365 days", (8760, 365, 53, 12)),
        ("6 weeks", (1008, 42, 6, 2)),
        ("3 months", (2232, 93, 14, 3)),
        ("1 partition", (1, 1, 1, 1)),
    ],
)
def test_durations_as_partitions(text: str, counts: tuple[int, ...]) -> None:
    assert tuple(Duration.parse(text).partitions(c) for c in CADENCES) == counts


@pytest.mark.parametrize(
    ("text", "hours"),
    [("36 hours", 36), ("2 days", 48), ("1 week", 168), ("1 month", 744), ("3 partitions", 72)],
)
def test_a_duration_as_a_length_of_time(text: str, hours: int) -> None:
    assert Duration.parse(text).length(Cadence("day")) == timedelta(hours=hours)


def test_months_between_partitions_are_those_of_the_calendar() -> None:
    day, month = Cadence(), Cadence("month")
    assert Duration(1, "month").after("2024-01-31", day) == datetime(2024, 2, 29)
    assert Duration(3, "month").after("2024-11", month) == datetime(2025, 2, 1)
    assert Duration(12, "month").after("2024-02-29", day) == datetime(2025, 2, 28)
    assert Duration(36, "hour").after("2024-02-28T20", Cadence("hour")) == datetime(2024, 3, 1, 8)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (14, "^14 has no unit: write a whole number and its unit, such as 14 days or 14 partitions;"),
        (1, "such as 1 day or 1 partition;"),
        ("14", "^14 has no unit"),
        ("14d", "^14d is not a duration: write a whole number and its unit, such as 14 days or 14 partitions"),
        ("2 years", "such as 2 days or 2 partitions; units: partitions, hours, days, weeks, months$"),
        ("1.5 days", "is not a duration"),
        ("-3 days", "is not a duration"),
        ("٣ days", "is not a duration"),
        ("14 days\n", "is not a duration"),
        ("9999999 days", "is not a duration"),
        (True, "^True is not a duration"),
        (None, "^None is not a duration"),
        ([7], "is not a duration"),
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused_with_what_to_write(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Duration.parse(value)
