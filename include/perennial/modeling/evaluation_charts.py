"""Charts of predictions compared with labels: what MLflow, the report of a training and that of a window show.

The charts hold a bounded number of points and no row: curves, shares of bins, counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from perennial.charts.bar_chart import BarChart
from perennial.charts.confusion_chart import ConfusionChart
from perennial.charts.interval_chart import Interval, IntervalChart, IntervalRow
from perennial.charts.line_chart import LineChart, Series
from perennial.charts.markup import Markup
from perennial.modeling.performance import Estimate, Performance, SlicePerformance
from perennial.spec.constraints import direction, metric_in_words

#: Most points of a curve.
MAX_POINTS = 60
#: Bins of calibration and residuals.
BINS = 10
#: Most classes of a confusion matrix; the rarest are combined.
MAX_CLASSES = 8
#: Most features of the chart of importance.
MAX_FEATURES = 20
#: A quantile of residuals beyond which they are shown in the outermost bins.
TAIL = 0.01


class Chart(Protocol):
    """What all charts have."""

    @property
    def title(self) -> str:
        """What is shown."""

    def svg(self) -> Markup:
        """The picture."""

    def figure(self) -> Markup:
        """Picture, legend and table."""


def performance_charts(
    task: str, y: np.ndarray, predicted: np.ndarray, classes: Sequence[str] = ()
) -> dict[str, Chart]:
    """Charts of how good predictions are, by name.

    Args:
        task: binary, multiclass, regression or ranking.
        y: labels, as for `metrics.losses`.
        predicted: predictions, as for `metrics.losses`.
        classes: multiclass only: names of the classes, by index.

    Returns:
        Charts by name, such as ``roc`` or ``calibration``; empty if there is nothing to compare, and for ranking.
    """
    if task == "multiclass":
        known = (y >= 0) & np.isfinite(predicted).all(axis=1)
        return _multiclass(y[known].astype(np.int64), predicted[known], classes) if known.any() else {}
    known = np.isfinite(predicted)
    y, predicted = y[known].astype(np.float64), predicted[known].astype(np.float64)
    if not len(y):
        return {}
    if task == "binary":
        return _binary(y, predicted)
    return _regression(y, predicted) if task == "regression" else {}


def importance_chart(importance: Mapping[str, float]) -> Chart:
    """The most important features, the first one on top.

    Args:
        importance: share of each feature, by name.
    """
    top = sorted(importance.items(), key=lambda item: (-item[1], item[0]))[:MAX_FEATURES]
    return BarChart("Feature importance (share of the gain)", top, "importance")


def learning_curve_chart(metric: str, points: Sequence[tuple[int, float | None, float]]) -> Chart:
    """The metric by boosting round.

    Args:
        metric: name of the metric.
        points: round, value on the rows to fit on, value on the rows for early stopping.
    """
    return LineChart(
        f"Learning curve: {metric} by round",
        [
            Series("rows for early stopping", [(n, valid) for n, _, valid in points]),
            Series("rows to fit on", [(n, train) for n, train, _ in points]),
        ],
        x_name="round",
    )


def slice_charts(performance: Performance, metric: str = "") -> dict[str, list[Chart]]:
    """The metric of each slice with its interval, and its improvement over the champion, by column.

    Args:
        performance: of the held-out rows.
        metric: name of the metric; the first of ``performance`` where that does not have it.

    Returns:
        For each column of the slices the chart of the metric and, if a champion was compared, that of the improvement.
    """
    if not performance.metrics:
        return {}
    metric = metric if metric in performance.metrics else next(iter(performance.metrics))
    columns: dict[str, list[SlicePerformance]] = {}
    for of_value in performance.slices:
        columns.setdefault(of_value.column, []).append(of_value)
    charts = {}
    for column, slices in columns.items():
        charts[column] = [_slice_metric(performance, column, slices, metric)]
        if any(of_value.improvement for of_value in slices):
            charts[column].append(_slice_improvement(column, slices))
    return charts


def _slice_metric(
    performance: Performance, column: str, slices: Sequence[SlicePerformance], metric: str
) -> Chart:
    models = {"this version": "metrics", "champion then": "champion"}
    rows = [
        IntervalRow(
            of_value.value,
            {
                name: _interval(getattr(of_value, attribute)[metric])
                for name, attribute in models.items()
                if metric in getattr(of_value, attribute)
            },
            *_note_and_state(of_value),
        )
        for of_value in slices
    ]
    title = f"{metric_in_words(metric)} by {column} ({direction(metric)} is better)"
    return IntervalChart(
        f"{title[0].upper()}{title[1:]}",
        [name for name in models if any(name in row.intervals for row in rows)] or ["this version"],
        rows,
        column,
        performance.metrics[metric].value,
        "this version, all rows",
    )


def _slice_improvement(column: str, slices: Sequence[SlicePerformance]) -> Chart:
    name = "improvement over the champion"
    rows = [
        IntervalRow(
            of_value.value,
            {name: _interval(of_value.improvement)} if of_value.improvement else {},
            *_note_and_state(of_value),
        )
        for of_value in slices
    ]
    return IntervalChart(
        f"Improvement over the champion by {column}",
        [name],
        rows,
        column,
        0.0,
        "as good as the champion",
        _share,
    )


def _note_and_state(of_value: SlicePerformance) -> tuple[str, str]:
    """What a slice rests on, and ``bad`` if the version is clearly worse than the champion there."""
    if of_value.improvement and of_value.improvement.high < 0:
        return f"{of_value.rows:,} rows; clearly worse than the champion", "bad"
    return of_value.too_few or f"{of_value.rows:,} rows", ""


def _interval(estimate: Estimate) -> Interval:
    return Interval(estimate.value, estimate.low, estimate.high)


def _share(value: float | None) -> str:
    """A share in per cent, with its sign."""
    return "–" if value is None else f"{value:+.1%}" if value else "0%"


def staleness_chart(curve: Mapping[str, Any]) -> Chart:
    """How much more loss a model has than the youngest one, by age, with the interval.

    Args:
        curve: as `training.studies.staleness` measures it.
    """
    name = f"rise of the {metric_in_words(curve['metric'])}"
    rows = [
        IntervalRow(
            f"{point['older_by']} partitions older",
            {name: Interval(point["rise"], point["low"], point["high"])},
            f"{curve['metric']} {point['loss']:.4f}",
            "bad" if point["low"] > 0 else "",
        )
        for point in curve["ages"][1:]
    ]
    return IntervalChart(
        f"Loss by age of the model, measured as of {curve['as_of']}",
        [name],
        rows,
        "model",
        0.0,
        f"the youngest model ({curve['ages'][0]['loss']:.4f})",
        _share,
    )


def _binary(y: np.ndarray, predicted: np.ndarray) -> dict[str, Chart]:
    charts: dict[str, Chart] = {}
    positives = int(y.sum())
    if 0 < positives < len(y):
        charts |= _ranked_curves(y, predicted)
    charts["calibration"] = _calibration(
        "Calibration: observed share by predicted probability", y, predicted, "observed share"
    )
    counts = [[int(((y == a) & ((predicted >= 0.5) == p)).sum()) for p in (0, 1)] for a in (0, 1)]
    charts["confusion"] = ConfusionChart("Confusion matrix at a probability of 0.5", ["0", "1"], counts)
    return charts


def _ranked_curves(y: np.ndarray, predicted: np.ndarray) -> dict[str, Chart]:
    """ROC and precision-recall curve."""
    order = np.argsort(-predicted, kind="stable")
    last_of_score = np.flatnonzero(np.r_[np.diff(predicted[order]) != 0, True])
    hits = np.cumsum(y[order])[last_of_score]
    chosen = last_of_score + 1.0
    recall, fall_out = hits / y.sum(), (chosen - hits) / (len(y) - y.sum())
    at = np.unique(np.linspace(0, len(hits) - 1, MAX_POINTS).round().astype(int))
    roc = [(0.0, 0.0), *((float(fall_out[i]), float(recall[i])) for i in at)]
    base = float(y.mean())
    precision = {float(recall[i]): float(hits[i] / chosen[i]) for i in at}
    return {
        "roc": LineChart(
            "ROC curve: true by false positive rate",
            [
                Series("model", roc),
                Series("chance", [(0.0, 0.0), (1.0, 1.0)], role="reference"),
            ],
            x_name="false positive rate",
        ),
        "precision_recall": LineChart(
            "Precision by recall",
            [
                Series("model", list(precision.items())),
                Series("base rate", [(0.0, base), (1.0, base)], role="reference"),
            ],
            x_name="recall",
        ),
    }


def _calibration(title: str, y: np.ndarray, predicted: np.ndarray, observed: str) -> Chart:
    """Mean label by mean prediction, in bins of about equally many rows."""
    order = np.argsort(predicted, kind="stable")
    bins = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)]
    points = {float(predicted[part].mean()): float(y[part].mean()) for part in bins}
    ends = (min(points), max(points))
    return LineChart(
        title,
        [
            Series(observed, list(points.items())),
            Series("perfect", [(end, end) for end in ends], role="reference"),
        ],
        x_name="mean prediction",
    )


def _multiclass(y: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> dict[str, Chart]:
    guessed = predicted.argmax(axis=1)
    confidence = predicted[np.arange(len(y)), guessed].astype(np.float64)
    frequent = np.argsort(-np.bincount(y, minlength=len(classes)), kind="stable")
    shown = sorted(frequent[:MAX_CLASSES].tolist())
    names = [str(classes[i]) for i in shown]
    position = np.full(max(len(classes), int(y.max()) + 1), len(shown))
    position[shown] = range(len(shown))
    if len(classes) > len(shown):
        names.append("(others)")
    counts = np.zeros((len(names) + 1, len(names) + 1), dtype=np.int64)
    np.add.at(counts, (position[y], position[guessed]), 1)
    size = len(names)
    return {
        "confusion": ConfusionChart("Confusion matrix", names, counts[:size, :size].tolist()),
        "calibration": _calibration(
            "Calibration: share predicted correctly by probability of the predicted class",
            (guessed == y).astype(np.float64),
            confidence,
            "share predicted correctly",
        ),
    }


def _regression(y: np.ndarray, predicted: np.ndarray) -> dict[str, Chart]:
    residuals = predicted - y
    low, high = np.quantile(residuals, [TAIL, 1 - TAIL])
    edges = np.linspace(low, high, 2 * BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts, _ = np.histogram(np.clip(residuals, edges[0], edges[-1]), edges)
    names = [f"{edges[i]:.4g} to {edges[i + 1]:.4g}" for i in range(len(counts))]
    return {
        "residuals": BarChart(
            "Residuals: prediction minus label",
            [(name, float(count)) for name, count in zip(names, counts, strict=True)],
            "rows",
        ),
        "calibration": _calibration("Mean label by mean prediction", y, predicted, "mean label"),
    }
