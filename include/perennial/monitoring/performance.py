"""The champion's metrics on the rows whose labels have arrived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from perennial.core.sql import quote_identifier, text_literal
from perennial.features.labelled_rows import LABEL, create_label_view, create_row_view, join_labels, same_row
from perennial.features.targets import POSSIBLE_LABELS, encode_targets, impossible_labels
from perennial.modeling import metrics as metrics_module
from perennial.modeling import registry
from perennial.modeling.coverage import NO_LABEL, NOT_DUE, NOT_SAMPLED, ONE_GRADE, UNSEEN_CLASS, Coverage
from perennial.spec.constraints import direction
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    from perennial.monitoring.results import PerformanceMetrics

#: Most rows that metrics are computed from, chosen by the hash of the key.
MAX_ROWS = 500_000


class LabelledPredictions(NamedTuple):
    """Predictions with their labels, as arguments of `modeling.metrics.metrics`.

    Attributes:
        y: labels, shape (rows,); for multiclass the class index, negative if the champion does not have it.
        predicted: values, or probabilities of the classes, shape (rows,) or (rows, classes).
        group: ranking only: number of each row's list, shape (rows,).
        dates: partition date of each row, as text, shape (rows,).
    """

    y: np.ndarray
    predicted: np.ndarray
    group: np.ndarray | None
    dates: np.ndarray

    def select(self, rows: np.ndarray) -> LabelledPredictions:
        """Select rows by a mask."""
        group = None if self.group is None else self.group[rows]
        return LabelledPredictions(self.y[rows], self.predicted[rows], group, self.dates[rows])


class _UnavailableError(Exception):
    """The predictions cannot be compared with labels; the message says why."""


def last_labelled_date(spec: ModelSpec, as_of: str) -> str:
    """The latest partition date whose labels are complete by ``as_of``."""
    return spec.cadence.shift(as_of, -spec.label_delay)


def measure(
    spec: ModelSpec,
    *,
    start: str,
    as_of: str,
    model_version: str,
    metrics_at_training: Mapping[str, float],
    classes: tuple[str, ...],
    on_rows: Callable[[LabelledPredictions], object] = lambda _: None,
) -> PerformanceMetrics:
    """Compute metrics of the champion's predictions in a window, and compare them with those at training.

    Labels of keys that were not scored are only counted. Predictions of other versions are ignored.

    Args:
        spec: the model.
        start: first partition date of the window.
        as_of: last partition date of the window.
        model_version: version of the champion.
        metrics_at_training: metrics of the held-out rows, by name.
        classes: classes of a multiclass champion, in the order of its probabilities.
        on_rows: called with the rows that the metrics are computed from, to draw them.
    """
    con = duckdb_session.connect()
    result = _nothing_measured(spec, metrics_at_training)
    labels_until = last_labelled_date(spec, as_of)
    if not _create_views(con, spec, start, as_of, labels_until, model_version):
        return result
    scored, due = con.execute(
        f"SELECT count(*), count(*) FILTER (WHERE {delta_tables.PARTITION} <= {text_literal(labels_until)}) "
        "FROM __champion_rows"
    ).fetchall()[0]
    labelled = _count_labelled(con, spec)
    omitted = {NOT_DUE: scored - due, NO_LABEL: due - labelled}
    result["coverage"] = Coverage(0, scored, omitted | {"not evaluated": labelled}).as_dict()
    result["scored_rows"], result["labelled_rows"] = scored, labelled
    result["labelled_share"] = round(labelled / scored, 6) if scored else 0.0
    result["unscored_labels"] = _count_unscored(con, spec)
    if labelled < spec.monitoring.min_rows:
        result["reason"] = f"{labelled} scored rows have a label, {spec.monitoring.min_rows} are needed"
        return result
    try:
        rows = _read_labelled(con, spec, labelled, classes)
    except _UnavailableError as error:
        result["reason"] = str(error)
        return result
    on_rows(rows)
    metrics = metrics_module.metrics(spec.task, rows.y, rows.predicted, rows.group)
    _add_metrics(result, metrics, _coverage(spec, rows, scored, labelled, omitted))
    return result


def _nothing_measured(spec: ModelSpec, metrics_at_training: Mapping[str, float]) -> PerformanceMetrics:
    """The performance in a window without labelled predictions."""
    return {
        "metric": spec.metric,
        "metrics": {},
        "metrics_at_training": dict(metrics_at_training),
        "relative_change": None,
        "scored_rows": 0,
        "labelled_rows": 0,
        "labelled_share": 0.0,
        "unscored_labels": 0,
        "coverage": Coverage(0, 0).as_dict(),
        "reason": "nothing was scored in this window, or no label arrived",
    }


def _coverage(
    spec: ModelSpec, rows: LabelledPredictions, scored: int, labelled: int, omitted: Mapping[str, int]
) -> Coverage:
    """How many of the scored rows the metrics rest on."""
    not_read = NOT_SAMPLED if labelled > MAX_ROWS else "no longer published"
    omitted = {**omitted, not_read: labelled - len(rows.y)}
    evaluated, unseen = len(rows.y), 0
    if rows.group is not None:
        omitted[ONE_GRADE] = metrics_module.rows_of_one_grade(rows.y, rows.group)
        evaluated -= omitted[ONE_GRADE]
    if spec.task == "multiclass":
        unseen = int((rows.y < 0).sum())
    return Coverage(evaluated, scored, omitted, {UNSEEN_CLASS: unseen})


def _add_metrics(result: PerformanceMetrics, metrics: Mapping[str, float], coverage: Coverage) -> None:
    """Add the metrics of the window, and the change of the gate's metric, to a result."""
    result["coverage"] = coverage.as_dict()
    result["metrics"] = {name: round(value, 6) for name, value in metrics.items()}
    metric = result["metric"]
    current, before = result["metrics"].get(metric), result["metrics_at_training"].get(metric)
    if current is None or before is None:
        missing = "at training is not recorded" if before is None else "cannot be computed"
        result["reason"] = f"the champion's {metric} {missing}; {coverage}"
        return
    change = (current - before) / max(abs(before), 1e-12)
    result["relative_change"] = round(change, 6)
    result["reason"] = (
        f"{metric} {current:.4g} against {before:.4g} on the held-out rows at training: {change:+.1%}, "
        f"{direction(metric)} is better; on {coverage}"
    )


def losses_by_partition(
    spec: ModelSpec, version: registry.ModelVersion, start: str, as_of: str, min_rows: int
) -> dict[str, float]:
    """Mean loss of the rows that a version served, by partition date.

    Args:
        spec: the model.
        version: the version.
        start: first partition date.
        as_of: date as of which labels are known; partitions whose labels are not due are omitted.
        min_rows: labelled rows that a partition needs; partitions with fewer are omitted.
    """
    con, last = duckdb_session.connect(), last_labelled_date(spec, as_of)
    if start > last or not _create_views(con, spec, start, last, last, version.version):
        return {}
    try:
        rows = _read_labelled(con, spec, _count_labelled(con, spec), registry.load_model(version).classes)
    except _UnavailableError:
        return {}
    means = {}
    for day in np.unique(rows.dates):
        part = rows.select(rows.dates == day)
        if len(part.y) >= min_rows:
            losses = metrics_module.losses(spec.task, spec.metric, part.y, part.predicted, part.group)
            means[str(day)] = metrics_module.mean_loss(losses)
    return {day: loss for day, loss in means.items() if np.isfinite(loss)}


def _create_views(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    start: str,
    as_of: str,
    labels_until: str,
    model_version: str,
) -> bool:
    """Create the views ``__scored`` (all versions), ``__champion_rows`` (one version), ``__known_labels``.

    Returns:
        Whether there are predictions and labels.
    """
    predictions = delta_tables.table_uri("predictions", spec.name)
    if not duckdb_session.create_view(con, "__scored", predictions, None, start, as_of):
        return False
    if not create_label_view(con, "__known_labels", spec, None, start, labels_until):
        return False
    condition = f"CAST({spec.lake_column('model_version')} AS VARCHAR) = {text_literal(model_version)}"
    con.execute(f"CREATE TEMP VIEW __champion_rows AS SELECT * FROM __scored WHERE {condition}")
    return True


def _count_labelled(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> int:
    query = f"SELECT count(*) FROM ({join_labels(spec, '__champion_rows', '__known_labels')})"
    return int(con.execute(query).fetchall()[0][0])


def _count_unscored(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> int:
    """Number of labels without a prediction, on dates on which rows were scored."""
    query = (
        f"SELECT count(*) FROM __known_labels __l ANTI JOIN __scored ON {same_row(spec, '__l', '__scored')} "
        f"WHERE __l.{delta_tables.PARTITION} IN (SELECT DISTINCT {delta_tables.PARTITION} FROM __scored)"
    )
    return int(con.execute(query).fetchall()[0][0])


def _read_labelled(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, rows: int, classes: tuple[str, ...]
) -> LabelledPredictions:
    """Read the champion's rows that have a label, or a sample of them.

    Args:
        con: connection with the views of `_create_views`.
        spec: the model.
        rows: number of labelled rows.
        classes: classes of a multiclass champion.

    Raises:
        _UnavailableError: they cannot be compared, for example because a label is impossible.
    """
    table = con.sql(_labelled_query(con, spec, rows)).to_arrow_table()
    labels = table.column(LABEL)
    impossible = int(impossible_labels(spec.task, labels).sum())
    if impossible:
        raise _UnavailableError(
            f"{impossible:,} of {len(labels):,} labels are not {POSSIBLE_LABELS[spec.task]}, as task {spec.task} "
            "needs: run the data step with force for the dates with which they arrived; it puts such labels into "
            "quarantine"
        )
    y = encode_targets(spec, labels, classes).astype(np.float64)
    days = np.asarray(table.column("__day").to_pandas(), object)
    if spec.task == "multiclass":
        return LabelledPredictions(y, _probabilities(table, len(classes)), None, days)
    predicted = np.asarray(table.column("__prediction").cast("double").to_numpy(), dtype=np.float64)
    lists = None
    if spec.group is not None:
        # A list is all rows of a partition with the same value of the group column; its rows are adjacent.
        values = np.asarray(table.column("__list").to_pandas().factorize()[0])
        lists = np.cumsum(np.r_[True, (values[1:] != values[:-1]) | (days[1:] != days[:-1])][: len(y)])
    return LabelledPredictions(y, predicted, lists, days)


def _labelled_query(con: duckdb.DuckDBPyConnection, spec: ModelSpec, rows: int) -> str:
    """SQL of ``__prediction``, ``__label``, ``__day``, and ``__probabilities`` (multiclass) or ``__list``."""
    step = max(1, -(-rows // MAX_ROWS))
    join, order, columns, condition = "", "", "", ""
    rows_read, labels = "__champion_rows", "__known_labels"
    if step > 1 and spec.group is None:  # both before they are joined
        keys = ", ".join(map(quote_identifier, (*spec.data.key, delta_tables.PARTITION)))
        rows_read, labels = (
            f"(SELECT * FROM {name} WHERE hash({keys}) % {step} = 0)" for name in (rows_read, labels)
        )
    elif step > 1:  # lists are evaluated as a whole, so they are sampled as a whole
        condition = f"WHERE hash(__g.{quote_identifier(spec.group or '')}) % {step} = 0"
    if spec.group is not None:
        if not create_row_view(con, "__groups", spec):
            raise _UnavailableError("the published rows of this window no longer exist")
        join = f"JOIN __groups __g ON {same_row(spec, '__m', '__g')}"
        columns = f", __g.{quote_identifier(spec.group)} AS __list"
        order = f"ORDER BY __m.{delta_tables.PARTITION}, __list"
    if spec.task == "multiclass":
        names = [str(r[0]) for r in con.execute("DESCRIBE __champion_rows").fetchall()]
        if spec.lake_column("probabilities") not in names:
            raise _UnavailableError("the predictions have no probability for each class")
        columns += f", __m.{spec.lake_column('probabilities')} AS __probabilities"
    return (
        f"SELECT __m.{spec.lake_column('prediction')} AS __prediction, __m.{LABEL} AS {LABEL}, "
        f"__m.{delta_tables.PARTITION} AS __day{columns} "
        f"FROM ({join_labels(spec, rows_read, labels)}) __m {join} {condition} {order}"
    )


def _probabilities(table: pa.Table, classes: int) -> np.ndarray:
    """The predicted probabilities, shape (rows, classes)."""
    lists: Any = table.column("__probabilities").combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if len(flat) != len(table) * classes:
        raise _UnavailableError("the predictions' probabilities do not fit the champion's classes")
    return np.asarray(flat.reshape(len(table), classes))
