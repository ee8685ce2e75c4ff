"""The conclude step: end a trial whose result is clear, and promote its challenger if it passed."""

from __future__ import annotations

from typing import TypedDict

from perennial.core.errors import DataError
from perennial.lifecycle import champion as champion_module
from perennial.lifecycle import promotion, trials
from perennial.lifecycle.trials import TrialEvaluation
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind, Policy


class TrialConclusion(TypedDict):
    """The outcome of a trial; a promotion adds the keys of `PromotionResult`.

    Attributes:
        promoted: whether the challenger is champion.
        reason: why.
    """

    promoted: bool
    reason: str


def conclude(spec: ModelSpec, *, as_of: str, actor: str) -> TrialConclusion:
    """End the active trial if the monitoring of a date has a result; promote a better challenger.

    Args:
        spec: the model.
        as_of: the partition date.
        actor: who started the run, for the ledger; it is the policy that decides.

    Raises:
        DataError: the date was not monitored.
    """
    champion = champion_module.get_champion(spec, partition=as_of, actor="trial").version
    if trials.cancel_outdated_trial(
        spec, champion=champion.version if champion else None, actor=Policy.TRIAL
    ):
        return {"promoted": False, "reason": "the champion has changed since: the trial is over"}
    monitoring = manifests.read(spec.name, "monitor", as_of)
    if monitoring is None:
        raise DataError(
            "there is no verdict to conclude from",
            "run the monitor step of that date first",
            model=spec.name,
            partition=as_of,
        )
    trial: TrialEvaluation | None = monitoring.result.get("trial")
    if not trial:
        active = trials.active_trial(spec)
        reason = f"version {active['model_version']} is on trial: monitor this date again" if active else ""
        return {"promoted": False, "reason": reason or "no challenger is on trial"}
    version, summary = trial["version"], trials.summarise(trial, spec.metric)
    if trial["state"] == "running":
        return {"promoted": False, "reason": f"version {version} is still on trial: {summary}"}
    if trials.latest_decision(spec, version) == Decision.STARTED:
        ledger.append(
            spec.name,
            kind=LedgerKind.TRIAL,
            decision=Decision.PASSED if trial["state"] == "passed" else Decision.FAILED,
            reason=summary,
            actor=Policy.TRIAL,
            partition=trial["as_of"],
            model_version=version,
            evidence={**trial, "triggered_by": actor},
        )
    if trial["state"] == "failed":
        registry.remove_alias(spec.name, version, "challenger")
        return {"promoted": False, "reason": f"version {version} was not clearly better: {summary}"}
    return promotion.promote_challenger(
        spec,
        as_of=trial["as_of"],
        actor=actor,
        reason=f"better on trial: {summary}",
        policy=Policy.TRIAL,
    )
