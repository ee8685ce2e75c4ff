"""Train/serve skew: nothing that scoring gave the model may differ from what the training code gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.features import reference_tables, serving_log
from perennial.lifecycle.promotion import promote
from perennial.modeling import registry
from perennial.monitoring._train_serve_skew import skew_signal
from perennial.monitoring.signals import Signal
from perennial.spec.model_spec import ModelSpec
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import delta_tables, landing, manifests
from support import lake, toys

FIRST, LAST = dates.add_days(toys.LAST, 1), dates.add_days(toys.LAST, 4)


def look(spec: ModelSpec) -> Signal:
    champion = registry.get_champion(spec)
    assert champion is not None
    return skew_signal(spec, champion, registry.load_model(champion), FIRST, LAST)


def log(spec: ModelSpec) -> list[dict[str, Any]]:
    """With features as text: NaN equals nothing."""
    return [r | {"features": str(r["features"])} for r in toys.content_of("served", spec.name)]


@pytest.fixture
def scored(world: Any) -> ModelSpec:
    """Four nights that the champion has scored."""
    toys.publish(world.spec, FIRST, 4)
    assert score(world.spec, start=FIRST, end=LAST)["status"] == "scored"
    return world.spec


def test_what_was_served_is_what_the_training_code_gives(scored: ModelSpec) -> None:
    found = look(scored)
    assert (found.state, found.reason) == (
        "ok", f"the features of all {4 * toys.ROWS} logged rows are what the training code gives for them",
    )  # fmt: skip


@pytest.mark.parametrize("task", ["multiclass", "regression", "ranking"])
def test_of_every_task(make_model: Callable[..., ModelSpec], task: str) -> None:
    spec = make_model(task, training={"rounds": 5}, gate={"beat_baseline": False})
    toys.publish(spec)
    train(spec, as_of=toys.LAST)
    assert promote(spec, as_of=toys.LAST, actor="test")["promoted"]
    toys.publish(spec, FIRST, 2)
    score(spec, start=FIRST, end=dates.add_days(FIRST, 1))
    assert look(spec).state == "ok"


def test_a_reference_revised_after_scoring_is_no_skew(scored: ModelSpec) -> None:
    places = toys.places()
    moved = places.set_column(2, "size", pa.array([7.0] * len(places)))
    toys.write(landing.source_uri(scored.references[0].source), moved)
    before = manifests.read(scored.name, "score", FIRST)
    assert before is not None and reference_tables.sync_to_lake(scored) != before.inputs["references"]
    assert look(scored).state == "ok"
    log_before = log(scored)
    assert score(scored, start=FIRST)["status"] == "scored"
    assert log(scored) != log_before and look(scored).state == "ok"


def test_a_night_published_anew_waits_for_its_scoring(scored: ModelSpec) -> None:
    rows = toys.rows(scored.task, LAST)
    rows = rows.set_column(2, "x", pa.array(np.full(len(rows), 9.0)))
    rows = rows.append_column(delta_tables.PARTITION, pa.array([LAST] * len(rows)))
    delta_tables.replace(delta_tables.table_uri("published", scored.name), rows, LAST)
    found = look(scored)
    assert found.state == "ok" and f" {3 * toys.ROWS} logged rows" in found.reason
    score(scored, start=FIRST, end=LAST)
    assert f" {4 * toys.ROWS} logged rows" in look(scored).reason


def test_features_of_another_definition_are_skew(scored: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The serving side computes x in another way than training did, on one night."""
    bad, real = dates.add_days(FIRST, 2), registry.load_spec

    def other(found: registry.ModelVersion) -> ModelSpec:
        spec = real(found)
        spec._sql = spec.sql.replace(
            "rows.id, x,", "rows.id, CASE WHEN x > 0 THEN x * 1.0001 ELSE x END AS x,"
        )
        return spec

    with monkeypatch.context() as patched:
        patched.setattr(registry, "load_spec", other)
        score(scored, start=bad, force=True)
    found = look(scored)
    positive = int((toys.rows(scored.task, bad)["x"].to_numpy() > 0).sum())
    assert found.state == "bad" and found.since == bad and found.value == positive
    assert found.reason == (
        f"x: {positive} of {4 * toys.ROWS} logged rows differ from what the training code gives, first on {bad}"
    )


def test_a_prediction_that_its_features_do_not_give_is_skew(scored: ModelSpec) -> None:
    table = lake.read_table(serving_log.uri(scored.name), start=LAST, end=LAST)
    said = table["prediction"].to_numpy().copy()
    said[:3] += 0.01
    where = table.column_names.index("prediction")
    delta_tables.replace(
        serving_log.uri(scored.name), table.set_column(where, "prediction", pa.array(said)), LAST
    )
    found = look(scored)
    assert found.state == "bad" and found.reason.startswith("the prediction: 3 of 240 logged rows differ")


def test_a_log_that_a_killed_scoring_left_is_not_judged(scored: ModelSpec) -> None:
    """It scored from something else than the manifest tells of: what differs is no skew."""
    table = lake.read_table(serving_log.uri(scored.name), start=LAST, end=LAST)
    other = table.set_column(
        table.column_names.index("scored_from"), "scored_from", pa.array(["x"] * len(table))
    )
    delta_tables.replace(serving_log.uri(scored.name), other, LAST)
    found = look(scored)
    assert found.state == "ok" and f" {3 * toys.ROWS} logged rows" in found.reason


def test_without_a_log_nothing_can_be_told(world: Any) -> None:
    toys.publish(world.spec, FIRST, 1)
    assert look(world.spec).state == "undetermined"
    score(world.spec, start=FIRST)
    assert look(world.spec).state == "ok"
    champion = registry.get_champion(world.spec)
    assert champion is not None
    later = registry.ModelVersion(champion.name, "99", champion.run_id, champion.model_id, champion.tags)
    assert skew_signal(world.spec, later, registry.load_model(champion), FIRST, LAST).state == "undetermined"


def test_some_two_hundred_rows_a_night_are_logged_evenly(world: Any) -> None:
    few, many = FIRST, dates.add_days(FIRST, 1)
    toys.publish(world.spec, few, 1, n=150)
    toys.publish(world.spec, many, 1, n=1001)
    score(world.spec, start=few, end=many)
    rows = {
        day: [r["id"] for r in log(world.spec) if r[delta_tables.PARTITION] == day] for day in (few, many)
    }
    assert len(rows[few]) == 150
    assert rows[many] == [f"{many}-{i:05d}" for i in range(0, 1001, 6)]


@pytest.mark.parametrize(("unit", "commit", "nights"), [(131_072, 262_144, 1), (7, 150, 9), (100, 150, 1)])
def test_the_log_is_the_same_however_nights_are_scored(
    scored: ModelSpec, monkeypatch: pytest.MonkeyPatch, unit: int, commit: int, nights: int
) -> None:
    monkeypatch.setattr("perennial.features.serving_log.MAX_ROWS_PER_PARTITION", 13)
    score(scored, start=FIRST, end=LAST, force=True)
    before = log(scored)
    assert len(before) == 4 * 12
    monkeypatch.setattr("perennial.scoring.planning.UNIT_ROWS", unit)
    monkeypatch.setattr("perennial.scoring.planning.COMMIT_ROWS", commit)
    monkeypatch.setattr("perennial.steps.score.LOG_PARTITIONS", nights)
    score(scored, start=FIRST, end=LAST, force=True)
    assert log(scored) == before
    score(scored, start=dates.add_days(FIRST, 1), force=True)
    assert log(scored) == before
