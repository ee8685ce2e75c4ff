"""The loss that a retraining would save, estimated on each partition from the latest labels.

On each partition the champion is compared with a corrected champion: a small booster that continues from the champion's
raw scores (``base_margin``) and is fitted to the preceding partitions. The gain is the mean loss of the champion minus
that of the corrected champion, on the same rows. A storm or a season of harder rows affects both and cancels out, and a
correction must generalise to the next partition. There is no gain from a change that does not harm the model, or that
the labels do not show; there is a gain from a change that a new model would learn.

A class that the champion was not trained on is part of the correction once labels have it, with its share of the
preceding labels as its first probability: a new model would learn it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.core.settings import settings
from perennial.modeling.metrics import SMALLEST_PROBABILITY, losses

if TYPE_CHECKING:
    from perennial.monitoring.partition_sample import PartitionSample

#: Partitions that a correction is fitted to.
LOOKBACK_PARTITIONS = 14
#: Partitions after which the weight of a row is halved.
HALF_LIFE = 3.0
ROUNDS = 10
#: Earlier partitions that a correction needs.
MIN_PARTITIONS = 3
_PARAMETERS = {
    "max_depth": 2,
    "learning_rate": 0.1,  # with larger steps, the gain varies more between partitions
    "min_child_weight": 20,
    "reg_lambda": 20,
    "max_bin": 32,
    "nthread": 1,
    "verbosity": 0,
}


def gain_by_partition(
    task: str, metric: str, objective: str, sample: PartitionSample, classes: int = 0, since: int = 0
) -> np.ndarray:
    """Mean loss that a correction saves on each partition.

    Args:
        task: task of the model.
        metric: the gate's metric, whose loss is compared.
        objective: XGBoost objective of the champion.
        sample: labelled rows, in the order of the partitions.
        classes: number of classes of a multiclass champion.
        since: index of the first partition to evaluate; earlier ones are only used to fit.

    Returns:
        Shape (partitions,), in the unit of the metric's loss; NaN if it could not be evaluated.
    """
    gains = np.full(len(sample.dates), np.nan)
    parameters = _PARAMETERS | {"objective": objective}
    edges = np.searchsorted(sample.partition_index, np.arange(len(sample.dates) + 1))
    partitions = [i for i in range(len(sample.dates)) if edges[i + 1] > edges[i]]

    def evaluate(position: int) -> None:
        partition, first = partitions[position], partitions[max(0, position - LOOKBACK_PARTITIONS)]
        past, current = slice(edges[first], edges[partition]), slice(edges[partition], edges[partition + 1])
        champion_loss = losses(task, metric, sample.y[current], sample.predicted[current])
        y, margin = sample.y, sample.margin
        if classes and (y[past] < 0).any():
            y, margin = _with_unseen_class(y, margin, float((y[past] < 0).mean()))
        corrected = _corrected_predictions(
            parameters, sample.x, y, margin, sample.partition_index, past, current
        )
        corrected_loss = losses(task, metric, y[current], corrected)
        gains[partition] = float((champion_loss - corrected_loss).mean())

    positions = [p for p, partition in enumerate(partitions) if p >= MIN_PARTITIONS and partition >= since]
    # In parallel with one thread each: a booster of so few rows is not faster with more threads.
    with ThreadPoolExecutor(settings().threads) as pool:
        list(pool.map(evaluate, positions))
    return gains


def _with_unseen_class(y: np.ndarray, margin: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and raw scores with one more class, the last, for labels that the champion's classes do not have.

    Args:
        y: class indices, negative for a class that the champion does not have, shape (rows,).
        margin: raw scores, shape (rows, classes).
        share: probability that each row gets for the new class.
    """
    classes = margin.shape[1]
    total = np.logaddexp.reduce(margin.astype(np.float64), axis=1)
    odds = np.log(share) - np.log1p(-min(share, 1 - SMALLEST_PROBABILITY))
    scores = np.column_stack([margin, total + odds]).astype(margin.dtype)
    return np.where(y < 0, classes, y), scores


def _corrected_predictions(
    parameters: dict[str, Any],
    x: np.ndarray,
    y: np.ndarray,
    margin: np.ndarray,
    partition: np.ndarray,
    past: slice,
    current: slice,
) -> np.ndarray:
    """Predict the rows ``current`` with the champion and a correction fitted to the rows ``past``."""
    import xgboost

    if margin.ndim > 1:
        parameters = parameters | {"num_class": margin.shape[1]}
    matrix = xgboost.QuantileDMatrix(
        x[past],
        y[past],
        weight=0.5 ** ((partition[past][-1] - partition[past]) / HALF_LIFE),
        base_margin=margin[past],
        max_bin=_PARAMETERS["max_bin"],
        nthread=1,
    )
    booster = xgboost.train(parameters, matrix, ROUNDS)
    return np.asarray(booster.inplace_predict(x[current], base_margin=margin[current]))
