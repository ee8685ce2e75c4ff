"""The decide step: whether a verdict leads to a retraining."""

from __future__ import annotations

from perennial.lifecycle import retraining
from perennial.lifecycle.retraining import RetrainingDecision
from perennial.spec.model_spec import ModelSpec


def decide(
    spec: ModelSpec, *, as_of: str, actor: str, backfill: bool, run_id: str = ""
) -> RetrainingDecision:
    """Decide on a retraining after the monitoring of a date.

    A repeated call returns the recorded decision.

    Args:
        spec: the model.
        as_of: the partition date.
        actor: who or what decides, for the ledger.
        backfill: whether the run belongs to a backfill, which never starts a retraining.
        run_id: the Airflow run, for the ledger.

    Raises:
        DataError: the date was not monitored.
    """
    return retraining.decide_retraining(spec, as_of=as_of, actor=actor, backfill=backfill, run_id=run_id)
