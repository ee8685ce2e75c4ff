"""Feature tables: what happened to an entity before a row, and nothing that was known later."""

from __future__ import annotations

import datetime as dt
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest

from perennial.core import dates
from perennial.core.errors import DataError, DataNotReadyError, SpecError
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier
from perennial.features import feature_tables, point_in_time, scan_units
from perennial.features.engine import FeatureQuery
from perennial.features.history import PublishedHistory
from perennial.spec import catalog
from perennial.spec.feature_table import FeatureTable
from perennial.spec.model_spec import ModelSpec
from perennial.steps.data import data
from perennial.storage import delta_tables, landing, manifests
from support import lake, toys
from support.feeds import history_table as toy_tables

Make = Callable[..., ModelSpec]
WITHOUT_REFERENCES = {"tables": ["place_history"], "references": []}
LAST = dates.add_days(toys.FIRST, 5)
PREFIXED = {"table": "place_history", "prefix": "__"}
SAME_NAME = {"name": "place_history", "source": "{landing}/places.parquet"}
ON_TOWN = {"table": "place_history", "on": {"town": "place"}}


@pytest.fixture
def spec(make: Make, tmp_path: Path) -> ModelSpec:
    """The toy model with the table over its own rows, six days of which are published."""
    toy_tables.write(tmp_path / "models")
    made = make(toy_tables.MODEL_SQL, features=WITHOUT_REFERENCES)
    toys.publish(made, days=6)
    return made


def table_of(spec: ModelSpec) -> FeatureTable:
    return spec.feature_tables[0][1]


def published(spec: ModelSpec) -> pa.Table:
    table = lake.read_table(delta_tables.table_uri("published", spec.name))
    return table.sort_by([("partition_date", "ascending"), ("id", "ascending")])


def computed(spec: ModelSpec) -> list[dict[str, Any]]:
    return lake.read_table(feature_tables.uri(table_of(spec))).to_pylist()  # type: ignore[no-any-return]


def by_hand(rows: list[dict[str, Any]], labels: dict[str, int], row: dict[str, Any]) -> dict[str, Any]:
    """The features of a row as a person would count them."""
    past = [r for r in rows if r["place"] == row["place"] and r["seen_at"] < row["seen_at"]]
    if not past:
        return dict.fromkeys(toy_tables.COLUMNS)
    last = max(r["seen_at"] for r in past)
    day = [r for r in past if r["seen_at"] >= last - dt.timedelta(hours=24)]
    four = [r for r in past if r["seen_at"] >= last - dt.timedelta(days=4)]
    # labels arrive with the next day's files: those of a day are known from the day after that on
    known = [labels[r["id"]] for r in four if r["seen_at"].date() < last.date() - dt.timedelta(days=1)]
    return {
        "seen_24h": len(day),
        "mean_x": pytest.approx(np.mean([r["x"] for r in day]), rel=1e-9),
        "share_y": pytest.approx(np.mean(known)) if known else None,
    }


def test_a_row_gets_what_was_known_before_it(spec: ModelSpec) -> None:
    rows = published(spec).to_pylist()
    labels = {
        r["id"]: r["y"]
        for day in dates.dates(toys.FIRST, LAST)
        for r in toys.labels("binary", toys.rows("binary", day)).to_pylist()
    }
    found = FeatureQuery(spec).compute(published(spec)).select(toy_tables.COLUMNS).to_pylist()
    assert found == [by_hand(rows, labels, row) for row in rows]
    assert sum(r["share_y"] is not None for r in found) > toys.ROWS


def test_scan_units_and_single_rows_agree_with_the_whole(spec: ModelSpec) -> None:
    whole = FeatureQuery(spec).compute(published(spec))
    uri = delta_tables.table_uri("published", spec.name)
    query = FeatureQuery(spec, None, uri)
    units = list(scan_units.plan_units(delta_tables.files_by_partition(uri), 2 * toys.ROWS, 100_000))
    assert len(units) == 3
    parts = [
        part
        for unit in units
        for part in query.stream(unit.source([*spec.data.columns, "partition_date"]), unit.read(["id"]))
    ]
    rows = {r["id"]: r for r in pa.concat_tables(parts).to_pylist()}
    ids = published(spec)["id"].to_pylist()
    assert [{k: v for k, v in rows[i].items() if k != "id"} for i in ids] == whole.to_pylist()
    for i in (0, 77, 359):
        assert query.compute(published(spec).slice(i, 1)).to_pylist() == whole.slice(i, 1).to_pylist()
    query.check_rowwise(published(spec), single_row=True)


def test_what_was_known_then_is_what_a_backfill_computes(make: Make, tmp_path: Path) -> None:
    """A leak would show: each day's features come from the files that existed on that day alone."""
    toy_tables.write(tmp_path / "models")
    spec = make(toy_tables.MODEL_SQL, features=WITHOUT_REFERENCES)
    days, nightly = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 10)), []
    for day in days:
        rows = toys.rows("binary", day, 9_600)
        toys.write(landing.source_uri(spec.data.source, day), rows)
        if day > toys.FIRST:  # the labels of the day before
            before = dates.add_days(day, -1)
            table = toys.labels("binary", toys.rows("binary", before, 9_600))
            toys.write(landing.source_uri(str(spec.label.source), before), table)
        data(spec, start=day)
        nightly.append(FeatureQuery(spec).compute(rows))
    shutil.rmtree(f"{settings().lake}/features")
    shutil.rmtree(f"{settings().lake}/manifests/{feature_tables.table_name(table_of(spec))}")
    query = FeatureQuery(spec)
    rows = pa.concat_tables([toys.rows("binary", day, 9_600) for day in days])
    assert len(rows) > 100_000
    backfill = query.compute(rows)
    assert backfill.equals(pa.concat_tables(nightly))
    assert backfill["share_y"].null_count < len(rows) / 2


def test_values_expire_and_arrive_late(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    toy_tables.write(folder, known_after="6 hours", max_age="12 hours")
    spec = make(toy_tables.MODEL_SQL, features=WITHOUT_REFERENCES)
    toys.publish(spec, days=2)
    rows = published(spec).slice(0, 1).drop_columns("partition_date")
    last = max(r["seen_at"] for r in published(spec).to_pylist() if r["place"] == "north")

    def seen(after: dt.timedelta) -> Any:
        moved = rows.set_column(1, "seen_at", pa.array([last + after], pa.timestamp("us")))
        moved = moved.set_column(moved.column_names.index("place"), "place", pa.array(["north"]))
        return FeatureQuery(spec).compute(moved)["mean_x"].to_pylist()[0]

    at_last = seen(dt.timedelta(hours=6, microseconds=1))
    assert at_last is not None
    assert seen(dt.timedelta(hours=6)) != at_last, "known from after six hours on"
    assert seen(dt.timedelta(hours=12)) == at_last
    assert seen(dt.timedelta(hours=12, microseconds=1)) is None


def test_a_late_event_gets_what_its_partition_could_know(spec: ModelSpec) -> None:
    """An event after the end of its partition gets the same before and after the next partition is published."""
    late = dt.datetime.fromisoformat(dates.add_days(toys.FIRST, 3)) + dt.timedelta(hours=3)
    rows = published(spec).filter(
        pa.compute.equal(published(spec)["partition_date"], dates.add_days(toys.FIRST, 2))
    )
    rows = rows.slice(0, 1).set_column(1, "seen_at", pa.array([late], pa.timestamp("us")))
    toys.publish(spec, dates.add_days(toys.FIRST, 3), 3, n=30)
    after = FeatureQuery(spec).compute(rows).to_pylist()
    lake_rows = delta_tables.table_uri("published", spec.name)
    delta_tables.remove_rows(lake_rows, dates.dates(dates.add_days(toys.FIRST, 3), LAST))
    assert FeatureQuery(spec).compute(rows).to_pylist() == after
    assert after[0]["seen_24h"] is not None


def test_nothing_is_computed_twice(spec: ModelSpec) -> None:
    table = table_of(spec)
    first = feature_tables.sync_to_lake(spec, toys.FIRST, LAST)
    assert feature_tables.sync_to_lake(spec, toys.FIRST, LAST) == first
    assert feature_tables.compute(table, PublishedHistory(table).partitions()) == {}
    before = computed(spec)
    assert set(feature_tables.compute(table, [LAST], force=True)) == {LAST}
    assert sorted(map(str, computed(spec))) == sorted(map(str, before)), "the same content"
    toys.publish(spec, dates.add_days(toys.FIRST, 6), 1)
    assert set(feature_tables.compute(table, PublishedHistory(table).partitions())) == {
        dates.add_days(toys.FIRST, 6)
    }


def test_replaced_rows_are_followed_as_far_as_the_lookback(spec: ModelSpec) -> None:
    table = table_of(spec)
    feature_tables.sync_to_lake(spec, toys.FIRST, LAST)
    toys.publish(spec, toys.FIRST, 1, n=30)
    again = feature_tables.compute(table, PublishedHistory(table).partitions())
    assert sorted(again) == dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 4)), "not the sixth day"
    assert again[toys.FIRST] == 30


def test_a_fault_that_shows_only_with_more_history_is_found_on_a_later_night(
    make: Make, tmp_path: Path
) -> None:
    sql = toy_tables.SQL.replace("INTERVAL 4 DAYS PRECEDING", "UNBOUNDED PRECEDING")
    toy_tables.write(tmp_path / "models", sql=sql)
    spec = make(toy_tables.MODEL_SQL, features=WITHOUT_REFERENCES)
    toys.publish(spec, days=12)
    assert feature_tables.compute(table_of(spec), [toys.FIRST]) == {toys.FIRST: toys.ROWS}
    with pytest.raises(SpecError, match="older than the lookback of 4 days"):
        feature_tables.compute(table_of(spec), [dates.add_days(toys.FIRST, 11)])


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_the_digest_of_a_range_follows_each_partition_that_it_reads(spec: ModelSpec, place: str) -> None:
    toys.publish(spec, days=20)
    days = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 19))
    versions = feature_tables.sync_to_lake(spec, days[0], days[-1])
    before = point_in_time.range_digests(spec, versions, days[0], days[-1])
    changed = {"first": days[0], "middle": days[10], "last": days[-1]}[place]
    feature_tables.compute(table_of(spec), [changed], force=True)
    assert point_in_time.range_digests(spec, {}, days[0], days[-1]) != before
    of_days = point_in_time.table_digests(spec, versions, days)
    now = point_in_time.table_digests(spec, {}, days)
    reads = [day for day in days if of_days[day] != now[day]]
    assert reads == [day for day in days if changed <= day <= dates.add_days(changed, 4)]


def test_two_models_share_a_table(spec: ModelSpec, make: Make, tmp_path: Path) -> None:
    content = toys.content(
        "other", features={"tables": [{"table": "place_history", "prefix": "p_"}], "references": []}
    )
    content["data"]["source"], content["label"]["source"] = spec.data.source, spec.label.source
    other = toys.model(
        tmp_path / "models", "other", sql="SELECT id, x, k, p_seen_24h FROM rows",
        **{k: v for k, v in content.items() if k not in ("name", "task")},
    )  # fmt: skip
    rows = published(spec)
    mine, theirs = (FeatureQuery(s).compute(rows) for s in (spec, other))
    assert theirs["p_seen_24h"].to_pylist() == mine["seen_24h"].to_pylist()
    assert len(list(Path(settings().lake, "features").iterdir())) == 1
    assert manifests.read(feature_tables.table_name(table_of(other)), "features", LAST) is not None
    restored = ModelSpec.from_bundle(spec.bundle())
    assert restored.digest == spec.digest
    assert FeatureQuery(restored).compute(rows).equals(mine)


UNLUCKY = {
    "place": "select",
    "x": 'a "b',
    "seen_at": "a.b",
    "y": "rows",
    "seen_24h": "history",
    "mean_x": "a.b.c",
}


def test_any_names_give_the_same_numbers(spec: ModelSpec, make: Make, tmp_path: Path) -> None:
    """Entity, event time, columns of the history, label and features may be called like anything in SQL."""
    expected = FeatureQuery(spec).compute(published(spec)).select(toy_tables.COLUMNS).to_pylist()
    sql = toy_tables.SQL
    for old, new in UNLUCKY.items():
        sql = re.sub(rf"\b{old}\b", quote_identifier(new), sql)
    toy_tables.write(
        tmp_path / "models", "unlucky", sql=sql, sources=[{"model": "toy", "label": "rows"}],
        entity={"select": "string"}, features={"history": "integer", "a.b.c": "number", "share_y": "number"},
    )  # fmt: skip
    columns = {UNLUCKY.get(c, c): kind for c, kind in spec.data.columns.items()}
    renamed = make(
        'SELECT id, k, history, "a.b.c", share_y FROM rows', data={"columns": columns, "event_time": "a.b"},
        features={"tables": ["unlucky"], "references": []},
    )  # fmt: skip
    shutil.rmtree(delta_tables.table_uri("published", "toy"))
    for day in dates.dates(toys.FIRST, LAST):
        table = toys.rows("binary", day)
        table = table.rename_columns([UNLUCKY.get(c, c) for c in table.column_names])
        delta_tables.replace(
            delta_tables.table_uri("published", "toy"),
            table.append_column("partition_date", pa.array([day] * len(table))), day,
        )  # fmt: skip
    found = FeatureQuery(renamed).compute(published(renamed)).select(["history", "a.b.c", "share_y"])
    assert found.rename_columns(list(toy_tables.COLUMNS)).to_pylist() == expected


def test_another_definition_is_another_table(spec: ModelSpec, tmp_path: Path) -> None:
    FeatureQuery(spec).compute(published(spec))
    toy_tables.write(
        tmp_path / "models", sql=toy_tables.SQL.replace("INTERVAL 24 HOURS", "INTERVAL 12 HOURS")
    )
    changed = catalog.load_model(spec.folder)
    assert changed.digest != spec.digest
    new = FeatureQuery(changed).compute(published(spec))["seen_24h"].to_pylist()
    old = FeatureQuery(spec).compute(published(spec))["seen_24h"].to_pylist()
    assert new != old and len(list(Path(settings().lake, "features").iterdir())) == 2


def test_a_source_that_is_behind_is_waited_for(spec: ModelSpec, tmp_path: Path) -> None:
    other = toys.model(tmp_path / "models", "other", sql=toy_tables.MODEL_SQL, features=WITHOUT_REFERENCES)
    toys.publish(other, days=8)
    late = dates.add_days(toys.FIRST, 7)
    with pytest.raises(DataNotReadyError, match="need what toy publishes"):
        feature_tables.sync_to_lake(other, late, late)
    toy_tables.write(tmp_path / "models", known_after="2 days")
    patient = catalog.load_model(other.folder)
    assert feature_tables.sync_to_lake(patient, late, late)["place_history"] > 0


def test_a_source_without_rows_that_day_is_not_waited_for(make: Make, tmp_path: Path) -> None:
    toy_tables.write(tmp_path / "models")
    source = make(toy_tables.MODEL_SQL, data={"arrival": "optional"}, features=WITHOUT_REFERENCES)
    other = toys.model(tmp_path / "models", "other", sql=toy_tables.MODEL_SQL, features=WITHOUT_REFERENCES)
    second = dates.add_days(toys.FIRST, 1)
    toys.write(landing.source_uri(source.data.source, toys.FIRST), toys.rows("binary", toys.FIRST))
    data(source, start=toys.FIRST)
    toys.publish(other, days=2)
    with pytest.raises(DataNotReadyError, match="need what toy publishes"):
        feature_tables.sync_to_lake(other, second, second)
    data(source, start=second)  # no file has landed: published without rows
    assert feature_tables.sync_to_lake(other, second, second)["place_history"] > 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("24 HOURS PRECEDING AND CURRENT ROW", "24 HOURS PRECEDING AND INTERVAL 1 HOURS FOLLOWING", "later than"),
        ("ORDER BY seen_at RANGE BETWEEN INTERVAL 24 HOURS PRECEDING AND CURRENT ROW", "", "later than"),
        ("INTERVAL 4 DAYS PRECEDING", "UNBOUNDED PRECEDING", "older than the lookback of 4 days"),
        ("FROM history", "FROM history, nowhere", "nowhere is not a table of this model"),
        ("count(*) OVER last_day", "random()", "random is not deterministic"),
        ("count(*) OVER last_day", "'many'", "'seen_24h' is declared integer, and the SQL returns VARCHAR"),
        ("avg(x) OVER last_day AS mean_x", "avg(x) OVER last_day AS middle_x", "does not return the column 'mean_x'"),
        ("SELECT place,", "SELECT place, z,", "returns 'z', which is not declared"),
        ("FROM history", "FROM places", "places is not a table of this model"),
        ("valid_from,", "valid_from, )", "syntax error"),
    ],
)  # fmt: skip
def test_sql_that_would_leak_or_fail_is_refused(
    make: Make, tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in toy_tables.SQL
    toy_tables.write(tmp_path / "models", sql=toy_tables.SQL.replace(old, new))
    spec = make(toy_tables.MODEL_SQL, features=WITHOUT_REFERENCES)
    toys.publish(spec, days=12)
    with pytest.raises(SpecError, match=message) as error:
        feature_tables.sync_to_lake(spec, toys.FIRST, dates.add_days(toys.FIRST, 11))
    assert "feature table place_history: features.sql" in str(error.value)
    assert not Path(settings().lake, "manifests", feature_tables.table_name(table_of(spec))).exists()


def test_two_values_at_one_time_are_refused(make: Make, tmp_path: Path) -> None:
    sql = "SELECT place, seen_at AS valid_from, unnest([x, x + 1]) AS mean_x FROM history"
    toy_tables.write(tmp_path / "models", sql=sql, features={"mean_x": "number"})
    spec = make("SELECT id, x, k, mean_x FROM rows", features=WITHOUT_REFERENCES)
    toys.publish(spec, days=2)
    with pytest.raises(DataError, match="60 times an entity has different values at one valid_from"):
        feature_tables.compute(table_of(spec), [toys.FIRST])


def test_personal_columns_are_followed_through_the_history(make: Make, tmp_path: Path) -> None:
    toy_tables.write(tmp_path / "models")
    spec = make(toy_tables.MODEL_SQL, data={"personal": ["place"]}, features=WITHOUT_REFERENCES)
    toys.publish(spec, days=2)
    with pytest.raises(SpecError, match=r"'seen_24h' depends on personal data \(history.place\)"):
        feature_tables.sync_to_lake(spec, toys.FIRST, toys.FIRST)
    toy_tables.write(tmp_path / "models", personal=list(toy_tables.COLUMNS))
    with pytest.raises(SpecError, match="feature 'seen_24h' depends on personal data"):
        FeatureQuery(catalog.load_model(spec.folder))


@pytest.mark.parametrize(
    ("table", "model", "message"),
    [
        ({"entity": {"place": "integer"}}, {}, "'place', which is string in data.columns and integer in the table"),
        ({"features": {"x": "number"}}, {}, "adds a column 'x', as data.columns does"),
        ({"sources": [{"model": "nobody"}]}, {}, "there is no model called 'nobody'"),
        ({"sources": [{"model": "toy", "label": "x"}]}, {}, "label is 'x', a column of toy"),
        ({"lookback": "0 days"}, {}, "lookback is 0"),
        ({"personal": ["z"]}, {}, "personal names 'z'"),
        ({"windows": 3}, {}, "windows"),
        ({}, {"features": {"tables": ["place"], "references": []}}, "no feature table called 'place'"),
        ({}, {"features": {"tables": [ON_TOWN], "references": []}}, "on names 'town'"),
        ({}, {"data": {"event_time": None}}, "data.event_time is missing"),
        ({}, {"features": {"tables": [PREFIXED], "references": []}}, "that begin with __ are reserved"),
        ({}, {"features": {"tables": ["place_history"], "references": [SAME_NAME]}}, "is also a reference table"),
    ],
)  # fmt: skip
def test_faults_of_a_folder_are_named(
    make: Make, tmp_path: Path, table: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    toy_tables.write(tmp_path / "models", **table)
    with pytest.raises(SpecError, match=message) as error:
        make(toy_tables.MODEL_SQL, **{"features": WITHOUT_REFERENCES, **model})
    assert error.value.remedy


def test_a_night_reads_its_lookback_and_not_the_history(spec: ModelSpec) -> None:
    """Files before the lookback may be lost: the night is computed as before."""
    toys.publish(spec, days=20)
    table, last = table_of(spec), dates.add_days(toys.FIRST, 19)
    feature_tables.compute(table, PublishedHistory(table).partitions())
    before = computed(spec)
    uri = delta_tables.table_uri("published", spec.name)
    for day, files in delta_tables.files_by_partition(uri).items():
        for file in files if day < dates.add_days(last, -4) else ():
            Path(file.path).unlink()
    assert set(feature_tables.compute(table, [last], force=True)) == {last}
    assert sorted(map(str, computed(spec))) == sorted(map(str, before))
