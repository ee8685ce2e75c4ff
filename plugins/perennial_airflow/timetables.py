"""Timetables: when DAGs run, and for which partition. Partition keys are dates, ``YYYY-MM-DD``, UTC.

Airflow's own partition timetables lack two things that these add: the cron one counts its offset in ticks, so that a
weekly run could not be for yesterday, and the asset one refuses backfills. Airflow stores the import paths of these
classes: they stay in this module.
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
    """The start of the UTC day of ``moment``."""
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
        """The timetable of an expression, made once: Airflow's description of the expression takes a while to make."""
        return cls(cron)

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Timetable:
        """The timetable of what `serialize` returned."""
        return cls.of(data["cron"])

    def serialize(self) -> dict[str, Any]:
        """The arguments, for `deserialize`."""
        return {"cron": self._expression}

    def _get_partition_date(self, *, run_date: DateTime) -> DateTime:
        return midnight(run_date) - DAY

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterable[DagRunInfo]:
        """The partitions of a backfill: the days of the range with a tick on the day after."""
        last = midnight(latest)
        tick = self._align_to_next(midnight(earliest) + DAY)
        previous = None
        while (day := self._get_partition_date(run_date=tick)) <= last:
            if day != previous:
                yield day_info(day)
            previous = day
            tick = self._get_next(tick)


class PublishedPartitions(PartitionedAssetTimetable):
    """Each partition of an asset when it is published; any range of days in a backfill."""

    description = "Each partition when it is published"
    periodic = True  # Airflow offers backfills for periodic timetables only

    @classmethod
    def of(cls, asset: Asset) -> PublishedPartitions:
        """The timetable of the partitions of ``asset``, with the same keys."""
        # Airflow takes the SDK's objects here, although the annotations say otherwise
        mapper: Any = StartOfDayMapper(input_format=KEY_FORMAT)
        return cls(assets=cast(Any, asset), default_partition_mapper=mapper)

    @property
    def summary(self) -> str:
        """The schedule as the UI's list of DAGs shows it."""
        return "Each partition"

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterable[DagRunInfo]:
        """The partitions of a backfill: every day of the range."""
        day, last = midnight(earliest), midnight(latest)
        while day <= last:
            yield day_info(day)
            day = day + DAY
