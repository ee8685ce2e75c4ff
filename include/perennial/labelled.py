"""Which rows a model is trained on: partitions of a pinned version, joined with their labels, as targets and lists.

Rows are read a few partitions at a time, joined with their labels and sorted by key, so that neither memory nor the
result depends on how the lake happens to have laid them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial import files, lake
from perennial.allowed import MIN_DAYS
from perennial.errors import DataError
from perennial.features import BATCH
from perennial.literals import identifier
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

GROUP_ROWS = 400_000


@dataclass(frozen=True)
class Windows:
    """Partition dates of a training run: to ``fit``, to stop and search by (``valid``), to judge on (``holdout``)."""

    fit: tuple[str, ...]
    valid: tuple[str, ...]
    holdout: tuple[str, ...]


def windows(
    spec: ModelSpec, as_of: str, available: list[str], *, kind: str = "sliding", since: str = ""
) -> Windows:
    """Split the partitions whose labels are known by ``as_of``: later ones judge, earlier ones train.

    Args:
        kind: ``sliding`` (the latest ``training.window_days``), ``expanding`` (all), or ``since_change``.
        since: the date on which the world is known to have changed. A third of the dates from then on judge, as many as
            ``training.holdout_days`` at most: on older ones the model of the old world would win.

    Raises:
        DataError: too few partitions.
    """
    last = files.shift(as_of, -spec.label.arrives_after_days)
    days = [d for d in available if d <= last]
    fresh = [d for d in days if since and d >= since]
    holdout_from = files.shift(last, 1 - spec.training.holdout_days)
    if fresh:
        least = MIN_DAYS if spec.gate.resample == "days" else 1
        held = days[-max(least, len(fresh) // 3) :]
        holdout_from = max(holdout_from, held[0])
    holdout = [d for d in days if d >= holdout_from]
    before = [d for d in days if d < holdout_from]
    if kind == "since_change":
        before = [d for d in before if d >= since]
    elif kind == "sliding" and spec.training.window_days:
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


def choices(spec: ModelSpec, as_of: str, available: list[str], since: str) -> dict[str, Windows]:
    """The splits that a training chooses among, by the name of their window; all judge on the same partitions.

    Raises:
        DataError: too few partitions.
    """
    found: dict[str, Windows] = {}
    for kind in spec.retraining.windows:
        if kind == "since_change" and not since:
            continue
        try:
            split = windows(spec, as_of, available, kind=kind, since=since)
        except DataError:
            if kind != "since_change":  # which may well be too young
                raise
        else:
            if split not in found.values():
                found[kind] = split
    return found or {"sliding": windows(spec, as_of, available, since=since)}


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
    for start, end, _ in groups(uri, days, version, GROUP_ROWS):
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


def groups(uri: str, days: tuple[str, ...], version: int | None, most: int) -> Iterator[tuple[str, str, int]]:
    """Runs of partitions that hold about ``most`` rows together, as first date, last date and rows."""
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
        if i + 1 == len(days) or size + rows.get(days[i + 1], 0) > most:
            yield start, day, size
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


def classes_of(
    spec: ModelSpec, days: tuple[str, ...], version: int | None, labels_version: int | None
) -> set[str]:
    """The classes that the labels of a multiclass task have on these days; none for any other task."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: set[str] = set()
    if spec.task == "multiclass":
        for table in labelled(spec, days, version, labels_version):
            found |= set(pc.unique(table.column("__label").cast(pa.string())).to_pylist())
    return found


def in_order(spec: ModelSpec, classes: set[str]) -> tuple[str, ...]:
    """The classes in the order of their codes.

    Raises:
        DataError: there are too many.
    """
    if len(classes) > 1000:
        raise DataError(
            f"the label has {len(classes)} classes", "at most 1,000 are supported", model=spec.name
        )
    return tuple(sorted(classes))
