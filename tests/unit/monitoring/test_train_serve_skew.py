"""Train/serve skew: the features that scoring logged must equal those that the training code computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.features import reference_tables, serving_log
from perennial.modeling import registry
from perennial.monitoring.signals import Signal
from perennial.monitoring.train_serve_skew import skew_signal
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import delta_tables, landing, ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind
from support import lake, toys

FIRST, LAST = dates.add_days(toys.LAST, 1), dates.add_days(toys.LAST, 4)


def evaluate(spec: ModelSpec) -> Signal:
    champion = registry.get_champion(spec)
    assert champion is not None
    return skew_signal(spec, champion, registry.load_model(champion), FIRST, LAST)


def log(spec: ModelSpec) -> list[dict[str, Any]]:
    """With features as text: NaN equals nothing."""
    return [r | {"features": str(r["features"])} for r in toys.content_of("served", spec.name)]


@pytest.fixture
def scored(world: Any) -> ModelSpec:
    """Four partitions that the champion has scored."""
    toys.publish(world.spec, FIRST, 4)
    assert score(world.spec, start=FIRST, end=LAST)["status"] == "scored"
    return world.spec


def test_served_features_equal_those_of_the_training_code(scored: ModelSpec) -> None:
    signal = evaluate(scored)
    assert (signal.state, signal.reason) == (
        "ok", f"all {4 * toys.ROWS} logged rows have the features of the training code, in 4 of 4 partitions",
    )  # fmt: skip


@pytest.mark.parametrize("task", ["multiclass", "regression", "ranking"])
def test_every_task(make_model: Callable[..., ModelSpec], task: str) -> None:
    spec = make_model(task, training={"rounds": 5}, gate={"beat_baseline": False})
    toys.publish(spec)
    train(spec, as_of=toys.LAST)
    assert promote(spec, as_of=toys.LAST, actor="test")["promoted"]
    toys.publish(spec, FIRST, 2)
    score(spec, start=FIRST, end=dates.add_days(FIRST, 1))
    assert evaluate(spec).state == "ok"


def test_a_reference_revised_after_scoring_is_no_skew(scored: ModelSpec) -> None:
    places = toys.places()
    moved = places.set_column(2, "size", pa.array([7.0] * len(places)))
    toys.write(landing.source_uri(scored.references[0].source), moved)
    before = manifests.read(scored.name, "score", FIRST)
    assert before is not None and reference_tables.sync_to_lake(scored) != before.inputs["references"]
    assert evaluate(scored).state == "ok"
    log_before = log(scored)
    assert score(scored, start=FIRST)["status"] == "unchanged"
    score(scored, start=FIRST, force=True)
    assert log(scored) == log_before and evaluate(scored).state == "ok"


def test_a_partition_published_again_is_skipped_until_it_is_scored(scored: ModelSpec) -> None:
    rows = toys.rows(scored.task, LAST)
    rows = rows.set_column(2, "x", pa.array(np.full(len(rows), 9.0)))
    rows = rows.append_column(delta_tables.PARTITION, pa.array([LAST] * len(rows)))
    delta_tables.replace(delta_tables.table_uri("published", scored.name), rows, LAST)
    signal = evaluate(scored)
    assert signal.state == "ok" and f" {3 * toys.ROWS} logged rows" in signal.reason
    score(scored, start=FIRST, end=LAST)
    assert f" {4 * toys.ROWS} logged rows" in evaluate(scored).reason


def test_features_of_another_definition_are_skew(scored: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The serving side computes x in another way than training did, on one partition."""
    bad, real = dates.add_days(FIRST, 2), registry.load_spec

    def other(version: registry.ModelVersion) -> ModelSpec:
        spec = real(version)
        spec._sql = spec.sql.replace(
            "rows.id, x,", "rows.id, CASE WHEN x > 0 THEN x * 1.0001 ELSE x END AS x,"
        )
        return spec

    with monkeypatch.context() as patched:
        patched.setattr(registry, "load_spec", other)
        score(scored, start=bad, force=True)
    signal = evaluate(scored)
    positive = int((toys.rows(scored.task, bad)["x"].to_numpy() > 0).sum())
    assert signal.state == "bad" and signal.since == bad and signal.value == positive
    assert signal.reason == (
        f"x: {positive} of {4 * toys.ROWS} logged rows differ from the training code, first on {bad}"
    )


def test_a_prediction_that_does_not_follow_from_its_features_is_skew(scored: ModelSpec) -> None:
    table = lake.read_table(serving_log.uri(scored.name), start=LAST, end=LAST)
    predictions = table["prediction"].to_numpy().copy()
    predictions[:3] += 0.01
    position = table.column_names.index("prediction")
    delta_tables.replace(
        serving_log.uri(scored.name), table.set_column(position, "prediction", pa.array(predictions)), LAST
    )
    signal = evaluate(scored)
    assert signal.state == "bad" and signal.reason.startswith("the prediction: 3 of 240 logged rows differ")


def test_the_log_of_a_killed_scoring_is_skipped(scored: ModelSpec) -> None:
    """It was computed from other inputs than the manifest says: a difference is no skew."""
    table = lake.read_table(serving_log.uri(scored.name), start=LAST, end=LAST)
    other = table.set_column(
        table.column_names.index("scored_from"), "scored_from", pa.array(["x"] * len(table))
    )
    delta_tables.replace(serving_log.uri(scored.name), other, LAST)
    signal = evaluate(scored)
    assert signal.state == "ok" and f" {3 * toys.ROWS} logged rows" in signal.reason


def test_without_a_log_the_signal_is_undetermined(world: Any) -> None:
    toys.publish(world.spec, FIRST, 1)
    assert evaluate(world.spec).state == "undetermined"
    score(world.spec, start=FIRST)
    assert evaluate(world.spec).state == "ok"
    champion = registry.get_champion(world.spec)
    assert champion is not None
    later = registry.ModelVersion(champion.name, "99", champion.run_id, champion.model_id, champion.tags)
    record = ledger.records(champion.name, LedgerKind.TRAINING)[-1]
    ledger.append(
        champion.name,
        kind=LedgerKind.TRAINING,
        decision=Decision.ACCEPTED,
        reason="trained again",
        actor="gate",
        evidence=record["evidence"],
        model_version=later.version,
    )
    assert skew_signal(world.spec, later, registry.load_model(champion), FIRST, LAST).state == "undetermined"


def test_some_two_hundred_rows_of_each_partition_are_logged_evenly(world: Any) -> None:
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
def test_the_log_does_not_depend_on_how_partitions_are_scored(
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
