"""Decide whether a verdict leads to a retraining, and record each decision in the ledger.

This runs in a light task. All dates are partition dates. The current time only tells which of them cannot exist yet:
decisions about those, which earlier versions recorded, do not count as the latest ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from perennial.core.errors import DataError
from perennial.core.partitions import DAILY, date_of, days_between, nominal_start
from perennial.lifecycle import champion_age
from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import RetrainingTrigger
from perennial.storage import ledger, locks, manifests
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord, Policy
from perennial.storage.manifests import Manifest

#: The actor of the rejection of a proposal that was not answered in time.
NO_ANSWER = "no answer in time"
#: The days that ``retraining.gpu_hours`` applies to.
GPU_BUDGET_DAYS = 30
#: Share of ``retraining.budget`` that the trigger ``regular`` may use.
REGULAR_BUDGET = 0.75


class RetrainingDecision(TypedDict):
    """The decision on a retraining.

    Attributes:
        as_of: the partition date.
        retrain: whether a retraining starts now.
        proposed: whether a person has to approve it first.
        reason: why, in a sentence.
        triggers: triggers that fired, sorted.
        report: URI of the monitoring report; None if there is none.
        decided_by: the policy, or the person who answered.
    """

    as_of: str
    retrain: bool
    proposed: bool
    reason: str
    triggers: list[RetrainingTrigger]
    report: str | None
    decided_by: str


def decide_retraining(
    spec: ModelSpec, *, as_of: str, actor: str, backfill: bool, run_id: str = ""
) -> RetrainingDecision:
    """Decide on a retraining after the monitoring of a date.

    A repeated call returns the recorded decision, unless what it was declined on has changed: the verdict, such as one
    from before there was a champion, the policy, or what blocked it. A request, a proposal and an answer stand.

    Args:
        spec: the model.
        as_of: the partition date.
        actor: who started the run, for the ledger; it is the policy that decides.
        backfill: whether the run belongs to a backfill, which never starts a retraining.
        run_id: the Airflow run, for the ledger.

    Raises:
        DataError: the date was not monitored.
    """
    spec.cadence.parse(as_of, "as_of")
    with locks.hold(f"decide-{spec.name}"):
        records = ledger.records(spec.name)
        earlier = [
            r
            for r in _decisions(records)
            if r["partition"] == as_of and r["evidence"].get("backfill", False) == backfill
        ]
        if any(r["decision"] != Decision.DECLINED for r in earlier):
            return _to_result(earlier[-1])
        monitoring = manifests.read(spec.name, "monitor", as_of)
        if monitoring is None and earlier:
            return _to_result(earlier[-1])
        if monitoring is None:
            raise DataError(
                "there is no verdict to decide on",
                "run the monitor step of that date first",
                model=spec.name,
                partition=as_of,
            )
        verdict = monitoring.result
        triggers, blocked = _due_retraining(spec, verdict, as_of, backfill, records)
        decision = _decision(spec, wanted=bool(triggers) and not blocked)
        evidence = _evidence(monitoring, triggers) | {"backfill": backfill, "run_id": run_id}
        if earlier and decision == Decision.DECLINED and _rests_on(earlier[-1], evidence):
            return _to_result(earlier[-1])
        reason = "; ".join(triggers.values()) or _no_trigger_reason(verdict)
        record = ledger.append(
            spec.name,
            kind=LedgerKind.RETRAINING,
            decision=decision,
            reason=f"{blocked} ({reason})" if blocked else reason,
            actor=Policy.RETRAINING,
            partition=as_of,
            model_version=verdict.get("model_version"),
            evidence=evidence | {"triggered_by": actor},
        )
        return _to_result(record)


def _due_retraining(
    spec: ModelSpec, verdict: Mapping[str, Any], as_of: str, backfill: bool, records: list[LedgerRecord]
) -> tuple[dict[RetrainingTrigger, str], str]:
    """The triggers that fired, and what prevents a retraining; a regular one is due while signals have to wait."""
    triggers, trial = _fired_triggers(spec, verdict, as_of), _active_trial_reason(verdict)
    blocked = _blocking_reason(spec, as_of, backfill, records) or trial if triggers or backfill else ""
    if triggers and not blocked:
        return triggers, ""
    due = _regular_reason(spec, verdict, as_of, records)
    if not due:
        return triggers, blocked
    regular_blocked = _blocking_reason(spec, as_of, backfill, records, regular=True) or trial
    if triggers and regular_blocked:
        return triggers, blocked
    return {"regular": due}, regular_blocked


def _decision(spec: ModelSpec, *, wanted: bool) -> Decision:
    if not wanted:
        return Decision.DECLINED
    return Decision.PROPOSED if spec.retraining.mode == "approval" else Decision.REQUESTED


def _rests_on(record: LedgerRecord, evidence: Mapping[str, Any]) -> bool:
    """Whether a recorded decision rests on the same verdict and triggers."""
    of_runs = ("run_id", "monitor_run_id", "report")
    return all(record["evidence"].get(key) == value for key, value in evidence.items() if key not in of_runs)


def record_answer(
    spec: ModelSpec, *, as_of: str, approved: bool, actor: str | None, reason: str = ""
) -> RetrainingDecision:
    """Record a person's answer to a proposed retraining.

    Only the first answer counts. A person's no starts the cooldown, as a retraining does.

    Args:
        spec: the model.
        as_of: the partition date that the retraining was proposed for.
        approved: the answer.
        actor: who answered; None if nobody answered in time.
        reason: why, in the person's words.

    Raises:
        DataError: no retraining was proposed for that date.
    """
    with locks.hold(f"decide-{spec.name}"):
        records = [
            r
            for r in _decisions(ledger.records(spec.name, LedgerKind.RETRAINING), with_backfills=False)
            if r["partition"] == as_of
        ]
        if not any(r["decision"] == Decision.PROPOSED for r in records):
            raise DataError(
                "no retraining was proposed",
                f"see the decisions: perennial ledger {spec.name}",
                model=spec.name,
                partition=as_of,
            )
        latest = records[-1]
        if latest["decision"] == Decision.PROPOSED:
            outcome = "approved" if approved else "rejected"
            answer = f"{outcome} by {actor}" if actor else "nobody answered in time"
            if actor and reason.strip():
                answer += f": {reason.strip()}"
            latest = ledger.append(
                spec.name,
                kind=LedgerKind.RETRAINING,
                decision=Decision.REQUESTED if approved else Decision.DECLINED,
                reason=f"{answer} ({latest['reason']})",
                actor=actor or NO_ANSWER,
                partition=as_of,
                model_version=latest["model_version"],
                evidence=latest["evidence"] | {ledger.ANSWER: answer},
            )
        return _to_result(latest)


def request_in_flight(spec: ModelSpec, as_of: str) -> LedgerRecord | None:
    """The open request of a retraining from before a date; None if there is none.

    A request is open until its training has ended, or it counts as abandoned.

    Args:
        spec: the model.
        as_of: the partition date.
    """
    request = _open_request(ledger.records(spec.name))
    if request is None or request["partition"] >= as_of:
        return None
    limit = spec.retraining.abandoned_after.after(request["partition"], spec.cadence)
    return None if nominal_start(as_of) > limit else request


def is_trained(spec: ModelSpec, as_of: str) -> bool:
    """Whether the training that was requested for a date has ended, with a version that passed the gate or did not.

    Args:
        spec: the model.
        as_of: the partition date.
    """
    records = ledger.records(spec.name)
    requested = [
        r["sequence"]
        for r in _decisions(records)
        if r["partition"] == as_of and r["decision"] == Decision.REQUESTED
    ]
    return any(
        r["kind"] == LedgerKind.TRAINING
        and r["partition"] == as_of
        and r["decision"] != Decision.FAILED
        and r["sequence"] > max(requested, default=0)
        for r in records
    )


def close_request(spec: ModelSpec, *, as_of: str, reason: str) -> bool:
    """Record the failure of the training of an open request, if the training left no record.

    A training that was killed, or whose pod never ran, cannot do so itself. The next verdict may then request a
    retraining again.

    Args:
        spec: the model.
        as_of: the partition date that the retraining was requested for.
        reason: why the training ended.

    Returns:
        Whether the request was open.
    """
    request = _open_request(ledger.records(spec.name))
    if request is None or request["partition"] != as_of:
        return False
    ledger.append(
        spec.name,
        kind=LedgerKind.TRAINING,
        decision=Decision.FAILED,
        reason=reason.split("\n")[0][:500],
        actor="scheduler",
        partition=as_of,
        evidence={"as_of": as_of, "request": {"actor": request["actor"], "reason": request["reason"]}},
    )
    return True


def _decisions(records: list[LedgerRecord], *, with_backfills: bool = True) -> list[LedgerRecord]:
    """The decisions on retrainings."""
    latest = DAILY.latest()
    return [
        r
        for r in records
        if r["kind"] == LedgerKind.RETRAINING
        and r["partition"][:10] <= latest
        and (with_backfills or not r["evidence"].get("backfill"))
    ]


def _open_request(records: list[LedgerRecord]) -> LedgerRecord | None:
    """The request with the latest partition date, if its training has not ended."""
    request = max(
        (r for r in _decisions(records) if r["decision"] == Decision.REQUESTED),
        key=lambda r: r["partition"],
        default=None,
    )
    # Training a date again with the same inputs adds no record after the request.
    ended = request is not None and any(
        r["kind"] == LedgerKind.TRAINING
        and (r["sequence"] > request["sequence"] or r["partition"] == request["partition"])
        for r in records
    )
    return None if ended else request


def _awaited_proposal(spec: ModelSpec, records: list[LedgerRecord], as_of: str) -> str | None:
    """The partition date of a proposed retraining that a person may still approve."""
    days = math.ceil(spec.retraining.approval_hours / 24)
    latest = {r["partition"]: r["decision"] for r in _decisions(records, with_backfills=False)}
    open_proposals = [
        partition
        for partition, decision in latest.items()
        if decision == Decision.PROPOSED and abs(days_between(partition, as_of)) <= days
    ]
    return max(open_proposals, default=None)


def _evidence(monitoring: Manifest, triggers: Mapping[RetrainingTrigger, str]) -> dict[str, Any]:
    """The evidence of a decision, for the ledger."""
    verdict = monitoring.result
    signals = verdict.get("signals") or {}
    causes: list[str] = [*triggers]
    if causes == ["regular"]:  # it stands in for signals in their cooldown
        causes = [n for n in ("gain", "performance") if signals.get(n, {}).get("state") == "bad"]
    return {
        "triggers": sorted(triggers),
        "monitor_run_id": monitoring.run_id,
        "verdict": verdict.get("verdict"),
        "drift_share": verdict.get("drift_share"),
        "drifted": verdict.get("drifted", []),
        "signals": verdict.get("signals", {}),
        # When the earliest trigger began; empty if no signal has that date.
        "since": min((signals[c]["since"] for c in causes if signals.get(c, {}).get("since")), default=""),
        "performance": verdict.get("performance"),
        "report": verdict.get("report"),
    }


def _to_result(record: LedgerRecord) -> RetrainingDecision:
    evidence = record["evidence"]
    return {
        "as_of": record["partition"],
        "retrain": record["decision"] == Decision.REQUESTED,
        "proposed": record["decision"] == Decision.PROPOSED,
        "reason": record["reason"],
        "triggers": list(evidence.get("triggers", [])),
        "report": evidence.get("report"),
        "decided_by": record["actor"],
    }


def _fired_triggers(spec: ModelSpec, verdict: Mapping[str, Any], as_of: str) -> dict[RetrainingTrigger, str]:
    """The policy's triggers that fired, each with its reason; an undetermined verdict fires none."""
    signals = verdict.get("signals") or {}
    fired = triggers_from_signals(signals)
    if verdict.get("verdict") == "drifted" and (harm := harm_reason(spec, signals)):
        fired["drift"] = f"drift: {verdict.get('reason', '')}; {harm}"
    fired |= champion_age.fired_triggers(spec, verdict, as_of)
    if (share := verdict.get("new_rows") or 0.0) >= spec.retraining.new_rows:
        fired["rows"] = f"rows: {share:.0%} as many new rows as the champion was trained on"
    for name in verdict.get("changed") or []:
        fired[name] = f"{name}: the champion was trained with another {name}"
    return {name: reason for name, reason in fired.items() if name in spec.retraining.triggers}


def triggers_from_signals(signals: Mapping[str, Mapping[str, Any]]) -> dict[RetrainingTrigger, str]:
    """The triggers that fire because of labels, each with its reason.

    A rise of the loss fires only if recent labels indicate a gain, since otherwise a new model would not be better; or
    if the gain is undetermined (ranking, too few labels).

    Args:
        signals: a monitor step's signals, by name.
    """
    gain, performance = signals.get("gain", {}), signals.get("performance", {})
    fired: dict[RetrainingTrigger, str] = {}
    if gain.get("state") == "bad":
        fired["gain"] = f"gain: {gain.get('reason', '')}"
    if performance.get("state") == "bad" and gain.get("state") != "ok":
        fired["performance"] = f"performance: {performance.get('reason', '')}"
    return fired


def harm_reason(spec: ModelSpec, signals: Mapping[str, Mapping[str, Any]]) -> str:
    """Why drift harms, or may harm, the model; empty if it does not.

    Drift makes harm likely, so that less evidence is needed than without drift: the mean gain estimated from recent
    labels must reach ``retraining.min_gain``. Without labels, the estimated loss decides.

    Args:
        spec: the model.
        signals: a monitor step's signals, by name.
    """
    gain, estimated = signals.get("gain", {}), signals.get("estimated", {})
    if gain.get("state", "undetermined") != "undetermined":
        mean_gain, min_gain = gain.get("value") or 0.0, spec.retraining.min_gain
        if mean_gain < min_gain:
            return ""
        return f"recent labels indicate {mean_gain:.1%} less loss, min_gain is {min_gain:.1%}"
    if estimated.get("state", "undetermined") == "undetermined":
        return "its effect on the model is not known yet"
    if estimated["state"] == "ok":
        return ""
    return f"there are no labels yet, but a higher loss is expected: {estimated.get('reason', '')}"


def _no_trigger_reason(verdict: Mapping[str, Any]) -> str:
    """Why no trigger fired."""
    tier = verdict.get("verdict", "undetermined")
    signals = verdict.get("signals") or {}
    gain = signals.get("gain", {})
    reasons = [f"the verdict is {tier}" + (f": {verdict['reason']}" if verdict.get("reason") else "")]
    if tier == "drifted":
        reasons.append(f"retraining would not lower the loss: {gain.get('reason', '')}")
    if signals.get("performance", {}).get("state") == "bad":
        reasons.append(
            f"the loss rose ({signals['performance']['reason']}), but recent labels indicate no gain "
            f"({gain.get('reason', 'not known')}): check the data"
        )
    return "; ".join(reasons)


def _regular_reason(
    spec: ModelSpec, verdict: Mapping[str, Any], as_of: str, records: list[LedgerRecord]
) -> str:
    """Why a regular retraining is due; empty if none is.

    None is due without a champion, or while rows or labels do not arrive: there is nothing new to learn.
    """
    policy, signals = spec.retraining, verdict.get("signals") or {}
    champion = verdict.get("champion_as_of")
    if "regular" not in policy.triggers or not champion:
        return ""
    if any(signals.get(name, {}).get("state") == "bad" for name in ("freshness", "labels")):
        return ""
    trainings = [r for r in _decisions(records) if r["decision"] == Decision.REQUESTED]
    trainings += [r for r in records if r["kind"] == LedgerKind.TRAINING]
    last = max([champion, *(r["partition"] for r in trainings if r["partition"] <= as_of)])
    if nominal_start(as_of) < policy.regular.after(last, spec.cadence):
        return ""
    return f"regular: the last training was as of {last}, {policy.regular} (regular) ago or more"


def _blocking_reason(
    spec: ModelSpec, as_of: str, backfill: bool, records: list[LedgerRecord], *, regular: bool = False
) -> str:
    """The first reason that prevents a retraining, or a regular one; empty if there is none."""
    policy = spec.retraining
    if backfill:
        return "a backfill never starts a retraining"
    for span in policy.freeze:
        if str(span.start) <= date_of(as_of) <= str(span.end):
            return f"no retraining from {span.start} to {span.end}{span.reason and f': {span.reason}'}"
    if proposal := _awaited_proposal(spec, records, as_of):
        return f"the retraining proposed on {proposal} waits for an answer"
    if refusal := _recent_refusal(spec, records, as_of):
        return refusal
    requests = [r for r in _decisions(records) if r["decision"] == Decision.REQUESTED]
    if later := [r["partition"] for r in requests if r["partition"] > as_of]:
        return f"a retraining was requested for a later date, {max(later)}"
    if not requests:
        return "the budget of retrainings is 0" if policy.budget == 0 else ""
    last = max(requests, key=lambda r: r["partition"])
    moment, requested = nominal_start(as_of), last["partition"]
    if _open_request(records) and moment <= policy.abandoned_after.after(requested, spec.cadence):
        return f"the retraining requested on {requested} is still in flight"
    # A cooldown keeps a signal from requesting another training before it shows the effect of the last one.
    by_signals = [r for r in requests if r["evidence"].get("triggers") != ["regular"]]
    signalled = max((r["partition"] for r in by_signals), default="")
    if signalled and not regular and moment < policy.cooldown.after(signalled, spec.cadence):
        return f"the last retraining was requested on {signalled}, cooldown is {policy.cooldown}"
    if policy.gpu_hours is not None and (used := _gpu_hours(records, as_of)) >= policy.gpu_hours:
        return f"the GPU budget is used up: {used:.1f} hours within {GPU_BUDGET_DAYS} days"
    spent = sum(moment < policy.budget_period.after(r["partition"], spec.cadence) for r in requests)
    if spent >= policy.budget:
        return f"the budget is used up: {spent} retrainings within {policy.budget_period}"
    if regular and spent >= REGULAR_BUDGET * policy.budget:
        return (
            f"{spent} retrainings within {policy.budget_period}: the rest of the budget of {policy.budget} is kept for "
            "the other triggers"
        )
    return ""


def _recent_refusal(spec: ModelSpec, records: list[LedgerRecord], as_of: str) -> str:
    """Why a person's no prevents a retraining; empty if nobody said no within ``retraining.cooldown``."""
    cooldown = spec.retraining.cooldown
    recent = [
        r
        for r in _decisions(records, with_backfills=False)
        if r["decision"] == Decision.DECLINED
        and r["evidence"].get(ledger.ANSWER)
        and r["actor"] != NO_ANSWER
        and r["partition"] <= as_of
        and nominal_start(as_of) < cooldown.after(r["partition"], spec.cadence)
    ]
    if not recent:
        return ""
    refusal = max(recent, key=lambda r: r["partition"])
    answer = refusal["evidence"][ledger.ANSWER]
    return f"the retraining proposed on {refusal['partition']} was {answer}; cooldown is {cooldown}"


def _active_trial_reason(verdict: Mapping[str, Any]) -> str:
    """Why a retraining must wait for a trial; empty if there is none, or it failed."""
    trial = verdict.get("trial") or {}
    if trial.get("state") not in ("running", "passed"):
        return ""
    return f"version {trial['version']} is on trial, {trial['days']} partitions so far: it ends first"


def _gpu_hours(records: list[LedgerRecord], as_of: str) -> float:
    """GPU hours of the trainings of the last `GPU_BUDGET_DAYS` partition dates."""
    recent = [
        r
        for r in records
        if r["kind"] == LedgerKind.TRAINING and 0 <= days_between(r["partition"], as_of) < GPU_BUDGET_DAYS
    ]
    return sum(float(r["evidence"].get("gpu_seconds") or 0.0) for r in recent) / 3600
