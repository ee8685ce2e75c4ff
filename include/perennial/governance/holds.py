"""Holds: while a model is held, as for an audit, nothing of it is deleted by its retention, and no rows are erased."""

from __future__ import annotations

from perennial.core.errors import PerennialError
from perennial.lifecycle import ledger_anchors
from perennial.storage import ledger, locks
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord


def lock(model: str) -> str:
    """Name of the lock of whatever deletes something of a model, or holds it: a hold waits for a deletion to end."""
    return f"delete-{model}"


def hold(model: str, *, reason: str, actor: str) -> LedgerRecord:
    """Hold what is stored of a model.

    Args:
        model: name of the model.
        reason: why, such as the audit.
        actor: who asks for it.

    Raises:
        PerennialError: no reason is given.
        LockHeldError: something of the model is being deleted.
    """
    with ledger_anchors.anchored(model), locks.hold(lock(model)):
        return _record(model, Decision.STARTED, reason, actor, {})


def release(model: str, *, reason: str, actor: str, number: int | None = None) -> LedgerRecord:
    """End a hold on a model; others go on.

    Args:
        model: name of the model.
        reason: why.
        actor: who asks for it.
        number: the hold, by the number of its record; not needed if there is one only.

    Raises:
        PerennialError: it is not held, or several times and no number is given; or no reason is given.
    """
    with ledger_anchors.anchored(model), locks.hold(lock(model)):
        numbers = [record["sequence"] for record in ledger.open_holds(model)]
        if not numbers:
            raise PerennialError("it is not held", "perennial ledger shows its holds", model=model)
        if number not in numbers if number is not None else len(numbers) > 1:
            several = ", ".join(map(str, numbers))
            raise PerennialError(
                f"hold {number} is none that goes on"
                if number is not None
                else f"it is held {len(numbers)} times",
                f"name one of its records in the ledger by --hold: {several}",
                model=model,
            )
        return _record(model, Decision.RELEASED, reason, actor, {"hold": number or numbers[0]})


def describe(record: LedgerRecord) -> str:
    """Who holds a model since when, and why."""
    return f"{record['actor']} since {record['recorded_at']}: {record['reason']}"


def refuse(model: str, what: str) -> None:
    """Refuse what deletes something of a model that is held.

    Args:
        model: name of the model.
        what: what would be done, for the error: ``rows are erased``.

    Raises:
        PerennialError: it is held.
    """
    for record in ledger.open_holds(model):
        raise PerennialError(
            f"no {what}: {record['actor']} holds the model since {record['recorded_at']}: {record['reason']}",
            f"end the hold first: perennial release {model} --reason …",
            model=model,
        )


def _record(
    model: str, decision: Decision, reason: str, actor: str, evidence: dict[str, int]
) -> LedgerRecord:
    if not reason.strip():
        raise PerennialError("no reason is given", "say why with --reason", model=model)
    return ledger.append(
        model, kind=LedgerKind.HOLD, decision=decision, reason=reason.strip(), actor=actor, evidence=evidence
    )
