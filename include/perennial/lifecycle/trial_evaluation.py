"""Evaluate the active trial: a shadow trial or an A/B trial, depending on the policy."""

from __future__ import annotations

from perennial.lifecycle import _shadow_trial, ab_trial
from perennial.lifecycle.trials import TrialEvaluation, active_trial
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec


def evaluate_trial(
    spec: ModelSpec, champion: registry.ModelVersion, as_of: str, labels_until: str
) -> TrialEvaluation | None:
    """Compare champion and challenger on partitions that neither was trained or evaluated on.

    Args:
        spec: the model.
        champion: the current champion.
        as_of: the last partition date.
        labels_until: the last partition date whose labels are complete.

    Returns:
        The evaluation; None if there is no trial against this champion, or MLflow lost the challenger.
    """
    record = active_trial(spec)
    if record is None or record["evidence"]["champion"] != champion.version:
        return None
    if registry.find_version(spec.name, record["model_version"]) is None:
        return None  # `trials.cancel_outdated_trial` ends the trial
    challenger = registry.get_recorded_version(spec.name, record["model_version"])
    if spec.retraining.ab_share:
        return ab_trial.evaluate(spec, champion, challenger, record["partition"], as_of)
    return _shadow_trial.evaluate(spec, champion, challenger, record["partition"], as_of, labels_until)
