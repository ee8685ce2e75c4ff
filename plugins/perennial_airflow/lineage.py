"""OpenLineage: which tables, files and models a task read and wrote. Asked for only where a transport is configured.

Datasets are named as OpenLineage's naming convention has it for files and S3; a table or a feed is one dataset,
whatever partition a run was for. A model is one dataset of its registry, with its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from perennial.core.settings import settings
from perennial.storage import delta_tables, landing, object_store

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

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
#: The table that a result's counts of rows are about.
COUNTED = {"data": "published", "score": "predictions"}


def of_task(spec: ModelSpec, task: str, result: Mapping[str, Any]) -> Any:
    """What a task that succeeded read and wrote (``OperatorLineage``); None where it touches no data.

    Args:
        result: what the task returned.
    """
    if task not in WRITES:
        return None
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset, output_statistics_output_dataset

    versions = {
        "model": result.get("version")
        if task in ("train", "promote", "rollback")
        else result.get("model_version"),
        "published": result.get("version") if task == "data" else None,
        "labels": result.get("labels_version"),
    }

    def facets(kind: str) -> dict[str, Any]:
        version = versions.get(kind)
        made = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=str(version))
        return {} if version is None else {"version": made}

    def counts(kind: str) -> dict[str, Any]:
        rows = result.get("rows_out") if COUNTED.get(task) == kind else None
        made = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows)
        return {} if rows is None else {"outputStatistics": made}

    return OperatorLineage(
        inputs=[
            InputDataset(*place, facets=facets(kind))
            for kind in READS.get(task, ())
            for place in places(spec, kind)
        ],
        outputs=[
            OutputDataset(*place, facets=facets(kind), outputFacets=counts(kind))
            for kind in WRITES[task]
            for place in places(spec, kind)
        ],
    )


def places(spec: ModelSpec, kind: str) -> list[tuple[str, str]]:
    """Namespace and name of the datasets of one kind; none where the model has no such thing."""
    if kind == "model":
        registry = urlsplit(settings().mlflow_uri)
        return [(f"mlflow://{registry.netloc.rpartition('@')[2]}", spec.name)]
    sources = {
        "feed": [spec.data.source],
        "label feed": [spec.label.source] if spec.label.source else [],
        "references": [r.source for r in spec.references],
    }
    if kind in sources:
        return [_place(landing.source_uri(source)) for source in sources[kind]]
    if kind == "labels" and spec.label.source is None:
        return []
    return [_place(delta_tables.table_uri(kind, spec.name))]


def _place(uri: str) -> tuple[str, str]:
    if not object_store.is_remote(uri):
        return "file", uri
    bucket, _, path = uri.removeprefix("s3://").partition("/")
    return f"s3://{bucket}", path
