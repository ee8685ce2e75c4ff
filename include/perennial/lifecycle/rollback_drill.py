"""The rollback drill: the version that a rollback would go to is checked, without moving the champion.

It is loaded, its files are compared with the recorded digests, and it predicts again rows that it scored. Whoever needs
a rollback then knows that it works, and how long its check takes.
"""

from __future__ import annotations

import time
from typing import Literal, TypedDict

from perennial.core.errors import ArtifactError, RegistryRequestError
from perennial.lifecycle import champion, ledger_anchors, promotion
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind


class RollbackDrill(TypedDict):
    """What a drill found.

    Attributes:
        outcome: ``passed``, ``failed``; ``no target`` if no version was champion before, so that nothing was recorded.
        version: the version that a rollback would go to; empty if there is none.
        rows: logged rows that it predicted again.
        seconds: how long the check took.
        reason: the outcome in a sentence.
    """

    outcome: Literal["passed", "failed", "no target"]
    version: str
    rows: int
    seconds: float
    reason: str


def drill(spec: ModelSpec, *, actor: str) -> RollbackDrill:
    """Check the version that a rollback would go to, and record the outcome in the ledger.

    Args:
        spec: the model.
        actor: who or what asks for it, for the ledger.

    Raises:
        RegistryError: MLflow cannot be reached.
        StorageError: the lake cannot be read or written.
    """
    began = time.monotonic()
    target = promotion.rollback_target(champion.read_state(spec))
    if not target:
        return _outcome("no target", "", 0, began, "no version was champion before the present one")
    rows = 0
    try:
        _, rows = promotion.check_target(spec, target)
    except (ArtifactError, RegistryRequestError) as error:
        result = _outcome(
            "failed", target, 0, began, f"a rollback to version {target} would fail: {error.cause}"
        )
    else:
        checked = (
            f"predicts {rows:,} logged rows as it did"
            if rows
            else "loads and predicts; it has no logged rows"
        )
        result = _outcome("passed", target, rows, began, f"version {target} {checked}")
    with ledger_anchors.anchored(spec.name):
        ledger.append(
            spec.name,
            kind=LedgerKind.ROLLBACK_DRILL,
            decision=Decision.PASSED if result["outcome"] == "passed" else Decision.FAILED,
            reason=result["reason"],
            actor=actor,
            model_version=target,
            evidence={"repeated_rows": rows, "seconds": result["seconds"]},
        )
    return result


def _outcome(
    outcome: Literal["passed", "failed", "no target"], version: str, rows: int, began: float, reason: str
) -> RollbackDrill:
    seconds = round(time.monotonic() - began, 1)
    return {"outcome": outcome, "version": version, "rows": rows, "seconds": seconds, "reason": reason}
