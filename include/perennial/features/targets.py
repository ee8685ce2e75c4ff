"""Labels as XGBoost needs them: class indices, values, and lists of a ranking task."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import DataError
from perennial.features.labelled_rows import read_distinct_labels
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables

#: Most classes of a multiclass label.
MAX_CLASSES = 1000
#: Code of a class that is not among a model's classes.
UNSEEN_CLASS = -1
#: What a label of each task is.
POSSIBLE_LABELS = {
    "binary": "0 or 1",
    "multiclass": "a class that is not empty",
    "regression": "a finite number of at most single precision",
    "ranking": "a grade, a whole number from 0 to 31",
}
#: The largest number of single precision, in which XGBoost keeps labels.
LARGEST_LABEL = float(np.finfo(np.float32).max)
#: The highest grade of a ranking task, XGBoost's limit for exponential gain.
MAX_GRADE = 31


def encode_targets(spec: ModelSpec, labels: pa.ChunkedArray[Any], classes: tuple[str, ...]) -> np.ndarray:
    """Encode labels for XGBoost.

    Args:
        spec: the model.
        labels: the labels, without nulls.
        classes: the classes of a multiclass task in the order of their codes; empty otherwise.

    Returns:
        float32, shape (rows,): 0 or 1, class index (`UNSEEN_CLASS` if it is not in ``classes``), value, or grade.

    Raises:
        DataError: a label that the task cannot have.
    """
    impossible = int(impossible_labels(spec.task, labels).sum())
    if impossible:
        raise DataError(
            f"{impossible:,} of {len(labels):,} labels are not {POSSIBLE_LABELS[spec.task]}, as task {spec.task} needs",
            "correct label.expression, or run the data step again for these partitions with force: it puts such labels "
            "into quarantine",
            model=spec.name,
        )
    if spec.task == "multiclass":
        index = pc.index_in(labels.cast(pa.string()), value_set=pa.array(classes, pa.string()))
        return np.asarray(index.fill_null(UNSEEN_CLASS).cast(pa.float32()).to_numpy(zero_copy_only=False))
    return _as_numbers(labels).astype(np.float32)


def impossible_labels(task: str, labels: pa.ChunkedArray[Any]) -> np.ndarray:
    """Whether each label is one that the task cannot have, shape (rows,).

    Args:
        task: task of the model.
        labels: the labels, without nulls.
    """
    is_text = pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)
    if task == "multiclass" and is_text:
        empty = pc.equal(pc.ascii_trim_whitespace(labels), pa.scalar(""))
        return np.asarray(empty.to_numpy(zero_copy_only=False))
    try:
        y = _as_numbers(labels)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.ones(len(labels), bool)
    possible: dict[str, np.ndarray] = {
        "binary": (y == 0) | (y == 1),
        "multiclass": np.isfinite(y),
        "regression": np.abs(y) <= LARGEST_LABEL,
        "ranking": (y >= 0) & (y <= MAX_GRADE) & (y == np.floor(y)),
    }
    return ~possible[task]


def _as_numbers(labels: pa.ChunkedArray[Any]) -> np.ndarray:
    """Labels in double precision, shape (rows,)."""
    number = pa.int8() if pa.types.is_boolean(labels.type) else pa.float64()
    # Not safe: whole numbers beyond 2^53 lose their last digits, as in XGBoost.
    return np.asarray(labels.cast(number, safe=False).to_numpy(), np.float64)


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
        for labels in read_distinct_labels(spec, days, version, labels_version):
            distinct = pc.unique(labels.cast(pa.string())).to_pylist()
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
