"""OpenLineage's column lineage: from which columns each column of a task's outputs comes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from openlineage.client.facet_v2 import column_lineage_dataset
from openlineage.client.generated.column_lineage_dataset import Fields, InputField, Transformation

from perennial.scoring import column_origins
from perennial.scoring.column_origins import Origin, Origins
from perennial.storage import ledger
from perennial.storage.delta_tables import PARTITION
from perennial.storage.ledger import LedgerKind

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


class VersionFeatures:
    """The features of a version, which the outputs of a task have in common: found out once.

    Args:
        spec: the model.
        version: version of the model that a task used or made; None without one.
    """

    def __init__(self, spec: ModelSpec, version: object) -> None:
        self.spec, self.version = spec, version

    @functools.cached_property
    def origins(self) -> Origins | None:
        """What the features depend on; None if it was trained from another spec, or it is not known."""
        if self.version is None:
            return None
        trainings = ledger.find(self.spec.name, LedgerKind.TRAINING, version=str(self.version))
        # What another spec computes is not known without MLflow.
        if not any(
            (r["evidence"].get("tags") or {}).get("spec_digest") == self.spec.digest for r in trainings
        ):
            return None
        return column_origins.feature_origins(self.spec)

    def names(self) -> list[str]:
        """Their names; none where that is not known."""
        return [*(self.origins or ())]


def of_output(
    version: VersionFeatures, kind: str, columns: Mapping[str, str], name: Naming
) -> column_lineage_dataset.ColumnLineageDatasetFacet | None:
    """Where the columns of an output come from; None where that is not known.

    Args:
        version: features of the version that a task used or made.
        kind: of the output.
        columns: its columns.
        name: names the dataset of a kind of input, or of a table that features are computed from.
    """
    spec = version.spec
    if kind == "published":
        return _facet({c: _copies("feed", [c], name) for c in columns if c in spec.data.columns})
    if kind == "labels":
        return _labels(spec, columns, name)
    if kind == "external predictions":
        return _facet({c: _copies("predictions", [c], name) for c in columns})
    if kind not in ("model", "predictions", "served", "monitoring") or version.origins is None:
        return None
    features = version.origins
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
