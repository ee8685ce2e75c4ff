"""A bootstrap of many groups of rows at once, from sums over units.

A unit is what a bootstrap sample draws: a partition, a list of a ranking, or a row. More than `MAX_UNITS` rows or lists
are put into that many random blocks of equal size, which are drawn instead: the means of independent blocks vary as
those of independent rows do, and the width of an interval is off by about 1 / sqrt(2 MAX_UNITS), which is 2%. So the
rows are read once for each statistic, whatever the number of groups and samples.
"""

from __future__ import annotations

import numpy as np

from perennial.modeling.comparison import expanded_confidence

#: Most units of rows, or of lists.
MAX_UNITS = 1000
#: Most bootstrap samples: more would hardly change the intervals of single metrics, and take memory.
MAX_SAMPLES = 2000


class UnitBootstrap:
    """The units of some rows, and the bootstrap samples of the units.

    Attributes:
        unit: number of each row's unit, shape (rows,).
        count: number of units.
        draws: how often each sample draws each unit, shape (samples, units).
    """

    def __init__(self, identities: np.ndarray | int, samples: int, seed: int, *, whole: bool) -> None:
        """Choose the units and draw the samples.

        Args:
            identities: of the partition or list of each row, shape (rows,); a number of rows if each is its own.
            samples: number of bootstrap samples.
            seed: seed of the random numbers.
            whole: draw each identity on its own, however many there are: those of partitions are not independent.
        """
        rng = np.random.default_rng(seed)
        if isinstance(identities, int):
            count, index = identities, np.arange(identities)
        else:
            names, index = np.unique(identities, return_inverse=True)
            count = len(names)
        if count > MAX_UNITS and not whole:
            index, count = (rng.permutation(count) % MAX_UNITS)[index], MAX_UNITS
        self.unit, self.count = index, count
        samples = min(samples, MAX_SAMPLES)
        drawn = rng.integers(0, count, (samples, count)) + np.arange(samples)[:, None] * count
        self.draws = np.bincount(drawn.ravel(), minlength=samples * count).reshape(samples, count) * 1.0


class GroupedRows:
    """Rows in groups, for the means of each group in each bootstrap sample.

    Attributes:
        rows: number of rows of each group that count, shape (groups,).
        units: number of units that have any of them, shape (groups,).
    """

    def __init__(self, bootstrap: UnitBootstrap, codes: np.ndarray, groups: int, weights: np.ndarray) -> None:
        """Count the rows of each group and unit.

        Args:
            bootstrap: the units of the rows, and the samples.
            codes: group of each row, shape (rows,); negative for a row in none.
            groups: number of groups.
            weights: weight of each row, shape (rows,); rows of weight 0 do not count.
        """
        self._bootstrap, self._groups = bootstrap, groups
        self._selected = np.flatnonzero((codes >= 0) & (weights > 0))
        self._codes = codes[self._selected]
        self._cell = bootstrap.unit[self._selected] * groups + self._codes
        self._weights = weights[self._selected]
        self._sizes = self._sums(np.ones(len(codes)))
        self._sample_sizes = bootstrap.draws @ self._sizes
        self.rows = np.bincount(self._codes, minlength=groups)
        self.units = (self._sizes > 0).sum(axis=0)

    def members(self, group: int) -> np.ndarray:
        """Indices of the rows of a group, shape (rows of the group,)."""
        return np.asarray(self._selected[self._codes == group])

    def means(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weighted mean of values in each group.

        Args:
            values: one for each row, shape (rows,).

        Returns:
            Of the rows, shape (groups,), and of the bootstrap samples, shape (samples, groups); NaN for a group
            without rows. A sample without rows of a group has the mean of all of them.
        """
        sums = self._sums(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = sums.sum(axis=0) / self._sizes.sum(axis=0)
            samples = (self._bootstrap.draws @ sums) / self._sample_sizes
        return mean, np.where(self._sample_sizes > 0, samples, mean)

    def interval(self, samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        """Percentile interval of a statistic in each group, expanded for few units, shape (groups,) each.

        Args:
            samples: the statistic of each sample, shape (samples, groups).
            confidence: coverage of the interval, between 0 and 1.
        """
        coverage = expanded_confidence(confidence, np.maximum(self.units, 2))
        ordered = np.sort(samples, axis=0)
        return _quantile(ordered, (1 - coverage) / 2), _quantile(ordered, (1 + coverage) / 2)

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Weighted sums of each unit and group, shape (units, groups)."""
        cells = self._bootstrap.count * self._groups
        summed = np.bincount(self._cell, values[self._selected] * self._weights, cells)
        return summed.reshape(self._bootstrap.count, self._groups)


def simultaneous_intervals(
    means: np.ndarray, samples: np.ndarray, units: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals that all hold at once with a probability of ``confidence`` (max-t bootstrap).

    The distribution of the largest deviation of any of them, in standard errors, decides how many standard errors each
    interval has; so it respects that slices share rows (Romano and Wolf, Stepwise Multiple Testing as Formalized Data
    Snooping, 2005).

    Args:
        means: the statistics, shape (groups,), at least one.
        samples: of the bootstrap samples, shape (samples, groups).
        units: number of units of each, shape (groups,).
        confidence: between 0 and 1.

    Returns:
        Lower and upper ends, shape (groups,) each.
    """
    from scipy.stats import norm, t

    error = samples.std(axis=0)
    deviation = np.abs(samples - means) / np.maximum(error, 1e-300)
    errors = float(np.quantile(deviation.max(axis=1), confidence))
    n = np.maximum(units, 2)
    tail = max(float(norm.sf(errors)), 1e-15)
    wide = np.sqrt(n / (n - 1)) * t.isf(tail, n - 1)  # as for single intervals: a t interval for few units
    return means - wide * error, means + wide * error


def _quantile(ordered: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The quantile of each column, interpolated as by numpy.

    Args:
        ordered: sorted columns, shape (samples, columns).
        share: of each column, shape (columns,), 0 to 1.
    """
    position = share * (len(ordered) - 1)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, len(ordered) - 1)
    columns = np.arange(ordered.shape[1])
    lower, upper = ordered[below, columns], ordered[above, columns]
    return np.asarray(lower + (upper - lower) * (position - below))
