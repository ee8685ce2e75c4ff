"""The landed sample: real flights as a nightly feed would bring them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from perennial.core.errors import StorageError
from perennial.local_stack.sample import landing

FLIGHTS_OF_2013 = 336_776


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a feed")
    done = landing.land_sample(str(folder))
    assert done.rows > FLIGHTS_OF_2013
    return folder


def one(query: str) -> tuple[object, ...]:
    (row,) = duckdb.connect().execute(query).fetchall()
    return row


def test_every_flight_lands_once_on_its_departure_date(landed: Path) -> None:
    assert len(list((landed / "flights").iterdir())) == len(list((landed / "arrivals").iterdir())) == 365
    flights = f"'{landed}/flights/*.parquet'"
    assert one(f"SELECT count(*), count(DISTINCT flight_id) FROM {flights}") == (
        FLIGHTS_OF_2013,
        FLIGHTS_OF_2013,
    )
    named = f"read_parquet({flights}, filename = true)"
    assert one(f"SELECT count(*) FROM {named} WHERE NOT contains(filename, flight_date::VARCHAR)") == (0,)


def test_nothing_known_after_departure_is_in_the_flights_feed(landed: Path) -> None:
    columns = pq.read_schema(landed / "flights" / "2013-02-03.parquet").names
    assert columns == [
        "flight_id", "flight_date", "scheduled_departure", "hour", "minute", "carrier", "flight", "tailnum", "origin",
        "dest", "distance", "sched_arr_time",
    ]  # fmt: skip


def test_arrivals_agree_with_flights(landed: Path) -> None:
    joined = f"'{landed}/flights/*.parquet' f JOIN '{landed}/arrivals/*.parquet' a USING (flight_id)"
    rows, arrivals, known = one(f"SELECT count(*), count(arrived), count(arr_delay) FROM {joined}")
    assert rows == FLIGHTS_OF_2013
    assert arrivals == known == 327_346  # the others were cancelled or diverted
    # half an hour to Philadelphia, twelve and a half hours to Honolulu
    low, high = one(
        f"SELECT min(m), max(m) FROM (SELECT epoch(arrived - scheduled_departure) / 60 - dep_delay m FROM {joined})"
    )
    assert 20 < low < 60 and 600 < high < 780  # type: ignore[operator]


def test_departure_is_the_local_schedule_in_utc(landed: Path) -> None:
    for month, offset in (("01", 19), ("07", 20)):  # New York is five hours behind in winter, four in summer
        files = f"'{landed}/flights/2013-{month}-*.parquet'"
        wrong = f"(hour(scheduled_departure) + {offset}) % 24 <> hour % 24"
        assert one(f"SELECT count(*) FROM {files} WHERE {wrong}") == (0,)


def test_reference_tables(landed: Path) -> None:
    assert one(f"SELECT count(*), count(DISTINCT (origin, observed_at)) FROM '{landed}/weather.parquet'") == (
        26_115,
        26_115,
    )
    assert one(f"SELECT count(*), count(DISTINCT tailnum) FROM '{landed}/planes.parquet'") == (3_322, 3_322)


def test_digits_of_another_shape(landed: Path) -> None:
    assert len(list((landed / "digits").iterdir())) == 30
    counts = "count(*), count(DISTINCT sample_id), count(DISTINCT digit)"
    assert one(f"SELECT {counts} FROM '{landed}/digits/*.parquet'") == (1_797, 1_797, 10)


def test_landing_again_changes_nothing(landed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in landed.rglob("*.parquet")}
    assert landing.land_sample(str(landed)) == landing.LandedSample(0, 0)
    assert {path: path.stat().st_mtime_ns for path in landed.rglob("*.parquet")} == before


def test_a_slice_is_the_same_as_in_the_whole(landed: Path, tmp_path: Path) -> None:
    landing.land_sample(str(tmp_path), "2013-03-01", "2013-03-02")
    assert sorted(p.name for p in (tmp_path / "flights").iterdir()) == [
        "2013-03-01.parquet",
        "2013-03-02.parquet",
    ]
    for name in ("flights/2013-03-02.parquet", "arrivals/2013-03-01.parquet"):
        assert (tmp_path / name).read_bytes() == (landed / name).read_bytes()


def test_no_half_written_file_stays_behind(landed: Path) -> None:
    assert [p.name for p in landed.rglob(".*") if p.is_file()] == []


def test_a_landing_area_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "landing").write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"cannot be (written|read)"):
        landing.land_sample(str(tmp_path / "landing"), "2013-03-01", "2013-03-01")


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match="make setup"):
        landing.source()
