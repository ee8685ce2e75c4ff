"""The rows a model is trained on, encoded once into a file on disk and read from there in batches.

Rows are read a few partitions at a time, joined with their labels and sorted by key, so that neither memory nor the
result depends on how the lake happens to have laid them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial import files, lake
from perennial.encode import Encoding, categories
from perennial.errors import DataError
from perennial.features import BATCH, Features
from perennial.literals import identifier
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import xgboost

GROUP_ROWS = 400_000


@dataclass(frozen=True)
class Windows:
    """Partition dates of a training run: to ``fit``, to stop and search by (``valid``), to judge on (``holdout``)."""

    fit: tuple[str, ...]
    valid: tuple[str, ...]
    holdout: tuple[str, ...]


def windows(spec: ModelSpec, as_of: str, available: list[str]) -> Windows:
    """Split the partitions whose labels are known by ``as_of``: later ones judge, earlier ones train.

    Raises:
        DataError: too few partitions.
    """
    last = files.shift(as_of, -spec.label.arrives_after_days)
    days = [d for d in available if d <= last]
    holdout_from = files.shift(last, 1 - spec.training.holdout_days)
    holdout = [d for d in days if d >= holdout_from]
    before = [d for d in days if d < holdout_from]
    if spec.training.window_days:
        before = [d for d in before if d >= files.shift(holdout_from, -spec.training.window_days)]
    cut = max(1, min(7, len(before) // 5)) if len(before) > 1 else 0
    if not holdout or not cut:
        raise DataError(
            f"{len(days)} labelled partitions up to {last}: {len(before)} to train on and {len(holdout)} "
            "to judge on are too few",
            "backfill earlier partitions (the data DAG, start and end), or lower training.holdout_days",
            model=spec.name,
            partition=as_of,
        )
    return Windows(tuple(before[:-cut]), tuple(before[-cut:]), tuple(holdout))


def labelled(
    spec: ModelSpec, days: tuple[str, ...], version: int | None, labels_version: int | None
) -> Iterator[pa.Table]:
    """Published rows that have a label, with a column ``__label``, by date and key, in tables of a bounded size.

    Args:
        days: dates in order, with no other labelled date between the first and the last.
    """
    uri = lake.table("published", spec.name)
    con = lake.connect(memory_share=0.3)
    own = spec.label.source is None
    for start, end in _groups(uri, days, version):
        if not lake.relation(con, "r", uri, version, start, end):
            continue
        if own:
            text = (
                f"SELECT *, {identifier(spec.label.expression)} AS __label FROM r WHERE __label IS NOT NULL"
            )
        else:
            if not lake.relation(con, "l", lake.table("labels", spec.name), labels_version, start, end):
                continue
            on = " AND ".join(
                f"r.{identifier(k)} = l.{identifier(k)}" for k in (*spec.data.key, lake.PARTITION)
            )
            text = f"SELECT r.*, l.label AS __label FROM r JOIN l ON {on} WHERE l.label IS NOT NULL"
        order = ", ".join(
            identifier(c) for c in (lake.PARTITION, *([spec.group] if spec.group else []), *spec.data.key)
        )
        import pyarrow as pa

        for batch in con.sql(f"{text} ORDER BY {order}").to_arrow_reader(BATCH):
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def _groups(uri: str, days: tuple[str, ...], version: int | None) -> Iterator[tuple[str, str]]:
    """Runs of partitions that hold about `GROUP_ROWS` rows together, as first and last date."""
    table = lake.open_table(uri, version)
    if table is None or not days:
        return
    rows: dict[str, int] = {}
    actions = table.get_add_actions(flatten=True)
    for day, count in zip(
        actions[f"partition.{lake.PARTITION}"].to_pylist(), actions["num_records"].to_pylist(), strict=True
    ):
        rows[day] = rows.get(day, 0) + int(count or 0)
    start, size = days[0], 0
    for i, day in enumerate(days):
        size += rows.get(day, 0)
        if i + 1 == len(days) or size + rows.get(days[i + 1], 0) > GROUP_ROWS:
            yield start, day
            size = 0
            start = days[i + 1] if i + 1 < len(days) else ""


def targets(spec: ModelSpec, labels: pa.ChunkedArray, classes: tuple[str, ...]) -> np.ndarray:
    """Labels as float32, shape (rows,): 0 or 1, class index, value, or grade.

    Raises:
        DataError: a label that the task has no use for.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if spec.task == "multiclass":
        index = pc.index_in(labels.cast(pa.string()), value_set=pa.array(classes, pa.string()))
        return np.asarray(index.cast(pa.float32()).to_numpy(zero_copy_only=False))
    try:
        y = np.asarray(
            labels.cast(pa.float64() if not pa.types.is_boolean(labels.type) else pa.int8()).to_numpy()
        )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"label.expression gives {labels.type}, not a number", "mend label.expression", model=spec.name
        ) from error
    y = y.astype(np.float32)
    if not np.isfinite(y).all():
        raise DataError(
            "a label is NaN or infinite", "have label.expression give null for it", model=spec.name
        )
    if spec.task == "binary" and not np.isin(y, (0, 1)).all():
        raise DataError(
            f"a binary label is {y[~np.isin(y, (0, 1))][0]:g}",
            "have label.expression give a condition",
            model=spec.name,
        )
    if spec.task == "ranking" and ((y < 0) | (y > 31) | (y != np.floor(y))).any():
        raise DataError(
            "a grade is not a whole number from 0 to 31", "mend label.expression", model=spec.name
        )
    return y


class Lists:
    """Numbers the lists of a ranking task in tables that come one after another.

    A list is one value of the group column on one date; its rows are adjacent, and it may go on in the next table.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._columns = (lake.PARTITION, spec.group or "")
        self._last: tuple[Any, ...] | None = None
        self._count = 0

    def number(self, table: pa.Table) -> np.ndarray:
        """The number of the list of each row, shape (rows,), rising."""
        import numpy as np

        fresh = np.zeros(table.num_rows, dtype=bool)
        for name in self._columns:
            encoded = table.column(name).combine_chunks().dictionary_encode(null_encoding="encode")
            codes = encoded.indices.to_numpy(zero_copy_only=False)
            fresh[1:] |= codes[1:] != codes[:-1]
        fresh[0] = tuple(table.column(c)[0].as_py() for c in self._columns) != self._last
        numbers = self._count + np.cumsum(fresh)
        self._count = int(numbers[-1])
        self._last = tuple(table.column(c)[-1].as_py() for c in self._columns)
        return numbers


@dataclass
class Spool:
    """Encoded rows on disk: float32, row by row, beside labels and groups in memory."""

    path: Path
    columns: int
    y: list[Any] = field(default_factory=list)
    groups: list[Any] = field(default_factory=list)
    rows: int = 0
    #: Provisional category codes, in order of appearance, become ranks when they are read.
    lookup: dict[int, Any] = field(default_factory=dict)

    def append(self, matrix: np.ndarray, y: np.ndarray, group: np.ndarray | None) -> None:
        """Add rows."""
        with self.path.open("ab") as file:
            matrix.tofile(file)
        self.y.append(y)
        if group is not None:
            self.groups.append(group)
        self.rows += len(y)

    def batches(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, slice]]:
        """Matrices of at most `BATCH` rows between two rows, each with the rows it holds."""
        import numpy as np

        for first in range(start, stop, BATCH):
            last = min(first + BATCH, stop)
            matrix = np.fromfile(
                self.path, np.float32, (last - first) * self.columns, offset=first * self.columns * 4
            )
            matrix = matrix.reshape(-1, self.columns)
            for j, ranks in self.lookup.items():
                matrix[:, j] = ranks[np.nan_to_num(matrix[:, j], nan=len(ranks) - 1).astype(np.int64)]
            yield matrix, slice(first, last)


@dataclass(frozen=True)
class Dataset:
    """What a training run fits on.

    Attributes:
        fit: rows of the spool that are fitted on; the rest, up to ``spool.rows``, are for early stopping.
    """

    spool: Spool
    fit: int
    encoding: Encoding
    classes: tuple[str, ...]
    y: np.ndarray
    group: np.ndarray | None

    def dmatrix(
        self,
        start: int,
        stop: int,
        *,
        max_bin: int,
        threads: int,
        external: bool,
        ref: xgboost.DMatrix | None = None,
    ) -> xgboost.DMatrix:
        """Rows ``start`` to ``stop`` as XGBoost's binned matrix, in memory or on disk; the same bins either way."""
        import xgboost

        iterator = _iterator(self, start, stop, external)
        kind = xgboost.ExtMemQuantileDMatrix if external else xgboost.QuantileDMatrix
        return kind(iterator, max_bin=max_bin, ref=ref, nthread=threads)


def _iterator(data: Dataset, start: int, stop: int, external: bool) -> xgboost.DataIter:
    import xgboost

    class Batches(xgboost.DataIter):  # type: ignore[misc]
        """Feeds the spool to XGBoost, which reads it several times."""

        def __init__(self) -> None:
            self._batches = data.spool.batches(start, stop)
            super().__init__(
                cache_prefix=f"{data.spool.path}.{start}" if external else None, release_data=True
            )

        def next(self, input_data: Callable[..., Any]) -> bool:
            for matrix, rows in self._batches:
                qid = None if data.group is None else data.group[rows]
                input_data(
                    data=matrix, label=data.y[rows], qid=qid, feature_names=list(data.encoding.columns)
                )
                return True
            return False

        def reset(self) -> None:
            self._batches = data.spool.batches(start, stop)

    return Batches()


def build(
    spec: ModelSpec,
    features: Features,
    split: Windows,
    folder: Path,
    version: int | None,
    labels_version: int | None,
) -> Dataset:
    """Read, join, compute features and encode the rows of ``split.fit`` and ``split.valid`` into ``folder``.

    Raises:
        DataError: no labelled rows, or one class only.
    """
    import numpy as np

    classes = _classes(spec, split, version, labels_version) if spec.task == "multiclass" else ()
    known: dict[str, list[str]] = {c: [] for c in features.categorical}
    spool = Spool(folder / "rows.f32", len(features.columns))
    fit, lists = 0, Lists(spec)
    for part, days in (("fit", split.fit), ("valid", split.valid)):
        for i, table in enumerate(labelled(spec, days, version, labels_version)):
            if part == "fit" and i == 0:
                features.check_rowwise(table.slice(0, 2000))
            found = features.apply(table)
            for name, listed in known.items():
                seen = set(listed)
                listed += [c for c in categories(found.column(name)) if c not in seen]
            matrix = Encoding(tuple(features.columns), known).matrix(found)
            group = lists.number(table) if spec.group else None
            spool.append(matrix, targets(spec, table.column("__label"), classes), group)
        if part == "fit":
            fit = spool.rows
    if not fit or fit == spool.rows:
        raise DataError(
            f"{spool.rows} labelled rows from {split.fit[0]} to {split.valid[-1]}: nothing to train on",
            "check that labels arrive and that their keys are those of the rows",
            model=spec.name,
        )
    y = np.concatenate(spool.y)
    if spec.task in ("binary", "multiclass") and len(np.unique(y[:fit])) < 2:
        raise DataError(
            f"all {fit} training rows have the same label", "check label.expression", model=spec.name
        )
    order = {name: sorted(categories) for name, categories in known.items()}
    for j, name in enumerate(features.columns):
        if name in order:
            rank = {c: r for r, c in enumerate(order[name])}
            spool.lookup[j] = np.array([rank[c] for c in known[name]] + [np.nan], dtype=np.float32)
    encoding = Encoding(tuple(features.columns), order, spec.features.unseen)
    return Dataset(spool, fit, encoding, classes, y, np.concatenate(spool.groups) if spool.groups else None)


def _classes(
    spec: ModelSpec, split: Windows, version: int | None, labels_version: int | None
) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found: set[str] = set()
    for table in labelled(spec, split.fit + split.valid, version, labels_version):
        found |= set(pc.unique(table.column("__label").cast(pa.string())).to_pylist())
    if len(found) > 1000:
        raise DataError(f"the label has {len(found)} classes", "at most 1,000 are supported", model=spec.name)
    return tuple(sorted(found))
