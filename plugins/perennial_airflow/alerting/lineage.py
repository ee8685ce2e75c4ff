"""OpenLineage: which tables, files and models a task read and wrote. Used only if a transport is configured.

Datasets are named by OpenLineage's naming convention for files and S3. A table or a feed is one dataset, whatever the
run's partition; a model is one dataset of its registry, with its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from perennial.core.settings import settings
from perennial.storage import delta_tables, landing, object_store

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from perennial.spec.model_spec import ModelSpec
    from perennial.spec.sources import QuerySource

#: What each task reads and writes: feeds of the spec, tables of the lake by their kind, the registered model.
READS: dict[str, tuple[str, ...]] = {
    "data": ("feed", "label feed"),
    "train": ("published", "labels", "references"),
    "score": ("published", "references", "model"),
    "monitor": ("published", "predictions", "served", "labels", "model"),
}
WRITES: dict[str, tuple[str, ...]] = {
    "data": ("published", "labels", "quarantine"),
    "train": ("model",),
    "promote": ("model",),
    "rollback": ("model",),
    "score": ("predictions", "served"),
    "monitor": ("monitoring",),
}
#: The table whose rows a result counts.
COUNTED = {"data": "published", "score": "predictions"}


class DatasetName(NamedTuple):
    """Name of a dataset in OpenLineage."""

    namespace: str
    name: str


def task_lineage(spec: ModelSpec, task: str, result: Mapping[str, Any]) -> OperatorLineage[Any, Any] | None:
    """What a task that succeeded read and wrote; None for a task without data.

    Args:
        spec: the model.
        task: id of the task.
        result: what the task returned.
    """
    if task not in WRITES:
        return None
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset, output_statistics_output_dataset

    versions = _versions(task, result)

    def facets(kind: str) -> dict[str, Any]:
        version = versions.get(kind)
        facet = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=str(version))
        return {} if version is None else {"version": facet}

    def counts(kind: str) -> dict[str, Any]:
        rows = result.get("rows_out") if COUNTED.get(task) == kind else None
        facet = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows)
        return {} if rows is None else {"outputStatistics": facet}

    return OperatorLineage(
        inputs=[
            InputDataset(namespace, name, facets=facets(kind))
            for kind in READS.get(task, ())
            for namespace, name in datasets(spec, kind)
        ],
        outputs=[
            OutputDataset(namespace, name, facets=facets(kind), outputFacets=counts(kind))
            for kind in WRITES[task]
            for namespace, name in datasets(spec, kind)
        ],
    )


def _versions(task: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Versions of the datasets, by kind, as a task's result names them."""
    made_model = task in ("train", "promote", "rollback")
    return {
        "model": result.get("version" if made_model else "model_version"),
        "published": result.get("version") if task == "data" else None,
        "labels": result.get("labels_version"),
    }


def datasets(spec: ModelSpec, kind: str) -> list[DatasetName]:
    """The datasets of one kind; none where the model has no such dataset."""
    if kind == "model":
        registry = urlsplit(settings().mlflow_uri)
        return [DatasetName(f"mlflow://{registry.netloc.rpartition('@')[2]}", spec.name)]
    sources: dict[str, list[str | QuerySource]] = {
        "feed": [spec.data.source],
        "label feed": [spec.label.source] if spec.label.source else [],
        "references": [r.source for r in spec.references],
    }
    if kind in sources:
        return [
            _dataset_name(landing.source_uri(source))
            if isinstance(source, str)
            # What a query reads is not known without parsing the database's SQL.
            else DatasetName(f"connection://{source.connection}", f"{spec.name}.{kind.replace(' ', '_')}")
            for source in sources[kind]
        ]
    if kind == "labels" and spec.label.source is None:
        return []
    return [_dataset_name(delta_tables.table_uri(kind, spec.name))]


def _dataset_name(uri: str) -> DatasetName:
    if not object_store.is_remote(uri):
        return DatasetName("file", uri)
    bucket, _, path = uri.removeprefix("s3://").partition("/")
    return DatasetName(f"s3://{bucket}", path)
