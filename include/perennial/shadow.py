"""A challenger in the shadow: it scores the champion's nights without being seen, and takes over on paired evidence.

A challenger that passed the gate was better on nights that are over. With ``retraining.shadow_nights`` it has to be so
on nights that neither has seen, too: both score the same rows of each night, and what counts is the mean over the
nights of the difference in loss (a paired t interval, one number a night, looked at once).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perennial import ledger, manifest
from perennial.errors import DataError
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    from perennial import registry

KIND = "shadow"
BEGUN, PASSED, FAILED = "begun", "passed", "failed"
_Result = dict[str, Any]


def state(spec: ModelSpec, version: str) -> str | None:
    """What the ledger says of a version's time in the shadow; None: it has not begun."""
    records = [r for r in ledger.records(spec.name, KIND) if r["model_version"] == version]
    return str(records[-1]["decision"]) if records else None


def standing(spec: ModelSpec) -> _Result | None:
    """The record that the challenger in the shadow began with; None where there is none."""
    records = ledger.records(spec.name, KIND)
    return records[-1] if records and records[-1]["decision"] == BEGUN else None


def begin(spec: ModelSpec, *, version: str, champion: str, as_of: str, actor: str) -> None:
    """Put a version into the shadow; one that is there, or was, stays as it is."""
    if state(spec, version) is None:
        ledger.append(
            spec.name,
            kind=KIND,
            decision=BEGUN,
            reason=f"it is judged beside version {champion} for {spec.retraining.shadow_nights} nights",
            actor=actor,
            partition=as_of,
            model_version=version,
            evidence={"champion": champion},
        )


def compare(spec: ModelSpec, champion: registry.Version, as_of: str, labels_until: str) -> _Result | None:
    """Champion and challenger on the nights that neither has learned from or was judged on.

    Returns:
        None where no challenger is in the shadow of this champion; else ``version``, ``as_of`` (of its training),
        ``nights``, ``gain`` with its interval ``low`` to ``high`` (shares of the champion's loss), and ``state``:
        ``begun`` while nights are missing, then ``passed`` or ``failed``.
    """
    import numpy as np
    from scipy import stats

    from perennial import files, registry
    from perennial.evidence import gather
    from perennial.features import Features

    record = standing(spec)
    if record is None or record["evidence"]["champion"] != champion.version:
        return None
    challenger = registry.version(spec.name, record["model_version"])
    first = files.shift(challenger.tags["judged_on"].split("..")[1], 1)
    found: _Result = {
        "version": challenger.version,
        "as_of": record["partition"],
        "first": first,
        "state": BEGUN,
    }
    sides = []
    for version in (champion, challenger):
        trained = registry.spec(version)
        seen = gather(
            spec, registry.load(version), Features(trained), first, as_of, labels_until=labels_until
        ).labelled
        sides.append(seen.mean(seen.losses(spec.task, spec.metric)))
    old, new = sides
    known = np.isfinite(old) & np.isfinite(new)
    nights = int(known.sum())
    if nights < max(2, spec.retraining.shadow_nights):
        return found | {"nights": nights, "gain": None, "low": None, "high": None}
    saved, scale = (old - new)[known], max(float(old[known].mean()), 1e-12)
    low, high = stats.t.interval(spec.gate.confidence, nights - 1, saved.mean(), max(stats.sem(saved), 1e-12))
    passed = low / scale > spec.gate.margin
    numbers = {"gain": saved.mean() / scale, "low": low / scale, "high": high / scale}
    return found | {
        "nights": nights,
        **{k: round(float(v), 6) for k, v in numbers.items()},
        "state": PASSED if passed else FAILED,
    }


def conclude(spec: ModelSpec, *, as_of: str, actor: str) -> _Result:
    """End the shadow if the verdict of ``as_of`` says so: the challenger is promoted, or given up.

    Returns:
        As `promote.promote`; ``promoted`` is false where nothing ended.

    Raises:
        DataError: ``as_of`` was not monitored.
    """
    from perennial.promote import promote

    found = manifest.read(spec.name, "monitor", as_of)
    if found is None:
        raise DataError(
            "there is no verdict to conclude from",
            "run the monitor step first",
            model=spec.name,
            partition=as_of,
        )
    seen = found.result.get("shadow")
    if not seen:
        return {"promoted": False, "reason": "no challenger is in the shadow"}
    if seen["state"] == BEGUN:
        return {
            "promoted": False,
            "reason": f"version {seen['version']} has been compared on {seen['nights']} nights",
        }
    if state(spec, seen["version"]) == BEGUN:
        ledger.append(
            spec.name,
            kind=KIND,
            decision=seen["state"],
            reason=f"{spec.metric} {seen['gain']:+.2%} [{seen['low']:+.2%}, {seen['high']:+.2%}] "
            f"on {seen['nights']} nights",
            actor=actor,
            partition=seen["as_of"],
            model_version=seen["version"],
            evidence=seen,
        )
    if seen["state"] == FAILED:
        return {
            "promoted": False,
            "reason": f"version {seen['version']} was no better on {seen['nights']} nights",
        }
    return promote(spec, as_of=seen["as_of"], actor=actor, reason="better in the shadow")
