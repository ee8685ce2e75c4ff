"""The rollback step: make an earlier version champion again."""

from __future__ import annotations

import time

from perennial.lifecycle import promotion
from perennial.lifecycle.promotion import RollbackResult
from perennial.spec.model_spec import ModelSpec
from perennial.status import rescoring


class RollbackStepResult(RollbackResult):
    """The outcome of the step.

    Attributes:
        seconds: how long it took until the version was champion.
        scored: ranges of partitions whose scores are of the replaced version.
    """

    seconds: float
    scored: list[str]


def rollback(
    spec: ModelSpec, *, actor: str, reason: str, to_version: str | None = None, run_id: str = ""
) -> RollbackStepResult:
    """Make an earlier version champion again: `promotion.roll_back_champion`.

    Nothing is scored again; the result says which partitions have scores of the replaced version.
    """
    began = time.monotonic()
    result = promotion.roll_back_champion(
        spec, actor=actor, reason=reason, to_version=to_version, airflow_run=run_id
    )
    seconds = round(time.monotonic() - began, 1)
    replaced = result["previous"]
    ranges = rescoring.ranges(spec, replaced) if replaced else []
    return {**result, "seconds": seconds, "scored": [span.compact for span in ranges]}
