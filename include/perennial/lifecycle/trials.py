"""Trials: challengers that passed the gate are compared with the champion on new partitions.

The gate compares on past partitions. With ``retraining.trial``, a challenger that passed it must also be better on
partitions after its training before it becomes champion. In a shadow trial (`_shadow_trial`) the monitor step
compares both on the same rows, and scoring does not run it; in an A/B trial (`ab_trial`, with ``retraining.ab_share``)
it serves a share of the rows.
A model has at most one active trial. Its state is in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord, Policy

TrialState = Literal["running", "passed", "failed"]


class TrialEvaluation(TypedDict):
    """Champion and challenger compared on the partitions of a trial so far.

    Attributes:
        version: version of the challenger.
        as_of: the partition date as of which it was trained.
        first: first partition date that is compared.
        state: ``running`` while there is too little evidence.
        days: number of partition dates compared.
        due: number of partition dates that could be compared if all rows had labels.
        gain: mean reduction of the loss, as a share of the champion's loss; None if nothing was compared.
        low: lower end of the gain's confidence interval; None if there is none.
        high: upper end of the interval.
        ab_share: A/B trials only: share of the rows that the challenger serves.
        served: A/B trials only: number of partition dates that both served and whose labels are due.
    """

    version: str
    as_of: str
    first: str
    state: TrialState
    days: int
    due: NotRequired[int]
    gain: float | None
    low: float | None
    high: float | None
    ab_share: NotRequired[float]
    served: NotRequired[int]


def latest_decision(spec: ModelSpec, version: str) -> str | None:
    """The ledger's latest decision on a version's trial; None if there was no trial."""
    records = [r for r in ledger.records(spec.name, LedgerKind.TRIAL) if r["model_version"] == version]
    return records[-1]["decision"] if records else None


def active_trial(spec: ModelSpec) -> LedgerRecord | None:
    """The ledger record of the start of the active trial; None if there is no active trial."""
    records = ledger.records(spec.name, LedgerKind.TRIAL)
    return records[-1] if records and records[-1]["decision"] == Decision.STARTED else None


def passed_trial(spec: ModelSpec) -> LedgerRecord | None:
    """The end of the latest trial, if the challenger passed it."""
    records = ledger.records(spec.name, LedgerKind.TRIAL)
    return records[-1] if records and records[-1]["decision"] == Decision.PASSED else None


def describe_policy(spec: ModelSpec) -> str:
    """What a challenger does during its trial, as the end of a sentence."""
    policy = spec.retraining
    if policy.ab_share:
        return f"serves {policy.ab_share:.0%} of the rows for at most {policy.trial}"
    return f"is evaluated on {policy.trial} without serving"


def start_trial(spec: ModelSpec, *, version: str, champion: str, as_of: str, triggered_by: str) -> None:
    """Start the trial of a version that passed the gate, unless it had one; a cancelled one begins again."""
    if latest_decision(spec, version) in (None, Decision.CANCELLED):
        registry.set_alias(spec.name, version, "challenger")
        ledger.append(
            spec.name,
            kind=LedgerKind.TRIAL,
            decision=Decision.STARTED,
            reason=f"it {describe_policy(spec)}, compared with version {champion}",
            actor=Policy.GATE,
            partition=as_of,
            model_version=version,
            evidence={"champion": champion, "triggered_by": triggered_by},
        )


def cancel_outdated_trial(spec: ModelSpec, *, champion: str | None, actor: str) -> bool:
    """Cancel the active trial if the champion has changed since its start, or MLflow lost the challenger.

    Args:
        spec: the model.
        champion: version of the current champion.
        actor: who or what changed the champion.

    Returns:
        Whether a trial was cancelled.
    """
    record = active_trial(spec)
    if record is None:
        return False
    if record["evidence"]["champion"] != champion:
        reason = (
            f"it was compared with version {record['evidence']['champion']}, the champion is now {champion}"
        )
    elif registry.find_version(spec.name, record["model_version"]) is None:
        reason = "it was deleted in MLflow"
    else:
        return False
    ledger.append(
        spec.name,
        kind=LedgerKind.TRIAL,
        decision=Decision.CANCELLED,
        reason=reason,
        actor=actor,
        partition=record["partition"],
        model_version=record["model_version"],
        evidence={"champion": champion},
    )
    registry.remove_alias(spec.name, record["model_version"], "challenger")
    return True


def summarise(evaluation: Mapping[str, Any], metric: str) -> str:
    """Summarise a `TrialEvaluation` in words.

    Args:
        evaluation: the evaluation.
        metric: name of the loss.
    """
    gain, low, high = (evaluation[key] for key in ("gain", "low", "high"))
    on_partitions = f"on {evaluation['days']} partitions"
    if evaluation.get("due", 0) > evaluation["days"]:
        counts = f"{evaluation['days']} of {evaluation['due']}"
        on_partitions = f"on {counts} partitions (the others have too few labelled rows)"
    if evaluation.get("ab_share"):
        on_partitions += f", {evaluation['ab_share']:.0%} of the rows"
    if gain is not None and low is not None:
        return f"{metric} improvement {gain:+.2%} [{low:+.2%}, {high:+.2%}] {on_partitions}"
    if gain is not None:
        return f"{metric} improvement {gain:+.2%} {on_partitions}, too few for an interval"
    if "served" in evaluation:
        return f"none of {evaluation['served']} partitions could be compared: too few labelled rows of both versions"
    return f"compared {on_partitions} so far"
