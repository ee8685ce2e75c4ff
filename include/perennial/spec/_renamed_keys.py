"""Renamed keys and values of ``model.yaml``: an error about an old name mentions the new one."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["RENAMED_KEYS", "RENAMED_VALUES", "new_key", "new_value"]

#: Old path of a key, with ``[]`` for the items of a list, and its new path.
RENAMED_KEYS = {
    "gate.resample": "gate.bootstrap_unit",
    "gate.resamples": "gate.bootstrap_samples",
    "monitoring.judged_share": "monitoring.min_evaluated_share",
    "monitoring.false_alarms_a_year": "monitoring.false_alarms_per_year",
    "retraining.on": "retraining.triggers",
    "retraining.answer_hours": "retraining.approval_hours",
    "retraining.worth": "retraining.min_gain",
    "retraining.shadow_nights": "retraining.trial_days",
    "retraining.split": "retraining.ab_share",
    "retraining.lost_after_days": "retraining.abandoned_after_days",
    "alerts.channels[].digest": "alerts.channels[].daily_summary",
}
#: Path of a key, an old value of it, and its new value.
RENAMED_VALUES = {
    ("retraining.triggers[]", "value"): "gain",
    ("retraining.mode", "ask"): "approval",
}


def new_key(path: Sequence[str]) -> str | None:
    """The new path of a renamed key, list positions as in ``path``; None if the key was not renamed."""
    renamed = RENAMED_KEYS.get(_pattern(path))
    return None if renamed is None else ".".join((*path[:-1], renamed.rpartition(".")[2]))


def new_value(path: Sequence[str], value: object) -> str | None:
    """The new name of a key's value; None if it was not renamed."""
    return RENAMED_VALUES.get((_pattern(path), value)) if isinstance(value, str) else None


def _pattern(path: Sequence[str]) -> str:
    """A path such as ``alerts.channels[].digest``."""
    return ".".join(path[:1]) + "".join("[]" if part.isdigit() else f".{part}" for part in path[1:])
