"""The shadow trial: champion and challenger predict the same rows, and their losses are compared.

The monitor step does this on a sample of each partition's published rows. The score step does not run the challenger.

The mean losses of each partition are compared by a paired t interval. The interval is computed, and the trial ends,
once as many partitions as ``retraining.trial`` can be compared.
"""

from __future__ import annotations

import numpy as np

from perennial.features.engine import FeatureQuery
from perennial.lifecycle.trials import TrialEvaluation
from perennial.modeling import registry
from perennial.monitoring.partition_sample import sample_partitions
from perennial.spec.model_spec import ModelSpec


def evaluate(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    challenger: registry.ModelVersion,
    trained_as_of: str,
    as_of: str,
    labels_until: str,
) -> TrialEvaluation:
    """Compare the losses of both versions on the partitions after the challenger's held-out ones.

    Args:
        spec: the model.
        champion: the version that serves.
        challenger: the version on trial.
        trained_as_of: the partition date as of which the challenger was trained.
        as_of: the last partition date.
        labels_until: the last partition date whose labels are complete.
    """
    from scipy import stats

    first = spec.cadence.shift(challenger.holdout_range.end, 1)
    losses = [_daily_losses(spec, v, first, as_of, labels_until) for v in (champion, challenger)]
    comparable = np.isfinite(losses[0]) & np.isfinite(losses[1])
    days = int(comparable.sum())
    due = len(spec.cadence.range(first, labels_until)) if first <= labels_until else 0
    evaluation: TrialEvaluation = {
        "version": challenger.version,
        "as_of": trained_as_of,
        "first": first,
        "state": "running",
        "days": days,
        "due": due,
        "gain": None,
        "low": None,
        "high": None,
    }
    if days < max(2, spec.retraining.trial.partitions(spec.cadence)):
        return evaluation
    difference = (losses[0] - losses[1])[comparable]
    champion_loss = max(float(losses[0][comparable].mean()), 1e-12)
    low, high = stats.t.interval(
        spec.gate.confidence, days - 1, difference.mean(), max(stats.sem(difference), 1e-12)
    )
    evaluation["state"] = "passed" if low / champion_loss > spec.gate.margin else "failed"
    evaluation["gain"], evaluation["low"], evaluation["high"] = (
        round(float(value) / champion_loss, 6) for value in (difference.mean(), low, high)
    )
    return evaluation


def _daily_losses(
    spec: ModelSpec, version: registry.ModelVersion, first: str, as_of: str, labels_until: str
) -> np.ndarray:
    """Mean loss of a version on each partition, shape (partitions,); NaN with too few labels."""
    features = FeatureQuery(registry.load_spec(version))
    model = registry.load_model(version)
    sample = sample_partitions(spec, model, features, first, as_of, labels_until=labels_until).labelled
    return sample.partition_means(sample.losses(spec.task, spec.metric))
