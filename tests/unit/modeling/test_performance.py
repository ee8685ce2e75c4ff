"""Metrics with intervals, in total and by slice: their values, the coverage of the intervals, what is not evaluated."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from perennial.core.errors import ArtifactError
from perennial.modeling import comparison, metrics, performance
from perennial.modeling._rank_statistics import rank_statistics
from perennial.modeling.performance import EvaluatedRows, Performance, SliceValues
from perennial.spec.constraints import HOLDOUT_METRICS


def binary(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and rounded probabilities, of which many are equal."""
    rng = np.random.default_rng(seed)
    p = np.round(rng.beta(2, 3, n), 2)
    return (rng.random(n) < p).astype(float), np.clip(p + np.round(rng.normal(0, 0.1, n), 2), 0.01, 0.99)


def estimate(rows: EvaluatedRows, columns: dict[str, list[Any]] | None = None, **changes: Any) -> Performance:
    values = SliceValues(list(columns or {}))
    table = pa.table(columns or {"nothing": [0] * len(rows.y)})
    half = len(rows.y) // 2
    for part in (table[:half], table[half:]):
        values.add(part)
    options = {"confidence": 0.95, "samples": 400, "seed": 0} | changes
    return performance.estimate_performance(rows, values, **options)


@pytest.mark.parametrize("n", [40, 2000])
def test_rank_statistics_and_how_much_each_row_changes_them(n: int) -> None:
    y, p = binary(n)
    statistics = rank_statistics(y, p)
    functions = {"auc": roc_auc_score, "average_precision": average_precision_score}
    for name, function in functions.items():
        assert statistics[name].value == pytest.approx(function(y, p))
        assert statistics[name].influence.mean() == pytest.approx(0, abs=1e-12)
        for row in (0, 5, int(np.argmax(p)), int(np.argmin(p))):
            weights = np.ones(n)
            weights[row] += 1e-6
            change = (function(y, p, sample_weight=weights) - function(y, p)) / 1e-6
            assert statistics[name].influence[row] / n == pytest.approx(change, abs=1e-6)
    assert rank_statistics(np.ones(5), p[:5]) == {}


def test_the_intervals_are_those_of_a_bootstrap_that_computes_each_metric_again() -> None:
    y, p = binary(1500)
    total = estimate(EvaluatedRows("binary", "log_loss", y, p), samples=1000)
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, len(y), len(y)) for _ in range(300)]
    again = [metrics.metrics("binary", y[rows], p[rows]) for rows in drawn]
    for name, value in metrics.metrics("binary", y, p).items():
        found = total.metrics[name]
        spread = 1.96 * np.std([a[name] for a in again])
        assert found.value == pytest.approx(value)
        assert [value - found.low, found.high - value] == pytest.approx([spread, spread], rel=0.2), name


def some_rows(task: str, n: int = 900) -> EvaluatedRows:
    rng = np.random.default_rng(0)
    if task == "binary":
        return EvaluatedRows(task, "log_loss", *binary(n))
    if task == "multiclass":
        return EvaluatedRows(task, "error_rate", rng.integers(-1, 3, n) * 1.0, rng.dirichlet([1, 1, 1], n))
    y = rng.integers(0, 4, n) * 1.0
    lists = np.repeat(np.arange(n // 9), 9) if task == "ranking" else None
    metric = "ndcg_loss" if task == "ranking" else "squared_error"
    return EvaluatedRows(task, metric, y, y + rng.normal(0, 1, n), lists=lists)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "ranking"])
def test_each_slice_has_the_metrics_of_its_rows(task: str) -> None:
    rows = some_rows(task)
    place = np.repeat(np.random.default_rng(1).choice(["north", "south"], 100), 9)
    result = estimate(rows, {"place": place.tolist()})
    assert set(result.metrics) == set(HOLDOUT_METRICS[task])
    assert result.unit == ("lists" if task == "ranking" else "rows")
    assert {s.value for s in result.slices} == {"north", "south"}
    masks = {s.value: place == s.value for s in result.slices} | {"": np.ones(900, bool)}
    estimates = {s.value: s.metrics for s in result.slices} | {"": result.metrics}
    for value, mask in masks.items():
        lists = None if rows.lists is None else rows.lists[mask]
        expected = metrics.metrics(task, rows.y[mask], rows.challenger[mask], lists)
        assert {n: e.value for n, e in estimates[value].items()} == pytest.approx(expected)
        assert all(e.low < e.value < e.high for e in estimates[value].values())


def test_partitions_that_vary_widen_the_interval_as_in_the_gates_comparison() -> None:
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(28), 50)
    y = rng.normal(size=1400) + np.repeat(rng.normal(0, 2, 28), 50)
    ours, theirs = np.zeros(1400), np.full(1400, 0.3)
    by_row = estimate(EvaluatedRows("regression", "squared_error", y, ours, theirs), {"k": ["a"] * 1400})
    rows = EvaluatedRows("regression", "squared_error", y, ours, theirs, partitions=days)
    by_day = estimate(rows, {"k": ["a"] * 1400}, samples=1000)
    widths = [e.high - e.low for e in (by_row.metrics["squared_error"], by_day.metrics["squared_error"])]
    assert widths[1] > 2 * widths[0] and by_day.unit == "partitions"
    compared = comparison.paired_bootstrap(
        y**2, (theirs - y) ** 2, confidence=0.95, resamples=1000, seed=1, days=days
    )
    improvement = by_day.slices[0].improvement
    assert improvement is not None and improvement.value == pytest.approx(compared.improvement)
    # A single slice needs no correction for several, so that both are the same interval, up to its kind.
    assert improvement.high - improvement.low == pytest.approx(compared.high - compared.low, rel=0.15)


def test_exactly_the_slice_in_which_the_challenger_is_worse_is_found() -> None:
    rng = np.random.default_rng(0)
    n = 6000
    place = rng.choice([f"p{i}" for i in range(12)], n)
    y = rng.normal(size=n)
    champion = y + rng.normal(0, 1, n)
    challenger = y + rng.normal(0, 1, n) * np.where(place == "p7", 1.5, 0.9)
    result = estimate(
        EvaluatedRows("regression", "squared_error", y, challenger, champion),
        {"place": place.tolist(), "k": rng.choice(["a", "b"], n).tolist()},
    )
    assert [s.name for s in result.worse_slices] == ["place = p7"]
    assert set(result.champion) == set(result.metrics)


def test_equal_models_are_rarely_worse_in_any_slice() -> None:
    """Of 60 comparisons of 20 slices about 1.5 should be; single intervals would name one in a third of them."""
    worse = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y, noise = np.zeros(3000), rng.normal(0, 1, (2, 3000))
        rows = EvaluatedRows("regression", "squared_error", y, noise[0], noise[1])
        worse += bool(estimate(rows, {"k": rng.integers(0, 20, 3000).tolist()}, seed=seed).worse_slices)
    assert worse <= 5


def test_what_is_not_evaluated_is_said() -> None:
    n = 3000
    rng = np.random.default_rng(0)
    code: list[Any] = rng.permutation(
        [None] * 120 + [7] * 99 + [i % 30 + 10 for i in range(n - 219)]
    ).tolist()
    y, p = binary(n)
    result = estimate(EvaluatedRows("binary", "log_loss", y, p), {"code": code})
    by_value = {s.value: s for s in result.slices}
    assert len(result.slices) == performance.MAX_SLICES
    assert by_value["(none)"].metrics and not by_value["(none)"].too_few
    assert by_value["7"].too_few == "too few rows: 99, 100 are needed" and not by_value["7"].metrics
    assert sum(s.rows for s in result.slices) + result.other_rows["code"] == n
    days = np.repeat(np.arange(30), 100)
    rows = EvaluatedRows("binary", "log_loss", y, p, partitions=days)
    early = estimate(rows, {"early": (days < 5).tolist()}).slices
    assert [s.too_few for s in early] == ["", "too few partitions: 5, 10 are needed"]


def test_a_slice_of_one_class_has_no_auc() -> None:
    y, p = binary(1000)
    y[:200] = 1
    first = estimate(EvaluatedRows("binary", "log_loss", y, p), {"k": ["a"] * 200 + ["b"] * 800}).slices[1]
    assert first.value == "a" and set(first.metrics) == {"log_loss", "brier"}


def test_what_is_stored_is_read_again() -> None:
    y, p = binary(1000)
    rows = EvaluatedRows("binary", "log_loss", y, p, np.full(1000, 0.4))
    result = estimate(rows, {"k": ["a"] * 950 + ["b"] * 50})
    content = json.loads(json.dumps(result.as_dict()))
    assert performance.parse(content).as_dict() == content
    assert performance.parse(content).slices[1].too_few and performance.parse(content).slices[0].improvement
    with pytest.raises(ArtifactError, match="format 9"):
        performance.parse(content | {"format": 9})
