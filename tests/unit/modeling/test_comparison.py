"""The paired bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from perennial.modeling import comparison

rng = np.random.default_rng(0)


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
    result = compare(mine, other)
    monkeypatch.setattr(comparison, "BATCH_CELLS", 301)
    assert compare(mine, other) == result


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        other = draw.normal(1, 0.3, 200)
        result = compare(other - draw.normal(0.05, 0.5, 200), other, confidence=0.9, seed=seed)
        hits += result.low <= 0.05 / other.mean() <= result.high
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
            result = compare(
                other - gain,
                other,
                confidence=0.9,
                seed=seed,
                resamples=200,
                days=day if what == "days" else None,
            )
            hits[what] += result.low <= 0.05 / other.mean() <= result.high
    assert 165 <= hits["days"] <= 195  # 0.9 of 200, with four standard errors around
    assert hits["rows"] < 140


def test_a_large_day_weighs_its_rows() -> None:
    other = np.ones(110)
    mine = np.r_[np.full(100, 0.9), np.full(10, 1.5)]
    result = compare(mine, other, days=np.r_[np.repeat(np.arange(10), 10), np.full(10, 10)])
    assert result.improvement == pytest.approx((100 * 0.1 - 10 * 0.5) / 110)
    assert result.low < result.improvement < result.high <= 0.1


def test_the_same_model_is_no_improvement() -> None:
    same = rng.random(50)
    result = compare(same, same)
    assert (result.improvement, result.low, result.high) == (0, 0, 0)


def test_a_perfect_champion_cannot_be_beaten_and_nothing_is_divided_by_zero() -> None:
    result = compare(np.full(10, 0.1), np.zeros(10))
    assert result.improvement < 0
    assert result.high < 0
    assert compare(np.zeros(10), np.zeros(10)).improvement == 0


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not of the same rows"):
        compare(np.zeros(3), np.zeros(4))
