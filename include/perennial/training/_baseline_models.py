"""Baseline models: simple models that a challenger must be better than."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from perennial.spec.model_spec import ModelSpec
from perennial.training._dataset import TrainingData

#: Approximate number of rows that they are fitted on.
BASELINE_ROWS = 20_000


def fit_baseline_models(spec: ModelSpec, data: TrainingData) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Fit the baseline models on an evenly spaced sample of the training rows.

    ``constant`` predicts the same for every row (the class shares, or the mean); ``linear`` is a logistic or ridge
    regression on standardised numbers and one-hot categories.

    Args:
        spec: the model.
        data: the rows.

    Returns:
        By name, functions from an encoded matrix to predictions, with the same shape as those of the booster.
    """
    x, y = data.sample(BASELINE_ROWS)
    classify = spec.task in ("binary", "multiclass")
    n_classes = len(data.classes) or 2

    def predictor(model: Any) -> Callable[[np.ndarray], np.ndarray]:
        model.fit(x, y)

        def predict(matrix: np.ndarray) -> np.ndarray:
            if not classify:
                return np.asarray(model.predict(matrix), dtype=np.float64).reshape(len(matrix))
            probabilities = np.zeros((len(matrix), n_classes))
            probabilities[:, model.classes_.astype(int)] = model.predict_proba(matrix)
            return probabilities[:, 1] if spec.task == "binary" else probabilities

        return predict

    return {name: predictor(model) for name, model in _unfitted(data, x, y, classify).items()}


def _unfitted(data: TrainingData, x: np.ndarray, y: np.ndarray, classify: bool) -> dict[str, Any]:
    """The scikit-learn estimators by name."""
    from sklearn.compose import ColumnTransformer
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    names = data.encoding.columns
    categorical = [j for j, n in enumerate(names) if n in data.encoding.categories]
    numeric = [j for j in range(len(names)) if j not in categorical and np.isfinite(x[:, j]).any()]
    prepare = ColumnTransformer(
        [
            ("numeric", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numeric),
            ("categorical", OneHotEncoder(handle_unknown="ignore", min_frequency=20), categorical),
        ]
    )
    models: dict[str, Any] = {"constant": DummyClassifier(strategy="prior") if classify else DummyRegressor()}
    if not classify or len(np.unique(y)) > 1:  # a sample may lack a very rare class
        models["linear"] = make_pipeline(prepare, LogisticRegression(max_iter=200) if classify else Ridge())
    return models
