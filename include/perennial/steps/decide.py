"""The decide step: whether a verdict leads to a retraining."""

from __future__ import annotations

from perennial.lifecycle import retraining
from perennial.lifecycle.retraining import RetrainingDecision
from perennial.spec.model_spec import ModelSpec


def decide(
    spec: ModelSpec, *, as_of: str, actor: str, backfill: bool, run_id: str = ""
) -> RetrainingDecision:
    """Decide on a retraining after the monitoring of a date: `retraining.decide_retraining`."""
    return retraining.decide_retraining(spec, as_of=as_of, actor=actor, backfill=backfill, run_id=run_id)
