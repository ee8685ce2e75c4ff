"""The promotion step, the only one that moves ``champion``, and its counterpart, rollback. Both are light."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from perennial.core import dates
from perennial.core.errors import DataError, RegistryError
from perennial.core.settings import settings
from perennial.lifecycle import trials
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, locks, manifests, object_store

#: What moves the champion, and what the ledger says of it.
MOVES = {"promotion": "promoted", "rollback": "rolled back"}


def promote(spec: ModelSpec, *, as_of: str, actor: str, reason: str = "") -> dict[str, Any]:
    """Make the challenger trained for ``as_of`` champion, if its gate passed and nobody moved the champion since.

    Returns:
        promoted, version, previous, reason.

    Raises:
        DataError: no finished training for ``as_of``.
    """
    dates.parse_date(as_of, "as_of")
    trained = manifests.read(spec.name, "train", as_of)
    if trained is None:
        raise DataError(
            "there is no finished training",
            "run the train DAG for this date first",
            model=spec.name,
            partition=as_of,
        )
    result = trained.result
    gate, version = result["gate"], str(result["version"])
    why = "; ".join(gate["reasons"])
    with locks.hold(f"promote-{spec.name}"):
        now = _read_champion_state(spec, as_of)
        # The alias may point at it already: moved by a promotion that was killed before it wrote so, or by hand.
        before = now.known if now.champion == version else now.champion
        answer = {"promoted": False, "version": version, "previous": before, "reason": why}
        if not gate["passed"]:
            return answer | {"previous": now.champion}
        if version == now.champion == now.known:
            return answer | {"promoted": True, "previous": gate["champion"], "reason": "is champion already"}
        if any(r["model_version"] == version and r["decision"] == "promoted" for r in now.moves):
            why = f"version {version} was champion before and was given up: train again, or roll back to it"
            return answer | {"previous": now.champion, "reason": why}
        if before != gate["champion"]:
            why = f"the champion is {before} now, the challenger was compared with {gate['champion']}: train again"
            return answer | {"reason": why}
        if (
            before is not None
            and spec.retraining.trial_days
            and trials.latest_decision(spec, version) != trials.PASSED
        ):
            trials.start_trial(spec, version=version, champion=before, as_of=as_of, actor=actor)
            why = f"version {version} passed the gate, and {trials.describe_policy(spec)} first"
            return answer | {"reason": why}
        _move(spec, version, now)
        evidence = {
            "previous": before,
            "metrics": result["metrics"],
            "run_id": result["run_id"],
            "digest": result["digest"],
            "asked": reason,
        }
        _record(spec, "promotion", version, reason=why, actor=actor, evidence=evidence, as_of=as_of)
        trials.end_outdated_trial(spec, champion=version, actor=actor)
    return answer | {"promoted": True}


@dataclass(frozen=True)
class _ChampionState:
    """What is, and what the ledger knows of it.

    Attributes:
        champion: the version that the alias points at.
        moves: the ledger's moves of the champion, in order.
        begun: the version that a step began to make champion since the last of them.
    """

    champion: str | None
    moves: list[dict[str, Any]]
    begun: str | None

    @property
    def known(self) -> str | None:
        """The champion by the ledger."""
        return str(self.moves[-1]["model_version"]) if self.moves else None

    @property
    def since(self) -> int:
        """The number of the ledger's last move; 0 before the first."""
        return int(self.moves[-1]["sequence"]) if self.moves else 0


def _read_champion_state(spec: ModelSpec, as_of: str | None = None) -> _ChampionState:
    """What is; written down, once, where the champion is neither the ledger's nor what a killed step left.

    Then somebody moved it outside promotion.
    """
    found = registry.champion(spec)
    moves = [r for r in ledger.records(spec.name) if r["decision"] in MOVES.values()]
    uri = _promotion_intent_uri(spec)
    begun = json.loads(object_store.read_text(uri)) if object_store.exists(uri) else {}
    now = _ChampionState(found.version if found else None, moves, None)
    if begun.get("since") == now.since:
        now = replace(now, begun=begun["version"])
    if now.champion in (now.known, now.begun):
        return now
    seen = [r for r in ledger.records(spec.name, "champion moved outside") if r["sequence"] > now.since]
    if not seen or seen[-1]["model_version"] != (now.champion or ""):
        ledger.append(
            spec.name,
            kind="champion moved outside",
            decision="reported",
            actor="promotion",
            reason=f"the champion is version {now.champion}, the ledger's last is {now.known}",
            partition=as_of,
            model_version=now.champion,
            evidence={"ledger": now.known},
        )
    return now


def _promotion_intent_uri(spec: ModelSpec) -> str:
    return f"{settings().lake}/promotions/{spec.name}.json"


def _move(spec: ModelSpec, version: str, now: _ChampionState) -> None:
    """Point ``champion`` at a version, after saying so: whoever is killed before the record is told from a stranger."""
    object_store.write_text(_promotion_intent_uri(spec), json.dumps({"version": version, "since": now.since}))
    registry.set_alias(spec.name, version, "champion")


def _record(
    spec: ModelSpec,
    kind: str,
    version: str,
    *,
    reason: str,
    actor: str,
    evidence: dict[str, Any],
    as_of: str | None = None,
) -> None:
    """Write a move of the champion into the ledger."""
    ledger.append(
        spec.name,
        kind=kind,
        decision=MOVES[kind],
        reason=reason,
        actor=actor,
        evidence=evidence,
        partition=as_of,
        model_version=version,
    )


def rollback(spec: ModelSpec, *, actor: str, reason: str, to_version: str | None = None) -> dict[str, Any]:
    """Give ``champion`` back to an earlier version, after that version was loaded, checked and asked to predict.

    Args:
        to_version: the version; the champion before the present one when not given.

    Returns:
        version, previous.

    Raises:
        RegistryError: there is nothing to go back to. ArtifactError: the target's file is not what was registered;
        the champion stays.
    """
    if not reason.strip():
        raise DataError("a rollback needs a reason", "say why, for whoever reads the ledger", model=spec.name)
    with locks.hold(f"promote-{spec.name}"):
        now = _read_champion_state(spec)
        number, known = now.champion, now.known
        if number not in (None, known) and number == now.begun == (
            to_version or _predecessor(now.moves, known)
        ):
            target, number = str(number), known  # killed between the move and its record: complete it
            found = registry.version(spec.name, target)
        else:
            target = str(to_version or (_predecessor(now.moves, number) if number == known else known) or "")
            if not target or target == number:
                raise RegistryError(
                    f"no version to go back to (the champion is {number})",
                    "name one with to_version",
                    model=spec.name,
                )
            found = registry.version(spec.name, target)
            check_servable(found)
            _move(spec, target, now)
        evidence = {"previous": number, "digest": found.digest}
        _record(spec, "rollback", target, reason=reason, actor=actor, evidence=evidence)
        trials.end_outdated_trial(spec, champion=target, actor=actor)
    return {"version": target, "previous": number}


def _predecessor(moves: list[dict[str, Any]], number: str | None) -> str | None:
    """The champion that a version took the place of when it was promoted."""
    for record in reversed(moves):
        if record["model_version"] == number and record["decision"] == "promoted":
            return str(record["evidence"].get("previous") or "") or None
    return None


def check_servable(found: registry.ModelVersion) -> None:
    """Load a version (digest checked) and have it predict a row of nothing but missing values.

    Raises:
        ArtifactError: it cannot be used.
    """
    import numpy as np

    from perennial.core.errors import ArtifactError

    model = registry.load(found, fresh=True)  # as a machine without a copy of it would find it
    registry.spec(found)
    row = np.full((1, len(model.encoding.columns)), np.nan, dtype=np.float32)
    if not np.isfinite(model.predict_matrix(row)).all():
        raise ArtifactError(
            f"version {found.version} does not give a finite prediction",
            "choose another version",
            model=found.name,
        )
