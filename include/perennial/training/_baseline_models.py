"""Simple models that a challenger has to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from perennial.spec.model_spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np

    from perennial.training._dataset import Dataset
    from perennial.training._distributed_dataset import DistributedDataset


BASELINE_ROWS = 20_000


def fit_baselines(
    spec: ModelSpec, data: Dataset | DistributedDataset
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Simple models fitted on an even sample of the same rows, by name.

    ``constant`` says the same of every row (class shares, or the mean); ``linear`` is a logistic or ridge regression on
    standardised numbers and one-hot categories.

    Returns:
        Functions from an encoded matrix to predictions of the same shape as the booster's.
    """
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    x, y = data.sample(BASELINE_ROWS)
    names = data.encoding.columns
    codes = [j for j, n in enumerate(names) if n in data.encoding.categories]
    numbers = [
        j for j, n in enumerate(names) if n not in data.encoding.categories and np.isfinite(x[:, j]).any()
    ]
    prepare = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
            ("codes", OneHotEncoder(handle_unknown="ignore", min_frequency=20), codes),
        ]
    )
    classify = spec.task in ("binary", "multiclass")
    models: dict[str, Any] = {"constant": DummyClassifier(strategy="prior") if classify else DummyRegressor()}
    if not classify or len(np.unique(y)) > 1:  # a sample may miss a very rare class
        models["linear"] = make_pipeline(prepare, LogisticRegression(max_iter=200) if classify else Ridge())

    def predictor(model: Any) -> Callable[[np.ndarray], np.ndarray]:
        model.fit(x, y)

        def predict(matrix: np.ndarray) -> np.ndarray:
            if not classify:
                return np.asarray(model.predict(matrix), dtype=np.float64).reshape(len(matrix))
            whole = np.zeros((len(matrix), len(data.classes) or 2))
            whole[:, model.classes_.astype(int)] = model.predict_proba(matrix)
            return whole[:, 1] if spec.task == "binary" else whole

        return predict

    return {name: predictor(model) for name, model in models.items()}
