"""How a sample is divided into partitions, and which columns are its time."""

from __future__ import annotations

import datetime as dt
import gzip
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.cli.new import partitioning
from perennial.cli.new.samples import event_times, file_names, sample_reader
from perennial.cli.new.samples.sample_reader import Sample
from perennial.core.errors import PerennialError
from perennial.core.partitions import Cadence
from perennial.storage import landing
from support.scaffolds import write


def yesterday() -> str:
    return (dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)).isoformat()


@contextmanager
def opened(folder: Path, *tables: pa.Table, names: list[str] | None = None) -> Iterator[Sample]:
    paths = [
        write(folder / (names[i] if names else f"part{i}.parquet"), table) for i, table in enumerate(tables)
    ]
    with sample_reader.open_sample(paths, str(folder / "landing")) as sample:
        yield sample


def days(n: int, start: str = "2024-01-01", step: int = 1) -> list[dt.date]:
    return [dt.date.fromisoformat(start) + dt.timedelta(days=i * step) for i in range(n)]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"birth_date": days(60, "1950-03-01", 97), "ordered_at": days(60)}, "ordered_at"),
        ({"updated_at": days(60), "created_at": days(60)}, "created_at"),
        ({"due": days(60, "2024-02-01"), "when": days(60)}, "when"),
        ({"shipDate": days(60), "orderDate": days(60)}, "orderDate"),
        ({"a": [*days(20), *[None] * 40], "b": days(60)}, "b"),
        ({"snapshot_date": days(1) * 60, "b": days(60)}, "b"),
        ({"b": days(60, "2024-03-01", -1), "a": days(60)}, "a"),
        ({"year": [2001 + i // 4 for i in range(60)], "quarter": [1 + i % 4 for i in range(60)]}, "year, quarter"),
        ({"Year": [2001] * 60, "Month": [1 + i // 28 for i in range(60)], "Day": [1 + i % 28 for i in range(60)]},
         "Year, Month, Day"),
        ({"year": [2001] * 60, "month": [3] * 60, "day": [1 + i // 24 for i in range(60)],
          "hour": [i % 24 for i in range(60)]}, "year, month, day, hour"),
        ({"yr": [2001.0 + i for i in range(60)]}, "yr"),
        ({"MONTH": ["Jan", "feb", "March"] * 20, "year": [2001 + i // 3 for i in range(60)]}, "year, MONTH"),
        ({"day": [20240101 + i % 28 for i in range(60)]}, "day"),
        ({"period": [202401 + i % 12 for i in range(60)]}, "period"),
        ({"ts": [1_700_000_000 + 3600 * i for i in range(60)]}, "ts"),
        ({"timestamp": [1_700_000_000_000 + 3_600_000 * i for i in range(60)]}, "timestamp"),
        ({"ordinal_date": [736389 + i for i in range(60)]}, "ordinal_date"),
        ({"x": [20240101 + i % 28 for i in range(60)], "at": days(60)}, "at"),
        ({"year": [3, 4, 5] * 20}, None),
        ({"price": [1_700_000_000 + i for i in range(60)]}, None),
    ],
)  # fmt: skip
def test_the_time_of_an_event(
    empty_home: Path, tmp_path: Path, columns: dict[str, Any], chosen: str | None
) -> None:
    with opened(tmp_path, pa.table({"x": list(range(60)), **columns})) as sample:
        sources = event_times.time_sources(sample)
        assert (sources[0].text if sources else None) == chosen


@pytest.mark.parametrize(
    ("columns", "first", "last", "dates"),
    [
        ({"year": [2001 + i // 4 for i in range(60)], "quarter": [1 + i % 4 for i in range(60)]}, "2001-01-01",
         "2015-10-01", 60),
        ({"month": ["feb", "March"] * 30, "year": [2001 + i // 2 for i in range(60)]}, "2001-02-01", "2030-03-01", 60),
        ({"ts": [1_700_000_000 + 86400 * i for i in range(60)]}, "2023-11-14", "2024-01-12", 60),
        ({"ordinal_date": [736389 + i for i in range(60)]}, "2017-03-01", "2017-04-29", 60),
        ({"serial_date": [45292 + i for i in range(60)]}, "2024-01-01", "2024-02-29", 60),
    ],
)  # fmt: skip
def test_a_composed_time_has_the_right_date(
    empty_home: Path, tmp_path: Path, columns: dict[str, Any], first: str, last: str, dates: int
) -> None:
    with opened(tmp_path, pa.table({"x": list(range(60)), **columns})) as sample:
        source = event_times.time_sources(sample)[0]
        assert (str(source.first), str(source.last), source.days) == (first, last, dates)
        assert source.column is None


def test_daily_dates_are_the_partitions(empty_home: Path, tmp_path: Path) -> None:
    with opened(tmp_path, pa.table({"at": [*days(5), *days(5), None], "x": range(11)})) as sample:
        divided = partitioning.divide(sample, source=event_times.time_sources(sample)[0])
        assert (divided.by, divided.dated) == ("time", True)
        assert divided.counts == {f"2024-01-0{i}": 2 + (i == 1) for i in range(1, 6)}


@pytest.mark.parametrize(
    ("times", "partitions"),
    [
        (days(200, "1950-01-01", 365), 20),  # years
        (days(3, "2001-01-01", 365) * 100, 20),  # few dates: equal ones are divided
    ],
)
def test_other_dates_are_an_order(
    empty_home: Path, tmp_path: Path, times: list[dt.date], partitions: int
) -> None:
    with opened(tmp_path, pa.table({"at": times, "x": range(len(times))})) as sample:
        source = event_times.time_sources(sample)[0]
        divided = partitioning.divide(sample, source=source, count=partitions)
        assert (divided.by, divided.column, divided.dated) == ("order", "at", False)
        assert len(divided.counts) == partitions
        assert max(divided.counts) == yesterday()
        spans = sample.query('SELECT __day, min("at"), max("at") FROM __dated GROUP BY 1 ORDER BY 1')
        assert all(a[2] <= b[1] for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize(("rows", "expected"), [(5, 5), (150, 20), (1200, 24), (50_000, 40)])
def test_rows_without_dates_are_divided_at_random_and_evenly(
    empty_home: Path, tmp_path: Path, rows: int, expected: int
) -> None:
    with opened(tmp_path, pa.table({"x": range(rows)})) as sample:
        assert event_times.time_sources(sample) == []
        divided = partitioning.divide(sample)
        assert (divided.by, len(divided.counts), max(divided.counts)) == ("random", expected, yesterday())
        assert sum(divided.counts.values()) == rows
        assert max(divided.counts.values()) - min(divided.counts.values()) <= 1
        assignment = sample.query("SELECT __row, __day FROM __days ORDER BY 1")
        assert partitioning.divide(sample).counts == divided.counts
        assert sample.query("SELECT __row, __day FROM __days ORDER BY 1") == assignment
        if rows > 1000:  # not in the order of the file
            assert len({day for _, day in assignment[:100]}) > expected // 2


def test_a_column_divides_in_its_order(empty_home: Path, tmp_path: Path) -> None:
    with opened(tmp_path, pa.table({"batch": [i % 25 for i in range(100)], "x": range(100)})) as sample:
        divided = partitioning.divide(sample, column="batch", count=25)
        assert (divided.by, divided.column, set(divided.counts.values())) == ("order", "batch", {4})


@pytest.mark.parametrize(
    ("names", "template", "by"),
    [
        (["a-2024-01-01.parquet", "a-2024-01-02.parquet"], "a-{date}.parquet", "names"),
        (["berlin-2024-01-01.parquet", "hamburg-2024-01-01.parquet"], None, "names"),
        (["2024-01-01T05.parquet", "2024-01-01T06.parquet"], "{date}T{hour}.parquet", "names"),
        (["part-1.parquet", "part-2.parquet"], None, "random"),
        (["2024-01-01.parquet", "latest.parquet"], None, "random"),
    ],
)
def test_several_files(
    empty_home: Path, tmp_path: Path, names: list[str], template: str | None, by: str
) -> None:
    table = pa.table({"x": range(30)})
    with opened(tmp_path, table, table, names=names) as sample:
        divided = partitioning.divide(sample)
        assert divided.by == by
        assert sum(divided.counts.values()) == 60
        assert divided.as_they_are == (template is not None)
        assert (sample.names.template if sample.names else None) == template


def test_a_split_sample_lands_with_its_columns_and_order(empty_home: Path, tmp_path: Path) -> None:
    table = pa.table({
        "at": [d for d in days(3) for _ in range(20)] + days(3),
        "x": pa.array(range(63), pa.uint16()),
        "kind": pa.array(["a", "b", None] * 21).dictionary_encode(),
        "items": [[1, 2]] * 63,
    })  # fmt: skip
    with opened(tmp_path, table, table) as sample:
        divided = partitioning.divide(sample, source=event_times.time_sources(sample)[0])
        assert partitioning.land(sample, divided, "{landing}/m/{date}.parquet") == 3
        assert partitioning.land(sample, divided, "{landing}/m/{date}.parquet") == 3  # again: the same files
        landed = pq.read_table(landing.source_uri("{landing}/m/{date}.parquet", "2024-01-02"))
    assert landed.schema.types[1:] == table.schema.types[1:]
    assert landed.column("x").to_pylist() == [*range(20, 40), 61] * 2


def test_text_that_is_split_stays_what_it_is(empty_home: Path, tmp_path: Path) -> None:
    cells = ["007", "", '"', "a,b", "ü", "NA", " x ", "5.0", "=1+1"]
    lines = [
        f'2024-01-0{1 + i % 3},"{cell.replace(chr(34), chr(34) * 2)}",{i}' for i, cell in enumerate(cells)
    ]
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress("\n".join(["at,text,x", *lines, ""]).encode()))
    with sample_reader.open_sample([path], str(tmp_path / "landing")) as sample:
        divided = partitioning.divide(sample, source=event_times.time_sources(sample)[0])
        partitioning.land(sample, divided, "{landing}/m/{date}.csv.gz")
    uris = [landing.source_uri("{landing}/m/{date}.csv.gz", f"2024-01-0{i}") for i in (1, 2, 3)]
    with sample_reader.open_sample([Path(uri) for uri in uris], str(tmp_path)) as again:
        rows = again.query("SELECT text, x FROM __rows ORDER BY x")
    assert rows == [(cell or None, i) for i, cell in enumerate(cells)]


def test_other_files_in_the_landing_area_stop_everything(empty_home: Path, tmp_path: Path) -> None:
    with opened(tmp_path, pa.table({"at": days(3), "x": range(3)})) as sample:
        divided = partitioning.divide(sample, source=event_times.time_sources(sample)[0])
        other = Path(landing.source_uri("{landing}/m/{date}.parquet", "2024-01-03"))
        other.parent.mkdir(parents=True)
        other.write_text("something else")
        with pytest.raises(PerennialError, match="exists already, with other content"):
            partitioning.land(sample, divided, "{landing}/m/{date}.parquet")
        assert [p.name for p in other.parent.iterdir()] == [other.name]


def test_passes_over_the_files_change_nothing(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioning, "CELLS_PER_PASS", 50)
    monkeypatch.setattr(partitioning, "WAITING_BYTES", 1500)
    table = pa.table({"at": days(30) * 3, "x": range(90)})
    with opened(tmp_path, table) as sample:
        divided = partitioning.divide(sample, source=event_times.time_sources(sample)[0])
        partitioning.land(sample, divided, "{landing}/m/{date}.parquet")
    read = [
        pq.read_table(landing.source_uri("{landing}/m/{date}.parquet", day.isoformat()))["x"].to_pylist()
        for day in days(30)
    ]
    assert read == [[i, i + 30, i + 60] for i in range(30)]


def test_rows_that_the_event_time_would_refuse_are_counted(empty_home: Path, tmp_path: Path) -> None:
    table = pa.table(
        {"at": [dt.date(2024, 1, 1), dt.date(2024, 1, 3), None, dt.date(2024, 1, 2)], "x": range(4)}
    )
    with opened(tmp_path, table, names=["a-2024-01-01.parquet"]) as sample:
        source = event_times.time_sources(sample)[0]
        assert partitioning.untimely(sample, partitioning.divide(sample), source) == 2


def test_hours_are_partitions_of_few_days_or_if_they_are_wanted(empty_home: Path, tmp_path: Path) -> None:
    start = dt.datetime(2024, 1, 1)
    for count, unit in ((60, "hour"), (24 * 20, "day")):
        times = [start + dt.timedelta(hours=i) for i in range(count)]
        with opened(tmp_path, pa.table({"at": times, "x": range(count)})) as sample:
            source = event_times.time_sources(sample)[0]
            assert partitioning.suggest_cadence(sample, source) == Cadence(unit)
            hourly = partitioning.divide(sample, source=source, cadence=Cadence("hour"))
            assert list(hourly.counts.values()) == [1] * count and not hourly.has_gaps
            assert list(hourly.counts)[:2] == ["2024-01-01T00", "2024-01-01T01"]


def test_weeks_are_suggested_where_days_are_too_many(empty_home: Path, tmp_path: Path) -> None:
    # every second day: 1,831 dates of 3,661 days
    with opened(tmp_path, pa.table({"at": days(1831, "2010-01-01", 2), "x": range(1831)})) as sample:
        source = event_times.time_sources(sample)[0]
        assert partitioning.suggest_cadence(sample, source) == Cadence("week")
    with opened(tmp_path, pa.table({"at": days(1830, "2010-01-01", 2), "x": range(1830)})) as sample:
        source = event_times.time_sources(sample)[0]
        assert partitioning.suggest_cadence(sample, source) == Cadence("day")


def test_a_unit_with_too_many_partitions_is_refused(empty_home: Path, tmp_path: Path) -> None:
    with opened(tmp_path, pa.table({"at": days(4000, "2010-01-01"), "x": range(4000)})) as sample:
        source = event_times.time_sources(sample)[0]
        with pytest.raises(PerennialError, match="4,000 days, and a range has at most 3,660"):
            partitioning.cadence_of(sample, source, "day")
        assert partitioning.cadence_of(sample, source, "month") == Cadence("month")


@pytest.mark.parametrize(
    ("times", "cadence", "keys"),
    [
        (days(20, "2024-01-06", 7), Cadence("week", "saturday"), ["2024-01-06", "2024-05-18"]),
        (
            [d for i, d in enumerate(days(60, "2024-01-01")) if i % 6 == 0],
            Cadence("week"),
            ["2024-01-01", "2024-02-19"],
        ),
        (days(4000, "2010-01-01"), Cadence("week"), ["2009-12-28", "2020-12-07"]),
        (days(20, "2020-01-31", 31), Cadence("month"), ["2020-01", "2021-09"]),
        (days(20, "2020-01-31", 92), Cadence("month"), ["2020-01", "2024-11"]),
        (days(20, "2024-01-01", 2), Cadence(), ["2024-01-01", "2024-02-08"]),
    ],
)
def test_dates_show_how_long_a_partition_is(
    empty_home: Path, tmp_path: Path, times: list[dt.date], cadence: Cadence, keys: list[str]
) -> None:
    with opened(tmp_path, pa.table({"at": times, "x": range(len(times))})) as sample:
        divided = partitioning.divide(sample, source=event_times.time_sources(sample)[0])
        assert (divided.by, divided.cadence) == ("time", cadence)
        assert [min(divided.counts), max(divided.counts)] == keys
        assert sum(divided.counts.values()) == len(times)
        assert all(cadence.is_key(key) for key in divided.counts)
        moments = sample.query('SELECT __day, "at" FROM __dated')
        assert all(cadence.key_of(moment) == key for key, moment in moments)
        assert divided.has_gaps == (len(cadence.range(*keys)) > len(divided.counts))


@pytest.mark.parametrize(
    ("names", "cadence", "template", "first"),
    [
        (
            ["2024-01-05.csv", "2024-01-12.csv", "2024-01-19.csv"],
            Cadence("week", "friday"),
            "{date}.csv",
            "2024-01-05",
        ),
        (["a_2024-01.csv", "a_2024-02.csv"], Cadence("month"), "a_{year}-{month}.csv", "2024-01"),
        (["202401.csv", "202402.csv"], Cadence("month"), "{year}{month}.csv", "2024-01"),
        (["2024-01-01.csv", "2024-02-01.csv", "2024-03-01.csv"], Cadence("month"), "{date}.csv", "2024-01"),
        (["2024-01-31.csv", "2024-02-29.csv", "2024-03-31.csv"], Cadence("month"), None, "2024-01"),
        (
            ["2024010100.csv", "2024010101.csv"],
            Cadence("hour"),
            "{year}{month}{day}{hour}.csv",
            "2024-01-01T00",
        ),
        (["2024-01-01_05.csv", "2024-01-02_05.csv"], Cadence(), None, "2024-01-01"),
        (["2024-01-01.csv", "2024-01-03.csv"], Cadence(), "{date}.csv", "2024-01-01"),
    ],
)
def test_names_of_files_show_how_long_a_partition_is(
    tmp_path: Path, names: list[str], cadence: Cadence, template: str | None, first: str
) -> None:
    found = file_names.file_dates(tuple(tmp_path / name for name in names), str(tmp_path / "landing"))
    assert found is not None
    assert (found.cadence, found.days[0]) == (cadence, first)
    if len({*names}) == len({*found.days}) and template:
        assert found.template == template
