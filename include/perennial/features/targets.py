"""Labels as XGBoost needs them: class indices, values, and lists of a ranking task."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import DataError
from perennial.features.labelled_rows import LABEL, read_labelled_rows
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables

#: Most classes of a multiclass label.
MAX_CLASSES = 1000
#: The highest grade of a ranking task, XGBoost's limit for exponential gain.
MAX_GRADE = 31


def encode_targets(spec: ModelSpec, labels: pa.ChunkedArray[Any], classes: tuple[str, ...]) -> np.ndarray:
    """Encode labels for XGBoost.

    Args:
        spec: the model.
        labels: the labels, without nulls.
        classes: the classes of a multiclass task in the order of their codes; empty otherwise.

    Returns:
        float32, shape (rows,): 0 or 1, class index (NaN for a class that is not in ``classes``), value, or grade.

    Raises:
        DataError: a label that the task cannot use.
    """
    if spec.task == "multiclass":
        index = pc.index_in(labels.cast(pa.string()), value_set=pa.array(classes, pa.string()))
        return np.asarray(index.cast(pa.float32()).to_numpy(zero_copy_only=False))
    number = pa.int8() if pa.types.is_boolean(labels.type) else pa.float64()
    try:
        y = np.asarray(labels.cast(number).to_numpy())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"label.expression returns {labels.type}, not a number",
            "correct label.expression",
            model=spec.name,
        ) from error
    y = y.astype(np.float32)
    if not np.isfinite(y).all():
        raise DataError(
            "a label is NaN or infinite", "make label.expression return null for it", model=spec.name
        )
    if spec.task == "binary" and not np.isin(y, (0, 1)).all():
        raise DataError(
            f"a binary label is {y[~np.isin(y, (0, 1))][0]:g}",
            "make label.expression return a condition, or 0 and 1",
            model=spec.name,
        )
    if spec.task == "ranking" and ((y < 0) | (y > MAX_GRADE) | (y != np.floor(y))).any():
        raise DataError(
            f"a grade is not a whole number from 0 to {MAX_GRADE}",
            "correct label.expression",
            model=spec.name,
        )
    return y


class ListNumbering:
    """Numbers the lists of a ranking task across consecutive tables.

    A list is all rows of a partition with the same value of the group column. Its rows are adjacent, and may continue
    in the next table.

    Args:
        spec: the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._columns = (delta_tables.PARTITION, spec.group or "")
        self._last: tuple[Any, ...] | None = None
        self._count = 0

    def number(self, table: pa.Table) -> np.ndarray:
        """The number of the list of each row, shape (rows,), ascending."""
        starts = np.zeros(table.num_rows, dtype=bool)
        for name in self._columns:
            encoded = table.column(name).combine_chunks().dictionary_encode(null_encoding="encode")
            codes = encoded.indices.to_numpy(zero_copy_only=False)
            starts[1:] |= codes[1:] != codes[:-1]
        starts[0] = tuple(table.column(c)[0].as_py() for c in self._columns) != self._last
        numbers = self._count + np.cumsum(starts)
        self._count = int(numbers[-1])
        self._last = tuple(table.column(c)[-1].as_py() for c in self._columns)
        return numbers


def read_classes(
    spec: ModelSpec, days: tuple[str, ...], version: int | None, labels_version: int | None
) -> set[str]:
    """Read the classes of a multiclass task's labels on some dates; empty for any other task.

    Args:
        spec: the model.
        days: partition dates in order.
        version: version of the published rows; the latest when None.
        labels_version: version of the labels; the latest when None.
    """
    classes: set[str] = set()
    if spec.task == "multiclass":
        for table in read_labelled_rows(spec, days, version, labels_version):
            distinct = pc.unique(table.column(LABEL).cast(pa.string())).to_pylist()
            classes |= set(cast("list[str]", distinct))
    return classes


def order_classes(spec: ModelSpec, classes: set[str]) -> tuple[str, ...]:
    """Put classes in the order of their codes.

    Raises:
        DataError: there are more than `MAX_CLASSES`.
    """
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"the label has {len(classes)} classes", f"at most {MAX_CLASSES:,} are supported", model=spec.name
        )
    return tuple(sorted(classes))
