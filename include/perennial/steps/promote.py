"""The promote step: make a challenger champion."""

from __future__ import annotations

from perennial.lifecycle import promotion
from perennial.lifecycle.promotion import PromotionResult
from perennial.spec.model_spec import ModelSpec


def promote(spec: ModelSpec, *, as_of: str, actor: str, reason: str = "") -> PromotionResult:
    """Promote the challenger trained as of a date, or start its trial: `promotion.promote_challenger`."""
    return promotion.promote_challenger(spec, as_of=as_of, actor=actor, reason=reason)
