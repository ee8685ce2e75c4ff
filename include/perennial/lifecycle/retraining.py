"""Whether a verdict leads to a retraining: one light task, and one record in the ledger whichever way it goes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from perennial.core.dates import parse_date
from perennial.core.errors import DataError
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, locks, manifests

KIND = "retraining"
REQUESTED, DECLINED, PROPOSED = "requested", "declined", "proposed"
#: The actor of the no that comes of no answer.
NO_ANSWER = "nobody, in time"
GPU_BUDGET_DAYS = 30
#: What the record at the end of a training may say.
ENDED = frozenset({"trained", "refused", "failed", "unchanged", "promoted"})
_Records = list[dict[str, Any]]


def decide(spec: ModelSpec, *, as_of: str, actor: str, backfill: bool, run_id: str = "") -> dict[str, Any]:
    """Decide on a retraining after the monitoring of ``as_of``; asked again, the answer is the same.

    Every date here is a partition date: what the clock says plays no part.

    Args:
        actor: who or what decides, for the ledger.
        backfill: whether the run is a backfill; one never fires a retraining.

    Returns:
        ``retrain``, ``reason``, ``as_of``, ``triggers`` (those of `RetrainingSpec.on` that fired), ``proposed``
        (whether a person has to say yes first) and ``report`` (of the monitoring, where there is one).

    Raises:
        DataError: ``as_of`` was not monitored.
    """
    parse_date(as_of, "as_of")
    with locks.hold(f"decide-{spec.name}"):
        records = ledger.records(spec.name)
        decisions = [r for r in records if r["kind"] == KIND]
        before = [
            r
            for r in decisions
            if r["partition"] == as_of and r["evidence"].get("backfill", False) == backfill
        ]
        if before:
            last = before[-1]
            return _answer(last)
        found = manifests.read(spec.name, "monitor", as_of)
        if found is None:
            raise DataError(
                "there is no verdict to decide upon",
                "run the monitor step of that date first",
                model=spec.name,
                partition=as_of,
            )
        verdict = found.result
        triggers = _triggers(spec, verdict, as_of)
        against = None
        if triggers or backfill:
            against = _blocking_reason(spec, as_of, backfill, records, decisions) or _active_trial_reason(
                verdict
            )
        decision = DECLINED
        if triggers and against is None:
            decision = PROPOSED if spec.retraining.mode == "approval" else REQUESTED
        why = "; ".join(triggers.values()) or _no_trigger_reason(verdict)
        reason = why if against is None else f"{against} ({why})"
        record = ledger.append(
            spec.name,
            kind=KIND,
            decision=decision,
            reason=reason,
            actor=actor,
            partition=as_of,
            model_version=verdict.get("model_version"),
            evidence={
                "backfill": backfill,
                "triggers": sorted(triggers),
                "run_id": run_id,
                "monitor_run_id": found.run_id,
                "verdict": verdict.get("verdict"),
                "drift_share": verdict.get("drift_share"),
                "drifted": verdict.get("drifted", []),
                "signals": verdict.get("signals", {}),
                "since": _since(verdict, triggers),
                "performance": verdict.get("performance"),
                "report": verdict.get("report"),
            },
        )
        return _answer(record)


def record_answer(spec: ModelSpec, *, as_of: str, approved: bool, actor: str | None) -> dict[str, Any]:
    """A person's answer to the retraining that was proposed for ``as_of``; an answer stands, a second one is not heard.

    Args:
        actor: who answered; None where nobody did in time.

    Raises:
        DataError: none was proposed.
    """
    with locks.hold(f"decide-{spec.name}"):
        records = [r for r in _real(ledger.records(spec.name, KIND)) if r["partition"] == as_of]
        if not any(r["decision"] == PROPOSED for r in records):
            raise DataError(
                "no retraining was proposed", "look at the ledger", model=spec.name, partition=as_of
            )
        last = records[-1]
        if last["decision"] == PROPOSED:
            said = (
                f"{'approved' if approved else 'turned down'} by {actor}"
                if actor
                else "nobody answered in time"
            )
            last = ledger.append(
                spec.name,
                kind=KIND,
                decision=REQUESTED if approved else DECLINED,
                reason=f"{said} ({last['reason']})",
                actor=actor or NO_ANSWER,
                partition=as_of,
                model_version=last["model_version"],
                evidence=last["evidence"],
            )
        return _answer(last)


def request_in_flight(spec: ModelSpec, as_of: str) -> dict[str, Any] | None:
    """The record of the retraining that was asked for before ``as_of`` and has not ended; None where there is none."""
    found = _open_request(ledger.records(spec.name))
    old = found is not None and _days(found["partition"], as_of) > spec.retraining.abandoned_after_days
    return None if found is None or old or found["partition"] >= as_of else found


def _real(records: _Records) -> _Records:
    """The decisions on retrainings that no backfill made."""
    return [r for r in records if r["kind"] == KIND and not r["evidence"].get("backfill")]


def _open_request(records: _Records) -> dict[str, Any] | None:
    """The last request, where no training came of it yet."""
    last = max(
        (r for r in records if r["kind"] == KIND and r["decision"] == REQUESTED),
        key=lambda r: r["partition"],
        default=None,
    )
    # Training of a date that was trained before changes nothing and leaves no record after the request.
    ended = last is not None and any(
        r["kind"] == "training"
        and r["decision"] in ENDED
        and (r["sequence"] > last["sequence"] or r["partition"] == last["partition"])
        for r in records
    )
    return None if ended else last


def _unanswered(spec: ModelSpec, records: _Records, as_of: str) -> str | None:
    """The partition of a retraining that a person has still time to answer to."""
    patience = -(-spec.retraining.approval_hours // 24)
    latest = {r["partition"]: r["decision"] for r in _real(records)}
    waiting = [p for p, said in latest.items() if said == PROPOSED and abs(_days(p, as_of)) <= patience]
    return max(waiting, default=None)


def _since(verdict: dict[str, Any], triggers: Mapping[str, str]) -> str:
    """The night on which began what asks for a retraining; empty where that is not known."""
    signals = verdict.get("signals") or {}
    return min((signals[t]["since"] for t in triggers if signals.get(t, {}).get("since")), default="")


def _answer(record: dict[str, Any]) -> dict[str, Any]:
    evidence = record["evidence"]
    return {
        "as_of": record["partition"],
        "retrain": record["decision"] == REQUESTED,
        "proposed": record["decision"] == PROPOSED,
        "reason": record["reason"],
        "triggers": list(evidence.get("triggers", [])),
        "report": evidence.get("report"),
    }


def _days(start: str, end: str) -> int:
    return (date.fromisoformat(end) - date.fromisoformat(start)).days


def _triggers(spec: ModelSpec, verdict: dict[str, Any], as_of: str) -> dict[str, str]:
    """What speaks for a retraining, each in a sentence. An undetermined verdict speaks for nothing."""
    signals = verdict.get("signals") or {}
    found = triggers_from_signals(signals)
    if verdict.get("verdict") == "drifted" and (why := harm_reason(spec, signals)):
        found["drift"] = f"drift: {verdict.get('reason', '')}; {why}"
    trained = verdict.get("champion_as_of")
    if trained and (age := _days(trained, as_of)) > spec.retraining.max_age_days:
        found["age"] = f"age: the champion has seen data up to {trained}, {age} days ago"
    if (share := verdict.get("new_rows") or 0.0) >= spec.retraining.new_rows:
        found["rows"] = f"rows: {share:.0%} as many new rows as the champion learned from"
    for what in verdict.get("changed") or []:
        found[what] = f"{what}: the champion was trained by another {what}"
    return {k: v for k, v in found.items() if k in spec.retraining.triggers}


def triggers_from_signals(signals: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What labels say for a retraining, each in a sentence.

    A rise of the loss alone does not ask for one: where recent labels teach nothing, a new model would do no better.
    Where that cannot be told (ranking, too few labels), it does.
    """
    gain, performance = signals.get("gain", {}), signals.get("performance", {})
    found = {}
    if gain.get("state") == "bad":
        found["gain"] = f"gain: {gain.get('reason', '')}"
    if performance.get("state") == "bad" and gain.get("state") != "ok":
        found["performance"] = f"performance: {performance.get('reason', '')}"
    return found


def harm_reason(spec: ModelSpec, signals: Mapping[str, Mapping[str, Any]]) -> str:
    """Why drifted rows matter to the model, as far as can be told; empty where they do not.

    Rows that drifted make harm likely, so that less evidence is asked for than without: the mean of what recent labels
    promise. Where there are no labels, the expected loss has to speak.
    """
    gain, estimated = signals.get("gain", {}), signals.get("estimated", {})
    if gain.get("state", "undetermined") != "undetermined":
        expected_gain = gain.get("value") or 0.0
        if expected_gain < spec.retraining.min_gain:
            return ""
        return f"recent labels promise {expected_gain:.1%} less loss, worth it from {spec.retraining.min_gain:.1%}"
    if estimated.get("state", "undetermined") == "undetermined":
        return "what it does to the model cannot be told yet"
    if estimated["state"] == "ok":
        return ""
    return f"no labels yet, but more loss is expected: {estimated.get('reason', '')}"


def _no_trigger_reason(verdict: dict[str, Any]) -> str:
    """Why nothing asks for a retraining."""
    tier = verdict.get("verdict", "undetermined")
    signals = verdict.get("signals") or {}
    said = [f"the verdict is {tier}: {verdict.get('reason') or 'nothing was found'}"]
    gain = signals.get("gain", {})
    if tier == "drifted":
        said.append(f"it does no harm that a retraining would mend: {gain.get('reason', '')}")
    if signals.get("performance", {}).get("state") == "bad":
        said.append(
            f"the loss rose ({signals['performance']['reason']}), but recent labels teach nothing better "
            f"({gain.get('reason', 'not known')}): look at the data"
        )
    return "; ".join(said)


def _blocking_reason(
    spec: ModelSpec, as_of: str, backfill: bool, records: _Records, decisions: _Records
) -> str | None:
    """What forbids a retraining, the first reason that holds."""
    policy = spec.retraining
    if backfill:
        return "a backfill never fires a retraining"
    for span in policy.freeze:
        if str(span.start) <= as_of <= str(span.end):
            return f"no retraining from {span.start} to {span.end}{span.reason and f': {span.reason}'}"
    if asked := _unanswered(spec, records, as_of):
        return f"the retraining proposed on {asked} waits for an answer"
    requests = [r for r in decisions if r["decision"] == REQUESTED]
    if later := [r["partition"] for r in requests if r["partition"] > as_of]:
        return f"a retraining was asked for at a later date, {max(later)}"
    if not requests:
        return "the budget of retrainings is 0" if policy.budget == 0 else None
    last = max(requests, key=lambda r: r["partition"])
    days = _days(last["partition"], as_of)
    if _open_request(records) is not None and days <= policy.abandoned_after_days:
        return f"the retraining asked for on {last['partition']} is still in flight"
    if days < policy.cooldown_days:
        return f"the last retraining was asked for {days} days ago, and {policy.cooldown_days} must pass"
    if policy.gpu_hours is not None and (used := _gpu_hours(records, as_of)) >= policy.gpu_hours:
        return f"the GPU budget is used up: {used:.1f} hours within {GPU_BUDGET_DAYS} days"
    spent = sum(1 for r in requests if _days(r["partition"], as_of) < policy.budget_days)
    if spent >= policy.budget:
        return f"the budget is used up: {spent} retrainings within {policy.budget_days} days"
    return None


def _active_trial_reason(verdict: dict[str, Any]) -> str | None:
    """Why a challenger on trial comes first, if there is one."""
    seen = verdict.get("shadow") or {}
    if seen.get("state") not in ("begun", "passed"):
        return None
    return f"version {seen['version']} is on trial, {seen['nights']} nights so far: it comes first"


def _gpu_hours(records: _Records, as_of: str) -> float:
    """GPU hours of the trainings of the last `GPU_DAYS` partition days."""
    recent = [
        r for r in records if r["kind"] == "training" and 0 <= _days(r["partition"], as_of) < GPU_BUDGET_DAYS
    ]
    return sum(float(r["evidence"].get("gpu_seconds") or 0.0) for r in recent) / 3600
