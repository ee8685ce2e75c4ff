"""Holds: while a model is held, as for an audit, nothing of it is deleted by its retention, and no rows are erased."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from perennial.core.errors import LockHeldError, PerennialError
from perennial.lifecycle import ledger_anchors
from perennial.storage import ledger, locks
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord

#: Seconds that a hold waits for a deletion: that of a batch of old files takes a moment, an erasure minutes.
WAIT_SECONDS = 900


class ModelHeldError(PerennialError):
    """A model is held, so that nothing of it may be deleted."""


@contextmanager
def deletion(models: Collection[str], what: str) -> Iterator[None]:
    """Delete something of models in the block; who holds one of them meanwhile waits for its end.

    Args:
        models: their names.
        what: what is done, for the error: ``rows are erased``.

    Raises:
        ModelHeldError: one of them is held.
        LockHeldError: something else is being deleted of one of them.
    """
    with ExitStack() as stack:
        for name in sorted(models):  # in one order, or two would wait for each other
            stack.enter_context(locks.hold(_lock(name)))
        for name in sorted(models):
            refuse(name, what)
        yield


@contextmanager
def no_deletion(model: str) -> Iterator[None]:
    """Let nothing of a model be deleted while the block runs.

    Raises:
        LockHeldError: something was being deleted for longer than `WAIT_SECONDS`.
    """
    with locks.hold(_lock(model), WAIT_SECONDS):
        yield


def _lock(model: str) -> str:
    return f"delete-{model}"


def hold(model: str, *, reason: str, actor: str) -> LedgerRecord:
    """Hold what is stored of a model: nothing of it is deleted any more when this has returned.

    Args:
        model: name of the model.
        reason: why, such as the audit.
        actor: who asks for it.

    Raises:
        PerennialError: no reason is given.
        LockHeldError: it is held, but something that was being deleted before has not ended within `WAIT_SECONDS`.
    """
    with ledger_anchors.anchored(model):
        record = _record(model, Decision.STARTED, reason, actor, {})
    try:
        with no_deletion(model):  # whatever began before has ended
            return record
    except LockHeldError as error:
        raise LockHeldError(
            f"it is held, but what was being deleted when that began goes on after {WAIT_SECONDS // 60} minutes",
            "wait for the erasure to end: perennial ledger shows its record",
            model=model,
        ) from error


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
    with ledger_anchors.anchored(model), no_deletion(model):
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
        ModelHeldError: it is held.
    """
    for record in ledger.open_holds(model):
        raise ModelHeldError(
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
