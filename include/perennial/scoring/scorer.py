"""A champion at work: from units of published rows to rows of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from perennial.core.dates import utc_now
from perennial.core.errors import DataError
from perennial.features import reference_tables, serving_log
from perennial.features.engine import STREAM_ROWS, FeatureQuery
from perennial.features.scan_units import ParameterisedQuery, ScanUnit
from perennial.modeling import registry
from perennial.modeling.trained_model import prediction_column
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, object_store

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from perennial.lifecycle.ab_test import ABSplit
    from perennial.modeling.trained_model import TrainedModel

#: Rows that XGBoost predicts at a time; with many fewer, it spends time on starting.
MATRIX_ROWS = 2 * STREAM_ROWS


class ScoredPartition(NamedTuple):
    """Rows of one night.

    Attributes:
        rows: key, prediction (and probabilities), and model_version where two versions share the night.
        served: those that are logged, as `serving_log.to_record_batch` gives them.
    """

    day: str
    rows: pa.RecordBatch
    served: pa.RecordBatch


@dataclass(frozen=True)
class ServingVersion:
    """A version that serves rows.

    Attributes:
        spec: the one that it was trained from. references: version of each reference table.
    """

    version: registry.ModelVersion
    spec: ModelSpec
    references: dict[str, int]

    @classmethod
    def of(cls, version: registry.ModelVersion) -> ServingVersion:
        """The version with its reference tables as they are now."""
        trained = registry.load_spec(version)
        return cls(version, trained, reference_tables.sync_to_lake(trained))


class Scorer:
    """The champion with its features, ready for a number of threads: each takes units from their files to predictions.

    No step waits for another's threads: within a thread, DuckDB and XGBoost have one each.

    Args:
        champion: serves all rows but those of ``challenger``.
        challenger: serves the rows of ``split``, where there is one.
        uri: the table of published rows.
        sampling: which rows are logged.
        work: all units that will be scored.
    """

    def __init__(
        self,
        champion: ServingVersion,
        challenger: ServingVersion | None,
        split: ABSplit | None,
        uri: str,
        sampling: serving_log.LogSampling,
        run_id: str,
        threads: int,
        work: Sequence[ScanUnit],
    ) -> None:
        self.spec = champion.spec
        self._split = split if challenger else None
        self._arms = [champion, challenger] if challenger else [champion]
        rows, longest = sum(u.rows for u in work), max(u.rows for u in work)
        self._models = [
            registry.load_model(arm.version, threads=1).optimised_for(rows, threads=1) for arm in self._arms
        ]
        self._sampling = sampling
        self._free = SimpleQueue[list[FeatureQuery]]()
        folder = None if object_store.is_remote(uri) else uri
        # Made here and not in the threads: a table cannot be opened while the lake's writer waits for its rows.
        first = [FeatureQuery(arm.spec, arm.references, folder) for arm in self._arms]
        self._free.put(first)
        for _ in range(threads - 1):
            self._free.put([FeatureQuery(f.spec, f.versions, folder, like=f) for f in first])
        same = {"model_version": champion.version.version, "run_id": run_id, "scored_at": utc_now()}
        #: Columns with the same value in each row.
        self._same = {name: _repeated(value, longest) for name, value in same.items()}

    def score(self, unit: ScanUnit) -> list[ScoredPartition]:
        """A unit's rows with their predictions, by partition.

        Raises:
            DataError: rows cannot be scored, or not each of them once; with the partition that they are of.
        """
        features = self._free.get()
        try:
            return self._score(unit, features)
        except DataError as error:
            nights = unit.by_night()
            if len(nights) == 1:
                raise DataError(
                    error.cause, error.remedy, model=self.spec.name, partition=unit.nights[0][0]
                ) from error
        finally:
            self._free.put(features)
        # Each by itself: one of them is to blame, or they have keys in common.
        return [batch for night in nights for batch in self.score(night)]

    def _score(self, unit: ScanUnit, features: list[FeatureQuery]) -> list[ScoredPartition]:
        names, columns = list(self.spec.data.key), list(self.spec.data.columns)
        split = self._split if self._split and unit.nights[0][0] > self._split.starts_after else None
        source = (
            unit.read(columns) if split else unit.source(columns)
        )  # each version picks from rows read once
        keys = unit.read(names) if isinstance(source, ParameterisedQuery) else source
        if len(keys) != unit.rows:
            raise DataError(
                f"{unit.rows} rows were published, {len(keys)} are in their files",
                "publish the partition anew: run the data DAG for it",
            )
        picked = self._sampling.of(unit)
        if split:
            whole, log = self._shared(split, features, keys, picked)
        else:
            whole, log = self._served(0, features[0], source, keys, picked)
        made, at, done = [], 0, 0
        for day, rows in unit.nights:
            count = int(picked.searchsorted(at + rows)) - done
            made.append(ScoredPartition(day, whole.slice(at, rows), log.slice(done, count)))
            at, done = at + rows, done + count
        return made

    def _shared(
        self, split: ABSplit, features: list[FeatureQuery], rows: pa.Table, picked: np.ndarray
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """As `_served`, each row by the version that serves it, and with its ``model_version``."""
        import numpy as np
        import pyarrow as pa

        theirs = split.served_by_challenger(rows)
        parts, logs, order, order_of_log = [], [], [], []
        for arm, mine in enumerate((~theirs, theirs)):
            some, wanted = rows.filter(pa.array(mine)), mine[picked]
            part, log = self._served(arm, features[arm], some, some, mine.cumsum()[picked[wanted]] - 1)
            parts.append(part)
            logs.append(log)
            order.append(np.flatnonzero(mine))
            order_of_log.append(np.flatnonzero(wanted))
        whole = pa.concat_batches(parts).take(pa.array(np.concatenate(order).argsort()))
        versions = pa.array([arm.version.version for arm in self._arms])
        column = pa.DictionaryArray.from_arrays(pa.array(theirs.astype(np.int8)), versions)
        log = pa.concat_batches(logs).take(pa.array(np.concatenate(order_of_log).argsort()))
        return whole.append_column("model_version", column), log

    def _served(
        self, arm: int, features: FeatureQuery, source: str | pa.Table, keys: pa.Table, picked: np.ndarray
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Key, prediction (and probabilities) of rows that one arm serves, and the log of those picked."""
        import pyarrow as pa

        model, names = self._models[arm], list(self.spec.data.key)
        keys = keys.select(names)
        predicted, given = _predicted(model, features.of(source, keys), picked)
        columns: dict[str, Any] = {k: keys.column(k).combine_chunks() for k in names}
        columns["prediction"] = prediction_column(model, predicted)
        if model.classes:
            values = pa.FixedSizeListArray.from_arrays(pa.array(predicted.reshape(-1)), len(model.classes))
            columns["probabilities"] = values.cast(pa.list_(pa.float32()))
        whole = pa.RecordBatch.from_pydict(columns)
        few = whole.take(pa.array(picked))
        version = self._arms[arm].version.version
        return whole, serving_log.to_record_batch(few.select(names), given, few.column("prediction"), version)

    def rows(self, night: ScoredPartition) -> pa.RecordBatch:
        """Rows as the lake has them: with model_version, run_id, scored_at and partition_date.

        In batches of a single partition each: the lake's writer takes twice the time to take them apart.
        """
        import pyarrow as pa

        batch = night.rows
        for name, column in self._same.items():
            if name not in batch.schema.names:
                batch = batch.append_column(name, column.slice(0, len(batch)))
        return batch.append_column(
            delta_tables.PARTITION, pa.repeat(pa.scalar(night.day, pa.string()), len(batch))
        )


def _predicted(
    model: TrainedModel, parts: Iterable[pa.Table], wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions for features that come in parts, as `Model.predict` gives them, and the matrix of some rows.

    Args:
        wanted: those rows, by their place, in order.
    """
    import numpy as np

    found: list[np.ndarray] = []
    given = np.empty((len(wanted), len(model.encoding.columns)), np.float32)
    # One for all, since memory that is given back and taken again costs more than filling it; by column, as they come.
    matrix = np.empty((MATRIX_ROWS, len(model.encoding.columns)), np.float32, order="F")
    buffer = model.dense.allocate(MATRIX_ROWS) if model.dense else None
    filled = before = 0

    def flush() -> None:
        nonlocal filled, before
        first, last = wanted.searchsorted([before, before + filled])
        given[first:last] = matrix[wanted[first:last] - before]
        found.append(model.predict_matrix(matrix[:filled], buffer))
        filled, before = 0, before + filled

    for part in parts:
        for start in range(0, max(len(part), 1), STREAM_ROWS):
            some = part.slice(start, STREAM_ROWS)
            if filled + len(some) > MATRIX_ROWS:
                flush()
            model.encoding.encode(some, matrix[filled : filled + len(some)])
            filled += len(some)
    flush()
    return np.concatenate(found), given


def _repeated(text: str, rows: int) -> pa.Array:
    """A column with the same text in each row; null where it is empty: the lake's writer is twice as quick then."""
    import pyarrow as pa

    if not text:
        return pa.nulls(rows, pa.string())
    return pa.DictionaryArray.from_arrays(
        pa.repeat(pa.scalar(0, pa.int8()), rows), pa.array([text], pa.string())
    )
