"""Simple models: the baselines that a challenger must be better than, and the linear candidate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from perennial.core.sql import batch_rows
from perennial.modeling.linear_design import LinearDesign, linear_booster
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.model_spec import ModelSpec
from perennial.training._dataset import TrainingData

#: Approximate number of rows that they are fitted on; fewer of a table with very many columns.
BASELINE_ROWS = 20_000
#: Penalties of squared weights that a linear candidate tries: ridge regression's alpha, logistic regression's 1 / C.
PENALTIES = (0.01, 1.0, 30.0, 1000.0)
#: Raw score of a class that the sample does not have.
_ABSENT = -1000.0


#: About `BASELINE_ROWS` evenly spaced rows, shape (rows, columns), and their labels, shape (rows,).
RowSample = tuple[np.ndarray, np.ndarray]


def sample_rows(data: TrainingData) -> int:
    """Approximate number of rows that the models are fitted on."""
    return batch_rows(BASELINE_ROWS, len(data.encoding.columns))


def fit_baseline_models(
    spec: ModelSpec, data: TrainingData, linear: TrainedModel | None = None, sample: RowSample | None = None
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Fit the baseline models on an evenly spaced sample of the training rows.

    ``constant`` predicts the same for every row (the class shares, or the mean); ``linear`` is a logistic or ridge
    regression on standardised numbers and one-hot categories.

    Args:
        spec: the model.
        data: the rows.
        linear: the linear model if it was fitted already.
        sample: the rows to fit on if they were read already.

    Returns:
        By name, functions from an encoded matrix to predictions, with the same shape as those of the booster. Without
        ``linear`` if the sample has one class only.
    """
    sample = sample or data.sample(sample_rows(data))
    y = sample[1]
    classify = spec.task in ("binary", "multiclass")
    value = np.atleast_1d(y.mean(dtype=np.float64))
    if classify:
        value = np.bincount(y.astype(np.int64), minlength=len(data.classes) or 2) / len(y)
        value = value[1:] if spec.task == "binary" else value

    def constant(matrix: np.ndarray) -> np.ndarray:
        predictions = np.broadcast_to(value, (len(matrix), len(value)))
        return predictions if spec.task == "multiclass" else predictions[:, 0]

    models: dict[str, Callable[[np.ndarray], np.ndarray]] = {"constant": constant}
    linear = linear or fit_linear_model(spec, data, sample=sample)
    return models | ({"linear": linear.predict_matrix} if linear else {})


def fit_linear_model(
    spec: ModelSpec,
    data: TrainingData,
    penalties: tuple[float, ...] = (1.0,),
    sample: RowSample | None = None,
) -> TrainedModel | None:
    """Fit a linear model on an evenly spaced sample of the training rows.

    Args:
        spec: the model.
        data: the rows.
        penalties: penalties of squared weights; of several, the best on the rows for early stopping is used.
        sample: the rows to fit on if they were read already.

    Returns:
        The model; None if the sample has one class only, because it lacks a very rare one.
    """
    x, y = sample or data.sample(sample_rows(data))
    classify = spec.task in ("binary", "multiclass")
    if classify and len(np.unique(y)) < 2:
        return None
    names = list(data.encoding.columns)
    design = LinearDesign.fit(x, [j for j, name in enumerate(names) if name in data.encoding.categories])
    columns = design.transform(x)
    fit_rows = -(-data.fit_rows // max(1, data.rows // sample_rows(data)))
    penalty = _best_penalty(columns, y, fit_rows, penalties, classify)
    model = _unfitted(penalty, classify).fit(columns, y)
    weights, intercepts = np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_)
    if spec.task == "multiclass":
        weights, intercepts = _for_all_classes(model.classes_, weights, intercepts, len(data.classes))
    booster = linear_booster(spec.task, weights, intercepts, design.names(names))
    return TrainedModel(booster, data.encoding, spec.task, data.classes, design=design)


def _unfitted(penalty: float, classify: bool) -> Any:
    """The scikit-learn estimator of a linear model."""
    from sklearn.linear_model import LogisticRegression, Ridge

    return LogisticRegression(C=1 / penalty, max_iter=200) if classify else Ridge(penalty)


def _best_penalty(
    columns: Any, y: np.ndarray, fit_rows: int, penalties: tuple[float, ...], classify: bool
) -> float:
    """The penalty whose model, fitted on the first ``fit_rows`` rows, has the lowest loss on the others."""
    if len(penalties) == 1:
        return penalties[0]
    from sklearn.metrics import log_loss, mean_squared_error

    fit, valid = slice(0, fit_rows), slice(fit_rows, len(y))
    if not len(y[valid]) or (classify and len(np.unique(y[fit])) < 2):
        return 1.0

    def loss(penalty: float) -> float:
        model = _unfitted(penalty, classify).fit(columns[fit], y[fit])
        if not classify:
            return float(mean_squared_error(y[valid], model.predict(columns[valid])))
        known = np.isin(y[valid], model.classes_)
        if not known.any():
            return 0.0
        predicted = model.predict_proba(columns[valid][np.flatnonzero(known)])
        return float(log_loss(y[valid][known], predicted, labels=model.classes_))

    return min(penalties, key=loss)


def _for_all_classes(
    present: np.ndarray, weights: np.ndarray, intercepts: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts of all classes, from those of the classes that the sample has."""
    if len(present) == 2:  # scikit-learn has the weights of the second class only
        weights = np.column_stack([np.zeros(len(weights)), weights[:, -1]])
        intercepts = np.array([0.0, intercepts[-1]])
    all_weights, all_intercepts = np.zeros((len(weights), classes)), np.full(classes, _ABSENT)
    all_weights[:, present.astype(int)], all_intercepts[present.astype(int)] = weights, intercepts
    return all_weights, all_intercepts
