"""The time zone that the times of a sample are written in, by its name in Parquet files or by offsets in texts."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from perennial.cli.new.samples.sample_reader import Sample
from perennial.core import file_formats
from perennial.core.sql import quote_identifier, text_literal
from perennial.feeds import text_casts
from perennial.feeds.text_casts import ISO
from perennial.spec.constraints import check_timezone

__all__ = ["written_zone"]

#: Zones that are tried first, those of many people; of zones with the same offsets the first is taken.
_LIKELY = (
    "Europe/Berlin", "Europe/London", "Europe/Athens", "Europe/Istanbul", "America/New_York", "America/Chicago",
    "America/Denver", "America/Los_Angeles", "America/Sao_Paulo", "America/Mexico_City", "Asia/Kolkata",
    "Asia/Shanghai", "Asia/Tokyo", "Asia/Dubai", "Asia/Jakarta", "Asia/Karachi", "Asia/Dhaka", "Australia/Sydney",
    "Africa/Lagos", "Africa/Johannesburg", "Africa/Nairobi", "Pacific/Auckland",
)  # fmt: skip
#: An offset in hours and minutes after a time of day; a date such as 2024-01-05 does not end with one.
_OFFSET = "[0-9:.,] ?([+-][0-9]{2}(?::?[0-9]{2})?)$"
_AFTER_TIME = ":[0-9:.]*[0-9] ?([+-][0-9]{2}(?::?[0-9]{2})?)$"


def written_zone(sample: Sample, column: str, rows: int | None = None) -> str:
    """The IANA name of the zone that a column's times are written in; UTC if it is UTC, none, or cannot be told.

    Args:
        sample: the sample.
        column: a column of times.
        rows: how many rows are looked at; all of them when not given.
    """
    if file_formats.is_text(sample.files[0].uri):
        return _zone_of_texts(sample, column, rows)
    kind = pq.read_schema(sample.files[0].path).field(column).type
    name = kind.tz if pa.types.is_timestamp(kind) else None
    if not name:
        return "UTC"
    if re.fullmatch(r"[+-][0-9]{2}:?[0-9]{2}", name):
        return _fitting({(_minutes(name), dt.datetime(2024, month, 1, tzinfo=dt.UTC)) for month in (1, 7)})
    try:
        return "UTC" if name in ("Etc/UTC", "GMT", "Z", "Zulu") else check_timezone(name)
    except ValueError:
        return "UTC"


def _zone_of_texts(sample: Sample, column: str, rows: int | None) -> str:
    """The zone that fits the offsets of a column's texts on the first and last time of each day."""
    formats = sample.text_format.dates_of(column)
    if not all(f == ISO or "%z" in f for f in formats):
        return "UTC"
    cell = quote_identifier(column)
    pattern = _AFTER_TIME if ISO in formats else _OFFSET
    paths = ", ".join(text_literal(str(file.path)) for file in sample.files)
    moment = text_casts.cast_sql(cell, "timestamp", sample.text_format, column)
    observed = sample.query(
        f"SELECT __offset, min(__moment), max(__moment) FROM (SELECT {moment} AS __moment, "
        f"regexp_extract(trim({cell}), {text_literal(pattern)}, 1) AS __offset "
        f"FROM read_parquet([{paths}], union_by_name=true, hive_partitioning=false){f' LIMIT {rows}' if rows else ''}) "
        "WHERE __moment IS NOT NULL GROUP BY __offset, __moment::DATE"
    )
    if not observed or any(not offset for offset, _, _ in observed):
        return "UTC"
    return _fitting(
        {
            (_minutes(offset), moment.replace(tzinfo=dt.UTC))
            for offset, *moments in observed
            for moment in moments
        }
    )


def _minutes(offset: str) -> int:
    digits = offset[1:].replace(":", "").ljust(4, "0")
    return (int(digits[:2]) * 60 + int(digits[2:])) * (-1 if offset[0] == "-" else 1)


def _fitting(observed: set[tuple[int, dt.datetime]]) -> str:
    """The first zone with these offsets in minutes at these moments; UTC if there is none."""
    if all(minutes == 0 for minutes, _ in observed):
        return "UTC"
    regions = (
        "Africa/",
        "America/",
        "Asia/",
        "Atlantic/",
        "Australia/",
        "Europe/",
        "Indian/",
        "Pacific/",
        "Etc/",
    )
    others = sorted(name for name in zoneinfo.available_timezones() if name.startswith(regions))
    return next((name for name in (*_LIKELY, *others) if _fits(name, sorted(observed))), "UTC")


def _fits(name: str, observed: Sequence[tuple[int, dt.datetime]]) -> bool:
    try:
        zone = zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return False
    return all(moment.astimezone(zone).utcoffset() == dt.timedelta(minutes=m) for m, moment in observed)
