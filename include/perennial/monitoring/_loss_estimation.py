"""The loss that a model expects of rows whose labels are not known yet.

For classification it follows from the model's own probabilities, if they are calibrated (confidence-based
estimation; Garg et al., Leveraging unlabeled data to predict out-of-distribution performance, 2022): of a row with
probability p the log loss is expected to be the entropy of p. For regression a small booster has learned, on held-out
rows, how far off the model is where (a learned error model). Both see that rows have become harder; neither can see
that the truth has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import xgboost

_TINY = 1e-7
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


@dataclass(frozen=True)
class LossEstimator:
    """How a model's loss is expected without labels.

    Attributes:
        errors: regression: the learned error model.
    """

    task: str
    metric: str
    errors: xgboost.Booster | None = None

    def losses(self, x: np.ndarray, predicted: np.ndarray) -> np.ndarray | None:
        """The expected loss of each row, shape (rows,); None where there is no way to tell (ranking)."""
        import numpy as np

        if self.task == "regression":
            if self.errors is None:
                return None
            return np.asarray(self.errors.inplace_predict(x, validate_features=False), np.float64)
        p = np.clip(predicted.astype(np.float64), _TINY, 1 - _TINY)
        if self.task == "binary":
            return np.asarray(
                p * (1 - p) if self.metric == "brier" else -(p * np.log(p) + (1 - p) * np.log1p(-p))
            )
        if self.task == "multiclass":
            return np.asarray(
                1 - p.max(axis=1) if self.metric == "error_rate" else -(p * np.log(p)).sum(axis=1)
            )
        return None


def fit_error_model(
    x: np.ndarray, losses: np.ndarray, night: np.ndarray
) -> tuple[xgboost.Booster, np.ndarray]:
    """A model of the loss, and what it expects of each row when it has learned from the other half of the nights alone.

    Args:
        x: encoded features. losses: shape (rows,). night: the night of each row.
    """
    import numpy as np

    apart = np.empty(len(losses))
    half = night % 2 == 0
    for mine, others in ((half, ~half), (~half, half)):
        if mine.any():
            source = others if others.any() else mine
            apart[mine] = _fit(x[source], losses[source]).inplace_predict(x[mine])
    return _fit(x, losses), apart


def _fit(x: np.ndarray, losses: np.ndarray) -> xgboost.Booster:
    import numpy as np
    import xgboost

    # The largest thousandth of squared errors would be most of what there is to learn.
    kept = np.minimum(losses, np.quantile(losses, 0.999))
    return xgboost.train(_PARAMETERS, xgboost.QuantileDMatrix(x, kept, nthread=1), _ROUNDS)
