"""The triggers of retraining that rest on the age of the champion: its length, and what it costs by experience."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perennial.core.partitions import nominal_start
from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import RetrainingTrigger
from perennial.storage import manifests


def fired_triggers(
    spec: ModelSpec, verdict: Mapping[str, Any], as_of: str
) -> Iterator[tuple[RetrainingTrigger, str]]:
    """The triggers that fire on a partition date, each with its reason.

    Args:
        spec: the model.
        verdict: the result of the monitor step of that date.
        as_of: the partition date.

    Raises:
        StorageError: the manifest of the latest training cannot be read.
    """
    trained, max_age = verdict.get("champion_as_of"), spec.retraining.max_age
    if not trained:
        return
    if nominal_start(as_of) > max_age.after(trained, spec.cadence):
        yield (
            "age",
            f"age: the champion was trained on data up to {trained}, more than {max_age} (max_age) ago",
        )
    if "worth" in spec.retraining.triggers and (reason := _worth(spec, trained, as_of)):
        yield "worth", reason


def _worth(spec: ModelSpec, trained: str, as_of: str) -> str:
    """Why retraining is worth it, by the staleness curve of the latest training; empty if it is not."""
    curve = latest_staleness(spec.name, as_of)
    age = spec.cadence.index(as_of) - spec.cadence.index(trained)
    measured = [point for point in (curve or {}).get("ages", []) if 0 < point["older_by"] <= age]
    if not measured:
        return ""
    oldest = max(measured, key=lambda point: point["older_by"])
    if oldest["low"] <= spec.retraining.min_gain:
        return ""
    interval = f"{oldest['rise']:.1%} [{oldest['low']:.1%}, {oldest['high']:.1%}]"
    return (
        f"worth: the champion is {age} partitions old, and a model {oldest['older_by']} partitions older than another "
        f"one had {interval} more loss on the same rows; min_gain is {spec.retraining.min_gain:.1%}"
    )


def latest_staleness(model: str, as_of: str) -> dict[str, Any] | None:
    """The staleness curve that the latest training as of a date, or before it, has; None if there is none."""
    manifest = manifests.latest(model, "train", as_of)
    return (manifest.result.get("staleness") or None) if manifest else None
