"""OpenLineage's column lineage: from which columns each column of a task's outputs comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from openlineage.client.facet_v2 import column_lineage_dataset
from openlineage.client.generated.column_lineage_dataset import Fields, InputField, Transformation

from perennial.modeling import training_records
from perennial.scoring import column_origins
from perennial.scoring.column_origins import Origin, Origins
from perennial.storage.delta_tables import PARTITION

if TYPE_CHECKING:
    from perennial.spec.feature_table import FeatureTable
    from perennial.spec.model_spec import ModelSpec

#: Gives namespace and name of the dataset of each table that an origin or a kind names.
Naming = Callable[[str], "tuple[str, str] | None"]
_COPIED, _COMPUTED, _SELECTED = (
    ("DIRECT", "IDENTITY"),
    ("DIRECT", "TRANSFORMATION"),
    ("INDIRECT", "CONDITIONAL"),
)


def of_output(
    spec: ModelSpec, kind: str, columns: Mapping[str, str], version: object, name: Naming
) -> column_lineage_dataset.ColumnLineageDatasetFacet | None:
    """Where the columns of an output come from; None where that is not known.

    Args:
        spec: the model.
        kind: of the output.
        columns: its columns.
        version: version of the model that a task used or made; None without one.
        name: names the dataset of a kind of input, or of a table that features are computed from.
    """
    if kind == "published":
        return _facet({c: _copies("feed", [c], name) for c in columns if c in spec.data.columns})
    if kind == "labels":
        return _labels(spec, columns, name)
    if kind == "external predictions":
        return _facet({c: _copies("predictions", [c], name) for c in columns})
    if kind not in ("model", "predictions", "served", "monitoring") or not _is_trained_from(spec, version):
        return None
    origins = column_origins.feature_origins(spec)
    if origins is None:
        return None
    features = {f: sources for f, sources in origins.items() if f not in spec.data.key}
    every = list(dict.fromkeys(o for sources in features.values() for o in sources))
    if kind == "monitoring":
        return _facet({}, _inputs(every, name, _SELECTED))
    if kind == "model":
        return _facet({f: _inputs(sources, name) for f, sources in features.items()})
    fields = {c: _copies("published", [c], name) for c in (*spec.data.key, PARTITION) if c in columns}
    for column in map(spec.lake_column, ("prediction", "probabilities")):
        if column in columns:
            fields[column] = _inputs(every, name)
    if kind == "served":
        logged = {f: sources for f, sources in features.items() if f in columns and f not in fields}
        fields |= {f: _inputs(sources, name) for f, sources in logged.items()}
    return _facet(fields)


def of_feature_table(
    table: FeatureTable, name: Naming
) -> column_lineage_dataset.ColumnLineageDatasetFacet | None:
    """From which columns of its sources the columns of a feature table come."""
    origins: Origins = column_origins.table_origins(table)
    return _facet({column: _inputs(sources, name) for column, sources in origins.items()})


def feature_names(spec: ModelSpec, version: object) -> list[str]:
    """The features of a version; none if it was trained from another spec, or that is not known."""
    origins = column_origins.feature_origins(spec) if _is_trained_from(spec, version) else None
    return [f for f in origins or () if f not in spec.data.key]


def _is_trained_from(spec: ModelSpec, version: object) -> bool:
    """Whether a version was trained from this spec: the features of another one are not known without MLflow."""
    if version is None:
        return False
    records = training_records.all_records(spec.name)
    return any(r.version == str(version) and r.tags.get("spec_digest") == spec.digest for r in records)


def _labels(
    spec: ModelSpec, columns: Mapping[str, str], name: Naming
) -> column_lineage_dataset.ColumnLineageDatasetFacet | None:
    """The key of a label comes from its feed, and the label from the columns of its expression."""
    feed = "label feed" if spec.label.source else "feed"
    fields = {c: _copies(feed, [c], name) for c in spec.data.key if c in columns}
    if (label := spec.lake_column("label")) in columns:
        sources = [Origin(feed, o.column) for o in column_origins.label_origins(spec)]
        fields[label] = _inputs(sources, name)
    return _facet(fields)


def _copies(kind: str, columns: Iterable[str], name: Naming) -> list[InputField]:
    return _inputs([Origin(kind, column) for column in columns], name, _COPIED)


def _inputs(
    origins: Iterable[Origin], name: Naming, transformation: tuple[str, str] = _COMPUTED
) -> list[InputField]:
    """The columns as OpenLineage names them, without those of tables that have no name."""
    fields = []
    for origin in origins:
        dataset = name(origin.table or "published")
        if dataset is not None:
            fields.append(InputField(*dataset, origin.column, [Transformation(*transformation)]))
    return fields


def _facet(
    fields: Mapping[str, list[InputField]], dataset: list[InputField] | None = None
) -> column_lineage_dataset.ColumnLineageDatasetFacet | None:
    named: dict[str, Any] = {column: Fields(inputs) for column, inputs in fields.items() if inputs}
    if not named and not dataset:
        return None
    return column_lineage_dataset.ColumnLineageDatasetFacet(named, dataset or [])
