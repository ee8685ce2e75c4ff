"""Losses against scikit-learn and XGBoost, the paired bootstrap, and what the gate makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from perennial.modeling import comparison, metrics
from perennial.spec.model_spec import GATE_METRICS, ModelSpec
from perennial.training import challenger_evaluation
from support import toys

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
    found = metrics.metrics(task, y, p, np.array([0, 0, 1, 1]))
    assert set(GATE_METRICS[task]) <= set(found)
    assert np.isfinite(list(found.values())).all()


def compare(mine: Any, other: Any, **more: Any) -> comparison.Comparison:
    return comparison.paired_bootstrap(
        mine, other, **{"confidence": 0.95, "resamples": 500, "seed": 1} | more
    )


def test_a_clear_improvement_lies_wholly_above_zero_and_noise_does_not() -> None:
    other = rng.random(1000)
    better = compare(other - 0.1 + rng.normal(0, 0.01, 1000), other)
    assert 0 < better.low < better.improvement < better.high
    assert better.improvement == pytest.approx(0.1 / other.mean(), rel=0.05)
    noise = compare(other + rng.normal(0, 0.1, 1000), other)
    assert noise.low < 0


def test_pairs_count_where_two_samples_would_not() -> None:
    """A small, steady gain over rows of very different difficulty."""
    other = rng.exponential(10, 500)
    assert compare(other - 0.01, other).low > 0


def test_the_interval_is_the_same_each_time_and_wider_with_more_confidence() -> None:
    mine, other = rng.random(300), rng.random(300)
    assert compare(mine, other) == compare(mine, other)
    wide, narrow = compare(mine, other, confidence=0.99), compare(mine, other, confidence=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_how_many_are_drawn_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = rng.random(300), rng.random(300)
    found = compare(mine, other)
    monkeypatch.setattr(comparison, "BATCH_CELLS", 301)
    assert compare(mine, other) == found


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        other = draw.normal(1, 0.3, 200)
        found = compare(other - draw.normal(0.05, 0.5, 200), other, confidence=0.9, seed=seed)
        hits += found.low <= 0.05 / other.mean() <= found.high
    assert 165 <= hits <= 195  # 0.9 of 200, with four standard errors around


def test_days_cover_the_truth_where_the_rows_of_a_day_are_alike_and_rows_do_not() -> None:
    """40 days of 50 rows with a shock of each day's own; the gain is 0.05."""
    hits = {"days": 0, "rows": 0}
    day = np.repeat(np.arange(40), 50)
    for seed in range(200):
        draw = np.random.default_rng(seed)
        gain = 0.05 + draw.normal(0, 0.2, 40)[day] + draw.normal(0, 0.5, 2000)
        other = draw.normal(1, 0.3, 2000)
        for what in hits:
            found = compare(
                other - gain,
                other,
                confidence=0.9,
                seed=seed,
                resamples=200,
                days=day if what == "days" else None,
            )
            hits[what] += found.low <= 0.05 / other.mean() <= found.high
    assert 165 <= hits["days"] <= 195  # 0.9 of 200, with four standard errors around
    assert hits["rows"] < 140


def test_a_large_day_weighs_its_rows() -> None:
    other = np.ones(110)
    mine = np.r_[np.full(100, 0.9), np.full(10, 1.5)]
    found = compare(mine, other, days=np.r_[np.repeat(np.arange(10), 10), np.full(10, 10)])
    assert found.improvement == pytest.approx((100 * 0.1 - 10 * 0.5) / 110)
    assert found.low < found.improvement < found.high <= 0.1


def test_the_same_model_is_no_improvement() -> None:
    same = rng.random(50)
    found = compare(same, same)
    assert (found.improvement, found.low, found.high) == (0, 0, 0)


def test_a_perfect_champion_cannot_be_beaten_and_nothing_is_divided_by_zero() -> None:
    found = compare(np.full(10, 0.1), np.zeros(10))
    assert found.improvement < 0
    assert found.high < 0
    assert compare(np.zeros(10), np.zeros(10)).improvement == 0


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not of the same rows"):
        compare(np.zeros(3), np.zeros(4))


@pytest.fixture
def spec_of(tmp_path: Path) -> Any:
    def make(**gate: Any) -> ModelSpec:
        return toys.model(tmp_path, "toy", gate=gate)

    return make


def better(low: float, improvement: float = 0.05) -> comparison.Comparison:
    return comparison.Comparison(0.95, 1.0, improvement, low, 0.1, 100)


def judge(
    spec: ModelSpec, champion: comparison.Comparison | None, values: dict[str, float] | None = None
) -> Any:
    simple = {"constant": better(0.01), "linear model": better(0.01)}
    return challenger_evaluation.gate_decision(spec, values or {}, simple, champion)


def test_the_interval_must_lie_above_the_margin(spec_of: Any) -> None:
    assert judge(spec_of(margin=0.0), better(0.001))[0] is True
    assert judge(spec_of(margin=0.0), better(0.0))[0] is False
    assert judge(spec_of(margin=0.02), better(0.019))[0] is False
    assert judge(spec_of(margin=0.02), better(0.021))[0] is True
    passed, reasons = judge(spec_of(margin=0.02), None)
    assert passed
    assert any("there is no champion yet" in r for r in reasons)


def test_simple_models(spec_of: Any) -> None:
    """The constant must surely be beaten; the linear model must not surely be better."""
    spec, worse = spec_of(), comparison.Comparison(1.1, 1.0, -0.1, -0.2, -0.05, 100)
    unsure = comparison.Comparison(1.0, 1.0, 0.0, -0.1, 0.1, 100)

    def passes(
        constant: comparison.Comparison, linear: comparison.Comparison, spec: ModelSpec = spec
    ) -> bool:
        return challenger_evaluation.gate_decision(
            spec, {}, {"constant": constant, "linear model": linear}, None
        )[0]

    assert passes(better(0.01), better(0.01))
    assert passes(better(0.01), unsure)
    assert not passes(better(0.01), worse)
    assert not passes(unsure, better(0.01))
    assert passes(worse, worse, spec_of(beat_baseline=False))


def test_bounds_are_looked_at_and_an_unknown_metric_does_not_pass(spec_of: Any) -> None:
    spec = spec_of(bounds={"brier": 0.2})
    assert judge(spec, None, {"brier": 0.2})[0] is True
    assert judge(spec, None, {"brier": 0.21})[0] is False
    passed, reasons = judge(spec, None, {})
    assert not passed
    assert any("brier is not known" in r for r in reasons)


def test_every_reason_is_given_where_one_would_do(spec_of: Any) -> None:
    passed, reasons = judge(spec_of(bounds={"brier": 0.1}), better(-0.1), {"brier": 0.5})
    assert not passed
    assert [r.split(":")[0] for r in reasons] == ["ok", "ok", "FAILED", "FAILED"]
