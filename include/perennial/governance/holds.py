"""Holds: while a model is held, as for an audit, nothing of it is deleted by its retention, and no rows are erased."""

from __future__ import annotations

from perennial.core.errors import PerennialError
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord


def open_hold(model: str) -> LedgerRecord | None:
    """The ledger's record of the hold on a model; None if it is not held."""
    records = ledger.records(model, LedgerKind.HOLD)
    return records[-1] if records and records[-1]["decision"] == Decision.STARTED else None


def hold(model: str, *, reason: str, actor: str) -> LedgerRecord:
    """Hold what is stored of a model.

    Args:
        model: name of the model.
        reason: why, such as the audit.
        actor: who asks for it.

    Raises:
        PerennialError: no reason is given.
    """
    return _record(model, Decision.STARTED, reason, actor)


def release(model: str, *, reason: str, actor: str) -> LedgerRecord:
    """End the hold on a model.

    Raises:
        PerennialError: it is not held, or no reason is given.
    """
    if open_hold(model) is None:
        raise PerennialError("it is not held", "perennial ledger shows its holds", model=model)
    return _record(model, Decision.RELEASED, reason, actor)


def refuse(model: str, what: str) -> None:
    """Refuse what deletes something of a model that is held.

    Args:
        model: name of the model.
        what: what would be done, for the error: ``rows are erased``.

    Raises:
        PerennialError: it is held.
    """
    record = open_hold(model)
    if record is not None:
        raise PerennialError(
            f"no {what}: {record['actor']} holds the model since {record['recorded_at']}: {record['reason']}",
            f"end the hold first: perennial release {model} --reason …",
            model=model,
        )


def _record(model: str, decision: Decision, reason: str, actor: str) -> LedgerRecord:
    if not reason.strip():
        raise PerennialError("no reason is given", "say why with --reason", model=model)
    return ledger.append(model, kind=LedgerKind.HOLD, decision=decision, reason=reason.strip(), actor=actor)
