"""A challenger on trial: it scores the champion's nights without being seen, and takes over on paired evidence.

A challenger that passed the gate was better on nights that are over. With ``retraining.trial_days`` it has to be so
on nights that neither has seen, too: both score the same rows of each night, and what counts is the mean over the
nights of the difference in loss (a paired t interval, one number a night, looked at once). With ``retraining.ab_share`` it
serves a share of the rows instead, and `split` judges what came of them. One challenger is on trial at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger

KIND = "shadow"
BEGUN, PASSED, FAILED, ENDED = "begun", "passed", "failed", "ended"
_Result = dict[str, Any]


def latest_decision(spec: ModelSpec, version: str) -> str | None:
    """What the ledger says of a version's time in the shadow; None: it has not begun."""
    records = [r for r in ledger.records(spec.name, KIND) if r["model_version"] == version]
    return str(records[-1]["decision"]) if records else None


def active_trial(spec: ModelSpec) -> _Result | None:
    """The record that the challenger on trial began with; None where there is none."""
    records = ledger.records(spec.name, KIND)
    return records[-1] if records and records[-1]["decision"] == BEGUN else None


def describe_policy(spec: ModelSpec) -> str:
    """What the policy asks of a challenger that passed the gate, in words."""
    policy = spec.retraining
    if policy.ab_share:
        return f"serves {policy.ab_share:.0%} of the rows for {policy.trial_days} nights at most"
    return f"scores {policy.trial_days} nights unseen"


def start_trial(spec: ModelSpec, *, version: str, champion: str, as_of: str, actor: str) -> None:
    """Put a version on trial; one that is, or was, stays as it is."""
    if latest_decision(spec, version) is None:
        ledger.append(
            spec.name,
            kind=KIND,
            decision=BEGUN,
            reason=f"it {describe_policy(spec)}, beside version {champion}",
            actor=actor,
            partition=as_of,
            model_version=version,
            evidence={"champion": champion},
        )


def end_outdated_trial(spec: ModelSpec, *, champion: str | None, actor: str) -> bool:
    """End the trial of a challenger whose champion is champion no more; returns whether there was one."""
    record = active_trial(spec)
    if record is None or record["evidence"]["champion"] == champion:
        return False
    ledger.append(
        spec.name,
        kind=KIND,
        decision=ENDED,
        reason=f"it was compared with version {record['evidence']['champion']}, the champion is {champion} now",
        actor=actor,
        partition=record["partition"],
        model_version=record["model_version"],
        evidence={"champion": champion},
    )
    return True


def summarise(seen: Mapping[str, Any], metric: str) -> str:
    """What `compare` found, in words."""
    rows = f"on {seen['nights']} nights" + (f", {seen['split']:.0%} of the rows" if seen.get("split") else "")
    if seen["gain"] is not None and seen["low"] is not None:
        return f"{metric} {seen['gain']:+.2%} [{seen['low']:+.2%}, {seen['high']:+.2%}] {rows}"
    if seen["gain"] is not None:
        return f"{metric} {seen['gain']:+.2%} {rows}, too few to be sure of anything"
    if "served" in seen:
        return f"no night of {seen['served']} could be compared: too few rows with labels of both"
    return f"compared {rows} so far"
