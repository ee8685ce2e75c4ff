"""Charts of predictions compared with labels: curves of the right values, in a bounded number of points."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn import metrics as sk

from perennial.charts.bar_chart import BarChart
from perennial.charts.confusion_chart import ConfusionChart
from perennial.charts.line_chart import LineChart
from perennial.modeling import evaluation_charts
from perennial.modeling.evaluation_charts import importance_chart, learning_curve_chart, performance_charts

RNG = np.random.default_rng(0)
P = RNG.random(5000)
Y = (RNG.random(5000) < P).astype(float)


def points(chart: Any, name: str) -> list[tuple[float, float]]:
    assert isinstance(chart, LineChart)
    return [
        (float(x), float(y)) for s in chart.series if s.name == name for x, y in s.points if y is not None
    ]


def area(curve: list[tuple[float, float]]) -> float:
    return float(np.trapezoid([y for _, y in curve], [x for x, _ in curve]))


def test_the_roc_curve_has_the_area_of_the_metric() -> None:
    curve = points(performance_charts("binary", Y, P)["roc"], "model")
    assert len(curve) <= evaluation_charts.MAX_POINTS + 1
    assert curve[0] == (0.0, 0.0) and curve[-1] == (1.0, 1.0)
    assert area(curve) == pytest.approx(sk.roc_auc_score(Y, P), abs=0.005)


def test_precision_at_full_recall_is_the_base_rate() -> None:
    curve = points(performance_charts("binary", Y, P)["precision_recall"], "model")
    assert curve[-1] == (1.0, pytest.approx(Y.mean()))


def test_calibrated_probabilities_lie_on_the_diagonal_and_halved_ones_above() -> None:
    for predicted, factor in ((P, 1.0), (P / 2, 2.0)):
        curve = points(performance_charts("binary", Y, predicted)["calibration"], "observed share")
        assert len(curve) == evaluation_charts.BINS
        assert [y for _, y in curve] == pytest.approx([factor * x for x, _ in curve], abs=0.06)


def test_the_confusion_matrix_counts_rows_by_actual_and_predicted_class() -> None:
    chart = performance_charts("binary", np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.6, 0.7, 0.8, 0.2]))[
        "confusion"
    ]
    assert isinstance(chart, ConfusionChart)
    assert chart.counts == [[1, 1], [1, 2]]


def test_many_classes_are_combined() -> None:
    classes = [f"c{i}" for i in range(12)]
    y = np.repeat(np.arange(12), np.arange(12, 0, -1) * 10)
    predicted = np.full((len(y), 12), 0.01)
    predicted[np.arange(len(y)), y] = 0.89
    charts = performance_charts("multiclass", np.r_[y, -1], np.r_[predicted, predicted[:1]], classes)
    chart = charts["confusion"]
    assert isinstance(chart, ConfusionChart)
    assert list(chart.classes) == [*classes[:8], "(others)"]
    assert sum(map(sum, chart.counts)) == len(y)
    assert [chart.counts[i][i] for i in range(9)] == [120, 110, 100, 90, 80, 70, 60, 50, 100]


def test_residuals_are_counted_and_outliers_lie_in_the_last_bin() -> None:
    y = RNG.normal(size=1000)
    predicted = y + RNG.normal(scale=0.1, size=1000)
    predicted[0] = y[0] + 1e9
    chart = performance_charts("regression", y, predicted)["residuals"]
    assert isinstance(chart, BarChart)
    assert sum(value for _, value in chart.bars) == 1000
    assert "e+" not in chart.bars[-1][0]


@pytest.mark.parametrize(
    ("task", "y", "predicted"),
    [
        ("binary", np.array([]), np.array([])),
        ("binary", np.array([1.0, 1.0]), np.array([0.5, np.nan])),
        ("binary", np.array([1.0]), np.array([np.nan])),
        ("regression", np.array([2.0, 2.0]), np.array([2.0, 2.0])),
        ("regression", np.array([2.0]), np.array([np.inf])),
        ("multiclass", np.array([-1]), np.array([[0.5, 0.5]])),
        ("ranking", np.array([1.0, 2.0]), np.array([0.1, 0.2])),
    ],
    ids=["none", "one class", "no number", "no error", "infinite", "no known class", "ranking"],
)
def test_few_or_broken_values_give_what_can_be_drawn(task: str, y: Any, predicted: Any) -> None:
    for chart in performance_charts(task, y, predicted, ("a", "b")).values():
        ElementTree.fromstring(chart.svg())
        assert chart.title in chart.figure()


def test_importance_and_learning_curve() -> None:
    chart = importance_chart({f"f{i:02}": i / 435 for i in range(30)} | {"<script>": 0.0})
    assert isinstance(chart, BarChart)
    assert [name for name, _ in chart.bars[:2]] == ["f29", "f28"] and len(chart.bars) == 20
    curve = learning_curve_chart("logloss", [(1, 0.7, 0.71), (2, None, 0.6)])
    assert "logloss by round" in curve.figure()
    hostile = BarChart("<b>", [("<script>", 1.0)]).figure() + ConfusionChart("<b>", ["<i>"], [[1]]).figure()
    assert "<script>" not in hostile and "<i>" not in hostile and "<b>" not in hostile
