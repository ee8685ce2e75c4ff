"""A trained model: an XGBoost booster that carries its encoding, in one UBJ file named by its digest."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from perennial.core.errors import ArtifactError
from perennial.modeling._missing_value_rewrite import DenseBooster, rewrite_without_missing
from perennial.modeling.encoding import Encoding

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import xgboost

_ATTRIBUTE = "perennial"


@dataclass(frozen=True)
class TrainedModel:
    """A booster, the encoding of its features and the classes it tells apart.

    Attributes:
        classes: multiclass only: the label values, as text, by class index.
        dense: the booster as `predict_matrix` uses it, where it was rewritten for many rows.
    """

    booster: xgboost.Booster
    encoding: Encoding
    task: str
    classes: tuple[str, ...] = ()
    dense: DenseBooster | None = None

    def predict(self, features: pa.Table) -> np.ndarray:
        """Predictions for a table of features, shape (rows,), or (rows, classes) for multiclass."""
        return self.predict_matrix(self.encoding.matrix(features))

    def predict_matrix(self, matrix: np.ndarray, space: np.ndarray | None = None) -> np.ndarray:
        """As `predict`, for an encoded matrix.

        Args:
            space: of a model that is `readied`, what its ``dense.space`` gave for as many rows or more.
        """
        import numpy as np

        booster, rows = self.booster, matrix
        if self.dense:
            booster = self.dense.booster
            rows = self.dense.fill(matrix, self.dense.space(len(matrix)) if space is None else space)
        found = np.asarray(booster.inplace_predict(rows, validate_features=False))
        if self.classes:  # of no rows XGBoost gives no classes either
            found = found.reshape(len(matrix), len(self.classes))
        return found

    def readied(self, rows: int, threads: int) -> TrainedModel:
        """The same model, made quicker where that pays for so many rows."""
        return replace(self, dense=rewrite_without_missing(self.booster, rows, threads))

    def save(self, path: Path) -> str:
        """Write the file; returns its digest."""
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
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_xgboost_without_sklearn() -> ModuleType:
    """XGBoost, without scikit-learn where nothing else has loaded that: 100 MiB that prediction has no use for."""
    alone = not {"xgboost", "sklearn"} & set(sys.modules)
    if alone:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # importing it fails, as if it were not installed
    try:
        import xgboost
    finally:
        if alone:
            del sys.modules["sklearn"]
    return cast(ModuleType, xgboost)


def load(path: Path, digest: str, *, threads: int, name: str | None = None) -> TrainedModel:
    """Load a model file after its digest has been checked.

    Raises:
        ArtifactError: the file is not the one that was registered, or not a model of ours.
    """
    xgboost = import_xgboost_without_sklearn()
    found = file_digest(path)
    if found != digest:
        raise ArtifactError(
            f"{path.name} has digest {found[:12]}…, registered was {digest[:12]}…: it was changed or damaged",
            "it was not loaded; restore the artifact store, or roll the champion back",
            model=name,
        )
    try:
        booster = xgboost.Booster({"nthread": threads}, model_file=path)
        attributes: dict[str, Any] = json.loads(booster.attr(_ATTRIBUTE) or "")
    except (xgboost.core.XGBoostError, ValueError) as error:
        raise ArtifactError(
            f"{path.name} is not a model that Perennial wrote: {error}",
            "register it anew by training",
            model=name,
        ) from error
    encoding = Encoding(tuple(attributes["columns"]), attributes["categories"], attributes["unseen"])
    return TrainedModel(booster, encoding, attributes["task"], tuple(attributes["classes"]))


def prediction_column(model: TrainedModel, predicted: np.ndarray) -> Any:
    """The column ``prediction``: the class as text for multiclass, a number otherwise (an Arrow array)."""
    import numpy as np
    import pyarrow as pa

    if model.task != "multiclass":
        return pa.array(predicted.astype(np.float32, copy=False))
    return pa.array(np.asarray(model.classes, dtype=object)[predicted.argmax(axis=1)], pa.string())
