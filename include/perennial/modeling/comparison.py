"""The paired bootstrap: how much lower one model's loss is than another's on the same rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: Most rows that the bootstrap draws from; more rows would hardly narrow the interval.
MAX_ROWS = 200_000
#: Values that the bootstrap draws at a time, so that they fit in the processor's cache.
BATCH_CELLS = 250_000


@dataclass(frozen=True)
class Comparison:
    """How much lower one model's loss is than another's on the same rows.

    Attributes:
        loss: mean loss of the model.
        other: mean loss of the model that it is compared with.
        improvement: ``(other - loss) / other``.
        low: lower end of the improvement's confidence interval.
        high: upper end of the improvement's confidence interval.
        rows: number of rows.
    """

    loss: float
    other: float
    improvement: float
    low: float
    high: float
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """The comparison with rounded numbers, for manifests and messages."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def paired_bootstrap(
    losses: np.ndarray,
    other_losses: np.ndarray,
    *,
    confidence: float,
    resamples: int,
    seed: int,
    days: np.ndarray | None = None,
) -> Comparison:
    """Compare two models by a paired bootstrap of the difference in loss.

    The interval is the percentile interval (Efron and Tibshirani, 1993, chapter 13).

    Args:
        losses: loss of the model on each row, shape (rows,).
        other_losses: loss of the other model on the same rows, shape (rows,).
        confidence: coverage of the interval, between 0 and 1.
        resamples: number of bootstrap samples.
        seed: seed of the random numbers.
        days: day of each row, shape (rows,); if given, whole days are drawn instead of rows.

    Raises:
        ValueError: the losses are not of the same rows.
    """
    if losses.shape != other_losses.shape:
        raise ValueError(f"losses of {losses.shape} and {other_losses.shape} are not of the same rows")
    difference = other_losses - losses
    rng = np.random.default_rng(seed)
    scale = max(float(other_losses.mean()), 1e-12)
    if days is None and len(difference) > MAX_ROWS:
        difference = rng.choice(difference, MAX_ROWS, replace=False)
    if len(difference) < 2 or np.ptp(difference) == 0:
        low = high = float(difference.mean())
    elif days is not None:
        low, high = _interval_by_day(difference, days, confidence, resamples, rng)
    else:
        low, high = _interval_by_row(difference, confidence, resamples, rng)
    return Comparison(
        float(losses.mean()),
        float(other_losses.mean()),
        float((other_losses.mean() - losses.mean()) / scale),
        low / scale,
        high / scale,
        len(losses),
    )


def _interval_by_row(
    difference: np.ndarray, confidence: float, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the mean over rows."""
    from scipy.stats import bootstrap

    interval = bootstrap(
        (difference,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        batch=max(1, BATCH_CELLS // len(difference)),
        rng=rng,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _interval_by_day(
    difference: np.ndarray, days: np.ndarray, confidence: float, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the mean over rows, where whole days are drawn.

    Rows of a day are correlated. This is the pairs cluster bootstrap of Cameron, Gelbach and Miller, Bootstrap-Based
    Improvements for Inference with Clustered Errors (2008). Days are weighted by their rows. With few days the interval
    is still too narrow.
    """
    _, day = np.unique(days, return_inverse=True)
    total, rows = np.bincount(day, difference), np.bincount(day)
    drawn = rng.integers(0, len(rows), (resamples, len(rows)))
    means = total[drawn].sum(axis=1) / rows[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
