"""The part of a rise of the expected loss that the drift of one column accounts for.

The expected loss (`_loss_estimation.LossEstimator`) of the held-out rows is averaged within each bin b of a column. If
the bins were filled as they are in the window, and nothing else had changed, the mean expected loss would rise by

    sum_b (share of b in the window - share of b in the reference) * mean expected loss of b,

which is the composition effect of a decomposition of the difference between two means (Kitagawa, Components of a
difference between two rates, 1955). Correlated columns account for the same rise, so that the effects do not add up to
the total rise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from perennial.modeling.encoding import Encoding
    from perennial.monitoring.histograms import ReferenceColumn


def expected_loss_by_bin(
    reference: Mapping[str, ReferenceColumn], encoding: Encoding, x: np.ndarray, expected: np.ndarray
) -> dict[str, list[float]]:
    """Mean expected loss of each bin of each column.

    Args:
        reference: the bins of the columns; columns with hashed categories are skipped.
        encoding: encoding of the model's features.
        x: encoded features, shape (rows, columns).
        expected: expected loss of each row, shape (rows,).

    Returns:
        By column, one mean for each bin, in the order of `ReferenceColumn.counts`; the overall mean for an empty bin.
    """
    overall = float(expected.mean()) if len(expected) else 0.0
    means = {}
    for j, name in enumerate(encoding.columns):
        column = reference.get(name)
        if column is None or column.hashed:
            continue
        bins = _bin_indices(column, encoding.categories.get(name), x[:, j])
        size = len(column.edges or column.categories) + 2
        rows = np.bincount(bins, minlength=size)
        sums = np.bincount(bins, expected, size)
        by_bin = np.where(rows > 0, sums / np.maximum(rows, 1), overall)
        means[name] = [round(float(mean), 6) for mean in by_bin]
    return means


def _bin_indices(column: ReferenceColumn, categories: list[str] | None, values: np.ndarray) -> np.ndarray:
    """The bin index of each encoded value, in the order of `ReferenceColumn.counts`.

    Args:
        column: the bins.
        categories: categories of the encoding, by code; None for a numeric column.
        values: one encoded column, shape (rows,); NaN if a row has no value.

    Returns:
        Shape (rows,).
    """
    missing = np.isnan(values)
    if categories is None:
        bins = np.searchsorted(np.asarray(column.edges), values, side="left")
        return np.where(missing, len(column.edges) + 1, bins)
    index = {category: i for i, category in enumerate(column.categories)}
    other = len(column.categories)
    bin_of_code = np.array([index.get(c, other) for c in categories] + [other + 1])
    codes = np.where(missing, len(categories), np.nan_to_num(values)).astype(np.int64)
    return np.asarray(bin_of_code[codes])


def loss_attributable_to_drift(
    reference_counts: Sequence[int], window_counts: Sequence[int], expected_losses: Sequence[float]
) -> float | None:
    """The rise of the mean expected loss that the drift of one column accounts for.

    Args:
        reference_counts: rows of each bin in the reference.
        window_counts: rows of each bin in the window.
        expected_losses: mean expected loss of each bin.

    Returns:
        The rise in the unit of the loss; None if there are no rows, or the bins do not match.
    """
    reference_rows, window_rows = sum(reference_counts), sum(window_counts)
    if not reference_rows or not window_rows or len(expected_losses) != len(reference_counts):
        return None
    bins = zip(reference_counts, window_counts, expected_losses, strict=True)
    return sum((w / window_rows - r / reference_rows) * loss for r, w, loss in bins)
