"""Losses against scikit-learn and XGBoost."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from perennial.modeling import metrics
from perennial.spec.constraints import HOLDOUT_METRICS, OBJECTIVES, direction
from perennial.spec.model_spec import GATE_METRICS

rng = np.random.default_rng(0)
Y = (rng.random(500) < 0.4).astype(np.float32)
P = np.clip(Y * 0.3 + rng.random(500) * 0.6, 0.01, 0.99).astype(np.float32)


def test_binary_losses() -> None:
    assert metrics.losses("binary", "log_loss", Y, P).mean() == pytest.approx(
        sk.log_loss(Y, P.astype(float)), rel=1e-6
    )
    assert metrics.losses("binary", "brier", Y, P).mean() == pytest.approx(
        sk.brier_score_loss(Y, P), rel=1e-6
    )
    assert np.isfinite(metrics.losses("binary", "log_loss", np.float32([0, 1]), np.float32([1, 0]))).all()


def test_multiclass_losses() -> None:
    p = rng.dirichlet([1, 1, 1], 200)
    y = rng.integers(0, 3, 200).astype(np.float32)
    assert metrics.losses("multiclass", "log_loss", y, p).mean() == pytest.approx(sk.log_loss(y, p), rel=1e-4)
    assert metrics.losses("multiclass", "error_rate", y, p).mean() == pytest.approx(
        1 - sk.accuracy_score(y, p.argmax(1))
    )


def test_regression_losses() -> None:
    y, p = np.float32([1, 2, 3]), np.float32([1, 4, 0])
    assert metrics.losses("regression", "squared_error", y, p).tolist() == [0, 4, 9]
    assert metrics.losses("regression", "absolute_error", y, p).tolist() == [0, 2, 3]


def test_ranking_loss_is_xgboosts_ndcg() -> None:
    import xgboost

    y = rng.integers(0, 4, 60).astype(np.float32)
    group = np.repeat(np.arange(6), 10)
    # scores of their own, so that no two rows of a list are tied: there the two differ
    data = xgboost.DMatrix(rng.normal(size=(60, 2)), label=y, qid=group, base_margin=rng.normal(size=60))
    booster = xgboost.train({"objective": "rank:ndcg", "eval_metric": "ndcg", "verbosity": 0}, data, 3)
    theirs = float(booster.eval(data).split(":")[1])
    ours = 1 - metrics.losses("ranking", "ndcg_loss", y, booster.predict(data), group).mean()
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_lists_that_cannot_be_ranked_badly_do_not_count() -> None:
    y, group = np.float32([1, 0, 0, 0, 2]), np.array([1, 1, 2, 2, 3])
    losses = metrics.losses("ranking", "ndcg_loss", y, np.float32([1, 0, 0, 1, 0]), group)
    assert losses[0] == 0
    assert np.isnan(losses[1:]).all() and len(losses) == 3
    assert metrics.mean_loss(losses) == 0
    assert metrics.rows_of_one_grade(y, group) == 3
    assert np.isnan(metrics.mean_loss(losses[1:])), "nothing that was judged is not a perfect order"
    with pytest.raises(ValueError, match="group"):
        metrics.losses("ranking", "ndcg_loss", y, y)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "ranking"])
def test_metrics_hold_every_gate_metric_and_nothing_infinite(task: str) -> None:
    y = np.float32([0, 1, 0, 0]) if task == "ranking" else np.zeros(4, np.float32)
    p = np.full((4, 2), 0.5, np.float32) if task == "multiclass" else np.full(4, 0.5, np.float32)
    values = metrics.metrics(task, y, p, np.array([0, 0, 1, 1]))
    assert set(GATE_METRICS[task]) <= set(values)
    assert np.isfinite(list(values.values())).all()


def good_and_bad_predictions(task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions close to them, predictions far from them, and lists."""
    random = np.random.default_rng(1)
    y = random.integers(0, 2 if task == "binary" else 4, 80).astype(np.float32)
    good = np.clip(y / 2 + random.normal(0, 0.2, 80), 0.01, 0.99) if task == "binary" else y
    bad = random.random(80)
    if task == "multiclass":
        good, bad = np.eye(4)[y.astype(int)] * 0.6 + 0.1, random.dirichlet(np.ones(4), 80)
    return y, good.astype(np.float32), bad.astype(np.float32), np.repeat(np.arange(8), 10)


@pytest.mark.parametrize("task", HOLDOUT_METRICS)
def test_the_direction_of_every_metric_is_that_of_good_predictions(task: str) -> None:
    y, good, bad, lists = good_and_bad_predictions(task)
    better, worse = (metrics.metrics(task, y, p, lists) for p in (good, bad))
    assert set(better) == set(HOLDOUT_METRICS[task])
    for name in better:
        assert direction(name) == ("higher" if better[name] > worse[name] else "lower"), name


@pytest.mark.parametrize(("task", "metric"), metrics.EVAL_METRICS)
def test_early_stopping_knows_the_direction_of_xgboosts_metrics(task: str, metric: str) -> None:
    import xgboost

    y, good, bad, lists = good_and_bad_predictions(task)
    parameters = {
        "objective": OBJECTIVES[task][0],
        "eval_metric": metrics.EVAL_METRICS[task, metric],
        "learning_rate": 0,
    } | ({"num_class": 4} if task == "multiclass" else {})
    values = []
    for predicted in (good, bad):
        margin = predicted
        if task in ("binary", "multiclass"):
            margin = np.log(predicted) - (np.log1p(-predicted) if task == "binary" else 0)
        data = xgboost.DMatrix(
            np.zeros((80, 1)), label=y, base_margin=margin, qid=lists if task == "ranking" else None
        )
        booster = xgboost.train(parameters | {"verbosity": 0}, data, 1)
        values.append(float(booster.eval(data).rsplit(":", 1)[1]))
    higher_is_better = values[0] > values[1]
    assert direction(metrics.EVAL_METRICS[task, metric]) == ("higher" if higher_is_better else "lower")


def test_a_class_that_the_model_does_not_have_counts_as_wrong() -> None:
    y = np.float32([0, 1, -1, -1])
    p = np.float32([[0.9, 0.1], [0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])
    values = metrics.metrics("multiclass", y, p)
    assert values["accuracy"] == 0.5 and values["error_rate"] == 0.5
    worst = -np.log(metrics.SMALLEST_PROBABILITY)
    assert values["log_loss"] == pytest.approx((-np.log(0.9) - np.log(0.8) + 2 * worst) / 4, rel=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_a_row_without_a_prediction_counts_as_wrong_whatever_its_class(label: int) -> None:
    y, p = np.float32([label]), np.float32([[np.nan, 0.8]])
    values = metrics.metrics("multiclass", y, p)
    assert values["accuracy"] == 0 and values["error_rate"] == 1
    assert values["log_loss"] == pytest.approx(-np.log(metrics.SMALLEST_PROBABILITY), rel=1e-6)


@pytest.mark.parametrize("task", HOLDOUT_METRICS)
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_prediction_that_is_no_number_is_never_better_than_one_that_is(task: str, broken: float) -> None:
    y, good, _, lists = good_and_bad_predictions(task)
    with_broken = good.copy()
    with_broken[10:20] = np.nan if task in ("binary", "multiclass") else broken
    better, worse = (metrics.metrics(task, y, p, lists) for p in (good, with_broken))
    assert set(better) == set(worse)
    for name in better:
        assert (better[name] > worse[name]) == (direction(name) == "higher"), name
