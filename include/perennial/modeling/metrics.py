"""Loss of each row, and the metrics of each task."""

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


def losses(
    task: str, metric: str, y: np.ndarray, predicted: np.ndarray, group: np.ndarray | None = None
) -> np.ndarray:
    """Compute the loss of each row, or of each list for ranking; lower is better.

    Args:
        task: binary, multiclass, regression or ranking.
        metric: the gate metric.
        y: labels, shape (rows,): 0 or 1, class index, value, or grade.
        predicted: predictions, shape (rows,): probability, value, or score; (rows, classes) for multiclass.
        group: ranking only: number of each row's list, shape (rows,); rows of one list are adjacent.

    Returns:
        Losses, shape (rows,), or (lists,) for ranking.
    """
    tiny = 1e-7
    if task == "binary":
        p = np.clip(predicted.astype(np.float64), tiny, 1 - tiny)
        return np.asarray((p - y) ** 2 if metric == "brier" else -(y * np.log(p) + (1 - y) * np.log1p(-p)))
    if task == "multiclass":
        if metric == "error_rate":
            return np.asarray(predicted.argmax(axis=1) != y, dtype=np.float64)
        chosen = predicted[np.arange(len(y)), y.astype(np.int64)].astype(np.float64)
        return np.asarray(-np.log(np.clip(chosen, tiny, 1)))
    if task == "regression":
        error = predicted.astype(np.float64) - y
        return np.asarray(np.abs(error) if metric == "absolute_error" else error**2)
    return _ndcg_losses(y, predicted, group)


def _ndcg_losses(y: np.ndarray, predicted: np.ndarray, group: np.ndarray | None) -> np.ndarray:
    """1 - NDCG of each list, with exponential gains 2^grade - 1, as XGBoost computes it (Burges, 2010)."""
    from sklearn.metrics import ndcg_score

    if group is None:
        raise ValueError("ranking is evaluated by list: group is needed")
    edges = np.flatnonzero(np.r_[True, group[1:] != group[:-1], True])
    values = []
    for start, stop in pairwise(edges):
        gains = 2.0 ** y[start:stop] - 1
        # A list with a single row, or without relevant rows, cannot be in a wrong order.
        if stop - start > 1 and gains.any():
            values.append(1 - ndcg_score([gains], [predicted[start:stop]]))
    return np.asarray(values or [0.0])


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

    values = {m: float(losses(task, m, y, predicted, group).mean()) for m in GATE_METRICS[task]}
    if task == "binary" and 0 < y.mean() < 1:
        values["auc"] = float(sk.roc_auc_score(y, predicted))
        values["average_precision"] = float(sk.average_precision_score(y, predicted))
    elif task == "multiclass":
        values["accuracy"] = 1 - values["error_rate"]
    elif task == "regression":
        values["rmse"] = float(np.sqrt(values["squared_error"]))
        values["r2"] = float(sk.r2_score(y, predicted)) if len(y) > 1 else float("nan")
    elif task == "ranking":
        values["ndcg"] = 1 - values["ndcg_loss"]
    return {k: v for k, v in values.items() if np.isfinite(v)}
