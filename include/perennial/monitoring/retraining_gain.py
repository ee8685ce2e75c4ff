"""Whether a retraining would pay: what the latest labels can teach the champion, night after night.

A small booster is fitted on the nights before, starting from the champion's own scores, and judged on the next night:
does the champion, corrected by it, lose less than alone? Both are judged on the same rows, so that a stormy night, or a
season of harder rows, weighs on both and cancels; what one night teaches must hold on the next. A change that does not
hurt the model, or that no label can mend, has no value; one that a new model would learn has.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from perennial.core.settings import settings
from perennial.modeling.metrics import losses

if TYPE_CHECKING:
    import numpy as np

    from perennial.monitoring.nightly_sample import NightlySample

#: Nights that a correction learns from, and after how many of them a night counts half.
LOOKBACK_NIGHTS = 14
HALF_LIFE = 3.0
ROUNDS = 10
#: Nights that there must be before a correction is tried.
MIN_NIGHTS = 3
_PARAMETERS = {
    "max_depth": 2,
    "learning_rate": 0.1,  # cautious: what it saves varies less from night to night than for a bold correction
    "min_child_weight": 20,
    "reg_lambda": 20,
    "max_bin": 32,
    "nthread": 1,
    "verbosity": 0,
}


def nightly_retraining_gain(
    task: str, metric: str, objective: str, evidence: NightlySample, classes: int = 0, since: int = 0
) -> np.ndarray:
    """Mean loss saved by a correction, night by night, shape (nights,); NaN where it could not be tried.

    Args:
        evidence: labelled rows, in the order of the nights.
        objective: the champion's. classes: of a multiclass champion.
        since: index of the first night to judge; those before it are learned from alone.
    """
    import numpy as np

    found = np.full(len(evidence.dates), np.nan)
    parameters = _PARAMETERS | {"objective": objective} | ({"num_class": classes} if classes else {})
    edges = np.searchsorted(evidence.night, np.arange(len(evidence.dates) + 1))
    nights = [i for i in range(len(evidence.dates)) if edges[i + 1] - edges[i] >= 1]

    def judge(place: int) -> None:
        night, first = nights[place], nights[max(0, place - LOOKBACK_NIGHTS)]
        past, now = slice(edges[first], edges[night]), slice(edges[night], edges[night + 1])
        corrected = _corrected_predictions(parameters, evidence, past, now)
        alone = losses(task, metric, evidence.y[now], evidence.predicted[now])
        found[night] = float((alone - losses(task, metric, evidence.y[now], corrected)).mean())

    judged = [place for place, night in enumerate(nights) if place >= MIN_NIGHTS and night >= since]
    # side by side, each in one thread: a booster of so few rows has no use for more
    with ThreadPoolExecutor(settings().threads) as pool:
        list(pool.map(judge, judged))
    return found


def _corrected_predictions(
    parameters: dict[str, Any], evidence: NightlySample, past: slice, now: slice
) -> np.ndarray:
    """What the champion says of the rows ``now``, corrected by what the rows ``past`` taught."""
    import numpy as np
    import xgboost

    age = evidence.night[past][-1] - evidence.night[past]
    matrix = xgboost.QuantileDMatrix(
        evidence.x[past],
        evidence.y[past],
        weight=0.5 ** (age / HALF_LIFE),
        base_margin=evidence.margin[past],
        max_bin=_PARAMETERS["max_bin"],
        nthread=1,
    )
    booster = xgboost.train(parameters, matrix, ROUNDS)
    return np.asarray(booster.inplace_predict(evidence.x[now], base_margin=evidence.margin[now]))
