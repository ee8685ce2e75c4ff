"""The step `conclude`: a trial ends, and its challenger is promoted or given up."""

from __future__ import annotations

from perennial.core.errors import DataError
from perennial.lifecycle.trials import (
    BEGUN,
    FAILED,
    KIND,
    _Result,
    end_outdated_trial,
    latest_decision,
    summarise,
)
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, manifests


def conclude(spec: ModelSpec, *, as_of: str, actor: str) -> _Result:
    """End the trial if the verdict of ``as_of`` says so: the challenger is promoted, or given up.

    Returns:
        As `promotion.promote`; ``promoted`` is false where nothing ended.

    Raises:
        DataError: ``as_of`` was not monitored.
    """
    from perennial.lifecycle.promotion import promote

    champion = registry.champion(spec)
    if end_outdated_trial(spec, champion=champion.version if champion else None, actor=actor):
        return {"promoted": False, "reason": "the champion has changed since: the trial is over"}
    found = manifests.read(spec.name, "monitor", as_of)
    if found is None:
        raise DataError(
            "there is no verdict to conclude from",
            "run the monitor step first",
            model=spec.name,
            partition=as_of,
        )
    seen = found.result.get("shadow")
    if not seen:
        return {"promoted": False, "reason": "no challenger is on trial"}
    if seen["state"] == BEGUN:
        return {
            "promoted": False,
            "reason": f"version {seen['version']} is still on trial: {summarise(seen, spec.metric)}",
        }
    if latest_decision(spec, seen["version"]) == BEGUN:
        ledger.append(
            spec.name,
            kind=KIND,
            decision=seen["state"],
            reason=summarise(seen, spec.metric),
            actor=actor,
            partition=seen["as_of"],
            model_version=seen["version"],
            evidence=seen,
        )
    if seen["state"] == FAILED:
        return {
            "promoted": False,
            "reason": f"version {seen['version']} was not surely better: {summarise(seen, spec.metric)}",
        }
    return promote(
        spec, as_of=seen["as_of"], actor=actor, reason=f"better on trial: {summarise(seen, spec.metric)}"
    )
