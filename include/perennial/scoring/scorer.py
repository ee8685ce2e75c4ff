"""Score scan units of published rows with the versions that serve them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from perennial.core.dates import utc_now
from perennial.core.errors import DataError
from perennial.core.sql import batch_rows
from perennial.features import (
    feature_tables,
    point_in_time,
    reference_copies,
    reference_tables,
    serving_log,
)
from perennial.features.engine import STREAM_ROWS, FeatureQuery
from perennial.features.scan_units import ParameterisedQuery, ScanUnit
from perennial.modeling import registry
from perennial.modeling.trained_model import prediction_column
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, object_store

if TYPE_CHECKING:
    from perennial.lifecycle.ab_trial import ABSplit
    from perennial.modeling.trained_model import TrainedModel

#: Rows that XGBoost predicts at a time; with much fewer rows, the fixed cost of a call dominates.
MATRIX_ROWS = 2 * STREAM_ROWS


class ScoredPartition(NamedTuple):
    """Scored rows of one partition.

    Attributes:
        day: date of the partition.
        rows: key, prediction (and probabilities), and model_version where two versions share the partition.
        served: rows for the serving log, as returned by `serving_log.to_record_batch`.
    """

    day: str
    rows: pa.RecordBatch
    served: pa.RecordBatch


@dataclass(frozen=True)
class ServingVersion:
    """A version that serves rows.

    Attributes:
        version: the registered version.
        spec: the spec that it was trained from.
        reference_versions: version of each of its reference tables, by name.
        reference_copies: the version of each reference table that the rows of a partition join, by partition and name.
        feature_versions: version of each of its feature tables, by name.
        digests: what the rows of a partition read of the feature tables, by partition and table.
    """

    version: registry.ModelVersion
    spec: ModelSpec
    reference_versions: dict[str, int]
    reference_copies: dict[str, dict[str, int]]
    feature_versions: dict[str, int]
    digests: dict[str, dict[str, str]]

    @classmethod
    def load(cls, version: registry.ModelVersion, partitions: Collection[str]) -> ServingVersion:
        """Load a version's spec, and bring the tables that its features of some partitions read up to date."""
        spec = registry.load_spec(version)
        tables = feature_tables.sync_to_lake(spec, min(partitions), max(partitions))
        references = reference_tables.sync_to_lake(spec)
        return cls(
            version,
            spec,
            references,
            reference_copies.versions_of(spec, references, partitions),
            tables,
            point_in_time.table_digests(spec, tables, partitions),
        )

    @property
    def table_versions(self) -> dict[str, int]:
        """Version of each reference table and of each feature table, by name."""
        return self.reference_versions | self.feature_versions


@dataclass(frozen=True)
class Serving:
    """The versions that serve rows: the champion, and in an A/B trial the challenger.

    Attributes:
        champion: serves all rows except those of the challenger.
        challenger: serves the rows of ``split``; None without an A/B trial.
        split: the rows that the challenger serves; None without an A/B trial.
    """

    champion: ServingVersion
    challenger: ServingVersion | None = None
    split: ABSplit | None = None

    @property
    def versions(self) -> list[ServingVersion]:
        """The champion and, in an A/B trial, the challenger."""
        return [self.champion, self.challenger] if self.challenger else [self.champion]

    def split_on(self, day: str) -> ABSplit | None:
        """The split of the rows of a partition; None if the champion serves all of them."""
        return self.split if self.split and day > self.split.starts_after else None


class Scorer:
    """Scores scan units in parallel, each unit in one thread from files to predictions.

    DuckDB and XGBoost use a single thread within each, so that threads do not wait for each other.

    Args:
        serving: the versions that serve the rows.
        uri: the table of published rows.
        sampling: selects the rows that are logged.
        run_id: id of the run, stored with the predictions.
        threads: number of units that are scored in parallel.
        units: all units that will be scored.
    """

    def __init__(
        self,
        serving: Serving,
        uri: str,
        sampling: serving_log.LogSampling,
        run_id: str,
        threads: int,
        units: Sequence[ScanUnit],
    ) -> None:
        self.spec = serving.champion.spec
        self._serving = serving
        rows, max_rows = sum(u.rows for u in units), max(u.rows for u in units)
        self._models = [
            registry.load_model(v.version, threads=1).optimised_for(rows, threads=1) for v in serving.versions
        ]
        self._sampling = sampling
        # One set of feature queries (one query for each version) for each thread.
        self._idle = SimpleQueue[list[FeatureQuery]]()
        folder = None if object_store.is_remote(uri) else uri
        # Created here and not in the threads: a table cannot be opened while the lake's writer waits for its rows.
        first = [FeatureQuery(v.spec, v.table_versions, folder) for v in serving.versions]
        self._idle.put(first)
        for _ in range(threads - 1):
            self._idle.put([FeatureQuery(f.spec, f.reference_versions, folder, checked=f) for f in first])
        version = serving.champion.version.version
        constants = {"model_version": version, "run_id": run_id, "scored_at": utc_now()}
        #: Columns with the same value in each row, as long as the largest unit.
        self._constants = {
            self.spec.lake_column(name): _repeat(value, max_rows) for name, value in constants.items()
        }

    def score(self, unit: ScanUnit) -> list[ScoredPartition]:
        """Score the rows of a unit.

        Returns:
            The predictions of each partition, in order.

        Raises:
            DataError: rows cannot be scored exactly once; the error names their partition.
        """
        partitions, features = unit.split_by_partition(), self._idle.get()
        try:
            if all(len(f.group_partitions(day for day, _ in unit.partitions)) == 1 for f in features):
                return self._score(unit, features)
        except DataError as error:
            if len(partitions) == 1:
                raise DataError(
                    error.cause, error.remedy, model=self.spec.name, partition=unit.partitions[0][0]
                ) from error
        finally:
            self._idle.put(features)
        # Score each partition separately: they join different copies of a reference table, have keys in common, or one
        # of them cannot be scored.
        return [scored for partition in partitions for scored in self.score(partition)]

    def _score(self, unit: ScanUnit, features: list[FeatureQuery]) -> list[ScoredPartition]:
        names, columns = list(self.spec.data.key), list(self.spec.data.columns)
        if any(version.feature_versions for version in self._serving.versions):
            columns.append(delta_tables.PARTITION)
        split = self._serving.split_on(unit.partitions[0][0])
        # With a split, the rows are read once and divided between the versions.
        source = unit.read(columns) if split else unit.source(columns)
        keys = unit.read(names) if isinstance(source, ParameterisedQuery) else source
        if len(keys) != unit.rows:
            raise DataError(
                f"{unit.rows} rows were published, {len(keys)} are in their files",
                "publish the partition again: run the data DAG for it with force",
            )
        logged = self._sampling.select(unit)
        first = unit.partitions[0][0]
        if split:
            scored, log = self._score_split(split, features, keys, logged, first)
        else:
            scored, log = self._score_by(0, features[0], source, keys, logged, first)
        partitions, start, log_start = [], 0, 0
        for day, rows in unit.partitions:
            count = int(logged.searchsorted(start + rows)) - log_start
            partitions.append(ScoredPartition(day, scored.slice(start, rows), log.slice(log_start, count)))
            start, log_start = start + rows, log_start + count
        return partitions

    def _score_split(
        self, split: ABSplit, features: list[FeatureQuery], rows: pa.Table, logged: np.ndarray, partition: str
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Score each row by the version that serves it, and add the column ``model_version``."""
        by_challenger = split.served_by_challenger(rows)
        parts, logs, positions, log_positions = [], [], [], []
        for i, mask in enumerate((~by_challenger, by_challenger)):
            served, logged_here = rows.filter(pa.array(mask)), mask[logged]
            positions_here = mask.cumsum()[logged[logged_here]] - 1
            part, log = self._score_by(i, features[i], served, served, positions_here, partition)
            parts.append(part)
            logs.append(log)
            positions.append(np.flatnonzero(mask))
            log_positions.append(np.flatnonzero(logged_here))
        concat_batches = cast(Any, pa).concat_batches  # missing in pyarrow-stubs 20
        scored = concat_batches(parts).take(pa.array(np.concatenate(positions).argsort()))
        versions = pa.array([v.version.version for v in self._serving.versions])
        column = pa.DictionaryArray.from_arrays(pa.array(by_challenger.astype(np.int8), pa.int8()), versions)
        log = concat_batches(logs).take(pa.array(np.concatenate(log_positions).argsort()))
        return scored.append_column(self.spec.lake_column("model_version"), column), log

    def _score_by(
        self,
        i: int,
        features: FeatureQuery,
        source: ParameterisedQuery | pa.Table,
        keys: pa.Table,
        logged: np.ndarray,
        partition: str,
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Score rows by one version.

        Args:
            i: index of the version in `Serving.versions`.
            features: its features.
            source: the rows, as for `FeatureQuery.stream`.
            keys: their keys.
            logged: positions of the rows to log, ascending.
            partition: one of their partitions.

        Returns:
            Key, prediction (and probabilities) of the rows; and the serving log of some of them.
        """
        model, names = self._models[i], list(self.spec.data.key)
        keys = keys.select(names)
        predictions, matrix = _predict(model, features.stream(source, keys, partition), logged)
        columns: dict[str, Any] = {k: keys.column(k).combine_chunks() for k in names}
        prediction = self.spec.lake_column("prediction")
        columns[prediction] = prediction_column(model, predictions)
        if model.classes:
            values = pa.FixedSizeListArray.from_arrays(pa.array(predictions.reshape(-1)), len(model.classes))
            columns[self.spec.lake_column("probabilities")] = values.cast(pa.list_(pa.float32()))
        scored = pa.RecordBatch.from_pydict(columns)
        sample = scored.take(pa.array(logged))
        version = self._serving.versions[i].version.version
        return scored, serving_log.to_record_batch(
            self.spec, sample.select(names), matrix, sample.column(prediction), version
        )

    def rows(self, partition: ScoredPartition) -> pa.RecordBatch:
        """The rows as they are stored: with model_version, run_id, scored_at and partition_date.

        Each batch has a single partition, because the lake's writer needs twice the time to divide a batch.
        """
        batch = partition.rows
        for name, column in self._constants.items():
            if name not in batch.schema.names:
                batch = batch.append_column(name, column.slice(0, len(batch)))
        return batch.append_column(
            delta_tables.PARTITION, pa.repeat(pa.scalar(partition.day, pa.string()), len(batch))
        )


def _predict(
    model: TrainedModel, parts: Iterable[pa.Table], logged: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Predict from a stream of features.

    Args:
        model: the model.
        parts: features of the rows, in order.
        logged: positions of the rows whose encoded features are returned, ascending.

    Returns:
        The predictions, as returned by `TrainedModel.predict`; and the encoded features of the rows at ``logged``.
    """
    predictions: list[np.ndarray] = []
    sample = np.empty((len(logged), len(model.encoding.columns)), np.float32)
    # One matrix for all parts, since allocating memory costs more than filling it; by column, like the features.
    matrix_rows = batch_rows(MATRIX_ROWS, len(model.encoding.columns))
    matrix = np.empty((matrix_rows, len(model.encoding.columns)), np.float32, order="F")
    buffer = model.dense.allocate(matrix_rows) if model.dense else None
    filled = start = 0

    def flush() -> None:
        nonlocal filled, start
        first, last = logged.searchsorted([start, start + filled])
        sample[first:last] = matrix[logged[first:last] - start]
        predictions.append(model.predict_matrix(matrix[:filled], buffer))
        filled, start = 0, start + filled

    for part in parts:
        step = min(STREAM_ROWS, matrix_rows)
        for first in range(0, max(len(part), 1), step):
            rows = part.slice(first, step)
            if filled + len(rows) > matrix_rows:
                flush()
            model.encoding.encode(rows, matrix[filled : filled + len(rows)])
            filled += len(rows)
    flush()
    return np.concatenate(predictions), sample


def _repeat(text: str, rows: int) -> pa.Array[Any]:
    """A column with the same text in each row; all null for an empty text, to write it faster."""
    if not text:
        return pa.nulls(rows, pa.string())
    return pa.DictionaryArray.from_arrays(
        pa.repeat(pa.scalar(0, pa.int8()), rows), pa.array([text], pa.string())
    )
