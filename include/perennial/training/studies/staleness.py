"""The staleness curve: how much more loss a model has on the held-out partitions, the older it is.

Models of the recent past are made again: the challenger is fitted on windows of one length that ended earlier and
earlier, with its parameters and rounds, and all are compared on the held-out partitions with the one whose window ended
just before them. So they differ in nothing but their age. The comparison is the bootstrap of paired losses that draws
whole partitions.

All windows lie within that of the challenger, whose rows are pinned: they are shorter than it by the largest age, which
is at most half of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from perennial.features.engine import FeatureQuery
from perennial.monitoring.partition_sample import sample_partitions
from perennial.spec.constraints import MIN_BASELINE_PARTITIONS
from perennial.training.candidates import Candidate, refitter
from perennial.training.challenger_evaluation import TrainingSource, compare_losses
from perennial.training.windows import Windows

#: The file of a version.
ARTIFACT = "staleness.json"
#: Ages of the models, in trainings that ``retraining.regular`` would have made since.
AGES = (1, 2, 4, 8)
#: Partitions that the windows have at least.
MIN_WINDOW = 8


class AgeLoss(TypedDict):
    """The loss of a model of some age.

    Attributes:
        older_by: number of labelled partitions that its window ended before the youngest model's.
        loss: mean loss on the held-out rows.
        rise: ``loss / that of the youngest model - 1``.
        low: lower end of the confidence interval of the rise.
        high: upper end of it.
    """

    older_by: int
    loss: float
    rise: float
    low: float
    high: float


class Staleness(TypedDict):
    """The staleness curve of a model.

    Attributes:
        as_of: partition date of the training that it was measured in.
        metric: the loss.
        confidence: of the intervals.
        held_out: first and last partition of the comparison, as ``start..end``.
        window: number of partitions that each model was fitted on.
        ages: the losses by age, the youngest model first.
    """

    as_of: str
    metric: str
    confidence: float
    held_out: str
    window: int
    ages: list[AgeLoss]


def measure(
    source: TrainingSource, candidate: Candidate, as_of: str, folder: Path, deadline: float
) -> Staleness | None:
    """Measure the curve until the time is up; None if there are too few partitions, or no time.

    Args:
        source: the data of the training.
        candidate: the challenger.
        as_of: partition date of the training.
        folder: working folder.
        deadline: when it must end, as `time.monotonic` counts.
    """
    spec, windows = source.spec, candidate.windows
    dates = windows.fit + windows.valid
    ages = possible_ages(len(dates), spec.retraining.regular.partitions(spec.cadence))
    if not ages:
        return None
    length = len(dates) - ages[-1]
    features = FeatureQuery(spec, source.features.reference_versions)
    losses, days = _losses(source, features, candidate, dates[-length:], folder / "0")
    curve = [AgeLoss(older_by=0, loss=round(float(losses.mean()), 6), rise=0.0, low=0.0, high=0.0)]
    slowest = 0.0
    for age in ages:
        started = time.monotonic()
        if started + slowest > deadline:
            break
        window = dates[-length - age : -age]
        older, _ = _losses(source, features, candidate, window, folder / str(age))
        blocks = [days] if len(np.unique(days)) >= MIN_BASELINE_PARTITIONS else None
        compared = compare_losses(spec, losses, older, blocks)
        # The comparison is relative to the older model's loss, the result to the youngest one's.
        scale = compared.other / max(compared.loss, 1e-12)
        rise, low, high = (
            round(scale * value, 6) for value in (compared.improvement, compared.low, compared.high)
        )
        curve.append(AgeLoss(older_by=age, loss=round(compared.other, 6), rise=rise, low=low, high=high))
        slowest = max(slowest, time.monotonic() - started)
    if len(curve) < 2:
        return None
    return {
        "as_of": as_of,
        "metric": spec.metric,
        "confidence": spec.gate.confidence,
        "held_out": str(windows.holdout_range),
        "window": length,
        "ages": curve,
    }


def possible_ages(partitions: int, regular: int) -> list[int]:
    """The ages, in partitions, for which a window is long enough.

    Args:
        partitions: number of partitions that the challenger was fitted on.
        regular: partitions between two regular trainings.
    """
    return [
        age * regular
        for age in AGES
        if 2 * age * regular <= partitions and partitions - age * regular >= MIN_WINDOW
    ]


def _losses(
    source: TrainingSource,
    features: FeatureQuery,
    candidate: Candidate,
    dates: Sequence[str],
    folder: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the challenger on some partitions; its losses on a sample of the held-out rows, and their partitions."""
    spec, held_out = source.spec, candidate.windows.holdout_range
    folder.mkdir(parents=True)
    model = refitter(source, candidate, Windows(tuple(dates[:-1]), tuple(dates[-1:]), ()), folder)(())
    sample = sample_partitions(
        spec,
        model,
        features,
        held_out.start,
        held_out.end,
        labels_until=held_out.end,
        version=source.version,
        labels_version=source.labels_version,
    ).labelled
    losses = sample.losses(spec.task, spec.metric)
    counted = np.isfinite(losses)  # lists of which no order is wrong have no loss
    return losses[counted], sample.partition_index[counted]
