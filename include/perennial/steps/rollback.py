"""The rollback step: make an earlier version champion again."""

from __future__ import annotations

from perennial.lifecycle import promotion
from perennial.lifecycle.promotion import RollbackResult
from perennial.spec.model_spec import ModelSpec


def rollback(
    spec: ModelSpec, *, actor: str, reason: str, to_version: str | None = None, run_id: str = ""
) -> RollbackResult:
    """Make an earlier version champion again: `promotion.roll_back_champion`."""
    return promotion.roll_back_champion(
        spec, actor=actor, reason=reason, to_version=to_version, airflow_run=run_id
    )
