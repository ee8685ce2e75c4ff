"""The champion's metrics on the rows whose labels have arrived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from perennial.core import dates
from perennial.core.sql import quote_identifier, text_literal
from perennial.features.labelled_rows import LABEL, create_label_view, join_labels, same_row
from perennial.modeling import metrics as metrics_module
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    from perennial.monitoring.results import PerformanceMetrics

#: Most rows that metrics are computed from, chosen by the hash of the key.
MAX_ROWS = 500_000


class LabelledPredictions(NamedTuple):
    """Predictions with their labels, as arguments of `modeling.metrics.metrics`.

    Attributes:
        y: labels, shape (rows,).
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
    return dates.add_days(as_of, -spec.label.arrives_after_days)


def measure(
    spec: ModelSpec,
    *,
    start: str,
    as_of: str,
    model_version: str,
    metrics_at_training: Mapping[str, float],
    classes: tuple[str, ...],
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
    """
    con = duckdb_session.connect()
    result: PerformanceMetrics = {
        "metric": spec.metric,
        "metrics": {},
        "metrics_at_training": dict(metrics_at_training),
        "relative_change": None,
        "scored_rows": 0,
        "labelled_rows": 0,
        "labelled_share": 0.0,
        "unscored_labels": 0,
        "reason": "nothing was scored in this window, or no label arrived",
    }
    if not _create_views(con, spec, start, as_of, last_labelled_date(spec, as_of), model_version):
        return result
    scored = con.execute("SELECT count(*) FROM champion_rows").fetchall()[0][0]
    labelled = _count_labelled(con, spec)
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
    metrics = metrics_module.metrics(spec.task, rows.y, rows.predicted, rows.group)
    _add_metrics(result, metrics)
    return result


def _add_metrics(result: PerformanceMetrics, metrics: Mapping[str, float]) -> None:
    """Add the metrics of the window, and the change of the gate's metric, to a result."""
    result["metrics"] = {name: round(value, 6) for name, value in metrics.items()}
    metric = result["metric"]
    current, before = result["metrics"].get(metric), result["metrics_at_training"].get(metric)
    if current is None or before is None:
        result["reason"] = f"the champion's {metric} at training is not recorded"
        return
    change = (current - before) / max(abs(before), 1e-12)
    result["relative_change"] = round(change, 6)
    result["reason"] = (
        f"{metric} {current:.4g} against {before:.4g} on the held-out rows at training: {change:+.1%}"
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
            means[str(day)] = float(losses.mean())
    return means


def _create_views(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    start: str,
    as_of: str,
    labels_until: str,
    model_version: str,
) -> bool:
    """Create the views ``scored`` (all versions), ``champion_rows`` (one version), ``known_labels``.

    Returns:
        Whether there are predictions and labels.
    """
    predictions = delta_tables.table_uri("predictions", spec.name)
    if not duckdb_session.create_view(con, "scored", predictions, None, start, as_of):
        return False
    if not create_label_view(con, "known_labels", spec, None, start, labels_until):
        return False
    condition = f"CAST(model_version AS VARCHAR) = {text_literal(model_version)}"
    con.execute(f"CREATE TEMP VIEW champion_rows AS SELECT * FROM scored WHERE {condition}")
    return True


def _count_labelled(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> int:
    query = f"SELECT count(*) FROM ({join_labels(spec, 'champion_rows', 'known_labels')})"
    return int(con.execute(query).fetchall()[0][0])


def _count_unscored(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> int:
    """Number of labels without a prediction, on dates on which rows were scored."""
    query = (
        f"SELECT count(*) FROM known_labels l ANTI JOIN scored ON {same_row(spec, 'l', 'scored')} "
        f"WHERE l.{delta_tables.PARTITION} IN (SELECT DISTINCT {delta_tables.PARTITION} FROM scored)"
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
        _UnavailableError: they cannot be compared.
    """
    table = con.sql(_labelled_query(con, spec, rows)).to_arrow_table()
    days = np.asarray(table.column("day").to_pandas(), object)
    if spec.task == "multiclass":
        return _multiclass_rows(table, classes, days)
    y = np.asarray(table.column("label").cast("double").to_numpy(), dtype=np.float64)
    predicted = np.asarray(table.column("prediction").cast("double").to_numpy(), dtype=np.float64)
    finite = np.isfinite(y) & np.isfinite(predicted)
    if not finite.any():
        raise _UnavailableError("no label is finite")
    group = None
    if spec.group is not None:
        group = np.asarray(table.column("grp").to_pandas().factorize()[0])[finite]
    return LabelledPredictions(y[finite], predicted[finite], group, days[finite])


def _labelled_query(con: duckdb.DuckDBPyConnection, spec: ModelSpec, rows: int) -> str:
    """SQL of ``prediction``, ``label``, ``day``, and ``scores`` (multiclass) or ``grp`` (ranking)."""
    step = max(1, -(-rows // MAX_ROWS))
    keys = ", ".join(f"m.{quote_identifier(k)}" for k in (*spec.data.key, delta_tables.PARTITION))
    # Lists are evaluated as a whole, so they are sampled as a whole.
    hashed = keys if spec.group is None else f"g.{quote_identifier(spec.group)}"
    condition = f"WHERE hash({hashed}) % {step} = 0" if step > 1 else ""
    join, order, columns = "", "", ""
    if spec.group is not None:
        if not duckdb_session.create_view(con, "groups", delta_tables.table_uri("published", spec.name)):
            raise _UnavailableError("the published rows of this window no longer exist")
        join = f"JOIN groups g ON {same_row(spec, 'm', 'g')}"
        columns = f", g.{quote_identifier(spec.group)} AS grp"
        order = f"ORDER BY m.{delta_tables.PARTITION}, grp"
    if spec.task == "multiclass":
        names = [str(r[0]) for r in con.execute("DESCRIBE champion_rows").fetchall()]
        if "probabilities" not in names:
            raise _UnavailableError("the predictions have no probability for each class")
        columns += ", m.probabilities AS scores"
    return (
        f"SELECT m.prediction AS prediction, m.{LABEL} AS label, m.{delta_tables.PARTITION} AS day{columns} "
        f"FROM ({join_labels(spec, 'champion_rows', 'known_labels')}) m {join} {condition} {order}"
    )


def _multiclass_rows(table: pa.Table, classes: tuple[str, ...], days: np.ndarray) -> LabelledPredictions:
    """Convert rows of a multiclass model, without those whose class is unseen in training."""
    index = {c: i for i, c in enumerate(classes)}
    label = np.array([index.get(str(v), -1) for v in table.column("label").to_pylist()])
    lists: Any = table.column("scores").combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if len(flat) != len(label) * len(classes):
        raise _UnavailableError("the predictions' probabilities do not fit the champion's classes")
    seen_in_training = label >= 0
    return LabelledPredictions(
        label[seen_in_training],
        flat.reshape(len(label), len(classes))[seen_in_training],
        None,
        days[seen_in_training],
    )
