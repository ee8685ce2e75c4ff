"""The rows of a toy model as a training reads them."""

from __future__ import annotations

from pathlib import Path

from perennial.features.engine import FeatureQuery
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training._dataset import Dataset, build_dataset
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
