"""How much of the expected rise of the loss each drifted column explains.

On the quiet nights of training the loss that the model expects is averaged within each bin of a column. Were the bins
filled as they are in the window, with nothing else changed, the mean expected loss would be another by

    sum over bins of (share in the window - share in training) * mean expected loss of the bin,

the part of a change in a mean that its composition explains (Kitagawa, Components of a difference between two rates,
1955). Columns that move together explain the same rise twice; the parts are not a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from perennial.modeling.encoding import Encoding
    from perennial.monitoring.histograms import ReferenceColumn


def expected_loss_by_bin(
    reference: Mapping[str, ReferenceColumn], encoding: Encoding, x: np.ndarray, expected: np.ndarray
) -> dict[str, list[float]]:
    """Mean expected loss of each bin of each column; the mean of all rows for a bin without rows.

    Args:
        reference: the columns' bins. x: encoded rows, shape (rows, columns). expected: shape (rows,).
    """
    import numpy as np

    whole = float(expected.mean()) if len(expected) else 0.0
    found = {}
    for j, name in enumerate(encoding.columns):
        shape = reference.get(name)
        if shape is None or shape.hashed:
            continue
        bins = _bins(shape, encoding.categories.get(name), x[:, j])
        size = len(shape.edges or shape.categories) + 2
        rows = np.bincount(bins, minlength=size)
        sums = np.bincount(bins, expected, size)
        found[name] = [round(float(v), 6) for v in np.where(rows > 0, sums / np.maximum(rows, 1), whole)]
    return found


def _bins(shape: ReferenceColumn, categories: list[str] | None, values: np.ndarray) -> np.ndarray:
    """The bin of each encoded value, as `histograms.ReferenceColumn.counts` numbers them: the last is for no value."""
    import numpy as np

    empty = np.isnan(values)
    if categories is None:
        found = np.searchsorted(np.asarray(shape.edges), values, side="left")
        return np.where(empty, len(shape.edges) + 1, found)
    place = {c: i for i, c in enumerate(shape.categories)}
    other = len(shape.categories)
    table = np.array([place.get(c, other) for c in categories] + [other + 1])
    return np.asarray(table[np.where(empty, len(categories), np.nan_to_num(values)).astype(np.int64)])


def loss_attributable_to_drift(
    then: Sequence[int], now: Sequence[int], losses: Sequence[float]
) -> float | None:
    """The rise of the mean expected loss that one column explains; None where there are no rows.

    Args:
        then, now: rows a bin, in training and in the window. losses: mean expected loss a bin.
    """
    if not sum(then) or not sum(now) or len(losses) != len(then):
        return None
    return sum((n / sum(now) - t / sum(then)) * m for t, n, m in zip(then, now, losses, strict=True))
