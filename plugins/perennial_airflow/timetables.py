"""Timetables: when DAGs run, and for which partition. Partition keys are those of `core.partitions`.

Airflow's own partition timetables lack two things that these add: the cron one counts its offset in ticks, so that a
weekly run could not be for yesterday, and the asset one refuses backfills. Airflow stores the import paths of these
classes: they stay in this module.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, cast
from zoneinfo import ZoneInfo

from airflow.exceptions import InvalidPartitionKeyError
from airflow.sdk import Asset, StartOfDayMapper, StartOfHourMapper, StartOfMonthMapper
from airflow.timetables.base import DagRunInfo, Timetable
from airflow.timetables.simple import PartitionedAssetTimetable
from airflow.timetables.trigger import CronPartitionTimetable
from pendulum import DateTime, instance

from perennial.core.errors import PerennialError
from perennial.core.partitions import DAILY, KEY_FORMATS, Cadence

#: Words of a timetable's description.
_BEFORE = {
    "hour": "the hour before",
    "day": "the day before",
    "week": "the week before",
    "month": "the month before",
}
_MAPPERS = {
    "hour": StartOfHourMapper,
    "day": StartOfDayMapper,
    "week": StartOfDayMapper,
    "month": StartOfMonthMapper,
}


def same_key(cadence: Cadence) -> Any:
    """The mapper of a partition's key to itself, by which Airflow also knows the start of the partition."""
    return _MAPPERS[cadence.unit](input_format=KEY_FORMATS[cadence.unit], timezone=cadence.zone)


def _runs(cadence: Cadence, keys: Iterable[str]) -> Iterator[DagRunInfo]:
    """The runs of a backfill for some partitions."""
    for key in keys:
        start = _start_of(cadence, key)
        yield DagRunInfo(run_after=start, data_interval=None, partition_date=start, partition_key=key)


def _start_of(cadence: Cadence, key: str) -> DateTime:
    """The start of a partition, for Airflow; the key of another cadence is refused."""
    try:
        return instance(cadence.start_of(cadence.parse(key, "the partition key")))
    except PerennialError as error:
        raise InvalidPartitionKeyError(str(error)) from error


def _as_json(cadence: Cadence) -> dict[str, Any]:
    return dataclasses.asdict(cadence)


def _from_json(data: dict[str, Any]) -> Cadence:
    """The cadence of a serialised timetable; earlier versions stored none, and knew days only."""
    return Cadence(**{f.name: data.get(f.name, f.default) for f in dataclasses.fields(Cadence)})


class EndedPartitions(CronPartitionTimetable):
    """At each tick of a cron expression (in the zone of the partitions), the latest partition that has ended.

    Args:
        cron: the expression.
        cadence: of the partitions.
    """

    def __init__(self, cron: str, cadence: Cadence = DAILY) -> None:
        super().__init__(cron, timezone=cadence.zone, key_format=KEY_FORMATS[cadence.unit])
        self.cadence = cadence
        self.description = f"{self.description} {cadence.zone}, for {_BEFORE[cadence.unit]}".strip()

    @classmethod
    @functools.cache
    def of(cls, cron: str, cadence: Cadence = DAILY) -> EndedPartitions:
        """The timetable of an expression, made once: Airflow's description of the expression takes a while to make."""
        return cls(cron, cadence)

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Timetable:
        """The timetable of what `serialize` returned."""
        return cls.of(data["cron"], _from_json(data))

    def serialize(self) -> dict[str, Any]:
        """The arguments, for `deserialize`."""
        return {"cron": self._expression, **_as_json(self.cadence)}

    def _decode_partition_date(self, partition_key: str) -> datetime:
        return _start_of(self.cadence, partition_key)

    def _get_partition_date(self, *, run_date: DateTime) -> DateTime:
        return _start_of(self.cadence, self.cadence.last_ended(run_date))

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterable[DagRunInfo]:
        """The partitions of a backfill: those of the range with a tick while the one after it lasts."""
        first, last = (
            self.cadence.key_of(self.localize_partition_datetime(bound)) for bound in (earliest, latest)
        )
        return _runs(self.cadence, self._ticking(first, last))

    def _ticking(self, first: str, last: str) -> Iterator[str]:
        tick = self._align_to_next(instance(self.cadence.end_of(first)))
        previous = ""
        while (key := self.cadence.last_ended(tick)) <= last:
            if key != previous:
                yield key
            previous = key
            tick = self._get_next(tick)


class DailyPartitions(EndedPartitions):
    """`EndedPartitions` under the name that it has in DAGs which earlier versions serialised."""


class PublishedPartitions(PartitionedAssetTimetable):
    """Each partition of an asset when it is published; any range of partitions in a backfill."""

    description = "Each partition when it is published"
    periodic = True  # Airflow offers backfills for periodic timetables only
    cadence = DAILY

    @classmethod
    def of(cls, asset: Asset, cadence: Cadence = DAILY) -> PublishedPartitions:
        """The timetable of the partitions of ``asset``, with the same keys."""
        # Airflow takes the SDK's objects here, although the annotations say otherwise
        timetable = cls(assets=cast(Any, asset), default_partition_mapper=same_key(cadence))
        timetable.cadence = cadence
        return timetable

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> PartitionedAssetTimetable:
        """The timetable of what `serialize` returned."""
        timetable = cast(PublishedPartitions, super().deserialize(data))
        timetable.cadence = _from_json(data)
        return timetable

    def serialize(self) -> dict[str, Any]:
        """Airflow's own form, and the cadence."""
        return {**super().serialize(), **_as_json(self.cadence)}

    @property
    def summary(self) -> str:
        """The schedule as the UI's list of DAGs shows it."""
        return "Each partition"

    def localize_partition_datetime(self, dt: datetime) -> DateTime:
        """What a bound of a range means: Airflow's forms give dates as UTC. The cron timetable does the same."""
        return instance(dt.replace(tzinfo=ZoneInfo(self.cadence.zone)))

    def _decode_partition_date(self, partition_key: str) -> datetime:
        return _start_of(self.cadence, partition_key)

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterable[DagRunInfo]:
        """The partitions of a backfill: every one of the range."""
        first, last = (
            self.cadence.key_of(self.localize_partition_datetime(bound)) for bound in (earliest, latest)
        )
        return _runs(self.cadence, self._keys(first, last))

    def _keys(self, key: str, last: str) -> Iterator[str]:
        while key <= last:
            yield key
            key = self.cadence.shift(key, 1)
