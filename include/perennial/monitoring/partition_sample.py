"""A sample of each partition's rows, encoded and predicted, with the labels that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perennial.core.durations import Duration
from perennial.core.partitions import Cadence
from perennial.core.sql import batch_rows, quote_identifier, text_literal
from perennial.features.labelled_rows import (
    LABEL,
    create_label_view,
    create_row_view,
    join_labels,
    read_sorted,
    row_order,
    same_row,
)
from perennial.features.targets import ListNumbering, encode_targets, impossible_labels
from perennial.modeling import metrics
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    import duckdb

    from perennial.features.engine import FeatureQuery
    from perennial.modeling.trained_model import TrainedModel
    from perennial.spec.model_spec import ModelSpec

#: Rows of a partition that are sampled, by the hash of their key: enough that differences between partitions exceed the
#: sampling error.
ROWS_PER_PARTITION = 1500
#: Cells of a partition, rows times features, that are sampled: a window has dozens of partitions.
CELLS_PER_PARTITION = 600_000
#: Rows of each hour, or of each partition of a very wide table, at least.
MIN_SAMPLED = 150
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
        y: labels as returned by `features.targets.encode_targets`, shape (rows,); NaN if not known yet, or impossible.
        lists: ranking only: number of each row's list, shape (rows,).
        groupings: columns by which rows are grouped, as text, by name, shape (rows,) each.
        unseen_categories: by categorical feature, whether the row's category is unseen in training, shape (rows,) each.
        impossible_labels: whether the row has a label that the task cannot have, shape (rows,); not given if none has.
        unmatched_labels: share of each partition's labels that belong to no published row, shape (partitions,); NaN
            where it is not known, None if it is known nowhere.
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
    impossible_labels: np.ndarray | None = None
    unmatched_labels: np.ndarray | None = None

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
            None if self.impossible_labels is None else self.impossible_labels[rows],
            self.unmatched_labels,
        )

    @property
    def labelled(self) -> PartitionSample:
        """The rows that have a label."""
        return self.select(np.isfinite(self.y))

    def partition_means(self, values: np.ndarray, min_rows: int = MIN_ROWS) -> np.ndarray:
        """The mean of values in each partition.

        Args:
            values: one value for each row, shape (rows,); rows without one (NaN) do not count.
            min_rows: rows that a partition needs.

        Returns:
            Shape (partitions,); NaN if a partition has fewer rows.
        """
        counted = ~np.isnan(values)
        rows = np.bincount(self.partition_index[counted], minlength=len(self.dates))
        sums = np.bincount(self.partition_index[counted], values[counted], len(self.dates))
        return np.where(rows >= min_rows, sums / np.maximum(rows, 1), np.nan)

    def losses(self, task: str, metric: str) -> np.ndarray:
        """The loss of each row, all of which must have a label.

        Args:
            task: task of the model.
            metric: the gate's metric.

        Returns:
            Shape (rows,); for ranking the loss of the row's list, NaN if no order of it is wrong.
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
    """Sample published rows, at most about `ROWS_PER_PARTITION` of each partition, the same ones each time.

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
        DataError: the features' SQL failed.
    """
    dates = tuple(spec.cadence.keys(start, end)) if start <= end else ()
    most = rows_per_partition(spec.cadence, len(model.encoding.columns))
    read = _read_sample(spec, start, end, labels_until, version, labels_version, most) if dates else None
    if read is None or not read[0].num_rows:
        return _empty_sample(spec, model, dates, columns)
    table, unmatched = read
    y, impossible = _labels(spec, model, table.column(LABEL))
    x, unseen = _encode(model, features, table)
    # Only what is used below: the sample of a wide table is large.
    table = table.select([*dict.fromkeys((*columns, delta_tables.PARTITION, *_list_columns(spec)))])
    index = {d: i for i, d in enumerate(dates)}
    return PartitionSample(
        dates,
        np.array([index[str(d)] for d in table.column(delta_tables.PARTITION).to_pylist()], np.int64),
        x,
        model.predict_margin(x),
        model.predict_matrix(x),
        y,
        ListNumbering(spec).number(table) if spec.group else None,
        {c: _as_text(table.column(c)) for c in columns},
        unseen,
        impossible,
        np.array([unmatched.get(d, np.nan) for d in dates]),
    )


def rows_per_partition(cadence: Cadence, columns: int) -> int:
    """Rows of a partition that are sampled at most, of a model with so many features.

    It depends on nothing else, so that the series of training and monitoring have the same sampling error.
    """
    rows = min(ROWS_PER_PARTITION, CELLS_PER_PARTITION // max(1, columns))
    return max(MIN_SAMPLED, rows // Duration(1, "day").partitions(cadence))


def _encode(
    model: TrainedModel, features: FeatureQuery, table: pa.Table
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Compute and encode the features of rows, a part of a wide table at a time.

    Returns:
        The encoded features, shape (rows, columns); and by categorical feature, whether the row's category is unseen
        in training, shape (rows,) each.
    """
    names, categories = model.encoding.columns, model.encoding.categories
    x = np.empty((len(table), len(names)), np.float32)
    unseen = {c: np.zeros(len(table), bool) for c in names if c in categories}
    step = batch_rows(len(table), max(len(names), table.num_columns))
    for start in range(0, len(table), step):
        part = slice(start, min(start + step, len(table)))
        rows = features.compute(table.slice(start, step))
        model.encoding.encode(rows, x[part])
        for j, name in enumerate(names):
            if name in unseen:
                unseen[name][part] = np.asarray(rows.column(name).is_valid()) & np.isnan(x[part, j])
    return x, unseen


def _list_columns(spec: ModelSpec) -> list[str]:
    """The columns that `ListNumbering` reads."""
    return [spec.group] if spec.group else []


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
    spec: ModelSpec, model: TrainedModel, column: pa.ChunkedArray[Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The labels as targets, NaN if there is none; and which are impossible, None if none is. Shape (rows,) each."""
    y = np.full(len(column), np.nan)
    present = np.asarray(column.is_valid())
    if not present.any():
        return y, None
    impossible = np.zeros(len(column), bool)
    impossible[present] = impossible_labels(spec.task, column.filter(pa.array(present)))
    possible = present & ~impossible
    if possible.any():
        y[possible] = encode_targets(spec, column.filter(pa.array(possible)), model.classes)
    return y, impossible if impossible.any() else None


def _as_text(column: pa.ChunkedArray[Any]) -> np.ndarray:
    return np.array([v if v is not None else "(none)" for v in column.cast(pa.string()).to_pylist()], object)


def _read_sample(
    spec: ModelSpec,
    start: str,
    end: str,
    labels_until: str,
    version: int | None,
    labels_version: int | None,
    most: int,
) -> tuple[pa.Table, dict[str, float]] | None:
    """Read sampled rows with `LABEL` (null if not known), by date, list and key; None without rows.

    About ``most`` of each partition. Also returns, by date, the share of the labels that belong to no row.
    """
    con = duckdb_session.connect()
    uri = delta_tables.table_uri("published", spec.name)
    sizes = {d: n for d, n in delta_tables.rows_by_partition(uri, version).items() if start <= d <= end}
    if not sizes or not create_row_view(con, "__rows", spec, version, start, end):
        return None
    # Lists are evaluated as a whole, so they are sampled as a whole. Each partition has its own sampling rate, so that
    # a very large one does not displace the others.
    hashed = ", ".join(quote_identifier(c) for c in ([spec.group] if spec.group else spec.data.key))
    steps = " ".join(f"WHEN {text_literal(d)} THEN {-(-n // most)}" for d, n in sizes.items() if n)
    in_sample = f"hash({hashed}) % (CASE {delta_tables.PARTITION} {steps} ELSE 1 END) = 0"
    sampled = f"(SELECT * FROM __rows WHERE {in_sample})"
    unmatched: dict[str, float] = {}
    if spec.label.source is None:
        is_due = f"{delta_tables.PARTITION} <= {text_literal(labels_until)}"
        labelled = join_labels(spec, sampled, None, keep_unlabelled=True)
        query = f"SELECT * REPLACE (CASE WHEN {is_due} THEN {LABEL} END AS {LABEL}) FROM ({labelled})"
    elif labels_until >= start and create_label_view(
        con, "__labels", spec, labels_version, start, min(end, labels_until)
    ):
        labels = "__labels"
        if not spec.group:  # labels do not have it, so that those of the sample are not known
            labels = f"(SELECT * FROM __labels WHERE {in_sample})"
            unmatched = _unmatched_labels(con, spec, sampled, labels)
        query = join_labels(spec, sampled, labels, keep_unlabelled=True)
    else:
        query = f"SELECT *, NULL::DOUBLE AS {LABEL} FROM {sampled}"
    return read_sorted(con, query, row_order(spec)), unmatched


def _unmatched_labels(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, rows: str, labels: str
) -> dict[str, float]:
    """Count the labels that belong to no row, on dates with rows.

    Args:
        con: DuckDB connection.
        spec: the model.
        rows: SQL relation of rows.
        labels: SQL relation of the labels of the same keys.

    Returns:
        Their share in the labels, by date.
    """
    day = delta_tables.PARTITION
    shares = con.execute(
        f"SELECT __l.{day}, 1 - count(__r.{day}) / count(*) FROM {labels} __l "
        f"LEFT JOIN {rows} __r ON {same_row(spec, '__l', '__r')} "
        f"WHERE __l.{day} IN (SELECT {day} FROM {rows}) GROUP BY 1"
    ).fetchall()
    return {str(date): float(share) for date, share in shares}
