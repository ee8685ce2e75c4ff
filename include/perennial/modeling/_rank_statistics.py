"""AUC and average precision with the influence of each row, from which their confidence intervals are computed.

A bootstrap that sorts all rows again for each sample would take minutes. The influence function says how much a
statistic changes with the weight of each row, so that a bootstrap sample only needs sums over its rows (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 22). For AUC this is the method of DeLong, DeLong and
Clarke-Pearson (1988), for whole clusters of rows that of Obuchowski (1997).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankStatistic:
    """A statistic of the order of the predictions.

    Attributes:
        value: 0 to 1.
        influence: of each row, shape (rows,); its mean is 0, and the statistic of a bootstrap sample is about the value
            plus the mean influence of the sample's rows.
    """

    value: float
    influence: np.ndarray


def rank_statistics(y: np.ndarray, scores: np.ndarray) -> dict[str, RankStatistic]:
    """Compute ``auc`` and ``average_precision``, as scikit-learn defines them.

    Args:
        y: labels 0 or 1, shape (rows,).
        scores: finite predictions, shape (rows,).

    Returns:
        Both by name; empty if there is only one class.
    """
    n = len(y)
    total = float(y.sum())
    if not 0 < total < n:
        return {}
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    tie = np.empty(n, np.int64)  # number of each row's group of equal scores
    tie[order] = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
    positive, rows = np.bincount(tie, y), np.bincount(tie).astype(np.float64)
    negatives_below = np.cumsum(rows - positive) - (rows - positive) / 2
    positives_above = total - np.cumsum(positive) + positive / 2
    auc = float(positive @ negatives_below) / (total * (n - total))
    of_positive = (negatives_below / (n - total) - auc) * n / total
    of_negative = (positives_above / total - auc) * n / (n - total)
    is_positive = y > 0
    auc_influence = np.where(is_positive, of_positive[tie], of_negative[tie])

    retrieved = n - np.cumsum(rows) + rows  # rows with this score or a higher one
    correct = total - np.cumsum(positive) + positive
    precision = correct / retrieved
    average = float(positive @ precision) / total
    gained, lost = np.cumsum(positive / retrieved), np.cumsum(positive * correct / retrieved**2)
    influence = np.where(is_positive, (precision - average + gained)[tie], 0.0) - lost[tie]
    return {
        "auc": RankStatistic(auc, auc_influence),
        "average_precision": RankStatistic(average, influence * n / total),
    }
