"""A trained model: an XGBoost booster that carries its encoding, in one UBJ file named by its digest."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from perennial.encode import Encoding
from perennial.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import xgboost

_ATTRIBUTE = "perennial"


@dataclass(frozen=True)
class Model:
    """A booster, the encoding of its features and the classes it tells apart.

    Attributes:
        classes: multiclass only: the label values, as text, by class index.
    """

    booster: xgboost.Booster
    encoding: Encoding
    task: str
    classes: tuple[str, ...] = ()

    def predict(self, features: pa.Table) -> np.ndarray:
        """Predictions for a table of features, shape (rows,), or (rows, classes) for multiclass."""
        return self.predict_matrix(self.encoding.matrix(features))

    def predict_matrix(self, matrix: np.ndarray, space: np.ndarray | None = None) -> np.ndarray:
        """As `predict`, for an encoded matrix.

        XGBoost predicts rows by the block, and takes half as long again for one in which any value is missing. So rows
        that lack nothing go first: the others then slow down no blocks but their own.

        Args:
            space: a matrix of the same shape and type, which is written over; a new one when not given.
        """
        import numpy as np

        with np.errstate(over="ignore"):
            whole = np.isfinite(np.einsum("ij->i", matrix))  # the sum with a missing value is one
        order = np.concatenate([np.flatnonzero(whole), np.flatnonzero(~whole)])
        # Into its place at once, which is what "clip" is for: no index is out of bounds.
        rows = np.take(matrix, order, axis=0, out=space, mode="clip")
        found = np.asarray(self.booster.inplace_predict(rows, validate_features=False))
        if self.classes:  # of no rows XGBoost gives no classes either
            found = found.reshape(len(matrix), len(self.classes))
        predicted = np.empty_like(found)
        predicted[order] = found
        return predicted

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


def library() -> ModuleType:
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


def load(path: Path, digest: str, *, threads: int, name: str | None = None) -> Model:
    """Load a model file after its digest has been checked.

    Raises:
        ArtifactError: the file is not the one that was registered, or not a model of ours.
    """
    xgboost = library()
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
    return Model(booster, encoding, attributes["task"], tuple(attributes["classes"]))
