"""Change detection in a series of one value per partition: a CUSUM e-detector.

A series, such as the mean loss, is standardised by its mean and standard deviation on the held-out partitions of the
training (`CusumBaseline`): z is the number of standard deviations beyond the allowance, clipped to
`CLIP`. For each of `BETS` the detector updates

    S[t] = max(S[t-1], 0) + bet * z[t] - bet**2 / 2,    S[0] = 0,

the logarithm of a CUSUM e-detector whose increment is the likelihood ratio of a normal mean shifted by ``bet`` standard
deviations. The level at t is the logarithm of the mean of exp(S[t]) over the bets (Shin, Ramdas and Rinaldo,
E-detectors: a nonparametric framework for sequential change detection, 2023; with a single bet it is the CUSUM of Page,
Continuous inspection schemes, 1954). A change is detected once the level reaches the limit. The limit is chosen by
simulation so that years without a harmful change, with the mean exactly at the allowance, do not reach it more often
than the budget of false alarms permits: both years of Gaussian values and years resampled from the held-out partitions.

The unit is the partition and not the row, because the rows of a partition share their weather, fares and outages. A
single partition cannot raise an alarm, and a shift of a thousandth is not a change, even with ten million rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from perennial.spec.constraints import MIN_BASELINE_PARTITIONS

#: Shifts of the mean that the detector looks for, in standard deviations. "Bet" is the term of game-theoretic
#: statistics for the exponent of an e-value, and the bet b grows fastest under a shift of b. They range from small
#: shifts, which only many partitions reveal, to large ones, which two reveal.
BETS = (0.25, 0.5, 1.0, 2.0, 3.5)
#: Largest absolute z of one partition, in standard deviations; also the largest bet.
CLIP = 3.5
#: Smallest limit: one unit above the level of a single partition with z = `CLIP`, so that an alarm needs two.
MIN_LIMIT = CLIP**2 / 2 - math.log(len(BETS)) + 1
PARTITIONS_PER_YEAR = 365
#: Simulated years from which a limit is estimated.
SIMULATED_YEARS = 400
#: Mean length of the blocks that are resampled together, because adjacent partitions are correlated.
MEAN_BLOCK_LENGTH = 3


@dataclass(frozen=True)
class CusumBaseline:
    """The distribution of a series on the held-out partitions, and the limit for later ones.

    Attributes:
        mean: mean over the held-out partitions, in the unit of the series.
        sd: standard deviation over them; the upper end of its 80% confidence interval, because they are few.
        allowance: harmless distance from the mean, in the unit of the series.
        limit: level of the detector at which a change is detected.
        partitions: number of held-out partitions with a value.
        two_sided: whether a fall counts like a rise.
    """

    mean: float
    sd: float
    allowance: float
    limit: float
    partitions: int
    two_sided: bool = False

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Standard deviations beyond the allowance.

        Args:
            values: shape (partitions,).

        Returns:
            Shape (partitions,); if two-sided (2, partitions), with falls in the second row.
        """
        z = (values - self.mean) / self.sd
        allowance = self.allowance / self.sd
        return np.stack([z - allowance, -z - allowance]) if self.two_sided else z - allowance

    def as_dict(self) -> dict[str, Any]:
        """The attributes as JSON, for the artifact of the champion."""
        return asdict(self)


@dataclass(frozen=True)
class Detection:
    """State of the detector after the last partition.

    Attributes:
        level: a change is detected if it reaches the limit of the baseline.
        start: index of the partition at which the change began: the first after which S stayed above 0.
    """

    level: float
    start: int


def fit_cusum_baseline(
    values: Sequence[float] | np.ndarray,
    *,
    allowance: float,
    false_alarms: float,
    mean: float | None = None,
    min_sd: float = 0.0,
    two_sided: bool = False,
    seed: int = 0,
) -> CusumBaseline | None:
    """Fit the baseline of one series, and simulate its limit.

    Args:
        values: the series on the held-out partitions, shape (partitions,); NaN if a partition has no value.
        allowance: harmless deviation, in the unit of the series; raised to twice the standard error of the mean if
            that is larger.
        false_alarms: budget of this series, in alarms per year.
        mean: the mean without a change where it is known by definition; estimated when not given.
        min_sd: smallest standard deviation to assume.
        two_sided: whether a fall counts like a rise.
        seed: seed of the simulation.

    Returns:
        The baseline; None with fewer than `MIN_BASELINE_NIGHTS` values.
    """
    from scipy.stats import chi2

    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    n = len(finite)
    if n < MIN_BASELINE_PARTITIONS:
        return None
    sd = float(finite.std(ddof=1))
    # Gaussian interval of a standard deviation estimated from n values: if the held-out partitions vary little by
    # chance, later partitions must not all be outliers.
    sd = max(sd * math.sqrt((n - 1) / chi2.ppf(0.2, n - 1)), min_sd, 1e-12)
    if mean is None:
        mean = float(finite.mean())
        allowance = max(allowance, 2 * sd / math.sqrt(n))
    fitted = CusumBaseline(mean, sd, allowance, MIN_LIMIT, n, two_sided)
    # Share of years without an alarm, if alarms are a Poisson process.
    quantile = math.exp(-false_alarms)
    maxima = (
        _gaussian_maxima(two_sided, seed),
        _yearly_maxima(fitted.standardise(_resampled_years(finite, seed))),
    )
    return replace(fitted, limit=max(MIN_LIMIT, *(float(np.quantile(m, quantile)) for m in maxima)))


def _yearly_maxima(z: np.ndarray) -> np.ndarray:
    """Highest level of each simulated year.

    Args:
        z: the partitions of all years, one side or both, shape ([2,] SIMULATED_YEARS * NIGHTS_PER_YEAR).

    Returns:
        Shape (SIMULATED_YEARS,).
    """
    highest = log_e_detector(z.reshape(-1, PARTITIONS_PER_YEAR)).max(axis=1)
    return np.asarray(highest.reshape(-1, SIMULATED_YEARS).max(axis=0))


@lru_cache(maxsize=2)
def _gaussian_maxima(two_sided: bool, seed: int) -> np.ndarray:
    """`_yearly_maxima` of Gaussian partitions: the same for every series of a model, so computed once."""
    edge = np.random.default_rng(seed).normal(size=SIMULATED_YEARS * PARTITIONS_PER_YEAR)
    return _yearly_maxima(np.stack([edge, -edge]) if two_sided else edge)


def detect_change(values: np.ndarray, fitted: CusumBaseline) -> Detection:
    """Run the detector over a series.

    Args:
        values: shape (partitions,), oldest first; partitions without a value (NaN) are skipped.
        fitted: baseline of the series.
    """
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return Detection(0.0, 0)
    sides = np.atleast_2d(fitted.standardise(values[finite]))
    levels = log_e_detector(sides)
    side = int(levels[:, -1].argmax())
    # The change began after the last partition at which the S of the best bet was not above 0.
    log_e = _log_e_cusums(sides[[side]])[..., 0]
    restarts = np.flatnonzero(log_e[:, log_e[-1].argmax()] <= 0)
    start = int(restarts[-1]) + 1 if len(restarts) else 0
    return Detection(float(levels[side, -1]), int(finite[min(start, len(finite) - 1)]))


def _log_e_cusums(z: np.ndarray) -> np.ndarray:
    """S of each bet (see the module's docstring).

    Args:
        z: shape (series, partitions).

    Returns:
        Shape (partitions, bets, series); the partitions are first, so that each step works on contiguous memory, which
        is several times as fast.
    """
    bets = np.asarray(BETS)[:, None]
    log_e = np.clip(z, -CLIP, CLIP).T[:, None, :] * bets - bets**2 / 2
    for before, current in pairwise(log_e):
        current += np.maximum(before, 0)
    return np.asarray(log_e)


def log_e_detector(z: np.ndarray) -> np.ndarray:
    """Level of the detector after each partition: the logarithm of the mean of exp(S) over the bets.

    Args:
        z: shape (series, partitions).

    Returns:
        Shape (series, partitions).
    """
    return np.asarray(np.logaddexp.reduce(_log_e_cusums(z), axis=1).T - math.log(len(BETS)))


def _resampled_years(values: np.ndarray, seed: int) -> np.ndarray:
    """Partitions drawn from the held-out partitions in blocks of geometric length.

    The stationary bootstrap (Politis and Romano, The stationary bootstrap, 1994).

    Returns:
        Shape (SIMULATED_YEARS * NIGHTS_PER_YEAR,).
    """
    rng = np.random.default_rng(seed)
    size = SIMULATED_YEARS * PARTITIONS_PER_YEAR
    starts_block = rng.random(size) < 1 / MEAN_BLOCK_LENGTH
    starts_block[0] = True
    first = rng.integers(0, len(values), size)
    block = np.maximum.accumulate(np.where(starts_block, np.arange(size), 0))
    return np.asarray(values[(first[block] + np.arange(size) - block) % len(values)])
