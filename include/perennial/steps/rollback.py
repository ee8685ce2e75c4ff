"""The rollback step: make an earlier version champion again."""

from __future__ import annotations

from perennial.lifecycle import promotion
from perennial.lifecycle.promotion import RollbackResult
from perennial.spec.model_spec import ModelSpec


def rollback(spec: ModelSpec, *, actor: str, reason: str, to_version: str | None = None) -> RollbackResult:
    """Make an earlier version champion again, after checking that it can predict.

    Args:
        spec: the model.
        actor: who rolls back, for the ledger.
        reason: why, for the ledger; must not be empty.
        to_version: the version; the previous champion by default.

    Raises:
        DataError: no reason is given.
        RegistryError: there is no version to roll back to.
        ArtifactError: the version's file is damaged, or it cannot predict; the champion is not changed.
    """
    return promotion.roll_back_champion(spec, actor=actor, reason=reason, to_version=to_version)
