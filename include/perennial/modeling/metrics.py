"""Loss of each row, and the metrics of each task.

Every row with a label counts. A label of a class that the model was not trained on counts as wrong, and so does a
prediction that is not a number: its loss is the largest that a row can have. Only lists of a ranking task in which all
rows have the same grade are left out, because no order of them is wrong.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from perennial.spec.constraints import GATE_METRICS

#: XGBoost's name of each gate metric, for early stopping and search.
EVAL_METRICS = {
    ("binary", "log_loss"): "logloss",
    ("binary", "brier"): "rmse",
    ("multiclass", "log_loss"): "mlogloss",
    ("multiclass", "error_rate"): "merror",
    ("regression", "squared_error"): "rmse",
    ("regression", "absolute_error"): "mae",
    ("ranking", "ndcg_loss"): "ndcg",
}


#: Probabilities are clipped to this distance from 0 and 1, so that the largest log loss of a row is 16.1.
SMALLEST_PROBABILITY = 1e-7
#: What a prediction that is not a finite number counts as in a regression: the largest number of single precision.
LARGEST_PREDICTION = float(np.finfo(np.float32).max)


def losses(
    task: str, metric: str, y: np.ndarray, predicted: np.ndarray, group: np.ndarray | None = None
) -> np.ndarray:
    """Compute the loss of each row, or of each list for ranking; lower is better.

    Args:
        task: binary, multiclass, regression or ranking.
        metric: the gate metric.
        y: labels, shape (rows,): 0 or 1, class index (negative for a class that has none), value, or grade.
        predicted: predictions, shape (rows,): probability, value, or score; (rows, classes) for multiclass.
        group: ranking only: number of each row's list, shape (rows,); rows of one list are adjacent.

    Returns:
        Losses, shape (rows,), or (lists,) for ranking; NaN only for lists that cannot be in a wrong order.
    """
    tiny = SMALLEST_PROBABILITY
    if task == "binary":
        p = np.clip(np.where(np.isnan(predicted), 1 - y, predicted).astype(np.float64), tiny, 1 - tiny)
        return np.asarray((p - y) ** 2 if metric == "brier" else -(y * np.log(p) + (1 - y) * np.log1p(-p)))
    if task == "multiclass":
        wrong = (y < 0) | np.isnan(predicted).any(axis=1)
        if metric == "error_rate":
            return np.asarray(wrong | (predicted.argmax(axis=1) != y), dtype=np.float64)
        index = np.maximum(y, 0).astype(np.int64)
        chosen = np.where(wrong, 0.0, predicted[np.arange(len(y)), index].astype(np.float64))
        return np.asarray(-np.log(np.clip(chosen, tiny, 1)))
    if task == "regression":
        error = finite(predicted) - y
        return np.asarray(np.abs(error) if metric == "absolute_error" else error**2)
    return _ndcg_losses(y, finite(predicted), group)


def finite(predicted: np.ndarray) -> np.ndarray:
    """Predictions in double precision, with a finite number for those that are none."""
    largest = LARGEST_PREDICTION
    return np.nan_to_num(predicted.astype(np.float64), nan=largest, posinf=largest, neginf=-largest)


def _ndcg_losses(y: np.ndarray, predicted: np.ndarray, group: np.ndarray | None) -> np.ndarray:
    """1 - NDCG of each list, with exponential gains 2^grade - 1, as XGBoost computes it (Burges, 2010)."""
    from sklearn.metrics import ndcg_score

    if group is None:
        raise ValueError("ranking is evaluated by list: group is needed")
    edges = np.flatnonzero(np.r_[True, group[1:] != group[:-1], True])
    values = []
    for start, stop in pairwise(edges):
        grades = y[start:stop]
        if (grades == grades[0]).all():
            values.append(np.nan)
        else:
            values.append(1 - ndcg_score([2.0**grades - 1], [predicted[start:stop]]))
    return np.asarray(values)


def rows_of_one_grade(y: np.ndarray, group: np.ndarray) -> int:
    """Number of rows in lists without a loss, because all their rows have the same grade.

    Args:
        y: grades, as for `losses`.
        group: list of each row, as for `losses`.
    """
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]][: len(y)])
    if not len(starts):
        return 0
    same = np.minimum.reduceat(y, starts) == np.maximum.reduceat(y, starts)
    return int(np.diff(np.r_[starts, len(y)])[same].sum())


def mean_loss(values: np.ndarray) -> float:
    """The mean of `losses` without the lists that cannot be in a wrong order; NaN if there are no others."""
    judged = values[~np.isnan(values)]
    return float(judged.mean()) if len(judged) else float("nan")


def metrics(
    task: str, y: np.ndarray, predicted: np.ndarray, group: np.ndarray | None = None
) -> dict[str, float]:
    """Compute the usual metrics of a task, among them every gate metric.

    Args:
        task: binary, multiclass, regression or ranking.
        y: labels, as for `losses`.
        predicted: predictions, as for `losses`.
        group: list of each row, as for `losses`.

    Returns:
        Values by name, without those that are not finite.
    """
    from sklearn import metrics as sk

    values = {m: mean_loss(losses(task, m, y, predicted, group)) for m in GATE_METRICS[task]}
    if task == "binary" and 0 < y.mean() < 1:
        predicted = np.where(np.isnan(predicted), 1 - y, predicted)
        values["auc"] = float(sk.roc_auc_score(y, predicted))
        values["average_precision"] = float(sk.average_precision_score(y, predicted))
    elif task == "multiclass":
        values["accuracy"] = 1 - values["error_rate"]
    elif task == "regression":
        values["rmse"] = float(np.sqrt(values["squared_error"]))
        values["r2"] = float(sk.r2_score(y, finite(predicted))) if len(y) > 1 else float("nan")
    elif task == "ranking":
        values["ndcg"] = 1 - values["ndcg_loss"]
    return {k: v for k, v in values.items() if np.isfinite(v)}
