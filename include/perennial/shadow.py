"""A challenger on trial: it scores the champion's nights without being seen, and takes over on paired evidence.

A challenger that passed the gate was better on nights that are over. With ``retraining.shadow_nights`` it has to be so
on nights that neither has seen, too: both score the same rows of each night, and what counts is the mean over the
nights of the difference in loss (a paired t interval, one number a night, looked at once). With ``retraining.split`` it
serves a share of the rows instead, and `split` judges what came of them. One challenger is on trial at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perennial import ledger, manifest, registry
from perennial.errors import DataError
from perennial.spec import ModelSpec

KIND = "shadow"
BEGUN, PASSED, FAILED, ENDED = "begun", "passed", "failed", "ended"
_Result = dict[str, Any]


def state(spec: ModelSpec, version: str) -> str | None:
    """What the ledger says of a version's time in the shadow; None: it has not begun."""
    records = [r for r in ledger.records(spec.name, KIND) if r["model_version"] == version]
    return str(records[-1]["decision"]) if records else None


def standing(spec: ModelSpec) -> _Result | None:
    """The record that the challenger on trial began with; None where there is none."""
    records = ledger.records(spec.name, KIND)
    return records[-1] if records and records[-1]["decision"] == BEGUN else None


def trial(spec: ModelSpec) -> str:
    """What the policy asks of a challenger that passed the gate, in words."""
    policy = spec.retraining
    if policy.split:
        return f"serves {policy.split:.0%} of the rows for {policy.shadow_nights} nights at most"
    return f"scores {policy.shadow_nights} nights unseen"


def begin(spec: ModelSpec, *, version: str, champion: str, as_of: str, actor: str) -> None:
    """Put a version on trial; one that is, or was, stays as it is."""
    if state(spec, version) is None:
        ledger.append(
            spec.name,
            kind=KIND,
            decision=BEGUN,
            reason=f"it {trial(spec)}, beside version {champion}",
            actor=actor,
            partition=as_of,
            model_version=version,
            evidence={"champion": champion},
        )


def end(spec: ModelSpec, *, champion: str | None, actor: str) -> bool:
    """End the trial of a challenger whose champion is champion no more; returns whether there was one."""
    record = standing(spec)
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


def compare(spec: ModelSpec, champion: registry.Version, as_of: str, labels_until: str) -> _Result | None:
    """Champion and challenger on the nights that neither has learned from or was judged on.

    Returns:
        None where no challenger is on trial beside this champion; else ``version``, ``as_of`` (of its training),
        ``nights``, ``gain`` with its interval ``low`` to ``high`` (shares of the champion's loss), and ``state``:
        ``begun`` while nights are missing, then ``passed`` or ``failed``; of a split also what `split.compare` returns.
    """
    import numpy as np
    from scipy import stats

    from perennial import files, split
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
    if spec.retraining.split:
        return found | split.compare(spec, champion, challenger, record["partition"], as_of)
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


def said(seen: Mapping[str, Any], metric: str) -> str:
    """What `compare` found, in words."""
    rows = f"on {seen['nights']} nights" + (f", {seen['split']:.0%} of the rows" if seen.get("split") else "")
    if seen["gain"] is not None and seen["low"] is not None:
        return f"{metric} {seen['gain']:+.2%} [{seen['low']:+.2%}, {seen['high']:+.2%}] {rows}"
    if seen["gain"] is not None:
        return f"{metric} {seen['gain']:+.2%} {rows}, too few to be sure of anything"
    if "served" in seen:
        return f"no night of {seen['served']} could be compared: too few rows with labels of both"
    return f"compared {rows} so far"


def conclude(spec: ModelSpec, *, as_of: str, actor: str) -> _Result:
    """End the trial if the verdict of ``as_of`` says so: the challenger is promoted, or given up.

    Returns:
        As `promote.promote`; ``promoted`` is false where nothing ended.

    Raises:
        DataError: ``as_of`` was not monitored.
    """
    from perennial.promote import promote

    champion = registry.champion(spec)
    if end(spec, champion=champion.version if champion else None, actor=actor):
        return {"promoted": False, "reason": "the champion has changed since: the trial is over"}
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
        return {"promoted": False, "reason": "no challenger is on trial"}
    if seen["state"] == BEGUN:
        return {
            "promoted": False,
            "reason": f"version {seen['version']} is still on trial: {said(seen, spec.metric)}",
        }
    if state(spec, seen["version"]) == BEGUN:
        ledger.append(
            spec.name,
            kind=KIND,
            decision=seen["state"],
            reason=said(seen, spec.metric),
            actor=actor,
            partition=seen["as_of"],
            model_version=seen["version"],
            evidence=seen,
        )
    if seen["state"] == FAILED:
        return {
            "promoted": False,
            "reason": f"version {seen['version']} was not surely better: {said(seen, spec.metric)}",
        }
    return promote(
        spec, as_of=seen["as_of"], actor=actor, reason=f"better on trial: {said(seen, spec.metric)}"
    )
