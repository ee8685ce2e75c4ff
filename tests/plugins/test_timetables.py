"""When DAGs run, and for which partition."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from airflow.exceptions import InvalidPartitionKeyError
from airflow.sdk import Asset
from airflow.serialization.decoders import decode_timetable
from airflow.serialization.encoders import encode_timetable
from airflow.timetables.base import TimeRestriction
from pendulum import datetime as moment

from perennial.core.partitions import Cadence
from perennial_airflow.timetables import DailyPartitions, EndedPartitions, PublishedPartitions

#: As Airflow's server uses it: a timetable comes back from its serialized form.
PUBLISHED = decode_timetable(encode_timetable(PublishedPartitions.of(Asset("data/x"))))
NIGHTLY, WEEKLY = EndedPartitions("0 2 * * *"), EndedPartitions("0 6 * * 1")


def keys(
    timetable: EndedPartitions | PublishedPartitions, first: datetime, last: datetime
) -> list[str | None]:
    return [info.partition_key for info in timetable.iter_partition_dagrun_infos(earliest=first, latest=last)]


@pytest.mark.parametrize(
    ("timetable", "begin", "tick", "partition"),
    [
        (NIGHTLY, moment(2013, 1, 2), moment(2013, 1, 2, 2), "2013-01-01"),
        (NIGHTLY, moment(2013, 3, 1), moment(2013, 3, 1, 2), "2013-02-28"),
        (WEEKLY, moment(2013, 1, 2), moment(2013, 1, 7, 6), "2013-01-06"),
    ],
)
def test_a_tick_is_for_the_day_before(
    timetable: EndedPartitions, begin: object, tick: object, partition: str
) -> None:
    info = timetable.next_dagrun_info_v2(
        last_dagrun_info=None, restriction=TimeRestriction(begin, None, True)
    )
    assert info is not None
    assert (info.run_after, info.partition_key) == (tick, partition)
    assert info.partition_date == moment(*map(int, partition.split("-")))
    assert info.data_interval is None


def test_nothing_runs_by_itself_after_the_end() -> None:
    over = TimeRestriction(moment(2013, 1, 2), moment(2014, 1, 1), False)
    assert NIGHTLY.next_dagrun_info_v2(last_dagrun_info=None, restriction=over) is None


def test_backfills() -> None:
    first, last = datetime(2013, 2, 27, tzinfo=UTC), datetime(2013, 3, 2, tzinfo=UTC)
    days = ["2013-02-27", "2013-02-28", "2013-03-01", "2013-03-02"]
    assert keys(NIGHTLY, first, last) == days
    assert keys(PUBLISHED, first, last) == days
    assert keys(EndedPartitions("0 */6 * * *"), first, last) == days
    assert keys(WEEKLY, first, last) == []
    assert keys(WEEKLY, first, datetime(2013, 3, 12, tzinfo=UTC)) == ["2013-03-03", "2013-03-10"]
    assert keys(NIGHTLY, last, first) == []


def test_a_backfilled_and_a_triggered_partition_are_the_same() -> None:
    (info,) = NIGHTLY.iter_partition_dagrun_infos(earliest=moment(2013, 5, 4), latest=moment(2013, 5, 4))
    assert NIGHTLY.resolve_partition_date("2013-05-04") == info.partition_date
    assert PUBLISHED.resolve_partition_date("2013-05-04") == info.partition_date


@pytest.mark.parametrize("timetable", [NIGHTLY, PUBLISHED], ids=["cron", "asset"])
@pytest.mark.parametrize("key", ["2013-02-30", "yesterday", "", "2013-02-01T00:00:00"])
def test_a_key_that_is_no_date_is_refused(timetable: EndedPartitions | PublishedPartitions, key: str) -> None:
    with pytest.raises(InvalidPartitionKeyError):
        timetable.resolve_partition_date(key)


def test_both_survive_serialization() -> None:
    """Airflow finds them by the plugin's registration."""
    nightly = decode_timetable(encode_timetable(NIGHTLY))
    assert isinstance(nightly, EndedPartitions)
    assert nightly.serialize() == {
        "cron": "0 2 * * *",
        "unit": "day",
        "week_starts": "monday",
        "timezone": "UTC",
    }
    assert nightly.description.endswith("for the day before")
    assert isinstance(PUBLISHED, PublishedPartitions)
    assert [key.name for key, _ in PUBLISHED.asset_condition.iter_assets()] == ["data/x"]
    assert PUBLISHED.periodic


def test_dags_of_earlier_versions_are_read() -> None:
    data = encode_timetable(DailyPartitions("0 2 * * *"))
    data["__var"] = {"cron": "0 2 * * *"}
    assert decode_timetable(data).serialize()["unit"] == "day"


HOURLY, MONDAYS, MONTHLY = Cadence("hour"), Cadence("week"), Cadence("month")


@pytest.mark.parametrize(
    ("cron", "cadence", "begin", "tick", "partition"),
    [
        ("10 * * * *", HOURLY, moment(2013, 1, 2), moment(2013, 1, 2, 0, 10), "2013-01-01T23"),
        ("0 6 * * *", HOURLY, moment(2013, 1, 2, 7), moment(2013, 1, 3, 6), "2013-01-03T05"),
        ("0 2 * * 1", MONDAYS, moment(2013, 1, 2), moment(2013, 1, 7, 2), "2012-12-31"),
        ("0 2 * * 3", MONDAYS, moment(2013, 1, 2), moment(2013, 1, 2, 2), "2012-12-24"),
        ("0 2 1 * *", MONTHLY, moment(2013, 1, 2), moment(2013, 2, 1, 2), "2013-01"),
        ("0 2 5 * *", MONTHLY, moment(2013, 1, 2), moment(2013, 1, 5, 2), "2012-12"),
    ],
)
def test_a_tick_is_for_the_latest_partition_that_has_ended(
    cron: str, cadence: Cadence, begin: object, tick: object, partition: str
) -> None:
    timetable = decode_timetable(encode_timetable(EndedPartitions(cron, cadence)))
    info = timetable.next_dagrun_info_v2(
        last_dagrun_info=None, restriction=TimeRestriction(begin, None, True)
    )
    assert info is not None
    assert (info.run_after, info.partition_key) == (tick, partition)
    assert info.partition_date == timetable.resolve_partition_date(partition)


@pytest.mark.parametrize(
    ("cron", "cadence", "first", "last", "expected"),
    [
        ("10 * * * *", HOURLY, (2013, 2, 28, 22), (2013, 3, 1, 0), ["2013-02-28T22", "2013-02-28T23", "2013-03-01T00"]),
        ("0 2 * * 1", MONDAYS, (2013, 2, 25), (2013, 3, 11), ["2013-02-25", "2013-03-04", "2013-03-11"]),
        ("0 2 1 * *", MONTHLY, (2013, 11, 1), (2014, 1, 1), ["2013-11", "2013-12", "2014-01"]),
    ],
)  # fmt: skip
def test_backfills_of_any_cadence(
    cron: str, cadence: Cadence, first: tuple[int, ...], last: tuple[int, ...], expected: list[str]
) -> None:
    published = decode_timetable(encode_timetable(PublishedPartitions.of(Asset("data/x"), cadence)))
    for timetable in (EndedPartitions(cron, cadence), published):
        runs = list(timetable.iter_partition_dagrun_infos(earliest=moment(*first), latest=moment(*last)))
        assert [info.partition_key for info in runs] == expected
        assert [timetable.resolve_partition_date(key) for key in expected] == [i.partition_date for i in runs]
    mapper = published.get_partition_mapper(name="data/x")
    assert [mapper.to_downstream(key) for key in expected] == expected
    with pytest.raises(InvalidPartitionKeyError, match="the partition key is"):
        published.resolve_partition_date("2013-02-26")


@pytest.mark.parametrize(
    ("zone", "first", "last"),
    [
        ("Europe/Berlin", (2024, 3, 28), (2024, 4, 3)),
        ("Europe/Berlin", (2024, 10, 24), (2024, 10, 30)),
        ("America/Sao_Paulo", (2018, 11, 1), (2018, 11, 7)),  # a midnight that does not exist
        ("America/Havana", (2024, 10, 31), (2024, 11, 6)),  # one that occurs twice
        ("Australia/Lord_Howe", (2024, 4, 4), (2024, 4, 9)),
        ("Asia/Kolkata", (2024, 3, 28), (2024, 4, 3)),
        ("America/Los_Angeles", (2024, 11, 1), (2024, 11, 6)),
    ],
)
@pytest.mark.parametrize("cron", ["0 0 * * *", "30 0 * * *", "30 2 * * *", "15 1 * * *", "59 23 * * *"])
def test_each_day_of_a_zone_runs_once_when_clocks_change(
    cron: str, zone: str, first: tuple[int, ...], last: tuple[int, ...]
) -> None:
    cadence = Cadence("day", timezone=zone)
    ended = decode_timetable(encode_timetable(EndedPartitions(cron, cadence)))
    published = decode_timetable(encode_timetable(PublishedPartitions.of(Asset("data/x"), cadence)))
    days = cadence.keys("-".join(f"{n:02}" for n in first), "-".join(f"{n:02}" for n in last))
    for timetable in (ended, published):
        runs = list(timetable.iter_partition_dagrun_infos(earliest=moment(*first), latest=moment(*last)))
        assert [info.partition_key for info in runs] == days
        assert [info.partition_date for info in runs] == [cadence.start_of(day) for day in days]
        assert [timetable.resolve_partition_date(day) for day in days] == [i.partition_date for i in runs]
    mapper = published.get_partition_mapper(name="data/x")
    assert [mapper.to_downstream(day) for day in days] == days
    scheduled, info = [], None
    for _ in days:
        info = ended.next_dagrun_info_v2(
            last_dagrun_info=info, restriction=TimeRestriction(moment(*first).add(days=1), None, True)
        )
        assert info is not None
        assert cadence.end_of(info.partition_key) <= info.run_after
        scheduled.append(info.partition_key)
    assert scheduled == cadence.keys(scheduled[0], cadence.shift(scheduled[0], len(days) - 1))


def test_hours_are_those_of_utc_in_each_zone() -> None:
    cadence = Cadence("hour", timezone="Europe/Berlin")
    timetable = EndedPartitions("10 * * * *", cadence)
    runs = timetable.iter_partition_dagrun_infos(
        earliest=moment(2024, 10, 27), latest=moment(2024, 10, 27, 3)
    )
    assert [info.partition_key for info in runs] == [f"2024-10-27T0{n}" for n in range(4)]
    assert "UTC, for the hour before" in timetable.description
