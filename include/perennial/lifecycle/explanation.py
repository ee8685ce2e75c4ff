"""Explain from the ledger why a model was, or was not, retrained as of a date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perennial.core.errors import DataError
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord, Policy

#: Signal states that are listed, in this order, with their texts; of signals that are ok, only the names are listed.
_STATE_TEXTS = {"bad": "BAD", "suspected": "suspected", "undetermined": "undetermined"}
_TRAINING_TEXTS: dict[str, str] = {
    Decision.ACCEPTED: "passed the gate",
    Decision.REJECTED: "was rejected by the gate",
    Decision.FAILED: "failed",
}
_TRIAL_TEXTS: dict[str, str] = {
    Decision.STARTED: "is on trial",
    Decision.PASSED: "passed its trial",
    Decision.FAILED: "failed its trial",
    Decision.CANCELLED: "is no longer on trial",
}


def explain_decision(spec: ModelSpec, day: str) -> list[str]:
    """Explain the decision on a model's retraining as of a date: its evidence and its consequences.

    For a date without a decision, the latest decision before it is explained.

    Args:
        spec: the model.
        day: the partition date.

    Returns:
        Lines of text.

    Raises:
        DataError: there is no decision up to that date.
    """
    spec.cadence.parse(day, "the date" if spec.cadence.unit == "day" else "the partition")
    records = ledger.records(spec.name)
    decisions = [r for r in records if r["kind"] == LedgerKind.RETRAINING and r["partition"] <= day]
    if not decisions:
        raise DataError(
            "there is no decision on a retraining up to this date",
            f"run the DAG {spec.name}.monitor for that date first",
            model=spec.name,
            partition=day,
        )
    latest = max(r["partition"] for r in decisions)
    lines = [] if latest == day else [f"There is no decision for {day} itself; the latest one before it:"]
    proposal: LedgerRecord | None = None
    for decision in (r for r in decisions if r["partition"] == latest):
        if proposal:  # the answer to a proposal repeats its evidence
            question = f" ({proposal['reason']})"
            lines.append(f"{latest}: {decision['reason'].removesuffix(question)}.")
        else:
            lines += _describe_decision(decision)
        proposal = decision if decision["decision"] == Decision.PROPOSED else None
    lines += _describe_consequences(records, latest)
    return lines


def _describe_decision(record: LedgerRecord) -> Iterator[str]:
    evidence = record["evidence"]
    version = f"version {record['model_version']}" if record["model_version"] else "no champion"
    outcome = "no retraining was requested"
    if record["decision"] in (Decision.REQUESTED, Decision.PROPOSED):
        outcome = f"a retraining was {record['decision']} by {_decider(record)}"
    yield f"{record['partition']}: {outcome} ({version})."
    yield f"  Because: {record['reason']}"
    if evidence.get("since"):
        yield f"  It began on {evidence['since']}."
    yield from _describe_signals(evidence.get("signals") or {})
    if evidence.get("report"):
        yield f"  Report: {evidence['report']}"


def _decider(record: LedgerRecord) -> str:
    """Who decided; of a policy also the person who started the run, if one did."""
    actor, starter = record["actor"], record["evidence"].get("triggered_by", "scheduler")
    if actor not in list(Policy):
        return actor
    return f"the {actor}" + (f" (run started by {starter})" if starter != "scheduler" else "")


def _describe_signals(signals: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for state, text in _STATE_TEXTS.items():
        for name, signal in signals.items():
            if signal["state"] == state:
                yield f"  {name}: {text}: {signal['reason']}"
    ok = [name for name, signal in signals.items() if signal["state"] == "ok"]
    if ok:
        yield f"  OK: {', '.join(ok)}."


def _describe_consequences(records: list[LedgerRecord], day: str) -> Iterator[str]:
    """Describe the trainings, trials and promotions of a date, without repeating reasons."""
    of_day = [r for r in records if r["partition"] == day]
    reasons = {r["reason"] for r in of_day if r["kind"] == LedgerKind.RETRAINING}
    for record in of_day:
        version = f"Version {record['model_version']}"
        if record["kind"] == LedgerKind.TRAINING:
            yield from _describe_training(record, reasons)
        elif record["kind"] == LedgerKind.TRIAL:
            yield f"  {version} {_TRIAL_TEXTS.get(record['decision'], record['decision'])}: {record['reason']}"
        elif record["kind"] == LedgerKind.PROMOTION:
            reason = "" if record["reason"] in reasons else f": {record['reason']}"
            yield f"  {version} was {record['decision']} by {_decider(record)}{reason}"
        else:
            continue
        reasons.add(record["reason"])


def _describe_training(record: LedgerRecord, known_reasons: set[str]) -> Iterator[str]:
    version = f"Version {record['model_version']}" if record["model_version"] else "The training"
    window, request = record["evidence"].get("window"), record["evidence"].get("request") or {}
    trained_on = f", trained on the window {window}," if window else ""
    outcome = _TRAINING_TEXTS.get(record["decision"], record["decision"])
    yield f"  {version}{trained_on} {outcome}: {record['reason']}"
    # A retraining that was requested by a verdict has the reason of the verdict.
    if request.get("reason") and request["reason"] not in known_reasons:
        yield f"    It was requested by {request['actor'] or 'an unknown actor'}: {request['reason']}"
