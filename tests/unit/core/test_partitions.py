"""Keys, borders, neighbours and ranges of partitions of every cadence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perennial.core import partitions
from perennial.core.errors import PerennialError
from perennial.core.partitions import DAILY, MAX_PARTITIONS, WEEKDAYS, Cadence, PartitionRange

HOURLY, MONTHLY = Cadence("hour"), Cadence("month")
CADENCES = [HOURLY, DAILY, *(Cadence("week", day) for day in WEEKDAYS), MONTHLY]
cadences = st.sampled_from(CADENCES)
moments = st.datetimes(datetime(2, 1, 1), datetime(9990, 1, 1), timezones=st.just(UTC))


@given(cadences, moments)
def test_a_moment_lies_in_its_partition(cadence: Cadence, moment: datetime) -> None:
    key = cadence.key_of(moment)
    assert cadence.parse(key) == key and cadence.is_key(key)
    assert cadence.start_of(key) <= moment < cadence.end_of(key)
    assert cadence.key_of(cadence.start_of(key)) == key
    assert cadence.last_ended(moment) == cadence.shift(key, -1)
    assert cadence.last_ended(cadence.end_of(key)) == key
    assert partitions.date_of(key) == cadence.start_of(key).date().isoformat()


@given(cadences, moments, moments)
def test_keys_sort_by_time(cadence: Cadence, one: datetime, other: datetime) -> None:
    first, second = cadence.key_of(one), cadence.key_of(other)
    assert (first < second) == (cadence.start_of(first) < cadence.start_of(second))
    assert (first < second) == (cadence.index(first) < cadence.index(second))


@given(cadences, moments, st.integers(-5000, 5000), st.integers(-5000, 5000))
def test_neighbours(cadence: Cadence, moment: datetime, n: int, m: int) -> None:
    if not 20 < moment.year < 9980 and cadence.unit in ("week", "month"):
        moment = moment.replace(year=2024, day=1)
    if moment.year < 500 or moment.year > 9500:
        moment = moment.replace(year=2024, day=1)
    key = cadence.key_of(moment)
    assert cadence.shift(cadence.shift(key, n), m) == cadence.shift(key, n + m)
    assert cadence.index(cadence.shift(key, n)) == cadence.index(key) + n
    assert cadence.start_of(cadence.shift(key, 1)) == cadence.end_of(key)


@given(cadences, moments, st.integers(0, 400), st.sets(st.integers(0, 400)))
def test_ranges_and_groups(cadence: Cadence, moment: datetime, length: int, chosen: set[int]) -> None:
    key = cadence.key_of(moment.replace(year=2024, day=1))
    span = cadence.range(key, cadence.shift(key, length))
    keys = span.keys()
    assert keys == sorted(set(keys)) and len(keys) == len(span) == length + 1
    assert all(k in span for k in keys)
    assert cadence.shift(key, -1) not in span and cadence.shift(key, length + 1) not in span
    assert PartitionRange.parse(str(span), cadence) == span
    picked = [k for i, k in enumerate(keys) if i in chosen]
    groups = list(cadence.contiguous_ranges(reversed(picked)))
    assert [k for g in groups for k in g] == picked
    assert all(cadence.index(a.end) + 1 < cadence.index(b.start) for a, b in pairwise(groups))


@given(st.sampled_from([(a, b) for a in CADENCES for b in CADENCES if a.unit != b.unit]), moments)
def test_keys_of_another_cadence_are_refused(pair: tuple[Cadence, Cadence], moment: datetime) -> None:
    cadence, other = pair
    if {cadence.unit, other.unit} == {"day", "week"}:
        return  # they are written alike
    with pytest.raises(PerennialError, match="write it as YYYY-MM"):
        cadence.parse(other.key_of(moment))


def test_keys() -> None:
    moment = datetime(2024, 5, 1, 5, 30, tzinfo=UTC)  # a Wednesday
    assert HOURLY.key_of(moment) == "2024-05-01T05"
    assert DAILY.key_of(moment) == "2024-05-01"
    assert Cadence("week").key_of(moment) == "2024-04-29"
    assert Cadence("week", "sunday").key_of(moment) == "2024-04-28"
    assert MONTHLY.key_of(moment) == "2024-05"
    assert HOURLY.keys("2024-02-29T23", "2024-03-01T01") == [
        "2024-02-29T23",
        "2024-03-01T00",
        "2024-03-01T01",
    ]
    assert MONTHLY.keys("2023-11", "2024-02") == ["2023-11", "2023-12", "2024-01", "2024-02"]
    assert Cadence("week").keys("2024-04-22", "2024-05-06") == ["2024-04-22", "2024-04-29", "2024-05-06"]
    assert DAILY.keys("2024-01-01") == ["2024-01-01"]
    berlin = datetime.fromisoformat("2024-05-01T00:30:00+02:00")
    assert DAILY.key_of(berlin) == "2024-04-30"
    assert DAILY.key_of(date(2024, 5, 1)) == "2024-05-01"


@pytest.mark.parametrize("cadence", CADENCES)
@pytest.mark.parametrize(
    "text",
    ["", "2024-5-1", "20240501", "2024-02-30", "2024-13", "2024-W01-1", "../../x", "2024-05-01T24", "2024-05-01T5",
     "2024-05-01T05:00", "2024-05-01 05", "2024", "٢٠٢٤-05-01", "2024-05\n", "0000-01-01", None],
)  # fmt: skip
def test_what_is_no_key_is_refused(cadence: Cadence, text: str) -> None:
    with pytest.raises(PerennialError, match=r"as_of is .*, not "):
        cadence.parse(text, "as_of")
    assert not cadence.is_key(text)
    with pytest.raises(PerennialError):
        partitions.nominal_start(text)


def test_the_refusal_says_what_is_expected() -> None:
    with pytest.raises(
        PerennialError, match=r"(?s)end is '2024-05', not an hour.*YYYY-MM-DDThh, such as 2024-05-01T05"
    ):
        HOURLY.range("2024-05-01T05", "2024-05")
    with pytest.raises(PerennialError, match=r"(?s)2024-05-01, a Wednesday.* begin on Monday.*2024-04-29"):
        Cadence("week").parse("2024-05-01")
    with pytest.raises(PerennialError, match="end 2024-04 is before start 2024-05"):
        MONTHLY.range("2024-05", "2024-04")
    with pytest.raises(PerennialError, match="are 8,785 hours; a range has at most 8,784"):
        HOURLY.keys("2024-01-01T00", HOURLY.shift("2024-01-01T00", MAX_PARTITIONS["hour"]))
    with pytest.raises(PerennialError, match="outside the years"):
        MONTHLY.shift("9999-12", 1)


def test_days_between_partitions() -> None:
    assert partitions.days_between("2024-01", "2024-03") == 60
    assert partitions.days_between("2024-01-02T05", "2024-01-01T04") == -1
    assert partitions.days_between("2024-01-01T05", "2024-01-02T04") == 0


def test_the_first_partition_on_or_after_a_date() -> None:
    day = date(2024, 5, 1)
    assert [c.first_on_or_after(day) for c in (HOURLY, DAILY, Cadence("week"), MONTHLY)] == [
        "2024-05-01T00", "2024-05-01", "2024-05-06", "2024-05",
    ]  # fmt: skip
    assert MONTHLY.first_on_or_after(date(2024, 5, 2)) == "2024-06"


@pytest.mark.parametrize("cadence", CADENCES)
def test_the_future_is_refused(cadence: Cadence) -> None:
    latest = cadence.latest()
    assert cadence.start_of(latest) <= datetime.now(UTC) + timedelta(hours=14)
    cadence.refuse_future(latest)
    with pytest.raises(PerennialError, match=r"as_of .* is in the future"):
        cadence.refuse_future(cadence.shift(latest, 1), "as_of")


def test_a_range_without_a_cadence_has_the_form_of_its_keys() -> None:
    assert PartitionRange.parse("2024-01..2024-03").keys() == ["2024-01", "2024-02", "2024-03"]
    assert len(PartitionRange.parse("2024-01-01T00..2024-01-01T03")) == 4
    one = PartitionRange.parse("2024-01-01")
    assert (len(one), one.compact, str(one)) == (1, "2024-01-01", "2024-01-01..2024-01-01")
    for text in ("", "2024-01-01..", "..2024-01-01", "2024-01-01...2024-01-02", "2024-01-02..2024-01-01",
                 "2024-01..2024-02-01"):  # fmt: skip
        with pytest.raises(PerennialError):
            PartitionRange.parse(text)
    assert None not in one


#: Zones whose clocks change at midnight, by 30 minutes, by a whole day, southern and northern, and not at all.
ZONES = ["Europe/Berlin", "America/New_York", "America/Sao_Paulo", "America/Havana", "America/St_Johns",
         "America/Santiago", "Africa/Cairo", "Asia/Beirut", "Asia/Kolkata", "Asia/Tehran", "Australia/Lord_Howe",
         "Pacific/Apia", "Pacific/Auckland", "Pacific/Kwajalein", "Antarctica/Troll"]  # fmt: skip


def changes(zone: str) -> list[datetime]:
    """Midnights, in UTC, from 1985 to 2037 before clocks change."""
    days = [datetime(1985, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(52 * 366)]
    offsets = [day.astimezone(ZoneInfo(zone)).utcoffset() for day in days]
    return [day for day, (a, b) in zip(days, pairwise(offsets), strict=False) if a != b]


CHANGES = {zone: changes(zone) or [datetime(2024, 1, 1, tzinfo=UTC)] for zone in ZONES}
zoned_moments = st.sampled_from(ZONES).flatmap(
    lambda zone: st.tuples(
        st.just(zone), st.sampled_from(CHANGES[zone]), st.integers(-60 * 60 * 24 * 33, 60 * 60 * 24 * 33)
    )
)


@given(st.sampled_from(CADENCES), zoned_moments)
@example(DAILY, ("America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC), 0))  # midnight did not exist
@example(DAILY, ("America/Havana", datetime(2024, 11, 3, 4, 30, tzinfo=UTC), 0))  # it occurred twice
@example(DAILY, ("America/St_Johns", datetime(2010, 11, 7, 2, 31, tzinfo=UTC), 0))  # a date occurred twice
@example(DAILY, ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC), 0))  # a date did not exist
def test_each_moment_lies_in_one_partition_when_clocks_change(
    cadence: Cadence, zoned: tuple[str, datetime, int]
) -> None:
    zone, change, seconds = zoned
    cadence, moment = replace(cadence, timezone=zone), change + timedelta(seconds=seconds)
    key = cadence.key_of(moment)
    around = [cadence.shift(key, n) for n in range(-3, 4)]
    assert [k for k in around if cadence.start_of(k) <= moment < cadence.end_of(k)] == [key]
    starts = [cadence.start_of(k) for k in around]
    assert starts == sorted(starts)
    assert [cadence.end_of(k) for k in around[:-1]] == starts[1:]
    assert cadence.last_ended(moment) == cadence.shift(key, -1)
    local = moment.astimezone(ZoneInfo(cadence.zone)).replace(tzinfo=None)
    shown = partitions.nominal_start(key)
    end = partitions.nominal_start(cadence.shift(key, 1))
    assert shown - timedelta(hours=1) <= local < end + timedelta(hours=1)


@given(zoned_moments)
def test_an_hour_is_one_of_utc_in_each_zone(zoned: tuple[str, datetime, int]) -> None:
    zone, change, seconds = zoned
    moment = change + timedelta(seconds=seconds)
    assert Cadence("hour", timezone=zone).key_of(moment) == HOURLY.key_of(moment)


def test_days_have_the_length_that_clocks_give_them() -> None:
    berlin = Cadence("day", timezone="Europe/Berlin")
    assert berlin.start_of("2024-03-31") == datetime(2024, 3, 30, 23, tzinfo=UTC)
    hours = [
        (berlin.end_of(k) - berlin.start_of(k)) / timedelta(hours=1) for k in ("2024-03-31", "2024-10-27")
    ]
    assert hours == [23, 25]
    month = Cadence("month", timezone="Asia/Kolkata")
    assert month.key_of(datetime(2024, 4, 30, 18, 30, tzinfo=UTC)) == "2024-05"
    assert month.key_of(date(2024, 4, 30)) == month.last_on_or_before(date(2024, 4, 30)) == "2024-04"
    assert berlin.latest() == datetime.now(ZoneInfo("Europe/Berlin")).date().isoformat()
    with pytest.raises(PerennialError, match="outside the years"):
        Cadence("day", timezone="Asia/Kolkata").start_of("0001-01-01")
