"""Promotion and rollback, which alone set the alias ``champion``, and record that in the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from perennial.core import dates
from perennial.core.errors import ArtifactError, DataError, RegistryError
from perennial.core.settings import settings
from perennial.lifecycle import trials
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, locks, manifests, object_store
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord

#: Kinds of ledger records about a change of the champion, with their decision.
CHAMPION_CHANGES = {LedgerKind.PROMOTION: Decision.PROMOTED, LedgerKind.ROLLBACK: Decision.ROLLED_BACK}


class PromotionResult(TypedDict):
    """The outcome of a promotion.

    Attributes:
        promoted: whether the challenger is champion now.
        version: version of the challenger.
        previous: the previous champion; if the challenger was not promoted, the current one.
        reason: why.
    """

    promoted: bool
    version: str
    previous: str | None
    reason: str


class RollbackResult(TypedDict):
    """The version that is champion again, and the one it replaced."""

    version: str
    previous: str | None


@dataclass(frozen=True)
class _ChampionState:
    """The champion in the registry, and in the ledger.

    Attributes:
        champion: the version that the alias points to.
        changes: the ledger's records about changes of the champion, in order.
        intended: the version that an unfinished step was about to make champion after the last change.
    """

    champion: str | None
    changes: list[LedgerRecord]
    intended: str | None

    @property
    def recorded(self) -> str | None:
        """The champion according to the ledger."""
        return self.changes[-1]["model_version"] if self.changes else None

    @property
    def last_change(self) -> int:
        """The sequence number of the ledger's last change of the champion; 0 before the first."""
        return self.changes[-1]["sequence"] if self.changes else 0


def promote_challenger(spec: ModelSpec, *, as_of: str, actor: str, reason: str = "") -> PromotionResult:
    """Make the challenger trained as of a date champion, or start its trial.

    It is promoted if it passed its gate, and the champion is still the one that the gate compared it with.

    Args:
        spec: the model.
        as_of: the partition date as of which it was trained.
        actor: who or what promotes, for the ledger.
        reason: why it was requested, for the ledger.

    Raises:
        DataError: no training of that date has finished.
    """
    training = _read_training(spec, as_of)
    gate, version = training["gate"], str(training["version"])
    gate_reasons = "; ".join(gate["reasons"])
    with locks.hold(f"promote-{spec.name}"):
        state = _read_champion_state(spec, as_of)
        # The alias may already point to the challenger: set by hand, or by a promotion killed before its record.
        previous = state.recorded if state.champion == version else state.champion
        if version == state.champion == state.recorded and gate["passed"]:
            return _result(True, version, gate["champion"], "it is already champion")
        if (refusal := _refusal(state, version, gate)) is not None:
            return _result(False, version, state.champion, refusal)
        if previous != (compared := gate["champion"]):
            refusal = (
                f"the champion is now {previous}, the challenger was compared with {compared}: train again"
            )
            return _result(False, version, previous, refusal)
        if _needs_trial(spec, version, previous):
            trials.start_trial(spec, version=version, champion=str(previous), as_of=as_of, actor=actor)
            trial = f"version {version} passed the gate, and {trials.describe_policy(spec)} first"
            return _result(False, version, previous, trial)
        _set_champion(spec, version, state)
        evidence = {key: training[key] for key in ("metrics", "run_id", "digest")}
        evidence |= {"previous": previous, "request_reason": reason}
        _record(
            spec,
            LedgerKind.PROMOTION,
            version,
            reason=gate_reasons,
            actor=actor,
            evidence=evidence,
            as_of=as_of,
        )
        trials.cancel_outdated_trial(spec, champion=version, actor=actor)
    return _result(True, version, previous, gate_reasons)


def _read_training(spec: ModelSpec, as_of: str) -> dict[str, Any]:
    """The result of the train step for a date."""
    dates.parse_date(as_of, "as_of")
    manifest = manifests.read(spec.name, "train", as_of)
    if manifest is None:
        raise DataError(
            "there is no finished training",
            "run the train DAG for this date first",
            model=spec.name,
            partition=as_of,
        )
    return manifest.result


def _result(promoted: bool, version: str, previous: str | None, reason: str) -> PromotionResult:
    return {"promoted": promoted, "version": version, "previous": previous, "reason": reason}


def _refusal(state: _ChampionState, version: str, gate: Mapping[str, Any]) -> str | None:
    """Why a challenger cannot be promoted, whichever version is champion; None if it can."""
    if not gate["passed"]:
        return "; ".join(gate["reasons"])
    if any(r["model_version"] == version and r["decision"] == Decision.PROMOTED for r in state.changes):
        return f"version {version} was champion before and was replaced: train again, or roll back to it"
    return None


def _needs_trial(spec: ModelSpec, version: str, champion: str | None) -> bool:
    """Whether a version must pass a trial first; not if there is no champion to compare with."""
    if champion is None or not spec.retraining.trial_days:
        return False
    return trials.latest_decision(spec, version) != Decision.PASSED


def _read_champion_state(spec: ModelSpec, as_of: str | None = None) -> _ChampionState:
    """Read the champion from registry and ledger, and report a change by others in the ledger, once.

    A change by others is a champion that the ledger does not have, and that no killed step was about to set.
    """
    champion = registry.get_champion(spec)
    changes = [r for r in ledger.records(spec.name) if r["decision"] in CHAMPION_CHANGES.values()]
    state = _ChampionState(champion.version if champion else None, changes, None)
    uri = _intent_uri(spec)
    intent = json.loads(object_store.read_text(uri)) if object_store.exists(uri) else {}
    if intent.get("after_move") == state.last_change:
        state = replace(state, intended=intent["version"])
    if state.champion in (state.recorded, state.intended):
        return state
    reports = [
        r for r in ledger.records(spec.name, LedgerKind.EXTERNAL_CHANGE) if r["sequence"] > state.last_change
    ]
    if not reports or reports[-1]["model_version"] != (state.champion or ""):
        ledger.append(
            spec.name,
            kind=LedgerKind.EXTERNAL_CHANGE,
            decision=Decision.REPORTED,
            actor="promotion",
            reason=f"the champion is version {state.champion}, the ledger's last is {state.recorded}",
            partition=as_of,
            model_version=state.champion,
            evidence={"ledger": state.recorded},
        )
    return state


def _intent_uri(spec: ModelSpec) -> str:
    """The file that names the version that a step is about to make champion."""
    return f"{settings().lake}/promotions/{spec.name}.json"


def _set_champion(spec: ModelSpec, version: str, state: _ChampionState) -> None:
    """Point ``champion`` to a version, and write the intent before.

    With the intent, the next step can distinguish a step that was killed before its record from a change by hand.
    """
    intent = {"version": version, "after_move": state.last_change}
    object_store.write_text(_intent_uri(spec), json.dumps(intent))
    registry.set_alias(spec.name, version, "champion")


def _record(
    spec: ModelSpec,
    kind: LedgerKind,
    version: str,
    *,
    reason: str,
    actor: str,
    evidence: dict[str, Any],
    as_of: str | None = None,
) -> None:
    """Record a change of the champion in the ledger."""
    ledger.append(
        spec.name,
        kind=kind,
        decision=CHAMPION_CHANGES[kind],
        reason=reason,
        actor=actor,
        evidence=evidence,
        partition=as_of,
        model_version=version,
    )


def roll_back_champion(
    spec: ModelSpec, *, actor: str, reason: str, to_version: str | None = None
) -> RollbackResult:
    """Make an earlier version champion again, after checking that it can predict.

    Args:
        spec: the model.
        actor: who rolls back, for the ledger.
        reason: why, for the ledger; must not be empty.
        to_version: the version; the previous champion by default.

    Raises:
        DataError: no reason is given.
        RegistryError: there is no version to roll back to.
        ArtifactError: the version's file is damaged, or it cannot predict; the champion is not changed.
    """
    if not reason.strip():
        raise DataError(
            "a rollback needs a reason", "give one; it is recorded in the ledger", model=spec.name
        )
    with locks.hold(f"promote-{spec.name}"):
        state = _read_champion_state(spec)
        current, recorded = state.champion, state.recorded
        interrupted = current not in (None, recorded) and current == state.intended
        if interrupted and current == (to_version or _predecessor(state.changes, recorded)):
            # A rollback was killed after it had set the champion and before its record: complete it.
            target, current = str(current), recorded
            version = registry.get_version(spec.name, target)
        else:
            default = _predecessor(state.changes, current) if current == recorded else recorded
            target = str(to_version or default or "")
            if not target or target == current:
                raise RegistryError(
                    f"there is no version to roll back to (the champion is {current})",
                    "name one with to_version",
                    model=spec.name,
                )
            version = registry.get_version(spec.name, target)
            check_servable(version)
            _set_champion(spec, target, state)
        evidence = {"previous": current, "digest": version.digest}
        _record(spec, LedgerKind.ROLLBACK, target, reason=reason, actor=actor, evidence=evidence)
        trials.cancel_outdated_trial(spec, champion=target, actor=actor)
    return {"version": target, "previous": current}


def _predecessor(changes: list[LedgerRecord], version: str | None) -> str | None:
    """The champion that a version replaced when it was promoted."""
    for record in reversed(changes):
        if record["model_version"] == version and record["decision"] == Decision.PROMOTED:
            return str(record["evidence"].get("previous") or "") or None
    return None


def check_servable(version: registry.ModelVersion) -> None:
    """Check that a version can serve: load it, check its digest, and predict a row of missing values.

    Raises:
        ArtifactError: its file is not what was registered, or its prediction is not finite.
    """
    import numpy as np  # not at the top: light tasks import this module and never call this function

    # fresh, because a copy in this machine's cache must not hide a damaged file.
    model = registry.load_model(version, fresh=True)
    registry.load_spec(version)
    row = np.full((1, len(model.encoding.columns)), np.nan, dtype=np.float32)
    if not np.isfinite(model.predict_matrix(row)).all():
        raise ArtifactError(
            f"version {version.version} does not return a finite prediction",
            "choose another version",
            model=version.name,
        )
