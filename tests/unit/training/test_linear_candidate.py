"""A linear model as a candidate: on data that a line fits best, it becomes the challenger and is scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core import dates
from perennial.core.errors import SpecError
from perennial.modeling import registry
from perennial.modeling.comparison import Comparison
from perennial.modeling.coverage import Coverage
from perennial.spec.model_spec import ModelSpec
from perennial.steps.monitor import monitor
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.training._baseline_models import PENALTIES, fit_linear_model
from perennial.training.candidates import Candidate, prefers_linear, select_algorithm
from perennial.training.challenger_evaluation import Evaluation
from support import toys
from support.training_rows import generated_rows

pytestmark = pytest.mark.usefixtures("without_drift_report")

Make = Callable[..., ModelSpec]
BOTH = {"candidates": ["trees", "linear"]}


def linear_labels(task: str, table: pa.Table, *, shuffled: bool = False) -> pa.Table:
    """Labels that a linear model predicts best, of which those of later days lie outside the range of earlier ones."""
    x, z = table["x"].to_numpy(), table["z"].to_numpy()
    k = np.asarray(table["k"].to_pylist())
    value = 3 * x - 2 * z + (k == "a")
    noise = np.random.default_rng(len(table)).logistic(size=len(table)) / 4
    binary = (value + noise > 0).astype(np.int64)
    classes = np.select([value + noise < -2, value + noise < 2], ["low", "middle"], "high")
    grades = np.clip(np.round(value / 2 + 3), 0, 7).astype(np.int64)
    y = {"binary": binary, "multiclass": classes, "regression": value, "ranking": grades}[task]
    return pa.table({"id": table["id"], "y": pa.array(y)})


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "ranking"])
def test_on_linear_data_the_linear_model_is_promoted_scored_and_monitored(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(toys, "labels", linear_labels)
    spec = make_model(task, training=BOTH)
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    reasons = result["gate"]["reasons"]
    assert result["gate"]["passed"] and result["algorithm"] == "linear" and result["rounds"] == 1, reasons
    assert any("the linear model is the challenger" in reason for reason in reasons)
    version = registry.get_version(spec.name, result["version"])
    assert version.tags["algorithm"] == "linear"
    evaluation = registry.load_json_artifact(version, "evaluation.json")
    assert evaluation["algorithm_losses"]["linear"] < evaluation["algorithm_losses"]["trees"]
    importance = registry.load_json_artifact(version, "importance.json")
    assert importance["x"] > importance["z"] > importance["k"] > importance["hour"]
    promote(spec, as_of=toys.LAST, actor="tests")
    days = (dates.add_days(toys.LAST, -6), toys.LAST)
    assert score(spec, start=days[0], end=days[1])["rows_in"] == 7 * toys.ROWS
    assert monitor(spec, as_of=toys.LAST)["verdict"] in ("ok", "undetermined")
    predicted = toys.content_of("predictions", spec.name)
    assert len(predicted) == 7 * toys.ROWS and all(row["prediction"] is not None for row in predicted)


def test_without_the_candidate_the_gate_refuses_trees_and_says_what_to_do(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toys, "labels", linear_labels)
    spec = make_model("regression")
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    failed = [r for r in result["gate"]["reasons"] if r.startswith("FAILED")]
    assert not any("alone predicts" in reason for reason in result["gate"]["reasons"])
    assert len(failed) == 1 and "set training.candidates to [trees, linear]" in failed[0]


def test_on_other_data_trees_are_the_challenger(make_model: Make) -> None:
    spec = make_model("regression", training=BOTH)
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    assert result["gate"]["passed"] and result["algorithm"] == "trees" and result["rounds"] > 1
    reason = result["gate"]["reasons"][1]
    assert reason.startswith("ok: candidates trees ") and reason.endswith("the trees are the challenger")
    assert "97.50%" in result["gate"]["reasons"][0], "the better of two is chosen on the held-out rows"


def test_a_linear_model_alone_needs_no_search(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "labels", linear_labels)
    spec = make_model("regression", training={"candidates": ["linear"]})
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    assert result["gate"]["passed"] and result["trials"] == 0 and result["algorithm"] == "linear"
    assert result["metrics"]["r2"] > 0.999


@pytest.mark.parametrize(
    ("improvement", "low", "expected"),
    [
        (-0.5, -0.6, True),  # worse
        (0.005, -0.01, True),  # no clear difference, and less than 1%
        (0.005, 0.001, False),  # clearly better
        (0.02, -0.01, False),  # not clearly better, but by 2%
    ],
)
def test_the_linear_model_wins_unless_trees_are_better(
    improvement: float, low: float, expected: bool
) -> None:
    assert prefers_linear(Comparison(1.0, 1.0, improvement, low, 1.0, 100)) is expected


@pytest.mark.parametrize(
    ("trees_pass", "linear_passes", "improvement", "chosen"),
    [
        (True, True, 0.0, "linear"),
        (True, False, 0.0, "trees"),
        (False, True, 0.0, "linear"),
        (False, False, 0.0, "linear"),
        (False, True, 0.02, "trees"),
    ],
)
def test_trees_are_the_challenger_where_only_they_pass_the_gate(
    trees_pass: bool, linear_passes: bool, improvement: float, chosen: str
) -> None:
    against = {"linear": Comparison(1.0, 1.0, improvement, -0.1, 1.0, 100)}

    def candidate(name: str, passed: bool) -> Candidate:
        unused: Any = None
        evaluation = Evaluation(passed, [], {}, 1.0, 100, Coverage(100, 100), against, None)
        return Candidate(name, unused, unused, unused, lambda: evaluation, unused, 0, 0)

    trees, linear = candidate("trees", trees_pass), candidate("linear", linear_passes)
    assert select_algorithm(trees, linear).window_name == chosen


def test_the_penalty_is_chosen_on_the_rows_for_early_stopping(make_empty: Any, tmp_path: Path) -> None:
    straight = next(generated_rows(tmp_path).file.batches(0, 600))[0][:, 1]
    exact = fit_linear_model(make_empty("regression"), generated_rows(tmp_path, straight), PENALTIES)
    noise = np.random.default_rng(1).normal(size=600)
    shrunk = fit_linear_model(make_empty("regression"), generated_rows(tmp_path, noise), PENALTIES)
    assert exact is not None and shrunk is not None
    matrix = next(generated_rows(tmp_path).file.batches(0, 600))[0]
    assert np.abs(exact.predict_matrix(matrix) - straight).max() < 1e-3
    assert shrunk.predict_matrix(matrix).std() < 0.1


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_feature_that_contains_the_label_is_named_at_training(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    def leaking(task: str, table: pa.Table, *, shuffled: bool = False) -> pa.Table:
        x = table["x"].to_numpy()
        y = {"binary": (x > 0).astype(int), "multiclass": np.where(x < 0, "no", "yes"), "regression": x**3}[
            task
        ]
        return pa.table({"id": table["id"], "y": pa.array(y)})

    monkeypatch.setattr(toys, "labels", leaking)
    spec = make_model(task)
    toys.publish(spec)
    reasons = train(spec, as_of=toys.LAST)["gate"]["reasons"]
    named = [reason for reason in reasons if "alone predicts the label almost perfectly" in reason]
    assert len(named) == 1 and named[0].startswith("ok: feature 'x' alone")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"candidates": []}, "candidates"),
        ({"candidates": ["linear", "linear"]}, "names one kind twice"),
        ({"candidates": ["forest"]}, "candidates"),
        ({**BOTH, "objective": "count:poisson"}, "cannot predict with objective count:poisson"),
    ],
)
def test_a_candidate_that_cannot_be_is_refused(
    make_empty: Any, training: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        make_empty("regression", **training)


def test_the_order_of_candidates_does_not_matter(make_empty: Any) -> None:
    one, two = (make_empty(candidates=order) for order in (["trees", "linear"], ["linear", "trees"]))
    assert one.training == two.training
