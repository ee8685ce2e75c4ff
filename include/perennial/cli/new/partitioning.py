"""Divide a sample into partitions: by the names of its files, a time, a column, or at random; and land them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.cli.new.file_writer import file_bytes
from perennial.cli.new.samples import file_names
from perennial.cli.new.samples.event_times import TimeSource
from perennial.cli.new.samples.sample_reader import Sample
from perennial.core.errors import PerennialError, SpecError
from perennial.core.partitions import DAILY, KEY_FORMATS, MAX_PARTITIONS, WEEKDAYS, Cadence, Unit
from perennial.core.sql import quote_identifier, text_literal
from perennial.storage import landing, object_store

__all__ = [
    "Partitions", "cadence_of", "divide", "hours", "land", "suggest_cadence", "untimely",
]  # fmt: skip

#: Partitions of a table that has no dates: enough for a hold-out and its baseline, each with some rows.
FEWEST_PARTITIONS, MOST_PARTITIONS, ROWS_PER_PARTITION = 20, 40, 50
#: Median of days between two dates above which not even months are its partitions.
MONTHLY_GAP = 100
#: Most days of events that are so few partitions that hours are suggested.
MOST_HOURLY_DAYS = 7
#: Share of hours with an event from which a feed may be one of hours: it does not pause at night.
HOURLY_SHARE = 0.8
#: Files that are written to the landing area at a time, and bytes of those that wait for it, unless one has more.
WRITERS, WAITING_BYTES = 16, 64 * 2**20
#: Cells of the partitions that are written in one pass over the files.
CELLS_PER_PASS = 10_000_000
#: Share of rows without a time, or too late for their partition, with which a column can be the event time.
UNTIMELY_SHARE = 0.01

#: An order of the rows that is random, and the same each time.
_SHUFFLED = "md5(concat_ws('-', __file, __row)), __file, __row"


@dataclass(frozen=True)
class Partitions:
    """How the rows of a sample are divided; a query of ``__dated`` has the partition of each as ``__day``.

    Attributes:
        by: what divides them. ``order``: a time or a column, whose values are in order, but are not the partitions'
            dates.
        column: the time, or the column.
        counts: number of rows of each partition, by date, in order.
        as_they_are: whether each file is one partition.
        cadence: how long a partition is.
    """

    by: Literal["names", "time", "order", "random"]
    column: str | None
    counts: dict[str, int]
    as_they_are: bool = False
    cadence: Cadence = DAILY

    @property
    def has_gaps(self) -> bool:
        """Whether partitions are missing between the first and the last."""
        return self.dated and len(self.cadence.range(min(self.counts), max(self.counts))) > len(self.counts)

    @property
    def dated(self) -> bool:
        """Whether the partitions have the dates of the sample's events."""
        return self.by in ("names", "time")


def divide(
    sample: Sample,
    *,
    source: TimeSource | None = None,
    column: str | None = None,
    count: int | None = None,
    at_random: bool = False,
    cadence: Cadence | None = None,
) -> Partitions:
    """Divide the rows into partitions.

    Args:
        sample: the sample.
        source: the time of the rows.
        column: the column by whose values, in order, they are divided.
        count: number of partitions, unless they have dates of their own.
        at_random: divide them at random, whatever else there is.
        cadence: how long a partition of dated events is; None: as long as their times suggest.
    """
    if sample.names and not (column or at_random):
        days = ", ".join(text_literal(day) for day in sample.names.days)
        counts = _assign(sample, f"SELECT __file, __row, ([{days}])[__file + 1] AS __day FROM __rows")
        one_each = sample.names.template is not None
        cadence = replace(sample.names.cadence, timezone=source.zone if source else "UTC")
        return Partitions("names", None, counts, one_each, cadence)
    count = min(sample.row_count, count or _partition_count(sample.row_count))
    if source and not (column or at_random):
        cadence = cadence or suggest_cadence(sample, source)
        if cadence and cadence.key_of(source.last) <= cadence.latest():
            return Partitions("time", source.text, _by_time(sample, source, cadence), cadence=cadence)
        return Partitions("order", source.text, _in_order(sample, source.sql, count))
    if column:
        return Partitions("order", column, _in_order(sample, quote_identifier(column), count))
    number = f"row_number() OVER (ORDER BY {_SHUFFLED})"
    return Partitions("random", None, _by_number(sample, f"({number} - 1) % {count}", count))


def suggest_cadence(sample: Sample, source: TimeSource) -> Cadence | None:
    """How long a partition of events is, by their times; None if these are too far apart even for months."""
    if source.gap > MONTHLY_GAP:
        return None
    if source.days <= MOST_HOURLY_DAYS:
        count, share = hours(sample, source)
        if count >= FEWEST_PARTITIONS and share >= HOURLY_SHARE:
            return Cadence("hour", timezone=source.zone)
    return replace(file_names.suggest_cadence(_dates(sample, source)), timezone=source.zone)


def cadence_of(sample: Sample, source: TimeSource, unit: Unit) -> Cadence:
    """The cadence of a unit; weeks begin on the weekday that all events have, if there is one.

    Raises:
        SpecError: the events are in too many partitions of this unit.
    """
    weekdays = {day.weekday() for day in _dates(sample, source)} if unit == "week" else set()
    starts = WEEKDAYS[weekdays.pop()] if len(weekdays) == 1 else "monday"
    cadence = Cadence(unit, starts, source.zone)
    first, last = (cadence.key_of(day) for day in (source.first, source.last))
    if (count := len(cadence.range(first, last))) > MAX_PARTITIONS[unit]:
        raise SpecError(
            f"{source.text} is from {source.first} to {source.last}: {count:,} {unit}s, and a range has at most "
            f"{MAX_PARTITIONS[unit]:,}",
            "give a longer unit with --every, or a sample of fewer years",
        )
    return cadence


def hours(sample: Sample, source: TimeSource) -> tuple[int, float]:
    """The number of hours with an event, and their share of all from the first to the last."""
    ((count, span),) = sample.query(
        "SELECT count(DISTINCT __hour), date_diff('hour', min(__hour), max(__hour)) + 1 "
        f"FROM (SELECT date_trunc('hour', {source.sql}) AS __hour FROM __rows)"
    )
    return int(count), count / span


def _dates(sample: Sample, source: TimeSource) -> list[date]:
    rows = sample.query(
        f"SELECT DISTINCT ({source.local})::DATE FROM __rows WHERE ({source.sql}) IS NOT NULL"
    )
    return [day for (day,) in rows]


def _by_time(sample: Sample, source: TimeSource, cadence: Cadence) -> dict[str, int]:
    """Divide rows by the partition that their event is in; without a time they are in the first one."""
    # hours are those of UTC in each zone
    moment = source.sql if cadence.unit == "hour" else source.local
    day = f"coalesce({moment}, TIMESTAMP '{source.first}')"
    day += "" if cadence.unit == "hour" else "::DATE"
    if cadence.unit == "week":
        offset = WEEKDAYS.index(cadence.week_starts)
        day = f"({day} - ((isodow({day}) + {6 - offset}) % 7)::INTEGER)"
    key = f"strftime({day}, '{KEY_FORMATS[cadence.unit]}')"
    return _assign(sample, f"SELECT __file, __row, {key} AS __day FROM __rows")


def _partition_count(rows: int) -> int:
    return min(MOST_PARTITIONS, max(FEWEST_PARTITIONS, rows // ROWS_PER_PARTITION))


def _in_order(sample: Sample, sql: str, count: int) -> dict[str, int]:
    """Divide rows by a value: a lower one is never later; equal ones stay together, unless there are few values."""
    ((values,),) = sample.query(f"SELECT count(DISTINCT {sql}) FROM __rows")
    order, rank = f"{sql} NULLS FIRST", "rank()"
    if values < min(FEWEST_PARTITIONS, count):
        order, rank = f"{order}, {_SHUFFLED}", "row_number()"
    number = f"(({rank} OVER (ORDER BY {order}) - 1) * {count}) // {sample.row_count}"
    parts = f"SELECT __file, __row, {number} AS __part FROM __rows"
    # without those that nothing falls into
    dense = f"SELECT __file, __row, dense_rank() OVER (ORDER BY __part) - 1 AS __part FROM ({parts})"
    ((used,),) = sample.query(f"SELECT max(__part) + 1 FROM ({dense})")
    return _assign(sample, f"SELECT __file, __row, {_day_of('__part', int(used))} AS __day FROM ({dense})")


def _by_number(sample: Sample, number: str, count: int) -> dict[str, int]:
    return _assign(
        sample,
        f"SELECT __file, __row, {_day_of('__part', count)} AS __day FROM (SELECT __file, __row, {number} AS __part "
        "FROM __rows)",
    )


def _day_of(number: str, count: int) -> str:
    """SQL of the date of a partition: the last one is yesterday's."""
    first = datetime.now(UTC).date() - timedelta(days=count)
    return f"(DATE '{first}' + ({number})::INTEGER)::VARCHAR"


def _assign(sample: Sample, sql: str) -> dict[str, int]:
    """Create the partitions of the rows, ``__days``; returns the number of rows of each."""
    sample.con.execute(f"CREATE OR REPLACE TEMP TABLE __days AS {sample.resolve(sql)}")
    return dict(sample.query("SELECT __day, count(*) FROM __days GROUP BY 1 ORDER BY 1"))


def untimely(sample: Sample, partitions: Partitions, source: TimeSource) -> int:
    """The number of rows that the data step would not accept with this event time: none, or too late."""
    keys = list(partitions.counts)
    limits = [f"TIMESTAMP '{partitions.cadence.event_limit(key)}'" for key in keys]
    sample.con.execute(
        f"CREATE OR REPLACE TEMP TABLE __limits AS SELECT unnest([{', '.join(map(text_literal, keys))}]) AS __day, "
        f"unnest([{', '.join(limits)}]) AS __limit"
    )
    query = f"SELECT count(*) FILTER (coalesce({source.sql} >= __limit, TRUE)) FROM __dated JOIN __limits USING (__day)"
    return int(sample.query(query)[0][0])


def land(sample: Sample, partitions: Partitions, template: str) -> int:
    """Copy a sample to the landing area, each partition as one file.

    Args:
        sample: the sample.
        partitions: how its rows are divided.
        template: path template of the feed.

    Returns:
        The number of partitions.

    Raises:
        PerennialError: other files are there already; nothing was written.
    """
    template = landing.source_uri(template)
    if present := sorted({*landing.list_landed(template, partitions.cadence)} & {*partitions.counts}):
        for day, content in _contents(sample, partitions, present):
            uri = landing.source_uri(template, day)
            if object_store.read_bytes(uri) != content:
                raise PerennialError(
                    f"{uri} exists already, with other content", "choose another name, or --no-land"
                )
    missing = [day for day in partitions.counts if day not in present]
    contents = _contents(sample, partitions, missing)
    # In parallel, because each write waits for the disk, or for S3.
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="land") as pool:
        for some in _batches(contents):
            for _ in pool.map(
                lambda file: object_store.write_bytes(landing.source_uri(template, file[0]), file[1]), some
            ):
                pass
    return len(partitions.counts)


def _batches(contents: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """The files in lists that have at most `WAITING_BYTES`, or one file."""
    some, waiting = list[tuple[str, bytes]](), 0
    for file in contents:
        if some and waiting + len(file[1]) > WAITING_BYTES:
            yield some
            some, waiting = [], 0
        some.append(file)
        waiting += len(file[1])
    if some:
        yield some


def _contents(sample: Sample, partitions: Partitions, days: list[str]) -> Iterator[tuple[str, bytes]]:
    """The file of each of some partitions."""
    if partitions.as_they_are and sample.names:
        for day, path in zip(sample.names.days, sample.paths, strict=True):
            if day in days:
                yield day, path.read_bytes()
    else:
        yield from _split(sample, list(partitions.counts), {*days})


def _split(sample: Sample, days: list[str], wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """One file for each partition, with all columns of the sample's files, in the rows' order."""
    numbers = [_numbers(sample, file, days) for file in range(len(sample.files))]
    counts = np.bincount(np.concatenate(numbers), minlength=len(days))
    per_pass = max(1, CELLS_PER_PASS // max(1, len(sample.files[0].columns)))
    low = 0
    while low < len(days):
        high, rows = low + 1, counts[low]
        while high < len(days) and rows + counts[high] <= per_pass:
            rows += counts[high]
            high += 1
        if wanted & {*days[low:high]}:
            table, number = _rows_between(sample, numbers, low, high)
            table, start = table.take(np.argsort(number, kind="stable")), 0
            for i in range(low, high):
                if days[i] in wanted:
                    yield (
                        days[i],
                        file_bytes(table.slice(start, counts[i]), sample.suffix, sample.text_format),
                    )
                start += counts[i]
        low = high


def _numbers(sample: Sample, file: int, days: list[str]) -> np.ndarray[Any, Any]:
    """The position of each row's partition in ``days``, in the order of the file."""
    texts = sample.con.execute(f"SELECT __day FROM __days WHERE __file = {file} ORDER BY __row").fetchnumpy()[
        "__day"
    ]
    return np.searchsorted(np.array(days), np.asarray(texts, dtype=str))


def _rows_between(
    sample: Sample, numbers: list[np.ndarray[Any, Any]], low: int, high: int
) -> tuple[pa.Table, np.ndarray[Any, Any]]:
    """The rows of some partitions, and the number of each row's partition."""
    tables, selected = [], []
    for file, number in zip(sample.files, numbers, strict=True):
        start = 0
        with pq.ParquetFile(file.path) as reader:
            for group in range(reader.num_row_groups):
                within = number[start : start + reader.metadata.row_group(group).num_rows]
                start += len(within)
                mask = (within >= low) & (within < high)
                if mask.any():
                    tables.append(reader.read_row_group(group, use_threads=False).filter(pa.array(mask)))
                    selected.append(within[mask])
    # Of several files: columns with one name in one file cannot be told apart.
    promote: Literal["none", "permissive"] = "none" if len(sample.files) == 1 else "permissive"
    return pa.concat_tables(tables, promote_options=promote), np.concatenate(selected)
