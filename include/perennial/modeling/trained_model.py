"""A trained model: an XGBoost booster with its encoding, in one UBJ file identified by its digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perennial.core import patches
from perennial.core.errors import ArtifactError
from perennial.modeling._missing_value_rewrite import DenseBooster, rewrite_without_missing
from perennial.modeling.encoding import Encoding

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
    """

    booster: xgboost.Booster
    encoding: Encoding
    task: str
    classes: tuple[str, ...] = ()
    dense: DenseBooster | None = None

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
        booster, rows = self.booster, matrix
        if self.dense:
            booster = self.dense.booster
            rows = self.dense.transform(
                matrix, self.dense.allocate(len(matrix)) if buffer is None else buffer
            )
        predictions = np.asarray(booster.inplace_predict(rows, validate_features=False))
        if self.classes:  # without rows, XGBoost's result has no axis for the classes
            predictions = predictions.reshape(len(matrix), len(self.classes))
        return predictions

    def optimised_for(self, rows: int, threads: int) -> TrainedModel:
        """The same model, rewritten to predict faster if that is worthwhile for this number of rows.

        Args:
            rows: number of rows that it will predict.
            threads: threads that it will predict with.
        """
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
            "task": self.task,
            "classes": list(self.classes),
        }
        self.booster.set_attr(**{_ATTRIBUTE: json.dumps(attributes, sort_keys=True)})
        self.booster.save_model(path)
        return file_digest(path)


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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

    actual = file_digest(path)
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
    encoding = Encoding(tuple(attributes["columns"]), attributes["categories"], attributes["unseen"])
    return TrainedModel(booster, encoding, attributes["task"], tuple(attributes["classes"]))


def prediction_column(model: TrainedModel, predicted: np.ndarray) -> pa.Array[Any]:
    """Convert predictions to the column ``prediction``: class as text for multiclass, else a number.

    Args:
        model: the model.
        predicted: its predictions, as `TrainedModel.predict` returns them.
    """
    if model.task != "multiclass":
        return pa.array(predicted.astype(np.float32, copy=False))
    return pa.array(np.asarray(model.classes, dtype=object)[predicted.argmax(axis=1)], pa.string())
