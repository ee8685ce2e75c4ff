"""Quality of predictions, and the comparison of two models on the same rows."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


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
    """The loss of each row (of each group, for ranking), shape (rows,) or (groups,); lower is better.

    Args:
        y: labels, shape (rows,): 0 or 1, class index, value, or grade.
        predicted: probability, probabilities of shape (rows, classes), value, or score.
        group: for ranking, the list each row belongs to; rows of one list are adjacent.
    """
    import numpy as np

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
    """1 - NDCG of each list, with exponential gains 2^grade - 1, as XGBoost counts them (Burges, 2010)."""
    import numpy as np
    from sklearn.metrics import ndcg_score

    if group is None:
        raise ValueError("ranking is judged by lists: group is needed")
    edges = np.flatnonzero(np.r_[True, group[1:] != group[:-1], True])
    found = []
    for start, stop in pairwise(edges):
        gains = 2.0 ** y[start:stop] - 1
        if stop - start > 1 and gains.any():  # a list of one, or with nothing to find, cannot be ranked badly
            found.append(1 - ndcg_score([gains], [predicted[start:stop]]))
    return np.asarray(found or [0.0])


def metrics(
    task: str, y: np.ndarray, predicted: np.ndarray, group: np.ndarray | None = None
) -> dict[str, float]:
    """The usual metrics of a task, among them every gate metric, by name."""
    import numpy as np
    from sklearn import metrics as sk

    from perennial.spec.model_spec import GATE_METRICS

    found = {m: float(losses(task, m, y, predicted, group).mean()) for m in GATE_METRICS[task]}
    if task == "binary" and 0 < y.mean() < 1:
        found["auc"] = float(sk.roc_auc_score(y, predicted))
        found["average_precision"] = float(sk.average_precision_score(y, predicted))
    elif task == "multiclass":
        found["accuracy"] = 1 - found["error_rate"]
    elif task == "regression":
        found["rmse"] = float(np.sqrt(found["squared_error"]))
        found["r2"] = float(sk.r2_score(y, predicted)) if len(y) > 1 else float("nan")
    elif task == "ranking":
        found["ndcg"] = 1 - found["ndcg_loss"]
    return {k: v for k, v in found.items() if np.isfinite(v)}
