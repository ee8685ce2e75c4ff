"""The columns of a linear model: standardised numbers, and one column for each frequent category.

A linear model is an XGBoost booster (``gblinear``) over these columns, so that its file is one of XGBoost's, too. A
missing number counts as the median of the training rows, which is 0 after standardisation.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xgboost

#: Fewest rows of the sample that a category needs for a column; the others share one.
MIN_CATEGORY_ROWS = 20
#: Largest standardised value: predictions of absurd inputs stay finite.
LARGEST_VALUE = 1e6
#: XGBoost's objective of a linear model by task; others are the identity, too.
_OBJECTIVES = {"binary": "binary:logistic", "multiclass": "multi:softprob"}


@dataclass(frozen=True)
class LinearDesign:
    """How an encoded matrix becomes the columns of a linear model.

    Attributes:
        features: number of columns of the encoded matrix.
        numbers: centre and scale of each numeric column, by position.
        categories: codes that have a column, ascending, by position of each categorical column. Two more columns are
            for all other codes, and for a missing value.
        spreads: standard deviation of each column in the training rows.
    """

    features: int
    numbers: dict[int, tuple[float, float]]
    categories: dict[int, tuple[int, ...]]
    spreads: tuple[float, ...] = ()

    @classmethod
    def fit(cls, x: np.ndarray, categorical: Collection[int]) -> LinearDesign:
        """Compute centres, scales and frequent categories.

        Args:
            x: encoded rows, shape (rows, features).
            categorical: positions of the categorical columns.
        """
        numbers: dict[int, tuple[float, float]] = {}
        categories: dict[int, tuple[int, ...]] = {}
        for j in range(x.shape[1]):
            values = x[:, j].astype(np.float64)
            values = values[np.isfinite(values)]
            if j in categorical:
                codes, counts = np.unique(values.astype(np.int64), return_counts=True)
                categories[j] = tuple(codes[counts >= MIN_CATEGORY_ROWS].tolist())
            elif len(values):
                centre = float(np.median(values))
                # The missing ones count as the centre, so that they narrow the spread.
                scale = float(values.std()) * np.sqrt(len(values) / len(x))
                numbers[j] = (centre, float(scale) if np.isfinite(scale) and scale > 0 else 1.0)
        design = cls(x.shape[1], numbers, categories)
        columns = design.transform(x)
        means = np.asarray(columns.mean(axis=0)).ravel()
        squares = np.asarray((columns.multiply(columns) if categories else columns**2).mean(axis=0)).ravel()
        spreads = np.sqrt(np.maximum(squares - means**2, 0.0))
        return replace(design, spreads=tuple(round(float(s), 6) for s in spreads))

    @cached_property
    def sources(self) -> np.ndarray:
        """Position of the feature that each column is made from, shape (width,)."""
        parts = [np.array(sorted(self.numbers), np.int64)]
        parts += [np.full(len(codes) + 2, j, np.int64) for j, codes in self.categories.items()]
        return np.concatenate(parts)

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.sources)

    def transform(self, x: np.ndarray) -> Any:
        """The columns of some rows, without missing values.

        Args:
            x: encoded rows, shape (rows, features).

        Returns:
            float32, shape (rows, width); a sparse matrix (CSR) if there are categories.
        """
        positions = sorted(self.numbers)
        centres = np.array([self.numbers[j][0] for j in positions])
        scales = np.array([self.numbers[j][1] for j in positions])
        standardised = (x[:, positions] - centres) / scales
        values = np.nan_to_num(np.clip(standardised, -LARGEST_VALUE, LARGEST_VALUE)).astype(np.float32)
        if not self.categories:
            return values
        from scipy.sparse import csr_matrix

        first, filled = len(positions), [np.broadcast_to(np.arange(len(positions)), values.shape)]
        for j, codes in self.categories.items():
            missing = np.isnan(x[:, j])
            code = np.where(missing, -1, x[:, j]).astype(np.int64)
            known = np.array(codes, np.int64)
            position = np.searchsorted(known, code).clip(max=max(0, len(known) - 1))
            in_design = known[position] == code if len(known) else np.zeros(len(x), bool)
            column = np.where(in_design, position, np.where(missing, len(known) + 1, len(known)))
            filled.append((first + column)[:, None])
            first += len(known) + 2
        columns = np.concatenate(filled, axis=1)
        ones = np.ones((len(x), len(self.categories)), np.float32)
        data = np.concatenate([values, ones], axis=1)
        starts = np.arange(len(x) + 1) * data.shape[1]
        return csr_matrix((data.ravel(), columns.ravel(), starts), shape=(len(x), self.width))

    def names(self, features: Collection[str]) -> list[str]:
        """Names of the columns: that of a number's feature; of a category's feature, with its code.

        Args:
            features: names of the features. No name of a category is in the result.
        """
        features = list(features)
        names = [features[j] for j in sorted(self.numbers)]
        taken = set(features)
        for j, codes in self.categories.items():
            for level in (*codes, "other", "missing"):
                name = f"{features[j]}={level}"
                while name in taken:
                    name += "_"
                taken.add(name)
                names.append(name)
        return names

    def as_dict(self) -> dict[str, Any]:
        """The design as JSON."""
        return {
            "features": self.features,
            "numbers": [[j, *self.numbers[j]] for j in sorted(self.numbers)],
            "categories": [[j, list(codes)] for j, codes in self.categories.items()],
            "spreads": list(self.spreads),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> LinearDesign:
        """The design that `as_dict` returned."""
        return cls(
            content["features"],
            {j: (centre, scale) for j, centre, scale in content["numbers"]},
            {j: tuple(codes) for j, codes in content["categories"]},
            tuple(content["spreads"]),
        )


def linear_booster(
    task: str, weights: np.ndarray, intercepts: np.ndarray, names: list[str]
) -> xgboost.Booster:
    """A booster with given weights.

    Follows XGBoost's documented JSON format (https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html).

    Args:
        task: binary, multiclass, regression or ranking.
        weights: shape (columns, classes) for multiclass, else (columns, 1).
        intercepts: shape (classes,) or (1,).
        names: names of the columns.
    """
    import xgboost

    groups = len(intercepts)
    parameters: dict[str, Any] = {
        "booster": "gblinear",
        "objective": _OBJECTIVES.get(task, "reg:squarederror"),
        "base_score": 0.5 if task in _OBJECTIVES else 0.0,
        "nthread": 1,
    }
    if task == "multiclass":
        parameters["num_class"] = groups
    rows = xgboost.DMatrix(np.zeros((2, len(names)), np.float32), label=[0, 1], feature_names=names)
    model = json.loads(xgboost.train(parameters, rows, 1).save_raw("json"))
    # Weights are those of the first column for each class, of the second, …, and then the intercepts.
    values = np.concatenate([weights.ravel(), intercepts]).astype(np.float32)
    model["learner"]["gradient_booster"]["model"]["weights"] = values.astype(float).tolist()
    return xgboost.Booster({"nthread": 1}, model_file=bytearray(json.dumps(model).encode()))
