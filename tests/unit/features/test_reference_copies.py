"""Reference tables by date: each partition joins the copy that was there when it was due."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.features import reference_copies, reference_tables
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.monitoring import histograms
from perennial.monitoring.train_serve_skew import skew_signal
from perennial.monitoring.window_counts import count_features
from perennial.spec.model_spec import ModelSpec
from perennial.steps.score import score
from perennial.storage import delta_tables, landing, manifests
from support import toys

FIRST, LAST = dates.add_days(toys.LAST, 1), dates.add_days(toys.LAST, 4)


@pytest.fixture
def deliver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Deliver a file at a time: the system's clock, which stamps files, cannot be set."""

    def deliver(spec: ModelSpec, size: float, at: datetime) -> dict[str, int]:
        places = toys.places()
        sizes = pa.array([size] * len(places))
        toys.write(landing.source_uri(spec.references[0].source), places.set_column(2, "size", sizes))
        monkeypatch.setattr(reference_tables, "_landed_at", lambda _: at)
        return reference_tables.sync_to_lake(spec)

    return deliver


def rows_of(spec: ModelSpec, *days: str) -> pa.Table:
    """Rows of partitions, with ``partition_date``."""
    tables = [toys.rows(spec.task, day) for day in days]
    return pa.concat_tables(
        t.append_column(delta_tables.PARTITION, pa.array([day] * len(t)))
        for t, day in zip(tables, days, strict=True)
    )


def sizes(features: pa.Table) -> list[float]:
    return list(dict.fromkeys(features.column("size").to_pylist()))


def test_features_as_of_each_partition_are_those_of_when_it_was_current(make: Any, deliver: Any) -> None:
    """No leak: what is computed on time, from the files that exist then, is what a later backfill computes."""
    spec = make()
    days = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 5))
    on_time: list[dict[str, Any]] = []
    for i, day in enumerate(days):
        if i % 2 == 0:
            at = reference_copies.due_at(spec, day) - timedelta(minutes=1)
            versions = deliver(spec, float(i), at)
        on_time += FeatureQuery(spec, versions).compute(rows_of(spec, day)).to_pylist()
    versions = deliver(spec, 99.0, reference_copies.due_at(spec, days[-1]) + timedelta(minutes=1))
    query = FeatureQuery(spec, versions)
    shuffled = [days[i] for i in (3, 0, 5, 1, 4, 2)]
    backfill = {d: query.compute(rows_of(spec, d)).to_pylist() for d in shuffled}
    assert [row for day in days for row in backfill[day]] == on_time
    assert query.compute(rows_of(spec, *days)).to_pylist() == on_time
    assert [sizes(query.compute(rows_of(spec, d))) for d in days] == [
        [0.0],
        [0.0],
        [2.0],
        [2.0],
        [4.0],
        [4.0],
    ]
    order = query.compute(rows_of(spec, *shuffled))
    assert order.to_pylist() == [row for day in shuffled for row in backfill[day]]
    assert sizes(query.compute(toys.rows(spec.task, days[0]))) == [99.0]  # rows of now, as in serving
    assert query.group_partitions(days) == [days[:2], days[2:4], days[4:]]


def test_a_copy_counts_from_the_schedule_of_the_partition_on(make: Any, deliver: Any) -> None:
    spec = make(data={"timezone": "America/New_York"}, schedule={"data": "30 3 * * *"})
    due = reference_copies.due_at(spec, "2024-07-01")
    assert due.isoformat() == "2024-07-02T07:30:00+00:00"
    deliver(spec, 1.0, due - timedelta(days=9))
    versions = deliver(spec, 2.0, due)
    query = FeatureQuery(spec, versions)
    assert sizes(query.compute(rows_of(spec, "2024-06-30", "2024-07-01"))) == [1.0, 2.0]
    late = deliver(spec, 3.0, due + timedelta(seconds=1))
    assert reference_copies.versions_of(spec, late, ["2024-07-01", "2024-07-02"]) == {
        "2024-07-01": versions,
        "2024-07-02": late,
    }


def test_partitions_before_the_first_copy_join_it_and_the_log_says_so(
    make: Any, deliver: Any, caplog: pytest.LogCaptureFixture
) -> None:
    spec, second = make(), dates.add_days(toys.FIRST, 1)
    first = deliver(spec, 1.0, reference_copies.due_at(spec, second))
    last = deliver(spec, 2.0, reference_copies.due_at(spec, dates.add_days(second, 1)))
    with caplog.at_level(logging.INFO, "perennial"):
        chosen = reference_copies.versions_within(spec, last, [toys.FIRST, second])
    assert chosen == {"places": [first["places"]]}
    assert f"partitions {toys.FIRST} to {toys.FIRST} were due before the first copy" in caplog.text


def test_the_latest_copy_where_the_spec_says_so(make: Any, deliver: Any) -> None:
    reference = {"name": "places", "source": "{landing}/toy_places.parquet", "versions": "latest"}
    spec = make(features={"references": [reference]})
    deliver(spec, 1.0, reference_copies.due_at(spec, toys.FIRST))
    versions = deliver(spec, 2.0, reference_copies.due_at(spec, toys.LAST))
    assert sizes(FeatureQuery(spec, versions).compute(rows_of(spec, toys.FIRST))) == [2.0]


def test_a_column_that_came_later_is_null_in_earlier_copies(make: Any, deliver: Any) -> None:
    spec = make(sql=toys.SQL.replace("size", "height AS size"))
    deliver(spec, 1.0, reference_copies.due_at(spec, toys.LAST))
    places = toys.places()
    heights = places.append_column("height", pa.array([5] * len(places)))
    toys.write(landing.source_uri(spec.references[0].source), heights)
    first = reference_tables.sync_to_lake(spec)
    assert sizes(FeatureQuery(spec, first).compute(rows_of(spec, toys.FIRST, toys.LAST))) == [None, 5]


def test_a_partition_that_is_scored_again_gets_the_same_numbers(world: Any, deliver: Any) -> None:
    spec = world.spec
    toys.publish(spec, FIRST, 4)
    shutil.rmtree(reference_tables.uri(spec.references[0]))  # its copy is of today
    second = dates.add_days(FIRST, 1)
    deliver(spec, 5.0, reference_copies.due_at(spec, FIRST))
    score(spec, start=FIRST, end=second)
    before = {r["id"]: r["prediction"] for r in toys.content_of("predictions", spec.name)}
    deliver(spec, 50.0, reference_copies.due_at(spec, dates.add_days(FIRST, 2)))
    assert score(spec, start=FIRST, end=second)["status"] == "unchanged"
    assert score(spec, start=FIRST, end=LAST, force=True)["partitions"] == dates.dates(FIRST, LAST)
    after = {r["id"]: r["prediction"] for r in toys.content_of("predictions", spec.name)}
    assert {k: after[k] for k in before} == before
    scored = manifests.read_all(spec.name, "score", dates.dates(FIRST, LAST))
    recorded = [scored[day].inputs["references"]["places"] for day in dates.dates(FIRST, LAST)]
    assert recorded == [recorded[0]] * 2 + [recorded[0] + 1] * 2
    log = toys.content_of("served", spec.name)
    assert {50.0 in r["features"] for r in log if r[delta_tables.PARTITION] <= second} == {False}
    assert {50.0 in r["features"] for r in log if r[delta_tables.PARTITION] > second} == {True}
    champion = registry.get_champion(spec)
    assert champion is not None
    assert skew_signal(spec, champion, registry.load_model(champion), FIRST, LAST).reason.endswith(
        "4 of 4 partitions"
    )
    _, reference = histograms.read_reference(registry.load_json_artifact(champion, "reference.json"))
    counts, sample = count_features(registry.load_spec(champion), reference, FIRST, LAST, 10_000)
    assert counts.rows == 4 * toys.ROWS
    assert Counter(sample["size"].to_pylist()) == {5.0: 2 * toys.ROWS, 50.0: 2 * toys.ROWS}
