"""The rows of a toy model as a training reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from perennial.features.engine import FeatureQuery
from perennial.modeling.encoding import Encoding
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training._dataset import Dataset, EncodedRowFile, build_dataset
from perennial.training._distributed_dataset import (
    DatasetRef,
    DistributedDataset,
    build_distributed_dataset,
)
from perennial.training.dask_cluster import WorkerPool
from perennial.training.windows import Windows, split_partitions
from support import toys


def windows(spec: ModelSpec) -> Windows:
    """The windows as of the last partition."""
    labels = delta_tables.table_uri("labels", spec.name)
    return split_partitions(spec, toys.LAST, delta_tables.partitions(labels))


def in_process(spec: ModelSpec, folder: Path) -> Dataset:
    """The rows in this process."""
    published, labels = (
        delta_tables.version(delta_tables.table_uri(kind, spec.name)) for kind in ("published", "labels")
    )
    return build_dataset(spec, FeatureQuery(spec), windows(spec), folder, published, labels)


def on_workers(spec: ModelSpec, pool: WorkerPool) -> DistributedDataset:
    """The rows on workers."""
    features = FeatureQuery(spec)
    published, labels = (
        delta_tables.version(delta_tables.table_uri(kind, spec.name)) for kind in ("published", "labels")
    )
    source = DatasetRef(spec, features.reference_versions, published, labels)
    return build_distributed_dataset(pool, source, windows(spec), tuple(features.columns))


def generated_rows(folder: Path, y: Any = None, rows: int = 600, classes: tuple[str, ...] = ()) -> Dataset:
    """Encoded random rows of two numbers, of which one may be missing, and a category; three quarters are fitted on."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(rows, 3)).astype(np.float32)
    matrix[:, 2] = rng.integers(0, 3, rows)
    matrix[::17, 0] = np.nan
    if y is None:
        y = (np.nan_to_num(matrix[:, 0]) > 0) == (matrix[:, 1] > 0)
    file = EncodedRowFile(folder / toys.unique("rows"), 3)
    file.append(matrix, np.asarray(y, np.float32), None)
    encoding = Encoding(("a", "b", "c"), {"c": ["x", "y", "z"]})
    return Dataset(file, rows * 3 // 4, encoding, classes, np.concatenate(file.y), None)


#: Parameters of a small booster in one thread.
PARAMS: dict[str, Any] = {
    "objective": "binary:logistic", "eval_metric": "logloss", "tree_method": "hist", "seed": 3, "nthread": 1,
    "max_depth": 3, "learning_rate": 0.3,
}  # fmt: skip


def matrices() -> tuple[xgboost.QuantileDMatrix, xgboost.QuantileDMatrix]:
    """Rows to fit a booster on, and rows for early stopping."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] ** 2 + rng.normal(size=4000) > 0).astype(int)
    train = xgboost.QuantileDMatrix(x[:3000], y[:3000])
    return train, xgboost.QuantileDMatrix(x[3000:], y[3000:], ref=train)
