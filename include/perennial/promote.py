"""The promotion step, the only one that moves ``champion``, and its counterpart, rollback. Both are light."""

from __future__ import annotations

from typing import Any

from perennial import files, ledger, lock, manifest, registry
from perennial.errors import DataError, RegistryError
from perennial.spec import ModelSpec


def promote(spec: ModelSpec, *, as_of: str, actor: str, reason: str = "") -> dict[str, Any]:
    """Make the challenger trained for ``as_of`` champion, if its gate passed and nobody moved the champion since.

    Returns:
        promoted, version, previous, reason.

    Raises:
        DataError: no finished training for ``as_of``.
    """
    files.parse_date(as_of, "as_of")
    trained = manifest.read(spec.name, "train", as_of)
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
    with lock.hold(f"promote-{spec.name}"):
        current = registry.champion(spec)
        number = current.version if current else None
        moves = _moves(spec)
        _report_foreign(spec, moves, number, as_of, mine=version if gate["passed"] else None)
        if not gate["passed"]:
            return {"promoted": False, "version": version, "previous": number, "reason": why}
        if number == version:
            if not moves or moves[-1]["model_version"] != version:  # killed before it was recorded
                _record(spec, as_of, version, gate["champion"], why, actor, result, reason)
            return {
                "promoted": True,
                "version": version,
                "previous": gate["champion"],
                "reason": "is champion already",
            }
        if any(r["model_version"] == version and r["decision"] == "promoted" for r in moves):
            why = f"version {version} was champion before and was given up: train again, or roll back to it"
            return {"promoted": False, "version": version, "previous": number, "reason": why}
        if number != gate["champion"]:
            why = f"the champion is {number} now, the challenger was compared with {gate['champion']}: train again"
            return {"promoted": False, "version": version, "previous": number, "reason": why}
        registry.set_alias(spec.name, version, "champion")
        _record(spec, as_of, version, number, why, actor, result, reason)
    return {"promoted": True, "version": version, "previous": number, "reason": why}


def _moves(spec: ModelSpec) -> list[dict[str, Any]]:
    """The ledger's moves of the champion, in order."""
    return [r for r in ledger.records(spec.name) if r["decision"] in ("promoted", "rolled back")]


def _record(
    spec: ModelSpec,
    as_of: str,
    version: str,
    previous: str | None,
    why: str,
    actor: str,
    result: dict[str, Any],
    reason: str,
) -> None:
    evidence = {
        "previous": previous,
        "metrics": result["metrics"],
        "run_id": result["run_id"],
        "digest": result["digest"],
        "asked": reason,
    }
    ledger.append(
        spec.name,
        kind="promotion",
        decision="promoted",
        reason=why,
        actor=actor,
        evidence=evidence,
        partition=as_of,
        model_version=version,
    )


def _report_foreign(
    spec: ModelSpec, moves: list[dict[str, Any]], number: str | None, as_of: str | None, mine: str | None
) -> None:
    """Write down, once, that the champion is not the one the ledger knows: somebody moved it outside promotion.

    Args:
        mine: the version that this very step may have made champion before it was killed.
    """
    known = moves[-1]["model_version"] if moves else None
    if number == known or (number is not None and number == mine):
        return
    since = moves[-1]["sequence"] if moves else 0
    seen = [r for r in ledger.records(spec.name, "champion moved outside") if r["sequence"] > since]
    if seen and seen[-1]["model_version"] == (number or ""):
        return
    ledger.append(
        spec.name,
        kind="champion moved outside",
        decision="reported",
        actor="promotion",
        reason=f"the champion is version {number}, the ledger's last is {known}",
        partition=as_of,
        model_version=number,
        evidence={"ledger": known},
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
    with lock.hold(f"promote-{spec.name}"):
        current = registry.champion(spec)
        number = current.version if current else None
        moves = _moves(spec)
        known = moves[-1]["model_version"] if moves else None
        if number not in (None, known) and number == (to_version or _previous(moves, known)):
            target, number = str(number), known  # killed between the move and its record: complete it
            found = registry.version(spec.name, target)
        else:
            _report_foreign(spec, moves, number, None, mine=None)
            target = str(to_version or (_previous(moves, number) if number == known else known) or "")
            if not target or target == number:
                raise RegistryError(
                    f"no version to go back to (the champion is {number})",
                    "name one with to_version",
                    model=spec.name,
                )
            found = registry.version(spec.name, target)
            check(found)
            registry.set_alias(spec.name, target, "champion")
        ledger.append(
            spec.name,
            kind="rollback",
            decision="rolled back",
            reason=reason,
            actor=actor,
            model_version=target,
            evidence={"previous": number, "digest": found.digest},
        )
    return {"version": target, "previous": number}


def _previous(moves: list[dict[str, Any]], number: str | None) -> str | None:
    """The champion that a version took the place of when it was promoted."""
    for record in reversed(moves):
        if record["model_version"] == number and record["decision"] == "promoted":
            return str(record["evidence"].get("previous") or "") or None
    return None


def check(found: registry.Version) -> None:
    """Load a version (digest checked) and have it predict a row of nothing but missing values.

    Raises:
        ArtifactError: it cannot be used.
    """
    import numpy as np

    from perennial.errors import ArtifactError

    model = registry.load(found, fresh=True)  # as a machine without a copy of it would find it
    registry.spec(found)
    row = np.full((1, len(model.encoding.columns)), np.nan, dtype=np.float32)
    if not np.isfinite(model.predict_matrix(row)).all():
        raise ArtifactError(
            f"version {found.version} does not give a finite prediction",
            "choose another version",
            model=found.name,
        )
