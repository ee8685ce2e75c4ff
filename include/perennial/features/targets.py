"""Labels as XGBoost takes them: class numbers, values, lists of a ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perennial.core.errors import DataError
from perennial.features.labelled_rows import read_labelled_rows
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def encode_targets(spec: ModelSpec, labels: pa.ChunkedArray, classes: tuple[str, ...]) -> np.ndarray:
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


class ListNumbering:
    """Numbers the lists of a ranking task in tables that come one after another.

    A list is one value of the group column on one date; its rows are adjacent, and it may go on in the next table.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._columns = (delta_tables.PARTITION, spec.group or "")
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


def read_classes(
    spec: ModelSpec, days: tuple[str, ...], version: int | None, labels_version: int | None
) -> set[str]:
    """The classes that the labels of a multiclass task have on these days; none for any other task."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: set[str] = set()
    if spec.task == "multiclass":
        for table in read_labelled_rows(spec, days, version, labels_version):
            found |= set(pc.unique(table.column("__label").cast(pa.string())).to_pylist())
    return found


def order_classes(spec: ModelSpec, classes: set[str]) -> tuple[str, ...]:
    """The classes in the order of their codes.

    Raises:
        DataError: there are too many.
    """
    if len(classes) > 1000:
        raise DataError(
            f"the label has {len(classes)} classes", "at most 1,000 are supported", model=spec.name
        )
    return tuple(sorted(classes))
