"""The serving log: the encoded features of a sample of the scored rows, stored in the lake by key.

From the table versions that scoring read, the training code must compute identical features for the same rows:
`monitoring.train_serve_skew` compares them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from perennial.features import reference_copies
from perennial.features.engine import FeatureQuery
from perennial.storage import delta_tables

if TYPE_CHECKING:
    from perennial.features.scan_units import ScanUnit
    from perennial.spec.model_spec import ModelSpec
    from perennial.storage.delta_tables import File
    from perennial.storage.manifests import Manifest

#: Most rows that are logged of a partition; of a larger partition, at least half as many are logged.
MAX_ROWS_PER_PARTITION = 200


def uri(model: str) -> str:
    """The table of logged rows: key, ``features``, ``prediction``, ``model_version``, ``scored_from``.

    Those names are `ModelSpec.lake_column`'s.
    """
    return delta_tables.table_uri("served", model)


def inputs_digest(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of the inputs of a scoring, which links logged rows to the manifest of that scoring."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class ScoredWith(NamedTuple):
    """What a version scored a partition with.

    Attributes:
        digest: of the version's model file.
        references: copy of each reference table, by name.
        tables: version of each reference table and feature table, by name.
    """

    digest: str
    references: dict[str, int]
    tables: dict[str, int]


def scored_with(scored: Manifest, version: str) -> ScoredWith:
    """What a version scored a partition with: the champion, or the challenger of an A/B trial.

    Args:
        scored: the manifest of the scoring.
        version: number of the version.
    """
    inputs, result = scored.inputs, scored.result
    if version == inputs["version"]:
        digest, tables = inputs["champion"], result.get("tables", {})
    else:
        inputs = inputs["split"]
        digest, tables = inputs["digest"], result.get("challenger_tables", {})
    return ScoredWith(digest, inputs["references"], inputs["references"] | tables)


def features_as_scored(
    trained: ModelSpec, scored: Manifest, version: str, queries: dict[str, FeatureQuery]
) -> FeatureQuery | None:
    """A version's features at the table versions that scoring read.

    Args:
        trained: the spec of the version.
        scored: the manifest of the scoring.
        version: number of the version.
        queries: those that were made before for this version, which are used again.

    Returns:
        The features; None if scoring read another copy of a reference table than the spec joins.

    Raises:
        StorageError: an old version of a table is no longer stored.
    """
    read = scored_with(scored, version)
    if not reference_copies.are_joined(trained, read.references, scored.key):
        return None
    key = str(read.tables)
    if key not in queries:
        queries[key] = FeatureQuery(trained, read.tables)
    return queries[key]


class LogSampling:
    """Selects the rows to log: every n-th row of each partition, independent of the scan units.

    Args:
        partitions: the files of each partition, by date.
    """

    def __init__(self, partitions: Mapping[str, Sequence[File]]) -> None:
        self._first_row: dict[str, int] = {}
        self._interval: dict[str, int] = {}
        for day, files in partitions.items():
            rows = 0
            for file in files:
                self._first_row[file.path] = rows
                rows += file.rows
            self._interval[day] = max(1, -(-rows // MAX_ROWS_PER_PARTITION))

    def select(self, unit: ScanUnit) -> np.ndarray:
        """The positions within a unit of its rows to log, ascending."""
        positions, offset = [], 0
        for day, file in unit.files:
            rows, interval = (file.rows if unit.first is None else unit.rows), self._interval[day]
            first = self._first_row[file.path] + (unit.first or 0)
            positions.append(np.arange(-first % interval, rows, interval) + offset)
            offset += rows
        return np.concatenate(positions)


def to_record_batch(
    spec: ModelSpec, keys: pa.RecordBatch, features: np.ndarray, prediction: pa.Array[Any], version: str
) -> pa.RecordBatch:
    """Compose the log of rows that one version scored.

    Args:
        spec: the model.
        keys: their keys.
        features: their encoded features, float32, shape (rows, columns).
        prediction: their predictions, shape (rows,).
        version: the version that scored them.
    """
    values = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    columns = {name: keys.column(name) for name in keys.schema.names}
    columns |= {
        spec.lake_column("features"): values.cast(pa.list_(pa.float32())),
        spec.lake_column("prediction"): prediction,
        spec.lake_column("model_version"): pa.repeat(pa.scalar(version), len(keys)),
    }
    return pa.RecordBatch.from_pydict(columns)


def write(
    spec: ModelSpec,
    partitions: Mapping[str, Sequence[pa.RecordBatch]],
    digests: Mapping[str, str],
    properties: Mapping[str, str] | None = None,
) -> int:
    """Replace the log of consecutive partitions.

    Args:
        spec: the model.
        partitions: the logged rows of each partition, by date.
        digests: the `inputs_digest` of each partition, by date.
        properties: properties of the table, if this is its first write.

    Returns:
        The version of the table that holds the rows.
    """
    parts = []
    for day, batches in partitions.items():
        table = pa.Table.from_batches(batches)
        for name, text in ((spec.lake_column("scored_from"), digests[day]), (delta_tables.PARTITION, day)):
            table = table.append_column(name, pa.repeat(pa.scalar(text), len(table)))
        parts.append(table)
    days = sorted(partitions)
    # In so few rows the features have mostly distinct values.
    return delta_tables.replace(
        uri(spec.name),
        pa.concat_tables(parts),
        days[0],
        days[-1],
        distinct=[spec.lake_column("features")],
        properties=properties,
        days=days,
    )
