"""Changes told from noise: a sequential test over nights whose rate of false alarms is a stated budget.

Each night gives one number, such as the mean loss. It is standardised by what quiet nights showed when the model was
trained, and followed by a CUSUM e-detector (Shin, Ramdas and Rinaldo, E-detectors: a nonparametric framework for
sequential change detection, 2023): of z, at most `CLIP`, it keeps for each of `BETS` the level
``max(level, 0) + bet z - bet² / 2``, and looks at the mean of their exponentials. The limit is what simulated years of
harmless nights, at the very edge of the allowance, reach no oftener than the budget says: normal ones, and ones drawn
from the model's own quiet nights.

The unit is the night and not the row: rows of one night share its weather, its fares, its outage. A single night cannot
raise an alarm by itself, and ten million rows do not turn a thousandth into a change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from perennial.spec.constraints import MIN_BASELINE_NIGHTS

if TYPE_CHECKING:
    import numpy as np

#: The changes looked for, in standard deviations a night.
BETS = (0.25, 0.5, 1.0, 2.0, 3.5)
#: What one night can count for at most, in standard deviations.
CLIP = 3.5
#: The least limit: a single night of `CLIP` stays a whole unit below it, so that a second one has to be odd as well.
MIN_LIMIT = CLIP**2 / 2 - math.log(len(BETS)) + 1
NIGHTS_PER_YEAR = 365
#: Years of resampled quiet nights that a limit is checked on.
SIMULATED_YEARS = 400
#: Nights that are drawn together on average: neighbours are alike.
MEAN_BLOCK_LENGTH = 3


@dataclass(frozen=True)
class CusumBaseline:
    """What quiet nights showed of one number.

    Attributes:
        mean, sd: over ``nights`` nights; of so few, ``sd`` is the upper end of its 80% confidence interval.
        allowance: how far the number may lie from the mean without doing harm.
        limit: level of `follow` from which on a change is certain.
        two_sided: whether a fall counts like a rise.
    """

    mean: float
    sd: float
    allowance: float
    limit: float
    nights: int
    two_sided: bool = False

    def z(self, values: np.ndarray) -> np.ndarray:
        """Standard deviations beyond the allowance, shape (nights,), or (2, nights) with falls in the second row."""
        import numpy as np

        moved = (values - self.mean) / self.sd
        free = self.allowance / self.sd
        return np.stack([moved - free, -moved - free]) if self.two_sided else moved - free

    def as_dict(self) -> dict[str, Any]:
        """For the champion's artifact."""
        return asdict(self)


@dataclass(frozen=True)
class Detection:
    """What following the nights found.

    Attributes:
        level: at the last night; the change is certain from the baseline's limit on.
        since: index of the night after which the level has not been at rest again: where the change began.
    """

    level: float
    since: int


def fit_cusum_baseline(
    values: Sequence[float] | np.ndarray,
    *,
    allowance: float,
    false_alarms: float,
    mean: float | None = None,
    floor: float = 0.0,
    two_sided: bool = False,
    seed: int = 0,
) -> CusumBaseline | None:
    """The baseline of a number on quiet nights; None where there are fewer than `NIGHTS` of them.

    The resampled nights come in blocks (stationary bootstrap, Politis and Romano, 1994), since neighbours are alike.

    Args:
        values: one a night, shape (nights,); NaN where there is none.
        allowance: a deviation that does no harm; at least twice the standard error of the mean is allowed.
        false_alarms: budget of this number alone, alarms a year.
        mean: what is quiet by definition, where that is known.
        floor: the least standard deviation to believe in.
    """
    import numpy as np
    from scipy.stats import chi2

    quiet = np.asarray(values, dtype=np.float64)
    quiet = quiet[np.isfinite(quiet)]
    n = len(quiet)
    if n < MIN_BASELINE_NIGHTS:
        return None
    sd = float(quiet.std(ddof=1))
    # Gaussian interval of a standard deviation from n nights: a lucky fortnight must not make every later night odd.
    sd = max(sd * math.sqrt((n - 1) / chi2.ppf(0.2, n - 1)), floor, 1e-12)
    if mean is None:
        mean = float(quiet.mean())
        allowance = max(allowance, 2 * sd / math.sqrt(n))
    found = CusumBaseline(mean, sd, allowance, MIN_LIMIT, n, two_sided)
    calm = math.exp(-false_alarms)  # share of years without an alarm, if they come as a Poisson process
    years = (_gaussian_maxima(two_sided, seed), _yearly_maxima(found.z(_resampled_years(quiet, seed))))
    return replace(found, limit=max(MIN_LIMIT, *(float(np.quantile(y, calm)) for y in years)))


def _yearly_maxima(z: np.ndarray) -> np.ndarray:
    """The highest level of each year, shape (YEARS,); ``z`` has the years' nights, one side or both."""
    import numpy as np

    highest = log_e_detector(z.reshape(-1, NIGHTS_PER_YEAR)).max(axis=1)
    return np.asarray(highest.reshape(-1, SIMULATED_YEARS).max(axis=0))


@lru_cache(maxsize=2)
def _gaussian_maxima(two_sided: bool, seed: int) -> np.ndarray:
    """`_peaks` of Gaussian nights: the same for each number that a champion's watch follows."""
    import numpy as np

    edge = np.random.default_rng(seed).normal(size=SIMULATED_YEARS * NIGHTS_PER_YEAR)
    return _yearly_maxima(np.stack([edge, -edge]) if two_sided else edge)


def detect_change(values: np.ndarray, quiet: CusumBaseline) -> Detection:
    """Follow the nights of a number, shape (nights,), oldest first; nights without one (NaN) are passed over."""
    import numpy as np

    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return Detection(0.0, 0)
    sides = np.atleast_2d(quiet.z(values[known]))
    found = log_e_detector(sides)
    side = int(found[:, -1].argmax())
    # The change began after the last rest of the bet that won most.
    best = _log_e_cusums(sides[[side]])[..., 0]
    resting = np.flatnonzero(best[:, best[-1].argmax()] <= 0)
    since = int(resting[-1]) + 1 if len(resting) else 0
    return Detection(float(found[side, -1]), int(known[min(since, len(known) - 1)]))


def _log_e_cusums(z: np.ndarray) -> np.ndarray:
    """The level of each bet, shape (nights, bets, series) of ``z`` of shape (series, nights)."""
    import numpy as np

    bets = np.asarray(BETS)[:, None]
    # The nights first: each is then one piece of memory, which is several times as quick.
    found = np.clip(z, -CLIP, CLIP).T[:, None, :] * bets - bets**2 / 2
    for before, night in pairwise(found):
        night += np.maximum(before, 0)
    return np.asarray(found)


def log_e_detector(z: np.ndarray) -> np.ndarray:
    """Logarithm of the mean of the bets' exponentials, shape as ``z``: (series, nights)."""
    import numpy as np

    return np.asarray(np.logaddexp.reduce(_log_e_cusums(z), axis=1).T - math.log(len(BETS)))


def _resampled_years(quiet: np.ndarray, seed: int) -> np.ndarray:
    """Years of nights drawn from the quiet ones in blocks of random length, shape (YEARS * NIGHTS_A_YEAR,)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    size = SIMULATED_YEARS * NIGHTS_PER_YEAR
    fresh = rng.random(size) < 1 / MEAN_BLOCK_LENGTH
    fresh[0] = True
    starts = rng.integers(0, len(quiet), size)
    began = np.maximum.accumulate(np.where(fresh, np.arange(size), 0))
    return np.asarray(quiet[(starts[began] + np.arange(size) - began) % len(quiet)])
