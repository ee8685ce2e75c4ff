"""A challenger that passed the gate is fitted once more with the held-out rows, and keeps its evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.core.partitions import PartitionRange
from perennial.features.engine import FeatureQuery
from perennial.modeling import metrics, registry, training_records
from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring import signal_evaluation
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.train import train
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind
from perennial.training import candidates
from perennial.training.windows import Windows, refit_windows
from support import toys

Make = Callable[..., ModelSpec]
#: The labels of the last day have not arrived; the five before it are held out.
LEARNED = dates.dates(toys.FIRST, dates.add_days(toys.LAST, -1))
HELD_OUT = LEARNED[-5:]


@pytest.fixture
def new_category(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the held-out days, the category c is called new."""
    true_rows = toys.rows

    def rows(task: str, day: str, n: int = toys.ROWS) -> pa.Table:
        table = true_rows(task, day, n)
        if day < HELD_OUT[0]:
            return table
        renamed = ["new" if k == "c" else k for k in table["k"].to_pylist()]
        return table.set_column(table.column_names.index("k"), "k", pa.array(renamed))

    monkeypatch.setattr(toys, "rows", rows)


def refit_spec(make: Make, task: str = "binary", **training: Any) -> ModelSpec:
    spec = make(task, training={"refit": True, **training})
    toys.publish(spec)
    return spec


def loss_of(spec: ModelSpec, model: TrainedModel, days: list[str]) -> float:
    """Mean loss of a model on the rows of some days, by hand."""
    rows = pa.concat_tables([toys.rows(spec.task, day) for day in days])
    y = toys.labels(spec.task, rows)["y"].to_numpy().astype(np.float64)
    predicted = model.predict(FeatureQuery(spec).compute(rows))
    return float(metrics.losses(spec.task, spec.metric, y, predicted).mean())


def registered(spec: ModelSpec, result: Any) -> tuple[ModelVersion, TrainedModel, TrainedModel]:
    """The version, its model, and what stands for it on the held-out rows."""
    version = registry.get_version(spec.name, result["version"])
    return version, registry.load_model(version), registry.load_comparable_model(version, HELD_OUT[0])


@pytest.mark.parametrize(
    ("task", "kinds"), [("binary", ["trees"]), ("regression", ["trees", "linear"]), ("multiclass", ["trees"])]
)
def test_the_registered_model_knows_the_held_out_rows_and_the_evaluated_one_does_not(
    make_model: Make, new_category: None, task: str, kinds: list[str]
) -> None:
    spec = refit_spec(make_model, task, candidates=kinds)
    result = train(spec, as_of=toys.LAST)
    assert result["gate"]["passed"], result["gate"]["reasons"]
    assert f"Fitted again on {LEARNED[0]}..{LEARNED[-1]}" in result["refit"]
    version, model, evaluated = registered(spec, result)
    assert "new" in model.encoding.categories["k"] and "new" not in evaluated.encoding.categories["k"]
    assert version.refit_range == PartitionRange.between(LEARNED[0], LEARNED[-1])
    assert version.holdout_range == PartitionRange.between(HELD_OUT[0], HELD_OUT[-1])
    assert model.algorithm == evaluated.algorithm == result["algorithm"]
    if task != "multiclass":
        # the evidence is the evaluated model's: the registered model has learned these rows
        assert result["metrics"][spec.metric] == pytest.approx(loss_of(spec, evaluated, HELD_OUT), rel=1e-5)
        assert loss_of(spec, model, HELD_OUT) < loss_of(spec, evaluated, HELD_OUT)
    (record,) = ledger.records(spec.name, LedgerKind.TRAINING)
    digests = record["evidence"]["digests"]
    assert digests[training_records.MODEL_FILE] == result["digest"] == version.digest
    assert digests[training_records.EVALUATED_MODEL_FILE] != result["digest"]
    assert train(spec, as_of=toys.LAST, force=True)["digest"] == result["digest"]


def test_a_champion_is_judged_by_the_evaluated_model_on_rows_that_it_has_learned(make_model: Make) -> None:
    spec = refit_spec(make_model)
    promoted = train(spec, as_of=toys.LAST)
    promote(spec, as_of=toys.LAST, actor="test")
    version, model, evaluated = registered(spec, promoted)
    result = train(spec, as_of=toys.LAST, force=True)
    judged = registry.load_json_artifact(
        registry.get_version(spec.name, result["version"]), "evaluation.json"
    )
    assert judged["champion"] == promoted["version"]
    assert judged["against_champion"]["other"] == pytest.approx(loss_of(spec, evaluated, HELD_OUT), rel=1e-5)
    assert result["importance_changes"] == [], (
        "the evaluated models are the same; the refitted one is not compared"
    )
    # on later rows, it stands for itself
    later = dates.add_days(LEARNED[-1], 1)
    assert registry.load_comparable_model(version, later).encoding == model.encoding
    assert registry.load_comparable_model(version, later).booster.save_raw() == model.booster.save_raw()
    assert evaluated.booster.save_raw() != model.booster.save_raw()
    # one day was published since, and all others have been learned
    assert signal_evaluation.new_row_share(spec, version, toys.LAST) == pytest.approx(
        1 / len(LEARNED), abs=1e-6
    )


def test_a_rejected_challenger_is_not_fitted_again(make_model: Make) -> None:
    spec = make_model(training={"refit": True}, gate={"bounds": {"auc": {"min": 1.0}}})
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    assert not result["gate"]["passed"]
    version, model, evaluated = registered(spec, result)
    assert version.refit_range is None and model.booster.save_raw() == evaluated.booster.save_raw()


def test_a_refit_that_is_worse_on_rows_that_it_learned_is_not_registered(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = refit_spec(make_model)
    true_fit = candidates.search.fit_again

    def with_one_tree(data: Any, fitted: Any, checkpoint: Any) -> Any:
        return true_fit(data, fitted, checkpoint)[:1]

    monkeypatch.setattr(candidates.search, "fit_again", with_one_tree)
    result = train(spec, as_of=toys.LAST)
    assert "Fitted again with the held-out rows, it was worse on them" in result["refit"]
    version, model, _ = registered(spec, result)
    assert version.refit_range is None and model.booster.num_boosted_rounds() == result["rounds"] > 1


def test_held_out_rows_with_another_class_are_not_learned(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_labels = toys.labels

    def labels(task: str, table: pa.Table, **_: Any) -> pa.Table:
        true = true_labels(task, table)
        if table["id"][0].as_py() < HELD_OUT[0]:
            return true
        y = ["white", *true["y"].to_pylist()[1:]]
        return true.set_column(1, "y", pa.array(y))

    monkeypatch.setattr(toys, "labels", labels)
    spec = refit_spec(make_model, "multiclass")
    result = train(spec, as_of=toys.LAST)
    assert "Not fitted again with the held-out rows, which have other classes" in result["refit"]


def test_a_window_of_a_given_length_keeps_it(make_model: Make) -> None:
    days = tuple(dates.dates("2024-01-01", "2024-01-12"))
    windows = Windows(days[:6], days[6:8], days[8:])
    whole, limited = make_model(), make_model(training={"window": "8 days"})
    assert refit_windows(whole, "sliding", windows) == Windows(days[:11], days[11:], ())
    assert refit_windows(whole, "since_change", windows).fit == days[:11]
    assert refit_windows(whole, "short", windows) == Windows(days[4:11], days[11:], ())
    assert refit_windows(limited, "sliding", windows) == Windows(days[4:11], days[11:], ())
