"""A sample of each partition's rows, encoded and predicted, with the labels that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perennial.core import dates as dates_module
from perennial.core.errors import DataError
from perennial.core.sql import quote_identifier, text_literal
from perennial.features.labelled_rows import LABEL, create_label_view, join_labels, row_order
from perennial.features.targets import ListNumbering, encode_targets
from perennial.modeling import metrics
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    from perennial.features.engine import FeatureQuery
    from perennial.modeling.trained_model import TrainedModel
    from perennial.spec.model_spec import ModelSpec

#: Rows of a partition that are sampled, by the hash of their key: enough that differences between partitions exceed the
#: sampling error.
ROWS_PER_PARTITION = 1500
#: Rows that a partition needs for its mean to count.
MIN_ROWS = 30


@dataclass(frozen=True)
class PartitionSample:
    """Rows of some partitions, in the order of the partitions.

    Attributes:
        dates: every partition date of the window, including those without rows.
        partition_index: index into ``dates`` of each row, shape (rows,).
        x: encoded features, float32, shape (rows, columns).
        margin: the model's raw scores, shape (rows,) or (rows, classes).
        predicted: the model's probabilities or values, of the same shape.
        y: labels as returned by `features.targets.encode_targets`, shape (rows,); NaN if not known yet.
        lists: ranking only: number of each row's list, shape (rows,).
        groupings: columns by which rows are grouped, as text, by name, shape (rows,) each.
        unseen_categories: by categorical feature, whether the row's category is unseen in training, shape (rows,) each.
    """

    dates: tuple[str, ...]
    partition_index: np.ndarray
    x: np.ndarray
    margin: np.ndarray
    predicted: np.ndarray
    y: np.ndarray
    lists: np.ndarray | None = None
    groupings: Mapping[str, np.ndarray] = field(default_factory=dict)
    unseen_categories: Mapping[str, np.ndarray] = field(default_factory=dict)

    def select(self, rows: np.ndarray) -> PartitionSample:
        """Select rows by a mask or an array of indices."""
        return PartitionSample(
            self.dates,
            self.partition_index[rows],
            self.x[rows],
            self.margin[rows],
            self.predicted[rows],
            self.y[rows],
            None if self.lists is None else self.lists[rows],
            {c: v[rows] for c, v in self.groupings.items()},
            {c: v[rows] for c, v in self.unseen_categories.items()},
        )

    @property
    def labelled(self) -> PartitionSample:
        """The rows that have a label."""
        return self.select(np.isfinite(self.y))

    def partition_means(self, values: np.ndarray, min_rows: int = MIN_ROWS) -> np.ndarray:
        """The mean of values in each partition.

        Args:
            values: one value for each row, shape (rows,).
            min_rows: rows that a partition needs.

        Returns:
            Shape (partitions,); NaN if a partition has fewer rows.
        """
        rows = np.bincount(self.partition_index, minlength=len(self.dates))
        sums = np.bincount(self.partition_index, values, len(self.dates))
        return np.where(rows >= min_rows, sums / np.maximum(rows, 1), np.nan)

    def losses(self, task: str, metric: str) -> np.ndarray:
        """The loss of each row, all of which must have a label.

        Args:
            task: task of the model.
            metric: the gate's metric.

        Returns:
            Shape (rows,); for ranking the loss of the row's list.
        """
        if self.lists is None:
            return metrics.losses(task, metric, self.y, self.predicted)
        losses = np.empty(len(self.y))
        for rows in np.split(np.arange(len(self.y)), np.flatnonzero(np.diff(self.lists)) + 1):
            if len(rows):
                losses[rows] = metrics.losses(
                    task, metric, self.y[rows], self.predicted[rows], self.lists[rows]
                )
        return losses


def sample_partitions(
    spec: ModelSpec,
    model: TrainedModel,
    features: FeatureQuery,
    start: str,
    end: str,
    *,
    labels_until: str,
    columns: Sequence[str] = (),
    version: int | None = None,
    labels_version: int | None = None,
) -> PartitionSample:
    """Sample published rows, at most about `ROWS_PER_NIGHT` of each partition, the same ones each time.

    Args:
        spec: the model's.
        model: the model that predicts.
        features: of that model.
        start: first partition date.
        end: last partition date; if it is before ``start``, the sample is empty.
        labels_until: last partition date whose labels may be used.
        columns: columns of the rows for `PartitionSample.groupings`.
        version: version of the published rows; the latest when not given.
        labels_version: version of the labels; the latest when not given.

    Raises:
        DataError: the features' SQL failed, or a label cannot be encoded.
    """
    dates = tuple(dates_module.dates(start, end)) if start <= end else ()
    table = _read_sample(spec, start, end, labels_until, version, labels_version) if dates else None
    if table is None or not table.num_rows:
        return _empty_sample(spec, model, dates, columns)
    rows = features.compute(table)
    x = model.encoding.encode(rows)
    index = {d: i for i, d in enumerate(dates)}
    return PartitionSample(
        dates,
        np.array([index[str(d)] for d in table.column(delta_tables.PARTITION).to_pylist()], np.int64),
        x,
        predict_margin(model, x),
        model.predict_matrix(x),
        _labels(spec, model, table.column(LABEL), f"{start}..{end}"),
        ListNumbering(spec).number(table) if spec.group else None,
        {c: _as_text(table.column(c)) for c in columns},
        {
            c: np.asarray(rows.column(c).is_valid()) & np.isnan(x[:, j])
            for j, c in enumerate(model.encoding.columns)
            if c in model.encoding.categories
        },
    )


def _empty_sample(
    spec: ModelSpec, model: TrainedModel, dates: tuple[str, ...], columns: Sequence[str]
) -> PartitionSample:
    predicted = np.zeros((0, len(model.classes)) if model.classes else 0, np.float32)
    return PartitionSample(
        dates,
        np.zeros(0, np.int64),
        np.zeros((0, len(model.encoding.columns)), np.float32),
        predicted,
        predicted,
        np.zeros(0),
        np.zeros(0, np.int64) if spec.group else None,
        {c: np.zeros(0, object) for c in columns},
    )


def _labels(
    spec: ModelSpec, model: TrainedModel, column: pa.ChunkedArray[Any], partitions: str
) -> np.ndarray:
    """The labels as targets, shape (rows,); NaN if there is none."""
    y = np.full(len(column), np.nan)
    present = np.asarray(column.is_valid())
    if present.any():
        try:
            y[present] = encode_targets(spec, column.filter(pa.array(present)), model.classes)
        except DataError as error:
            raise DataError(error.cause, error.remedy, model=spec.name, partition=partitions) from error
    return y


def predict_margin(model: TrainedModel, x: np.ndarray) -> np.ndarray:
    """The raw scores of a model's booster.

    Args:
        model: the model.
        x: encoded features, shape (rows, columns).

    Returns:
        Shape (rows,) or (rows, classes).
    """
    scores = np.asarray(model.booster.inplace_predict(x, predict_type="margin", validate_features=False))
    return scores.reshape(len(x), len(model.classes)) if model.classes else scores


def _as_text(column: pa.ChunkedArray[Any]) -> np.ndarray:
    return np.array([v if v is not None else "(none)" for v in column.cast(pa.string()).to_pylist()], object)


def _read_sample(
    spec: ModelSpec,
    start: str,
    end: str,
    labels_until: str,
    version: int | None,
    labels_version: int | None,
) -> pa.Table | None:
    """Read sampled rows with `LABEL` (null if not known), by date, list and key; None without rows."""
    con = duckdb_session.connect()
    uri = delta_tables.table_uri("published", spec.name)
    sizes = {d: n for d, n in delta_tables.rows_by_partition(uri, version).items() if start <= d <= end}
    if not sizes or not duckdb_session.create_view(con, "r", uri, version, start, end):
        return None
    # Lists are evaluated as a whole, so they are sampled as a whole. Each partition has its own sampling rate, so that
    # a very large one does not displace the others.
    hashed = ", ".join(quote_identifier(c) for c in ([spec.group] if spec.group else spec.data.key))
    steps = " ".join(
        f"WHEN {text_literal(d)} THEN {-(-n // ROWS_PER_PARTITION)}" for d, n in sizes.items() if n
    )
    sampled = (
        f"(SELECT * FROM r WHERE hash({hashed}) % (CASE {delta_tables.PARTITION} {steps} ELSE 1 END) = 0)"
    )
    if spec.label.source is None:
        is_due = f"{delta_tables.PARTITION} <= {text_literal(labels_until)}"
        labelled = join_labels(spec, sampled, None, keep_unlabelled=True)
        query = f"SELECT * REPLACE (CASE WHEN {is_due} THEN {LABEL} END AS {LABEL}) FROM ({labelled})"
    elif labels_until >= start and create_label_view(
        con, "labels", spec, labels_version, start, min(end, labels_until)
    ):
        query = join_labels(spec, sampled, "labels", keep_unlabelled=True)
    else:
        query = f"SELECT *, NULL::DOUBLE AS {LABEL} FROM {sampled}"
    sample: pa.Table = con.sql(f"{query} ORDER BY {row_order(spec)}").to_arrow_table()
    return sample
