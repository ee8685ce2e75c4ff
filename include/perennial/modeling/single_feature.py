"""How well a single feature predicts the label: almost perfectly, if it contains the label in other words."""

from __future__ import annotations

import numpy as np

#: Fewest rows, and rows of the rarer class, from which a suspicion is not chance.
MIN_ROWS, MIN_CLASS_ROWS = 100, 10
#: Score from which a feature is suspected: AUC, accuracy or R².
SUSPICIOUS = 0.99
#: Share of the most frequent class above which accuracy says nothing.
MAX_MAJORITY = 0.9
#: Most bins of a number, and rows of a bin.
MAX_BINS, ROWS_PER_BIN = 256, 5


def suspicious_score(values: np.ndarray, y: np.ndarray, task: str, *, categorical: bool) -> str:
    """The score of a feature that predicts the label almost perfectly; empty for any other feature.

    On every second row the mean label, or the most frequent class, of each category or quantile bin is computed; it
    predicts the other rows. A number is interpolated, too, because bins are coarse in tails. A missing value has its
    own bin.

    Args:
        values: the feature: numbers, or codes of categories; NaN where it is missing; shape (rows,).
        y: labels: class indices, or values; shape (rows,).
        task: the model's task.
        categorical: whether the values are codes.

    Returns:
        ``AUC 0.998``, ``accuracy 0.998`` or ``R² 0.998``; empty if it is not suspicious, or rows are too few.
    """
    if len(y) < MIN_ROWS:
        return ""
    bins = np.unique(values if categorical else _bins(values), return_inverse=True)[1]
    if task == "multiclass":
        return _accuracy(bins, y.astype(np.int64))
    fit, rest = slice(0, None, 2), slice(1, None, 2)
    rows, sums = (
        np.bincount(bins[fit], minlength=bins.max() + 1),
        np.bincount(bins[fit], y[fit], bins.max() + 1),
    )
    predicted = np.where(rows > 0, sums / np.maximum(rows, 1), y[fit].mean())[bins[rest]]
    if task == "binary":
        return _auc(y[rest], predicted)
    score = _explained(y[rest], predicted)
    known = np.isfinite(values)
    if score or categorical or known.sum() < MIN_ROWS:
        return score
    x, y = values[known], y[known]
    order = np.argsort(x[fit], kind="stable")
    return _explained(y[rest], np.interp(x[rest], x[fit][order], y[fit][order]))


def _bins(values: np.ndarray) -> np.ndarray:
    """The quantile bin of each number; the value itself if there are few."""
    missing = ~np.isfinite(values)
    distinct = np.unique(values[~missing])
    count = max(1, min(MAX_BINS, len(values) // (2 * ROWS_PER_BIN)))
    few = len(distinct) <= count
    edges = distinct if few else np.quantile(values[~missing], np.arange(1, count) / count)
    return np.where(missing, -1, np.searchsorted(edges, values, side="right"))


def _accuracy(bins: np.ndarray, y: np.ndarray) -> str:
    classes, width = int(y.max()) + 1, int(bins.max()) + 1
    counts = np.bincount(bins[::2] * classes + y[::2], minlength=width * classes).reshape(width, classes)
    totals = np.bincount(y[1::2])
    if totals.max() / totals.sum() > MAX_MAJORITY or np.count_nonzero(counts.sum(axis=0)) < 2:
        return ""
    accuracy = float((counts.argmax(axis=1)[bins[1::2]] == y[1::2]).mean())
    return f"accuracy {accuracy:.3f}" if accuracy >= SUSPICIOUS else ""


def _auc(y: np.ndarray, predicted: np.ndarray) -> str:
    from scipy.stats import rankdata

    positive = y.sum()
    negative = len(y) - positive
    if min(positive, negative) < MIN_CLASS_ROWS:
        return ""
    ranks = rankdata(predicted)[y > 0].sum() - positive * (positive + 1) / 2
    area = float(ranks / (positive * negative))
    return f"AUC {area:.3f}" if area >= SUSPICIOUS else ""


def _explained(y: np.ndarray, predicted: np.ndarray) -> str:
    variance = float(((y - y.mean()) ** 2).mean())
    if not variance:
        return ""
    explained = 1 - float(((y - predicted) ** 2).mean()) / variance
    return f"R² {explained:.3f}" if explained >= SUSPICIOUS else ""
