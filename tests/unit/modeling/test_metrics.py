"""Losses against scikit-learn and XGBoost."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from perennial.modeling import metrics
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
    assert metrics.losses("ranking", "ndcg_loss", y, np.float32([1, 0, 0, 1, 0]), group).tolist() == [0]
    with pytest.raises(ValueError, match="group"):
        metrics.losses("ranking", "ndcg_loss", y, y)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "ranking"])
def test_metrics_hold_every_gate_metric_and_nothing_infinite(task: str) -> None:
    y = np.zeros(4, np.float32)
    p = np.full((4, 2), 0.5, np.float32) if task == "multiclass" else np.full(4, 0.5, np.float32)
    values = metrics.metrics(task, y, p, np.array([0, 0, 1, 1]))
    assert set(GATE_METRICS[task]) <= set(values)
    assert np.isfinite(list(values.values())).all()
