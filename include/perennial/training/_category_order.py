"""The order of a feature's categories: by name, or by the mean label of the rows to fit on.

A category's code is its position in this order. Trees split codes by a threshold, and for one split of rows whose loss
is the squared error, or of two classes, no partition of the categories is better than the best threshold in this order
(W. D. Fisher, On grouping for maximum homogeneity, 1958; Breiman et al., Classification and Regression Trees, 1984,
theorem 4.5).

An order by means that are mostly noise would show each row's label to the trees that are fitted on it. So means are
shrunk as random effects (Searle, Casella and McCulloch, Variance Components, 1992), and those that differ by less than
their errors are equal. Labels of rows for early stopping and of held-out rows are never used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

#: Width of the intervals in which means count as equal, in standard errors. With one, 2,000 categories with small
#: effects in 10,000 rows made the log loss 2% worse than an order by name; with two none became worse by more than 3%,
#: and large effects lost little (squared error 1.61; 1.49 without intervals, 2.02 by name).
ERRORS = 2
#: Bits of a float32's mantissa, and the binary exponent of the unit of sums, of which every float32 is a multiple.
_MANTISSA_BITS, _UNIT_EXPONENT = 24, -173
_HALF = _MANTISSA_BITS // 2


@dataclass
class LabelSums:
    """Number of rows and sum of the labels of each category of one feature, by provisional code.

    Sums are whole numbers of 2^-173, and exact: they do not depend on the order of rows or the number of workers.

    Attributes:
        rows: number of rows of each category.
        sums: sum of the labels of each category.
        squares: sum of the squared labels of all rows with a category, a whole number of 2^-346.
    """

    rows: list[int] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    squares: int = 0

    def add(self, codes: np.ndarray, y: np.ndarray) -> None:
        """Add the labels of some rows.

        Args:
            codes: provisional codes, shape (rows,); NaN for a row without a category.
            y: labels, float32 of shape (rows,).
        """
        known = ~np.isnan(codes)
        index, labels = codes[known].astype(np.int64), y[known].astype(np.float32)
        counts = np.bincount(index, minlength=len(self.rows))
        added = [0] * (len(counts) - len(self.rows))
        self.rows, self.sums = self.rows + added, self.sums + added
        for code in np.flatnonzero(counts).tolist():
            self.rows[code] += int(counts[code])
        fractions, exponents = np.frexp(labels)
        mantissas = np.ldexp(fractions.astype(np.float64), _MANTISSA_BITS)  # whole numbers
        for exponent in np.unique(exponents).tolist():
            chosen = exponents == exponent
            shift = exponent - _MANTISSA_BITS - _UNIT_EXPONENT
            # Exact in double precision up to 2^29 rows.
            sums = np.bincount(index[chosen], mantissas[chosen], len(counts))
            for code in np.flatnonzero(sums).tolist():
                self.sums[code] += int(sums[code]) << shift
            self.squares += _sum_of_squares(np.abs(mantissas[chosen]).astype(np.int64)) << 2 * shift


def order_categories(blocks: Iterable[tuple[list[str], LabelSums]]) -> list[str]:
    """Put the categories of a feature in the order of their codes.

    They are ordered by the interval that their shrunk mean label lies in, and by name within it. Without labels, and
    where means do not differ more than by chance, all are in one interval.

    Args:
        blocks: for each block of rows its categories, by provisional code, and their labels.
    """
    rows: dict[str, int] = defaultdict(int)
    sums: dict[str, int] = defaultdict(int)
    squares = 0
    for categories, labels in blocks:
        squares += labels.squares
        for code, category in enumerate(categories):
            rows[category] += labels.rows[code] if code < len(labels.rows) else 0
            sums[category] += labels.sums[code] if code < len(labels.sums) else 0
    names = sorted(rows)  # a fixed order, so that rounding is always the same
    intervals = _intervals([rows[c] for c in names], [sums[c] for c in names], squares)
    return [names[i] for i in sorted(range(len(names)), key=intervals.__getitem__)]


def _intervals(rows: list[int], sums: list[int], squares: int) -> list[float]:
    """A number for the interval of each category's shrunk mean, ascending with the mean.

    Variances within and between categories are estimated by the analysis of variance.

    Args:
        rows: number of rows of each category.
        sums: sum of the labels of each category, as `LabelSums.sums`.
        squares: as `LabelSums.squares`.
    """
    total, present = sum(rows), sum(count > 0 for count in rows)
    equal = [0.0] * len(rows)
    if present < 2 or total <= present:
        return equal
    # Differences are taken of whole numbers, so that a large mean costs no precision; division rounds once.
    total_sum = sum(sums)
    deviations = [
        math.ldexp((total * s - n * total_sum) / total, _UNIT_EXPONENT)
        for n, s in zip(rows, sums, strict=True)
    ]
    deviance = math.ldexp((total * squares - total_sum**2) / total, 2 * _UNIT_EXPONENT)
    between = sum(d * d / n for n, d in zip(rows, deviations, strict=True) if n)
    within = max(deviance - between, 0.0) / (total - present)
    effective_rows = (total - sum(n * n for n in rows) / total) / (present - 1)
    variance = (between / (present - 1) - within) / effective_rows
    if variance <= 0:
        return equal
    prior_rows = within / variance
    means = [d / (n + prior_rows) if n else 0.0 for n, d in zip(rows, deviations, strict=True)]
    error = math.sqrt(sum(within / (n + prior_rows) for n in rows if n) / present)
    width = ERRORS * error
    return [float(round(mean / width)) for mean in means] if width > 0 else means


def _sum_of_squares(values: np.ndarray) -> int:
    """The exact sum of the squares of whole numbers from 0 to 2^24, int64 of shape (rows,)."""
    high, low = values >> _HALF, values & ((1 << _HALF) - 1)
    products = (int(high @ high), int(high @ low), int(low @ low))
    return (products[0] << 2 * _HALF) + (products[1] << _HALF + 1) + products[2]
