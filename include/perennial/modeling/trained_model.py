"""A trained model: an XGBoost booster of trees, or a linear one, with its encoding, in one UBJ file with a digest."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from perennial.core import patches
from perennial.core.errors import ArtifactError
from perennial.modeling._missing_value_rewrite import DenseBooster, rewrite_without_missing
from perennial.modeling.encoding import Encoding
from perennial.modeling.linear_design import LinearDesign
from perennial.storage import object_store

if TYPE_CHECKING:
    import xgboost

#: The booster's attribute that holds the encoding.
_ATTRIBUTE = "perennial"


@dataclass(frozen=True)
class TrainedModel:
    """A booster, the encoding of its features and its classes.

    Attributes:
        booster: the booster.
        encoding: how feature columns are converted to its matrix.
        task: binary, multiclass, regression or ranking.
        classes: multiclass only: the label values, as text, by class index.
        dense: the booster rewritten for many rows (`optimised_for`); None if it was not rewritten.
        design: the columns that a linear booster reads; None for trees, which read the encoded matrix.
    """

    booster: xgboost.Booster
    encoding: Encoding
    task: str
    classes: tuple[str, ...] = ()
    dense: DenseBooster | None = None
    design: LinearDesign | None = None

    @property
    def algorithm(self) -> str:
        """``trees`` or ``linear``, as in ``training.candidates``."""
        return "linear" if self.design else "trees"

    def predict(self, features: pa.Table) -> np.ndarray:
        """Predict for a table of features.

        Returns:
            Predictions, shape (rows,), or (rows, classes) for multiclass.
        """
        return self.predict_matrix(self.encoding.encode(features))

    def predict_matrix(self, matrix: np.ndarray, buffer: np.ndarray | None = None) -> np.ndarray:
        """Predict for an encoded matrix.

        Args:
            matrix: encoded rows, float32 of shape (rows, columns).
            buffer: only with ``dense``: a reusable result of ``dense.allocate`` for at least as many rows.

        Returns:
            Predictions, as `predict` returns them.
        """
        if self.design:
            return self._by_class(self._predict_linear(matrix), matrix)
        booster, rows = self.booster, matrix
        if self.dense:
            booster = self.dense.booster
            rows = self.dense.transform(
                matrix, self.dense.allocate(len(matrix)) if buffer is None else buffer
            )
        return self._by_class(booster.inplace_predict(rows, validate_features=False), matrix)

    def predict_margin(self, matrix: np.ndarray) -> np.ndarray:
        """The raw scores of the booster for an encoded matrix, shape (rows,) or (rows, classes)."""
        if self.design:
            return self._by_class(self._predict_linear(matrix, output_margin=True), matrix)
        scores = self.booster.inplace_predict(matrix, predict_type="margin", validate_features=False)
        return self._by_class(scores, matrix)

    def contributions(self, matrix: np.ndarray) -> np.ndarray:
        """What each feature adds to the raw scores of an encoded matrix, without the bias.

        For trees these are TreeSHAP's values; for a linear model, weight times standardised value.

        Returns:
            Shape (rows, columns), or (rows, classes, columns) for multiclass.
        """
        return self.explain(matrix)[0]

    def explain(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The raw scores of an encoded matrix as a sum: `contributions`, and the bias.

        Returns:
            What each feature adds, of the shape of `contributions`; and the bias, of the shape of `predict_margin`.
        """
        import xgboost

        if self.design is None:
            rows = xgboost.DMatrix(matrix, feature_names=list(self.encoding.columns))
            parts = np.asarray(self.booster.predict(rows, pred_contribs=True))
            return parts[..., :-1], parts[..., -1]
        parts = np.asarray(self._predict_linear(matrix, pred_contribs=True))
        result = np.zeros((*parts.shape[:-1], self.design.features), parts.dtype)
        for column, feature in enumerate(self.design.sources):
            result[..., feature] += parts[..., column]
        return result, parts[..., -1]

    def importance(self) -> dict[str, float]:
        """The share of each feature: for trees, in the total gain of all splits.

        For a linear model it is the share in the sum, over its columns, of absolute weight times standard deviation.
        """
        names = self.encoding.columns
        if self.design is None:
            # get_score returns lists of numbers for linear boosters only.
            shares = cast("dict[str, float]", self.booster.get_score(importance_type="total_gain"))
        else:
            weights = self.booster.get_score(importance_type="weight")
            columns = zip(self.booster.feature_names or [], self.design.spreads, strict=True)
            absolute = [float(np.abs(weights[c]).sum()) * spread for c, spread in columns]
            sums = np.bincount(self.design.sources, absolute, self.design.features)
            shares = dict(zip(names, sums.tolist(), strict=True))
        total = sum(shares.values()) or 1.0
        return {c: round(float(shares.get(c, 0.0)) / total, 6) for c in names}

    def booster_rows(self, matrix: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """An encoded matrix as the booster reads it, and the names of its columns."""
        if self.design is None:
            return matrix, list(self.encoding.columns)
        rows = self.design.transform(matrix)
        dense = rows if isinstance(rows, np.ndarray) else np.asarray(rows.toarray())
        return dense, list(self.booster.feature_names or [])

    def _predict_linear(self, matrix: np.ndarray, **options: bool) -> np.ndarray:
        """XGBoost predicts in place with trees only."""
        import xgboost

        assert self.design is not None
        rows = xgboost.DMatrix(self.design.transform(matrix))
        return np.asarray(self.booster.predict(rows, validate_features=False, **options))

    def _by_class(self, predictions: Any, matrix: np.ndarray) -> np.ndarray:
        """Predictions with their axis for the classes, which XGBoost's result has not without rows."""
        array = np.asarray(predictions)
        return array.reshape(len(matrix), len(self.classes)) if self.classes else array

    def optimised_for(self, rows: int, threads: int) -> TrainedModel:
        """The same model, rewritten to predict faster if that is worthwhile for this number of rows.

        Args:
            rows: number of rows that it will predict.
            threads: threads that it will predict with.
        """
        if self.design:
            return self
        return replace(self, dense=rewrite_without_missing(self.booster, rows, threads))

    def save(self, path: Path) -> str:
        """Write the model file.

        Returns:
            The file's digest.
        """
        attributes = {
            "columns": list(self.encoding.columns),
            "categories": self.encoding.categories,
            "unseen": self.encoding.unseen,
            "hashed": list(self.encoding.hashed),
            "salt": self.encoding.salt,
            "task": self.task,
            "classes": list(self.classes),
        }
        if self.design:
            attributes["design"] = self.design.as_dict()
        self.booster.set_attr(**{_ATTRIBUTE: json.dumps(attributes, sort_keys=True)})
        self.booster.save_model(path)
        return object_store.digest(str(path))


def load_model_file(path: Path, digest: str, *, threads: int, name: str | None = None) -> TrainedModel:
    """Check the digest of a model file, and load it.

    Args:
        path: the file.
        digest: SHA-256 that was registered with it.
        threads: threads that the model predicts with.
        name: name of the model, for messages.

    Raises:
        ArtifactError: the file is not the one that was registered, or not a model of Perennial.
    """
    with patches.xgboost_without_sklearn():
        import xgboost

    actual = object_store.digest(str(path))
    if actual != digest:
        raise ArtifactError(
            f"{path.name} has digest {actual[:12]}…, the registered one is {digest[:12]}…: it was changed or damaged",
            "the model was not loaded; restore the artifact store, or roll the champion back",
            model=name,
        )
    try:
        booster = xgboost.Booster({"nthread": threads}, model_file=path)
        attributes: dict[str, Any] = json.loads(booster.attr(_ATTRIBUTE) or "")
    except (xgboost.core.XGBoostError, ValueError) as error:
        raise ArtifactError(
            f"{path.name} is not a model that Perennial wrote: {error}",
            "train the model again: training registers it",
            model=name,
        ) from error
    encoding = Encoding(
        tuple(attributes["columns"]),
        attributes["categories"],
        attributes["unseen"],
        tuple(attributes["hashed"]),
        attributes["salt"],
    )
    design = LinearDesign.from_dict(attributes["design"]) if "design" in attributes else None
    return TrainedModel(booster, encoding, attributes["task"], tuple(attributes["classes"]), design=design)


def prediction_column(model: TrainedModel, predicted: np.ndarray) -> pa.Array[Any]:
    """Convert predictions to the column ``prediction``: class as text for multiclass, else a number.

    Args:
        model: the model.
        predicted: its predictions, as `TrainedModel.predict` returns them.
    """
    if model.task != "multiclass":
        return pa.array(predicted.astype(np.float32, copy=False))
    return pa.array(np.asarray(model.classes, dtype=object)[predicted.argmax(axis=1)], pa.string())
