"""Where a sample has the time of its rows' events: columns of times, and what times can be composed of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np

from perennial.cli.new.samples.sample_reader import COLUMNS_PER_QUERY, Sample, SampleColumn
from perennial.core.sql import quote_identifier, text_literal

__all__ = ["TimeSource", "on_clock", "time_sources"]

#: The lowest number that is a year; those of months, serial dates and epochs are higher.
EARLIEST_YEAR = 1500
#: Microseconds of a day.
_DAY = 86_400_000_000
_EVENT_NAMES = re.compile(
    r"(?i)(^|[^a-z])(date|datetime|time|timestamp|ts|day|dt|when|created|ordered|sold|observed|recorded|measured|event|"
    r"period|month|week|year|datum|zeit|fecha|jour|on|at)([^a-z]|$)"
)
_BIRTH_NAMES = re.compile(r"(?i)birth|born|dob([^a-z]|$)|geburt|naissance|nacimiento")
_OTHER_NAMES = re.compile(
    r"(?i)(^|[^a-z])(updated?|modified|changed|due|end(ed)?|expir\w*|until|valid|deliver\w*|ship\w*|clos\w*|return\w*|last|"
    r"prev\w*|next|built|since|joined|hired?|registered|founded|renew\w*)([^a-z]|$)"
)
_YEAR = re.compile(r"(?i)(^|[^a-z])(year|yr|yyyy|jahr|ann[eé]e|año|time|date|period|t)([^a-z]|$)")
_MONTH_NAMES = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTHS = {text: i + 1 for i, name in enumerate(_MONTH_NAMES) for text in (name, name[:3])}


@dataclass(frozen=True)
class TimeSource:
    """Where the time of a row's event can be read.

    Attributes:
        text: a name for it: the column, or ``year, month``.
        sql: SQL of the moment, over the sample's columns.
        column: the column, if it can be ``data.event_time``; otherwise None.
        nulls: rows without one.
        days: number of different dates.
        first: the first date.
        last: the last date.
        gap: median number of days between one date and the next.
        score: how plausible it is.
        zone: IANA name of the zone whose clock shows the time and the dates.
    """

    text: str
    sql: str
    column: str | None
    nulls: int
    days: int
    first: date
    last: date
    gap: float
    score: float
    zone: str = "UTC"

    @property
    def local(self) -> str:
        """SQL of what the clock of the zone shows at the moment."""
        return on_clock(self.sql, self.zone)

    def in_zone(self, sample: Sample, zone: str) -> TimeSource:
        """The same moments, with the dates of a zone."""
        examined = _examine(sample, self.text, on_clock(self.sql, zone), self.column)
        return replace(examined or self, sql=self.sql, zone=zone)


def on_clock(moment: str, zone: str) -> str:
    """SQL of what the clock of a zone shows at a moment in UTC."""
    return moment if zone == "UTC" else f"{moment} AT TIME ZONE 'UTC' AT TIME ZONE {text_literal(zone)}"


def time_sources(sample: Sample) -> list[TimeSource]:
    """The columns that can be the time of a row's event, the most plausible first.

    Columns of dates and times; only if there is none with two dates, also what dates can be composed of: a year, with
    month and day, or integers such as 20240501 and seconds since 1970.
    """
    columns = [c for c in sample.columns.values() if c.kind in ("date", "timestamp")]
    candidates = [(c.name, f"{quote_identifier(c.name)}::TIMESTAMP", c.name) for c in columns]
    sources = [s for s in (_examine(sample, *c) for c in candidates) if s]
    if not any(s.days > 1 for s in sources):
        sources += [s for s in (_examine(sample, *c) for c in _composed(sample)) if s and s.days > 1]
    return sorted(sources, key=lambda s: -s.score)


def _examine(sample: Sample, text: str, sql: str, column: str | None) -> TimeSource | None:
    """Statistics of a time; None if it has none in at least half of the rows."""
    moment = f"CASE WHEN isfinite({sql}) THEN {sql} END"
    query = sample.resolve(f"SELECT epoch_us({moment}) AS __time FROM __rows")
    # in the order of the rows, which DuckDB keeps
    cells = np.ma.masked_array(sample.con.execute(query).fetchnumpy()["__time"])
    filled = ~np.ma.getmaskarray(cells)
    nulls, times = int((~filled).sum()), cells.compressed().astype(np.int64)
    if not len(times) or nulls > sample.row_count / 2:
        return None
    low, high = (day.toordinal() - date(1970, 1, 1).toordinal() for day in (date.min, date.max))
    days = np.unique(np.clip(times // _DAY, low, high))
    gap = float(np.median(np.diff(days))) if len(days) > 1 else 0.0
    # where a row and the one before have a time
    values = cells.filled(0)
    increasing = (values[1:] >= values[:-1])[filled[1:] & filled[:-1]]
    score = 3.0 * bool(_EVENT_NAMES.search(_words(text))) - 6 * bool(_BIRTH_NAMES.search(text))
    score += (
        -2 * bool(_OTHER_NAMES.search(_words(text))) - 6 * (len(days) == 1) - 5 * nulls / sample.row_count
    )
    score += 2 * (len(increasing) > 0 and float(increasing.mean()) > 0.95) + (
        column is not None and sample.columns[column].kind == "timestamp"
    )
    first, last = (date(1970, 1, 1) + timedelta(days=int(day)) for day in days[[0, -1]])
    return TimeSource(text, moment, column, nulls, len(days), first, last, gap, score)


def _words(name: str) -> str:
    """A name with its words apart: ``orderDate`` becomes ``order Date``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ")


def _composed(sample: Sample) -> Iterator[tuple[str, str, None]]:
    """Text and SQL of times that several columns, or integers, give."""
    late = [c for c in sample.columns.values() if c.low is not None and c.low >= EARLIEST_YEAR]
    whole_numbers = _whole_numbers(sample, late)
    whole = [c for c in late if c.name in whole_numbers]
    years = [c for c in whole if (c.high or 0) <= 2200 and _YEAR.search(_words(c.name))]
    part = {
        word: next((c for c in sample.columns.values() if _is_part(c, word, limit)), None)
        for word, limit in (("quarter", 4), ("month", 12), ("day", 31), ("hour", 24))
    }
    for year in years:
        names, month, day = [year.name], "1", "1"
        if month_column := part["month"] or part["quarter"]:
            cell = quote_identifier(month_column.name)
            month = _month_number(month_column, cell) if part["month"] else f"{cell} * 3 - 2"
            names.append(month_column.name)
            if part["month"] and (day_column := part["day"]):
                day = quote_identifier(day_column.name)
                names.append(day_column.name)
        cells = [f"({cell})::BIGINT" for cell in (quote_identifier(year.name), month, day)]
        moment = f"TRY(make_date({', '.join(cells)}))::TIMESTAMP"
        if len(names) == 3 and (hour_column := part["hour"]):
            moment = f"({moment} + to_hours(({quote_identifier(hour_column.name)})::BIGINT))"
            names.append(hour_column.name)
        yield ", ".join(names), moment, None
    for column in whole:
        cell, low, high = f"{quote_identifier(column.name)}::BIGINT", column.low or 0, column.high or 0
        if low >= 19000101 and high <= 21001231:
            yield column.name, f"try_strptime(({cell})::VARCHAR, '%Y%m%d')", None
        elif low >= 190001 and high <= 210012 and re.search(r"(?i)month|period|date|yyyymm|ym", column.name):
            yield column.name, f"try_strptime(({cell})::VARCHAR || '01', '%Y%m%d')", None
        elif re.search(r"(?i)date|day|serial", column.name) and (low >= 30_000 and high <= 60_000):
            yield column.name, f"(DATE '1899-12-30' + ({cell})::INTEGER)::TIMESTAMP", None
        elif re.search(r"(?i)date|ordinal", column.name) and (low >= 690_000 and high <= 760_000):
            yield column.name, f"(DATE '0001-01-01' + ({cell} - 1)::INTEGER)::TIMESTAMP", None
        elif re.search(r"(?i)time|date|epoch|stamp|created|unix|^ts$|_ts$", column.name):
            for unit in (1, 1000, 1_000_000):
                if 1e8 * unit <= low and high <= 2.3e9 * unit:
                    yield column.name, f"make_timestamp(({cell}) * {1_000_000 // unit})", None


def _whole_numbers(sample: Sample, columns: list[SampleColumn]) -> set[str]:
    """The columns whose values are whole numbers."""
    result = {c.name for c in columns if c.kind == "integer"}
    numbers = [c.name for c in columns if c.kind == "number"]
    for i in range(0, len(numbers), COLUMNS_PER_QUERY):
        some = numbers[i : i + COLUMNS_PER_QUERY]
        conditions = ", ".join(f"bool_and({(cell := quote_identifier(n))} = floor({cell}))" for n in some)
        (row,) = sample.query(f"SELECT {conditions} FROM __rows")
        result |= {name for name, whole in zip(some, row, strict=True) if whole}
    return result


def _is_part(column: SampleColumn, word: str, limit: int) -> bool:
    """Whether a column is the month of a date, for example."""
    words = {
        "month": "month|mon|monat|mois|mes",
        "day": "day|dom|mday|tag|jour",
        "quarter": "quarter|qtr|q",
        "hour": "hour|hr",
    }
    if not re.fullmatch(rf"(?i)(.*[^a-z])?({words[word]})([^a-z]*)", _words(column.name)):
        return False
    if column.kind == "string" and word == "month":
        return bool(column.values) and all(str(v).strip().lower() in _MONTHS for v in column.values)
    return column.low is not None and column.low >= (word != "hour") and (column.high or 0) <= limit


def _month_number(column: SampleColumn, cell: str) -> str:
    if column.kind != "string":
        return cell
    names = ", ".join(f"{text_literal(name)}: {number}" for name, number in _MONTHS.items())
    return f"(MAP {{{names}}})[lower(trim({cell}))]"
