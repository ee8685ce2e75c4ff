"""The feature set of the flights: the weather that was known, of each row by itself."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa

from perennial.features.engine import FeatureQuery
from perennial.spec import catalog
from perennial.storage import landing
from support import toys

NOON = dt.datetime(2013, 1, 10, 12)
WEATHER = ("temp", "dewp", "humid", "wind_speed", "pressure", "visib", "precip")


def hours(count: float) -> dt.datetime:
    return NOON + dt.timedelta(hours=count)


def test_weather_is_the_latest_that_was_known_and_not_two_days_old(empty_home: Path) -> None:
    observed = {"JFK": [-100, 0, 1, 2, 200], "LGA": [0], "EWR": []}
    rows = [(origin, hours(h), float(h)) for origin, found in observed.items() for h in found]
    weather = {"origin": [r[0] for r in rows], "observed_at": [r[1] for r in rows]}
    toys.write(
        landing.source_uri("{landing}/weather.parquet"),
        pa.table(weather | {name: [r[2] for r in rows] for name in WEATHER}),
    )
    toys.write(
        landing.source_uri("{landing}/planes.parquet"),
        pa.table({"tailnum": ["N1"], "year": [2003], "seats": [150]}),
    )
    wanted = [
        ("JFK", 2.0, 0.0),  # on the hour: what is observed two hours before counts
        ("JFK", 3.9, 1.0),
        ("JFK", 40, 2.0),
        ("JFK", 51.9, 2.0),
        ("JFK", 52, None),  # what is known is two days old
        ("JFK", 1.9, None),
        ("JFK", 202, 200.0),
        ("LGA", 30, 0.0),
        ("EWR", 3, None),
        ("JFK", -99, None),
    ]
    spec = catalog.load_model_by_name("flight_late")
    flights = pa.Table.from_pylist(
        [
            {
                "flight_id": str(i), "flight_date": hours(h).date(), "scheduled_departure": hours(h), "hour": 1,
                "minute": 1, "carrier": "UA", "flight": 1, "tailnum": ("N1", "N2", None)[i % 3], "origin": origin,
                "dest": "SFO", "distance": 1, "sched_arr_time": 1,
            }
            for i, (origin, h, _) in enumerate(wanted)
        ]
    )  # fmt: skip
    features = FeatureQuery(spec)
    found = features.compute(flights)
    assert found["temp"].to_pylist() == [t for *_, t in wanted]
    assert found["precip"].to_pylist() == found["temp"].to_pylist()
    assert found["plane_age"].to_pylist() == [(10, None, None)[i % 3] for i in range(len(wanted))]
    alone = [features.compute(flights.slice(i, 1)).to_pylist()[0] for i in range(len(flights))]
    assert alone == found.to_pylist()
