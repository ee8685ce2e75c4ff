"""What the nights say of a model: a sample of their rows as it sees them, with the labels known by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perennial.core import dates as dates_module
from perennial.core.errors import DataError
from perennial.core.sql import quote_identifier, text_literal
from perennial.features.labelled_rows import LABEL, create_label_view, join_labels, row_order
from perennial.modeling import metrics
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    import numpy as np

    from perennial.features.engine import FeatureQuery
    from perennial.modeling.trained_model import TrainedModel
    from perennial.spec.model_spec import ModelSpec

#: Rows of a night that are looked at, chosen by the hash of their key: with so many, what differs between two nights
#: are the nights and not the samples.
ROWS_PER_NIGHT = 1500
#: A night with fewer rows than this says nothing.
MIN_ROWS = 30


@dataclass(frozen=True)
class NightlySample:
    """Rows of some nights, in the order of the nights.

    Attributes:
        dates: every night of the window, also those without rows.
        night: index into ``dates``, shape (rows,).
        x: encoded features, float32, shape (rows, columns).
        margin: the model's raw scores, shape (rows,) or (rows, classes). predicted: what it says.
        y: labels as `dataset.targets` gives them, NaN where there is none yet.
        lists: ranking: the list each row belongs to; None otherwise.
        texts: columns of the rows by which they can be grouped, as text.
        unseen: by categorical feature, whether its category is one that training did not see.
    """

    dates: tuple[str, ...]
    night: np.ndarray
    x: np.ndarray
    margin: np.ndarray
    predicted: np.ndarray
    y: np.ndarray
    lists: np.ndarray | None = None
    texts: Mapping[str, np.ndarray] = field(default_factory=dict)
    unseen: Mapping[str, np.ndarray] = field(default_factory=dict)

    def where(self, rows: np.ndarray) -> NightlySample:
        """The rows that a mask, or an array of indices, picks."""
        return NightlySample(
            self.dates,
            self.night[rows],
            self.x[rows],
            self.margin[rows],
            self.predicted[rows],
            self.y[rows],
            None if self.lists is None else self.lists[rows],
            {c: v[rows] for c, v in self.texts.items()},
            {c: v[rows] for c, v in self.unseen.items()},
        )

    @property
    def labelled(self) -> NightlySample:
        """The rows whose labels are known."""
        import numpy as np

        return self.where(np.isfinite(self.y))

    def mean(self, values: np.ndarray, least: int = MIN_ROWS) -> np.ndarray:
        """Mean of a number a row by night, shape (nights,); NaN for nights with fewer than ``least`` rows."""
        import numpy as np

        rows = np.bincount(self.night, minlength=len(self.dates))
        sums = np.bincount(self.night, values, len(self.dates))
        return np.where(rows >= least, sums / np.maximum(rows, 1), np.nan)

    def losses(self, task: str, metric: str) -> np.ndarray:
        """The loss of each row, all of which must be labelled, shape (rows,); for ranking, that of the row's list."""
        import numpy as np

        if self.lists is None:
            return metrics.losses(task, metric, self.y, self.predicted)
        found = np.empty(len(self.y))
        for rows in np.split(np.arange(len(self.y)), np.flatnonzero(np.diff(self.lists)) + 1):
            if len(rows):
                found[rows] = metrics.losses(
                    task, metric, self.y[rows], self.predicted[rows], self.lists[rows]
                )
        return found


def sample_nights(
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
) -> NightlySample:
    """A sample of the published rows from ``start`` to ``end``, at most `ROWS_A_NIGHT` a night, the same each time.

    Args:
        features: those of ``model``.
        labels_until: last date whose labels may be known.
        columns: columns of the rows to keep as text.
        version, labels_version: of the published rows and of the labels; the latest when not given.

    Raises:
        DataError: the features' SQL failed.
    """
    import numpy as np
    import pyarrow as pa

    from perennial.features.targets import ListNumbering, encode_targets

    dates = tuple(dates_module.dates(start, end)) if start <= end else ()
    table = _sample(spec, start, end, labels_until, version, labels_version) if dates else None
    width, shape = len(model.encoding.columns), (len(model.classes),) if model.classes else ()
    if table is None or not table.num_rows:
        none = np.zeros((0, *shape), np.float32)
        lists = np.zeros(0, np.int64) if spec.group else None
        empty = {c: np.zeros(0, object) for c in columns}
        return NightlySample(
            dates,
            np.zeros(0, np.int64),
            np.zeros((0, width), np.float32),
            none,
            none,
            np.zeros(0),
            lists,
            empty,
        )
    rows = features.compute(table)
    x = model.encoding.encode(rows)
    index = {d: i for i, d in enumerate(dates)}
    label = table.column("__label")
    y = np.full(table.num_rows, np.nan)
    known = np.asarray(label.is_valid())
    if known.any():
        try:
            y[known] = encode_targets(spec, label.filter(pa.array(known)), model.classes)
        except DataError as error:
            raise DataError(
                error.cause, error.remedy, model=spec.name, partition=f"{start}..{end}"
            ) from error
    return NightlySample(
        dates,
        np.array([index[d] for d in table.column(delta_tables.PARTITION).to_pylist()], np.int64),
        x,
        predict_margin(model, x),
        model.predict_matrix(x),
        y,
        ListNumbering(spec).number(table) if spec.group else None,
        {c: _texts(table.column(c)) for c in columns},
        {
            c: np.asarray(rows.column(c).is_valid()) & np.isnan(x[:, j])
            for j, c in enumerate(model.encoding.columns)
            if c in model.encoding.categories
        },
    )


def predict_margin(model: TrainedModel, x: np.ndarray) -> np.ndarray:
    """The booster's raw scores, shape (rows,) or (rows, classes)."""
    import numpy as np

    found = np.asarray(model.booster.inplace_predict(x, predict_type="margin", validate_features=False))
    return found.reshape(len(x), len(model.classes)) if model.classes else found


def _texts(column: Any) -> np.ndarray:
    import numpy as np
    import pyarrow as pa

    return np.array([v if v is not None else "(none)" for v in column.cast(pa.string()).to_pylist()], object)


def _sample(
    spec: ModelSpec,
    start: str,
    end: str,
    labels_until: str,
    version: int | None,
    labels_version: int | None,
) -> Any:
    """Published rows with ``__label``, null where it is not known, by night, list and key; None: there are none."""
    con = duckdb_session.connect()
    uri = delta_tables.table_uri("published", spec.name)
    sizes = {d: n for d, n in delta_tables.rows_by_partition(uri, version).items() if start <= d <= end}
    if not sizes or not duckdb_session.create_view(con, "r", uri, version, start, end):
        return None
    # A list is judged as a whole, so it is chosen as a whole. A night is thinned by its own size: a thousandfold one
    # must not drive out the others.
    chosen = [spec.group] if spec.group else spec.data.key
    every = " ".join(f"WHEN {text_literal(d)} THEN {-(-n // ROWS_PER_NIGHT)}" for d, n in sizes.items() if n)
    kept = (
        f"SELECT * FROM r WHERE hash({', '.join(quote_identifier(c) for c in chosen)}) "
        f"% (CASE {delta_tables.PARTITION} {every} ELSE 1 END) = 0"
    )
    if spec.label.source is None:
        known = f"{delta_tables.PARTITION} <= {text_literal(labels_until)}"
        labelled = join_labels(spec, f"({kept})", None, keep_unlabelled=True)
        query = f"SELECT * REPLACE (CASE WHEN {known} THEN {LABEL} END AS {LABEL}) FROM ({labelled})"
    elif labels_until >= start and create_label_view(
        con, "labels", spec, labels_version, start, min(end, labels_until)
    ):
        query = join_labels(spec, f"({kept})", "labels", keep_unlabelled=True)
    else:
        query = f"SELECT *, NULL::DOUBLE AS {LABEL} FROM ({kept})"
    return con.sql(f"{query} ORDER BY {row_order(spec)}").to_arrow_table()
