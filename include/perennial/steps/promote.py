"""The promote step: make a challenger champion."""

from __future__ import annotations

from perennial.lifecycle import promotion
from perennial.lifecycle.promotion import PromotionResult
from perennial.spec.model_spec import ModelSpec


def promote(spec: ModelSpec, *, as_of: str, actor: str, reason: str = "") -> PromotionResult:
    """Promote the challenger trained as of a date if it passed its gate, or start its trial.

    Args:
        spec: the model.
        as_of: the partition date as of which it was trained.
        actor: who or what promotes, for the ledger.
        reason: why it was requested, for the ledger.

    Raises:
        DataError: no training of that date has finished.
    """
    return promotion.promote_challenger(spec, as_of=as_of, actor=actor, reason=reason)
