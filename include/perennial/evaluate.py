"""Quality of predictions, and the comparison of two models on the same rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from perennial.spec import ModelSpec

#: XGBoost's name of each gate metric, for early stopping and search.
EVAL_METRICS = {
    ("binary", "log_loss"): "logloss",
    ("binary", "brier"): "rmse",
    ("multiclass", "log_loss"): "mlogloss",
    ("multiclass", "error_rate"): "merror",
    ("regression", "squared_error"): "rmse",
    ("regression", "absolute_error"): "mae",
    ("ranking", "ndcg_loss"): "ndcg",
}
#: Rows that the bootstrap draws from at most; the interval's width no longer matters above.
MAX_ROWS = 200_000
#: Rows that the bootstrap draws at a time: what they take stays in the processor's cache.
CELLS = 250_000


def losses(
    task: str, metric: str, y: np.ndarray, predicted: np.ndarray, group: np.ndarray | None = None
) -> np.ndarray:
    """The loss of each row (of each group, for ranking), shape (rows,) or (groups,); lower is better.

    Args:
        y: labels, shape (rows,): 0 or 1, class index, value, or grade.
        predicted: probability, probabilities of shape (rows, classes), value, or score.
        group: for ranking, the list each row belongs to; rows of one list are adjacent.
    """
    import numpy as np

    tiny = 1e-7
    if task == "binary":
        p = np.clip(predicted.astype(np.float64), tiny, 1 - tiny)
        return np.asarray((p - y) ** 2 if metric == "brier" else -(y * np.log(p) + (1 - y) * np.log1p(-p)))
    if task == "multiclass":
        if metric == "error_rate":
            return np.asarray(predicted.argmax(axis=1) != y, dtype=np.float64)
        chosen = predicted[np.arange(len(y)), y.astype(np.int64)].astype(np.float64)
        return np.asarray(-np.log(np.clip(chosen, tiny, 1)))
    if task == "regression":
        error = predicted.astype(np.float64) - y
        return np.asarray(np.abs(error) if metric == "absolute_error" else error**2)
    return _ndcg_losses(y, predicted, group)


def _ndcg_losses(y: np.ndarray, predicted: np.ndarray, group: np.ndarray | None) -> np.ndarray:
    """1 - NDCG of each list, with exponential gains 2^grade - 1, as XGBoost counts them (Burges, 2010)."""
    import numpy as np
    from sklearn.metrics import ndcg_score

    if group is None:
        raise ValueError("ranking is judged by lists: group is needed")
    edges = np.flatnonzero(np.r_[True, group[1:] != group[:-1], True])
    found = []
    for start, stop in pairwise(edges):
        gains = 2.0 ** y[start:stop] - 1
        if stop - start > 1 and gains.any():  # a list of one, or with nothing to find, cannot be ranked badly
            found.append(1 - ndcg_score([gains], [predicted[start:stop]]))
    return np.asarray(found or [0.0])


def metrics(
    task: str, y: np.ndarray, predicted: np.ndarray, group: np.ndarray | None = None
) -> dict[str, float]:
    """The usual metrics of a task, among them every gate metric, by name."""
    import numpy as np
    from sklearn import metrics as sk

    from perennial.spec import GATE_METRICS

    found = {m: float(losses(task, m, y, predicted, group).mean()) for m in GATE_METRICS[task]}
    if task == "binary" and 0 < y.mean() < 1:
        found["auc"] = float(sk.roc_auc_score(y, predicted))
        found["average_precision"] = float(sk.average_precision_score(y, predicted))
    elif task == "multiclass":
        found["accuracy"] = 1 - found["error_rate"]
    elif task == "regression":
        found["rmse"] = float(np.sqrt(found["squared_error"]))
        found["r2"] = float(sk.r2_score(y, predicted)) if len(y) > 1 else float("nan")
    elif task == "ranking":
        found["ndcg"] = 1 - found["ndcg_loss"]
    return {k: v for k, v in found.items() if np.isfinite(v)}


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


def compare(
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
            batch=max(1, CELLS // len(difference)),
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


def gate(
    spec: ModelSpec, values: dict[str, float], baselines: dict[str, Comparison], champion: Comparison | None
) -> tuple[bool, list[str]]:
    """Whether a challenger passes, and a reason for each thing that was looked at.

    It must surely beat the constant and the champion (the interval lies above 0, and above the margin), and the linear
    model must not surely beat it: where a simpler model is as good, the data do not say which is the better.
    """
    passed, reasons = True, []
    metric = spec.metric

    def look(name: str, found: Comparison, ok: bool, rule: str) -> None:
        nonlocal passed
        passed = passed and ok
        reasons.append(
            f"{'ok' if ok else 'FAILED'}: {metric} {found.loss:.4f}, {name} {found.other:.4f}: "
            f"{found.improvement:+.2%} [{found.low:+.2%}, {found.high:+.2%}], {rule}"
        )

    if spec.gate.beat_baseline:
        for name, found in baselines.items():
            if name == "constant":
                look(name, found, found.low > 0, "must be above 0")
            else:
                look(name, found, found.high > 0, "must not be below 0")
    if champion is not None:
        look("champion", champion, champion.low > spec.gate.margin, f"must be above {spec.gate.margin:.2%}")
    else:
        reasons.append("ok: there is no champion yet")
    for name, bound in spec.gate.bounds.items():
        value = values.get(name)
        ok = value is not None and value <= bound
        passed = passed and ok
        shown = "not known" if value is None else f"{value:.4f}"
        reasons.append(f"{'ok' if ok else 'FAILED'}: {name} is {shown}, must not be above {bound:g}")
    return passed, reasons
