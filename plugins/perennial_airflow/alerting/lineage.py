"""OpenLineage: which tables, files and models a task read and wrote. Used only if a transport is configured.

Datasets are named by OpenLineage's naming convention for files and S3. A table or a feed is one dataset, whatever the
run's partition; a model is one dataset of its registry, with its version.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from perennial.core.settings import settings
from perennial.storage import delta_tables, landing, object_store

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from perennial.spec.feature_table import FeatureTable
    from perennial.spec.model_spec import ModelSpec
    from perennial.spec.sources import QuerySource
    from perennial.spec.strict_model import FolderSpec
    from perennial_airflow.alerting._lineage_columns import VersionFeatures

#: What each task reads and writes: feeds of the spec, tables of the lake by their kind, the registered model.
READS: dict[str, tuple[str, ...]] = {
    "data": ("feed", "label feed"),
    "train": ("published", "labels", "references", "feature tables"),
    "score": ("published", "references", "feature tables", "model"),
    "publish_predictions": ("predictions",),
    "monitor": ("published", "predictions", "served", "labels", "references", "feature tables", "model"),
}
WRITES: dict[str, tuple[str, ...]] = {
    "data": ("published", "labels", "quarantine"),
    "train": ("model",),
    "promote": ("model",),
    "conclude_trial": ("model",),
    "promote_after_trial": ("model",),
    "rollback": ("model",),
    "score": ("predictions", "served"),
    "publish_predictions": ("external predictions",),
    "monitor": ("monitoring",),
}
#: The tasks whose result names the version of the model that they made, or moved.
_MOVES_MODEL = ("train", "promote", "conclude_trial", "promote_after_trial", "rollback")
#: The table whose rows a result counts.
COUNTED = {"data": "published", "score": "predictions", "publish_predictions": "external predictions"}
#: Seconds in which all facts of an event are looked up: the task's own work is done.
LOOKUP_SECONDS = 10.0
log = logging.getLogger("perennial")
_Fact = TypeVar("_Fact")


class DatasetName(NamedTuple):
    """Name of a dataset in OpenLineage."""

    namespace: str
    name: str


def task_lineage(spec: ModelSpec, task: str, result: Mapping[str, Any]) -> OperatorLineage[Any, Any]:
    """What a task read and wrote, with what is known of it; a task without data has no datasets.

    Args:
        spec: the model.
        task: id of the task.
        result: what the task returned.
    """
    return _task_lineage(spec, task, result, _partitions(result), WRITES.get(task, ()))


def failure_lineage(spec: ModelSpec, task: str, partitions: Iterable[str] = ()) -> OperatorLineage[Any, Any]:
    """What a task that failed or was skipped read; of partitions that validation stopped, the expectations' results.

    Args:
        spec: the model.
        task: id of the task.
        partitions: those whose data doc the task wrote before it failed.
    """
    return _task_lineage(spec, task, {}, list(partitions), ())


def _task_lineage(
    spec: ModelSpec, task: str, result: Mapping[str, Any], validated: list[str], written: Iterable[str]
) -> OperatorLineage[Any, Any]:
    """As `task_lineage`.

    Args:
        spec: the model.
        task: id of the task.
        result: what the task returned.
        validated: the partitions whose expectations were evaluated.
        written: the kinds of datasets that it wrote.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage

    from perennial_airflow.alerting import _lineage_facets

    datasets_of = _Datasets(spec, task, result, validated, _Lookups())
    facet = _lineage_facets.model_facet(
        spec, task, result, datasets_of.versions["model"], _partitions(result)
    )
    return OperatorLineage(
        inputs=[dataset for kind in READS.get(task, ()) for dataset in datasets_of.inputs(kind)],
        outputs=[dataset for kind in written for dataset in datasets_of.outputs(kind)],
        run_facets={_lineage_facets.MODEL_FACET: facet},
        job_facets=_job_facets(spec, spec.owner),
    )


def _partitions(result: Mapping[str, Any]) -> list[str]:
    return list(result.get("partitions") or ([result["as_of"]] if result.get("as_of") else ()))


def _job_facets(spec: FolderSpec, owner: str) -> dict[str, Any]:
    from perennial_airflow.alerting import _lineage_facets

    location = _if_known("the commit of its folder", lambda: _lineage_facets.source_location(spec.folder))
    return _lineage_facets.job_facets(owner, location)


def table_lineage(
    table: FeatureTable, spec: ModelSpec, result: Mapping[str, Any]
) -> OperatorLineage[Any, Any]:
    """What the computation of a feature table read and wrote.

    Args:
        table: the feature table.
        spec: the model that is its first source.
        result: what the task returned.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import InputDataset, OutputDataset

    from perennial.features import feature_tables
    from perennial.scoring import column_origins
    from perennial.spec.model_spec import source_specs
    from perennial_airflow.alerting import _lineage_columns, _lineage_facets

    inputs: dict[str, Any] = {}
    lookups = _Lookups()
    for source, of in zip(table.sources, source_specs(table), strict=True):
        read = {of.name: "published"} | (
            {column_origins.labels_of(of.name): "labels"} if source.label else {}
        )
        for name_of_input, kind in read.items():
            uri = delta_tables.table_uri(kind, of.name)
            inputs[name_of_input] = InputDataset(*_dataset_name(uri), facets=lookups.table(uri)[0])
    uri = feature_tables.uri(table)
    facets, _ = lookups.table(uri)

    def name(source: str) -> tuple[str, str] | None:
        dataset = inputs.get(source)
        return (dataset.namespace, dataset.name) if dataset else None

    columns = lookups.find("column lineage", lambda: _lineage_columns.of_feature_table(table, name))
    facets |= {"columnLineage": columns} if columns else {}
    counts: dict[str, Any] = (
        {"outputStatistics": _lineage_facets.row_count(result["rows"])} if "rows" in result else {}
    )
    output = OutputDataset(*_dataset_name(uri), facets=facets, outputFacets=counts)
    return OperatorLineage(
        inputs=list(inputs.values()),
        outputs=[output],
        job_facets=_job_facets(table, table.owner),
    )


class _Datasets:
    """The inputs and outputs of one task, with their facets.

    Args:
        spec: the model.
        task: id of the task.
        result: what the task returned.
        validated: the partitions whose expectations were evaluated.
        lookups: finds their facets.
    """

    def __init__(
        self, spec: ModelSpec, task: str, result: Mapping[str, Any], validated: list[str], lookups: _Lookups
    ) -> None:
        self.spec, self.task, self.result, self.validated = spec, task, result, validated
        self.versions, self._lookups = _versions(task, result), lookups

    @functools.cached_property
    def _features(self) -> VersionFeatures:
        from perennial_airflow.alerting import _lineage_columns

        return _lineage_columns.VersionFeatures(self.spec, self.versions["model"])

    def inputs(self, kind: str) -> list[Any]:
        """The inputs of one kind."""
        from openlineage.client.event_v2 import InputDataset

        facets, _ = self._facets(kind)
        results: Any = None
        if self.task == "data" and kind == "feed":
            results = self._lookups.find("results of expectations", self._assertions)
        checks = {"dataQualityAssertions": results} if results else {}
        names = datasets(self.spec, kind)
        if kind in ("references", "feature tables"):
            return [InputDataset(*n, facets=self._table_facets(kind, i)) for i, n in enumerate(names)]
        return [InputDataset(*name, facets=dict(facets), inputFacets=checks) for name in names]

    def outputs(self, kind: str) -> list[Any]:
        """The outputs of one kind."""
        from openlineage.client.event_v2 import OutputDataset

        from perennial_airflow.alerting import _lineage_columns, _lineage_facets

        facets, columns = self._facets(kind)
        lineage = self._lookups.find(
            "column lineage", lambda: _lineage_columns.of_output(self._features, kind, columns, self._name)
        )
        facets |= {"columnLineage": lineage} if lineage else {}
        rows = (
            self.result.get("rows_out", self.result.get("rows")) if COUNTED.get(self.task) == kind else None
        )
        counts: dict[str, Any] = {} if rows is None else {"outputStatistics": _lineage_facets.row_count(rows)}
        return [OutputDataset(*n, facets=facets, outputFacets=counts) for n in datasets(self.spec, kind)]

    def _assertions(self) -> Any:
        from perennial_airflow.alerting import _lineage_facets

        return _lineage_facets.assertions(self.spec.name, self.validated)

    def _facets(self, kind: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Schema and version of the dataset of a kind, and its columns, as far as they are known."""
        from perennial_airflow.alerting import _lineage_facets

        version = self.versions.get(kind)
        if kind in delta_tables.KINDS:
            return self._lookups.table(delta_tables.table_uri(kind, self.spec.name), version)
        declared: dict[str, str] = {}
        if kind == "feed":
            declared = dict(self.spec.data.columns)
        elif kind == "label feed":
            declared = dict(self.spec.label.columns)
        elif kind == "model":
            names = self._lookups.find("features", self._features.names)
            categories = self.spec.features.categorical
            declared = {n: "category" if n in categories else "number" for n in names or ()}
        elif kind == "external predictions":
            columns = self._lookups.table(delta_tables.table_uri("predictions", self.spec.name))[1]
            columns_there = (delta_tables.PARTITION, *self.spec.data.key, "prediction", "model_version")
            declared = {c: columns[c] for c in columns_there if c in columns}
        facets: dict[str, Any] = {"schema": _lineage_facets.schema(declared)} if declared else {}
        return facets | ({} if version is None else {"version": _lineage_facets.version(version)}), declared

    def _table_facets(self, kind: str, index: int) -> dict[str, Any]:
        """Schema and version of a reference table or feature table, of the lake's copy."""
        from perennial.features import feature_tables, reference_tables

        if kind == "feature tables":
            return self._lookups.table(feature_tables.uri(self.spec.feature_tables[index][1]))[0]
        reference = self.spec.references[index]
        used = ((self.result.get("dataset_version") or {}).get("references") or {}).get(reference.name)
        return self._lookups.table(reference_tables.uri(reference), used)[0]

    def _name(self, table: str) -> tuple[str, str] | None:
        """The dataset of a kind, or of a reference table or feature table by its name."""
        from perennial.features import feature_tables

        for i, reference in enumerate(self.spec.references):
            if table == reference.name:
                return datasets(self.spec, "references")[i]
        for _, feature_table in self.spec.feature_tables:
            if table == feature_table.name:
                return _dataset_name(feature_tables.uri(feature_table))
        names = datasets(self.spec, table)
        return names[0] if names else None


class _Lookups:
    """Finds the facts of one event in the lake and in plans of SQL, within `LOOKUP_SECONDS` in all.

    Each in a thread: nothing else ends a call of a library that waits for a lake without an answer.
    """

    def __init__(self) -> None:
        self._end = time.monotonic() + LOOKUP_SECONDS

    def find(self, what: str, find: Callable[[], _Fact]) -> _Fact | None:
        """A fact; None if it cannot be found out, or not in time: the rest of the event is sent nevertheless."""
        answer: SimpleQueue[_Fact | None] = SimpleQueue()
        left = self._end - time.monotonic()
        if left > 0:
            threading.Thread(
                target=lambda: answer.put(_if_known(what, find)), name="lineage", daemon=True
            ).start()
            with contextlib.suppress(Empty):
                return answer.get(timeout=left)
        log.warning("OpenLineage: the event is without %s: %g seconds were over", what, LOOKUP_SECONDS)
        return None

    def table(self, uri: str, version: object = None) -> tuple[dict[str, Any], dict[str, str]]:
        """Schema and version of a table of the lake, and its columns; nothing of one that has not been written.

        Args:
            uri: the table.
            version: the version that a task read or wrote; the latest where that is not recorded.
        """
        from perennial_airflow.alerting import _lineage_facets

        def read() -> tuple[dict[str, Any], dict[str, str]] | None:
            table = delta_tables.open_table(uri, version)  # type: ignore[arg-type]
            if table is None:
                return None
            columns = {field.name: str(field.type) for field in delta_tables.arrow_schema(table)}
            number = _lineage_facets.version(table.version())
            return {"schema": _lineage_facets.schema(columns), "version": number}, columns

        known = {} if version is None else {"version": _lineage_facets.version(version)}
        return self.find(f"table {uri}", read) or (known, {})


def _if_known(what: str, find: Callable[[], _Fact]) -> _Fact | None:
    """A fact; None if it cannot be found out: the rest of the event is sent nevertheless."""
    try:
        return find()
    except Exception as error:  # the task has succeeded, whatever is known of it
        log.warning("OpenLineage: the event is without %s: %s", what, type(error).__name__)
        return None


def _versions(task: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Versions of the datasets, by kind, as a task's result names them."""
    read = result.get("dataset_version") or {}
    return {
        "model": result.get("version" if task in _MOVES_MODEL else "model_version"),
        "published": result.get("version") if task == "data" else read.get("published"),
        "labels": result.get("labels_version", read.get("labels")),
    }


def datasets(spec: ModelSpec, kind: str) -> list[DatasetName]:
    """The datasets of one kind; none where the model has no such dataset."""
    if kind == "model":
        registry = urlsplit(settings().mlflow_uri)
        return [DatasetName(f"mlflow://{registry.netloc.rpartition('@')[2]}", spec.name)]
    if kind == "feature tables":
        from perennial.features import feature_tables

        return [_dataset_name(feature_tables.uri(table)) for _, table in spec.feature_tables]
    if kind == "external predictions":
        target = spec.predictions
        return [DatasetName(f"connection://{target.connection}", str(target.table))] if target.table else []
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
