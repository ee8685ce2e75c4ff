"""How well the champion did on the rows whose labels are known by now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from perennial.core import dates
from perennial.core.sql import quote_identifier, text_literal
from perennial.features.labelled_rows import LABEL, create_label_view, join_labels, same_row
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    import duckdb
    import numpy as np

    from perennial.modeling import registry

#: Rows that metrics are computed on at most, spread evenly by the hash of the key.
MAX_ROWS = 500_000
_Result = dict[str, Any]


class LabelledPredictions(NamedTuple):
    """Rows with their labels, as `metrics.metrics` takes them, and the night of each (ISO date)."""

    y: np.ndarray
    predicted: np.ndarray
    group: np.ndarray | None
    night: np.ndarray

    def of(self, rows: np.ndarray) -> LabelledPredictions:
        """The rows that a mask picks."""
        group = None if self.group is None else self.group[rows]
        return LabelledPredictions(self.y[rows], self.predicted[rows], group, self.night[rows])


def last_labelled_date(spec: ModelSpec, as_of: str) -> str:
    """The latest partition date whose labels are complete by ``as_of``."""
    return dates.add_days(as_of, -spec.label.arrives_after_days)


def measure(
    spec: ModelSpec,
    *,
    start: str,
    as_of: str,
    model_version: str,
    held_out: Mapping[str, float],
    classes: tuple[str, ...],
) -> _Result:
    """Metrics of the champion's predictions in the window, beside those on its held-out rows at training.

    Labels of keys that were never scored are counted and left out; so are predictions of other versions.

    Args:
        held_out: metrics by name.
        classes: of a multiclass champion, in the order of its probabilities.

    Returns:
        ``reason``, ``metrics`` (empty where they cannot be told), ``held_out``, ``change`` (relative, of the gate's
        loss), and counts: ``scored``, ``matured``, ``maturity``, ``labels_not_scored``.
    """
    last = last_labelled_date(spec, as_of)
    con = duckdb_session.connect()
    known = {"held_out": dict(held_out), "metrics": {}, "metric": spec.metric, "change": None}
    if not _views(con, spec, start, as_of, last, model_version):
        none = {"scored": 0, "matured": 0, "maturity": 0.0, "labels_not_scored": 0}
        return known | none | {"reason": "nothing was scored in this window, or no label arrived"}
    counts = _counts(con, spec)
    found = known | counts
    if counts["matured"] < spec.monitoring.min_rows:
        return found | {
            "reason": f"{counts['matured']} scored rows have a label, {spec.monitoring.min_rows} are needed",
        }
    from perennial.modeling import metrics as metrics_module

    rows = _rows(con, spec, counts["matured"], classes)
    if isinstance(rows, str):
        return found | {"reason": rows}
    metrics = {
        k: round(v, 6)
        for k, v in metrics_module.metrics(spec.task, rows.y, rows.predicted, rows.group).items()
    }
    found["metrics"] = metrics
    now, then = metrics.get(spec.metric), held_out.get(spec.metric)
    if now is None or then is None:
        return found | {"reason": f"the champion's {spec.metric} at training is not on record"}
    change = (now - then) / max(abs(then), 1e-12)
    return found | {
        "change": round(change, 6),
        "reason": f"{spec.metric} {now:.4g} against {then:.4g} on the held-out rows at training: {change:+.1%}",
    }


def nightly_losses(
    spec: ModelSpec, version: registry.ModelVersion, start: str, as_of: str, least: int
) -> dict[str, float]:
    """Mean loss of what a version served, by night; nights with fewer than ``least`` labelled rows are left out."""
    import numpy as np

    from perennial.modeling import metrics, registry

    con, last = duckdb_session.connect(), last_labelled_date(spec, as_of)
    if start > last or not _views(con, spec, start, last, last, version.version):
        return {}
    rows = _rows(con, spec, _count_labelled(con, spec), registry.load_model(version).classes)
    if isinstance(rows, str):
        return {}
    found = {}
    for night in np.unique(rows.night):
        some = rows.of(rows.night == night)
        if len(some.y) >= least:
            losses = metrics.losses(spec.task, spec.metric, some.y, some.predicted, some.group)
            found[str(night)] = float(losses.mean())
    return found


def _views(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, start: str, as_of: str, last: str, model_version: str
) -> bool:
    """Views ``scored`` (all versions), ``mine`` (the champion's) and ``known_labels`` (of matured dates)."""
    if not duckdb_session.create_view(
        con, "scored", delta_tables.table_uri("predictions", spec.name), None, start, as_of
    ):
        return False
    if not create_label_view(con, "known_labels", spec, None, start, last):
        return False
    mine = f"CAST(model_version AS VARCHAR) = {text_literal(model_version)}"
    con.execute(f"CREATE TEMP VIEW mine AS SELECT * FROM scored WHERE {mine}")
    return True


def _count_labelled(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> int:
    query = f"SELECT count(*) FROM ({join_labels(spec, 'mine', 'known_labels')})"
    return int(con.execute(query).fetchall()[0][0])


def _counts(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> _Result:
    scored, matched = con.execute("SELECT count(*) FROM mine").fetchall()[0][0], _count_labelled(con, spec)
    # Only dates on which something was scored: the rest was published before there was a champion.
    strangers = con.execute(
        f"SELECT count(*) FROM known_labels l ANTI JOIN scored ON {same_row(spec, 'l', 'scored')} "
        f"WHERE l.{delta_tables.PARTITION} IN (SELECT DISTINCT {delta_tables.PARTITION} FROM scored)"
    ).fetchall()[0][0]
    return {
        "scored": scored,
        "matured": matched,
        "maturity": round(matched / scored, 6) if scored else 0.0,
        "labels_not_scored": strangers,
    }


def _rows(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, rows: int, classes: tuple[str, ...]
) -> LabelledPredictions | str:
    """The rows of ``mine`` with their labels; or why there are none."""
    import numpy as np

    every = max(1, -(-rows // MAX_ROWS))
    keys = ", ".join(f"m.{quote_identifier(k)}" for k in (*spec.data.key, delta_tables.PARTITION))
    # A list is judged as a whole: what is left out is left out by list.
    chosen = keys if spec.group is None else f"g.{quote_identifier(spec.group)}"
    where = f"WHERE hash({chosen}) % {every} = 0" if every > 1 else ""
    join, order, extra = "", "", ""
    if spec.group is not None:
        if not _published(con, spec):
            return "the published rows of this window are gone"
        join = f"JOIN groups g ON {same_row(spec, 'm', 'g')}"
        extra, order = (
            f", g.{quote_identifier(spec.group)} AS grp",
            f"ORDER BY m.{delta_tables.PARTITION}, grp",
        )
    scores = ", m.probabilities AS scores" if spec.task == "multiclass" else ""
    names = [str(r[0]) for r in con.execute("DESCRIBE mine").fetchall()]
    if spec.task == "multiclass" and "probabilities" not in names:
        return "the predictions hold no probability for each class"
    table = con.sql(
        f"SELECT m.prediction AS prediction, m.{LABEL} AS label, m.{delta_tables.PARTITION} AS night"
        f"{scores}{extra} FROM ({join_labels(spec, 'mine', 'known_labels')}) m {join} {where} {order}"
    ).to_arrow_table()
    night = np.asarray(table.column("night").to_pandas(), object)
    if spec.task == "multiclass":
        index = {c: i for i, c in enumerate(classes)}
        label = np.array([index.get(str(v), -1) for v in table.column("label").to_pylist()])
        flat = table.column("scores").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(flat) != len(label) * len(classes):
            return "the predictions' probabilities do not fit the champion's classes"
        known = label >= 0  # a class that training never saw
        return LabelledPredictions(
            label[known], flat.reshape(len(label), len(classes))[known], None, night[known]
        )
    y = np.asarray(table.column("label").cast("double").to_numpy(), dtype=np.float64)
    predicted = np.asarray(table.column("prediction").cast("double").to_numpy(), dtype=np.float64)
    fine = np.isfinite(y) & np.isfinite(predicted)
    if not fine.any():
        return "no finite label"
    group = None
    if spec.group is not None:
        group = np.asarray(table.column("grp").to_pandas().factorize()[0])[fine]
    return LabelledPredictions(y[fine], predicted[fine], group, night[fine])


def _published(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> bool:
    return duckdb_session.create_view(con, "groups", delta_tables.table_uri("published", spec.name))
