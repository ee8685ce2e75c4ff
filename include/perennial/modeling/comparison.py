"""The paired bootstrap: how surely one model's loss is lower than another's on the same rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


#: Rows that the bootstrap draws from at most; the interval's width no longer matters above.
MAX_ROWS = 200_000


#: Rows that the bootstrap draws at a time: what they take stays in the processor's cache.
BATCH_CELLS = 250_000


@dataclass(frozen=True)
class Comparison:
    """How much lower one model's loss is than another's on the same rows.

    Attributes:
        loss, other: mean loss of the model, and of the one it is compared with.
        improvement: ``(other - loss) / other``. low, high: its confidence interval.
    """

    loss: float
    other: float
    improvement: float
    low: float
    high: float
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """For manifests and messages."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def paired_bootstrap(
    mine: np.ndarray,
    other: np.ndarray,
    *,
    confidence: float,
    resamples: int,
    seed: int,
    days: np.ndarray | None = None,
) -> Comparison:
    """Paired bootstrap of the difference in loss (percentile interval; Efron and Tibshirani, 1993, chapter 13).

    Args:
        mine, other: losses of the two models on the same rows, shape (rows,).
        days: the day of each row, shape (rows,): whole days are drawn then, and not rows.
    """
    import numpy as np
    from scipy.stats import bootstrap

    if mine.shape != other.shape:
        raise ValueError(f"losses of {mine.shape} and {other.shape} are not of the same rows")
    difference = other - mine
    rng = np.random.default_rng(seed)
    scale = max(float(other.mean()), 1e-12)
    if days is None and len(difference) > MAX_ROWS:
        difference = rng.choice(difference, MAX_ROWS, replace=False)
    if len(difference) < 2 or np.ptp(difference) == 0:
        low = high = float(difference.mean())
    elif days is not None:
        low, high = _interval_by_day(difference, days, confidence, resamples, rng)
    else:
        interval = bootstrap(
            (difference,),
            np.mean,
            n_resamples=resamples,
            confidence_level=confidence,
            method="percentile",
            batch=max(1, BATCH_CELLS // len(difference)),
            rng=rng,
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Comparison(
        float(mine.mean()),
        float(other.mean()),
        float((other.mean() - mine.mean()) / scale),
        low / scale,
        high / scale,
        len(mine),
    )


def _interval_by_day(
    difference: np.ndarray, days: np.ndarray, confidence: float, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of a mean over rows where rows of a day are alike: whole days are drawn, as pairs.

    Cameron, Gelbach and Miller, Bootstrap-Based Improvements for Inference with Clustered Errors (2008). A day weighs
    as many rows as it has. Of few days the interval is too narrow still.
    """
    import numpy as np

    _, day = np.unique(days, return_inverse=True)
    total, rows = np.bincount(day, difference), np.bincount(day)
    drawn = rng.integers(0, len(rows), (resamples, len(rows)))
    means = total[drawn].sum(axis=1) / rows[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
