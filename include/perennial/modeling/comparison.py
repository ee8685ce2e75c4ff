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

    The interval is the percentile interval (Efron and Tibshirani, 1993, chapter 13), expanded for small samples
    (`expanded_confidence`). A model that is no better than the other has its whole interval above 0 with a probability
    of about (1 - confidence) / 2.

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
        expanded = float(expanded_confidence(confidence, len(difference)))
        low, high = _interval_by_row(difference, expanded, resamples, rng)
    return Comparison(
        float(losses.mean()),
        float(other_losses.mean()),
        float((other_losses.mean() - losses.mean()) / scale),
        low / scale,
        high / scale,
        len(losses),
    )


def simultaneous_confidence(confidence: float, comparisons: int) -> float:
    """The confidence of each of several comparisons of which the best is used (Bonferroni's correction).

    With it, the probability that any of them is above 0 by chance is that of a single one with ``confidence``, however
    they depend on each other.
    """
    return 1 - (1 - confidence) / comparisons


def expanded_confidence(confidence: float, n: int | np.ndarray) -> np.ndarray:
    """The confidence at which the percentile interval of ``n`` values covers their mean with ``confidence``.

    The percentile interval of few values is too narrow: its width is that of a normal interval with the sample's
    standard deviation, without its correction by sqrt(n / (n - 1)). This expands it to a t interval (Hesterberg, What
    Teachers Should Know About the Bootstrap, 2015, section 5.3).

    Args:
        confidence: between 0 and 1.
        n: number of values, at least 2; or several such numbers.
    """
    from scipy.stats import norm, t

    n = np.asarray(n)
    return np.asarray(1 - 2 * norm.cdf(np.sqrt(n / (n - 1)) * t.ppf((1 - confidence) / 2, n - 1)))


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
    Improvements for Inference with Clustered Errors (2008). Days are weighted by their rows.
    """
    _, day = np.unique(days, return_inverse=True)
    total, rows = np.bincount(day, difference), np.bincount(day)
    drawn = rng.integers(0, len(rows), (resamples, len(rows)))
    means = total[drawn].sum(axis=1) / rows[drawn].sum(axis=1)
    confidence = float(expanded_confidence(confidence, len(rows))) if len(rows) > 1 else confidence
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
