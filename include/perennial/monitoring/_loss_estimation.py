"""The expected loss of a model on rows whose labels are not known yet.

For classification it is computed from the model's probabilities, assuming that they are calibrated (confidence-based
estimation: Garg et al., Leveraging unlabeled data to predict out-of-distribution performance, 2022). With probabilities
p_c of the classes c the expected losses are

    log loss: -sum_c p_c ln(p_c), the entropy;    Brier score of two classes: p (1 - p);    error rate: 1 - max_c p_c.

For regression a small booster, the error model, is fitted to the losses on the held-out rows. Both estimates rise when
rows become harder to predict. Neither can detect that the relation between features and label has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xgboost

#: Probabilities are clipped to this distance from 0 and 1.
_EPSILON = 1e-7
_PARAMETERS = {
    "objective": "reg:tweedie",  # losses are positive, often small, sometimes huge
    "max_depth": 3,
    "learning_rate": 0.2,
    "min_child_weight": 30,
    "reg_lambda": 10,
    "nthread": 1,
    "verbosity": 0,
}
_ROUNDS = 20
#: Quantile at which losses are clipped for the error model: the few losses above it dominate the squared error.
_CLIP_QUANTILE = 0.999


@dataclass(frozen=True)
class LossEstimator:
    """Estimates a model's loss without labels.

    Attributes:
        task: task of the model.
        metric: the gate's metric, whose loss is estimated.
        error_model: booster that predicts the loss of a row; for regression only.
    """

    task: str
    metric: str
    error_model: xgboost.Booster | None = None

    def estimate(self, x: np.ndarray, predicted: np.ndarray) -> np.ndarray | None:
        """The expected loss of each row.

        Args:
            x: encoded features, shape (rows, columns).
            predicted: probabilities or values of the model, shape (rows,) or (rows, classes).

        Returns:
            Shape (rows,), in the unit of the metric's loss; None if it cannot be estimated: for ranking, and for
            regression without an error model.
        """
        if self.task == "regression":
            if self.error_model is None:
                return None
            return np.asarray(self.error_model.inplace_predict(x, validate_features=False), np.float64)
        p = np.clip(predicted.astype(np.float64), _EPSILON, 1 - _EPSILON)
        if self.task == "binary":
            if self.metric == "brier":
                return np.asarray(p * (1 - p))
            return np.asarray(-(p * np.log(p) + (1 - p) * np.log1p(-p)))
        if self.task == "multiclass":
            if self.metric == "error_rate":
                return np.asarray(1 - p.max(axis=1))
            return np.asarray(-(p * np.log(p)).sum(axis=1))
        return None


def fit_error_model(
    x: np.ndarray, losses: np.ndarray, partition: np.ndarray
) -> tuple[xgboost.Booster, np.ndarray]:
    """Fit the error model of a regression.

    Args:
        x: encoded features, shape (rows, columns).
        losses: loss of the model on each row, shape (rows,).
        partition: index of each row's partition, shape (rows,).

    Returns:
        The error model, fitted on all rows; and out-of-fold estimates, shape (rows,), where the two folds are the
        partitions with even and with odd index.
    """
    out_of_fold = np.empty(len(losses))
    even = partition % 2 == 0
    for fold, others in ((even, ~even), (~even, even)):
        if fold.any():
            training = others if others.any() else fold
            out_of_fold[fold] = _fit(x[training], losses[training]).inplace_predict(x[fold])
    return _fit(x, losses), out_of_fold


def _fit(x: np.ndarray, losses: np.ndarray) -> xgboost.Booster:
    import xgboost

    clipped = np.minimum(losses, np.quantile(losses, _CLIP_QUANTILE))
    return xgboost.train(_PARAMETERS, xgboost.QuantileDMatrix(x, clipped, nthread=1), _ROUNDS)
