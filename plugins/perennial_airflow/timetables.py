"""When DAGs run, and for which partition. Partition keys are dates, ``YYYY-MM-DD``, UTC.

Airflow's own partition timetables come close: the cron one takes its offset in ticks, so that a weekly run could not be
for yesterday, and the asset one refuses backfills. These two add just that.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, cast

from airflow.sdk import Asset, StartOfDayMapper
from airflow.timetables.base import DagRunInfo, Timetable
from airflow.timetables.simple import PartitionedAssetTimetable
from airflow.timetables.trigger import CronPartitionTimetable
from pendulum import DateTime, instance

KEY_FORMAT = "%Y-%m-%d"
DAY = timedelta(days=1)


def midnight(moment: datetime) -> DateTime:
    """The start of the UTC day that holds ``moment``."""
    return instance(moment).in_timezone("UTC").start_of("day")


def day_info(day: DateTime) -> DagRunInfo:
    """The run for the partition of one day."""
    return DagRunInfo(
        run_after=day, data_interval=None, partition_date=day, partition_key=day.strftime(KEY_FORMAT)
    )


class DailyPartitions(CronPartitionTimetable):
    """At each tick of a cron expression (UTC), the partition of the day that ended before it."""

    def __init__(self, cron: str) -> None:
        super().__init__(cron, timezone="UTC", key_format=KEY_FORMAT)
        self.description = f"{self.description} UTC, for the day before".strip()

    @classmethod
    @functools.cache
    def of(cls, cron: str) -> DailyPartitions:
        """The one timetable of an expression: putting the expression into words, as Airflow does, takes a while."""
        return cls(cron)

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Timetable:
        """The timetable that was serialized."""
        return cls.of(data["cron"])

    def serialize(self) -> dict[str, Any]:
        """What `deserialize` needs."""
        return {"cron": self._expression}

    def _get_partition_date(self, *, run_date: DateTime) -> DateTime:
        return midnight(run_date) - DAY

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterable[DagRunInfo]:
        """The partitions of a backfill: those with a tick on the day after."""
        last = midnight(latest)
        tick = self._align_to_next(midnight(earliest) + DAY)
        seen = None
        while (day := self._get_partition_date(run_date=tick)) <= last:
            if day != seen:
                yield day_info(day)
            seen = day
            tick = self._get_next(tick)


class PublishedPartitions(PartitionedAssetTimetable):
    """Each partition of an asset as it is published; any range of days by a backfill."""

    description = "Each partition as it is published"
    periodic = True  # Airflow's word for: backfills are possible

    @classmethod
    def of(cls, asset: Asset) -> PublishedPartitions:
        """The partitions of ``asset``, keyed as it keys them."""
        mapper: Any = StartOfDayMapper(input_format=KEY_FORMAT)
        return cls(
            assets=cast(Any, asset), default_partition_mapper=mapper
        )  # Airflow takes the SDK's objects here

    @property
    def summary(self) -> str:
        """What the UI shows in the list of DAGs."""
        return "Each partition"

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterable[DagRunInfo]:
        """The partitions of a backfill: every day of it."""
        day, last = midnight(earliest), midnight(latest)
        while day <= last:
            yield day_info(day)
            day = day + DAY
