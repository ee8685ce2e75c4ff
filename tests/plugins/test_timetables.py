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

from perennial_airflow.timetables import DailyPartitions, PublishedPartitions

#: As Airflow's server uses it: a timetable comes back from its serialized form.
PUBLISHED = decode_timetable(encode_timetable(PublishedPartitions.of(Asset("data/x"))))
NIGHTLY, WEEKLY = DailyPartitions("0 2 * * *"), DailyPartitions("0 6 * * 1")


def keys(
    timetable: DailyPartitions | PublishedPartitions, first: datetime, last: datetime
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
    timetable: DailyPartitions, begin: object, tick: object, partition: str
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
    assert keys(DailyPartitions("0 */6 * * *"), first, last) == days
    assert keys(WEEKLY, first, last) == []
    assert keys(WEEKLY, first, datetime(2013, 3, 12, tzinfo=UTC)) == ["2013-03-03", "2013-03-10"]
    assert keys(NIGHTLY, last, first) == []


def test_a_backfilled_and_a_triggered_partition_are_the_same() -> None:
    (info,) = NIGHTLY.iter_partition_dagrun_infos(earliest=moment(2013, 5, 4), latest=moment(2013, 5, 4))
    assert NIGHTLY.resolve_partition_date("2013-05-04") == info.partition_date
    assert PUBLISHED.resolve_partition_date("2013-05-04") == info.partition_date


@pytest.mark.parametrize("timetable", [NIGHTLY, PUBLISHED], ids=["cron", "asset"])
@pytest.mark.parametrize("key", ["2013-02-30", "yesterday", "", "2013-02-01T00:00:00"])
def test_a_key_that_is_no_date_is_refused(timetable: DailyPartitions | PublishedPartitions, key: str) -> None:
    with pytest.raises(InvalidPartitionKeyError):
        timetable.resolve_partition_date(key)


def test_both_survive_serialization() -> None:
    """Airflow finds them by the plugin's registration."""
    nightly = decode_timetable(encode_timetable(NIGHTLY))
    assert isinstance(nightly, DailyPartitions)
    assert nightly.serialize() == {"cron": "0 2 * * *"}
    assert nightly.description.endswith("for the day before")
    assert isinstance(PUBLISHED, PublishedPartitions)
    assert [key.name for key, _ in PUBLISHED.asset_condition.iter_assets()] == ["data/x"]
    assert PUBLISHED.periodic
