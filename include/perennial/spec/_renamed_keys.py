"""Renamed keys and values of ``model.yaml``: an error about an old name mentions the new one.

Specs that are stored with versions of a model are read with their old names, so that an upgrade does not stop scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perennial.core.durations import Duration

__all__ = ["RENAMED_KEYS", "RENAMED_VALUES", "new_key", "new_value", "unit_hint", "upgrade"]

#: Old path of a key, with ``[]`` for the items of a list, and its new path.
RENAMED_KEYS = {
    "gate.resample": "gate.bootstrap_unit",
    "gate.resamples": "gate.bootstrap_samples",
    "monitoring.judged_share": "monitoring.min_evaluated_share",
    "monitoring.false_alarms_a_year": "monitoring.false_alarms_per_year",
    "retraining.on": "retraining.triggers",
    "retraining.answer_hours": "retraining.approval_hours",
    "retraining.worth": "retraining.min_gain",
    "retraining.shadow_nights": "retraining.trial",
    "retraining.split": "retraining.ab_share",
    "retraining.lost_after_days": "retraining.abandoned_after",
    "label.arrives_after_days": "label.arrives_after",
    "training.window_days": "training.window",
    "training.holdout_days": "training.holdout",
    "monitoring.window_days": "monitoring.window",
    "retraining.trial_days": "retraining.trial",
    "retraining.cooldown_days": "retraining.cooldown",
    "retraining.budget_days": "retraining.budget_period",
    "retraining.max_age_days": "retraining.max_age",
    "retraining.abandoned_after_days": "retraining.abandoned_after",
    "alerts.channels[].digest": "alerts.channels[].daily_summary",
}
#: Path of a key, an old value of it, and its new value.
RENAMED_VALUES = {
    ("retraining.triggers[]", "value"): "gain",
    ("retraining.mode", "ask"): "approval",
    ("gate.bootstrap_unit", "days"): "partitions",
}
#: Ends of old keys whose values were numbers of days, and have their unit now.
_IN_DAYS = ("_days", "_nights")


def new_key(path: Sequence[str]) -> str | None:
    """The new path of a renamed key, list positions as in ``path``; None if the key was not renamed."""
    renamed = RENAMED_KEYS.get(_pattern(path))
    return None if renamed is None else ".".join((*path[:-1], renamed.rpartition(".")[2]))


def unit_hint(path: Sequence[str], value: object) -> str:
    """The line to write in place of a renamed key that was a number of days, after a colon; empty for other keys."""
    renamed = RENAMED_KEYS.get(_pattern(path), "")
    if not renamed or not path[-1].endswith(_IN_DAYS):
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        advice, duration = "write", Duration(value, "day")
    else:
        advice, duration = "write its unit, such as", Duration(14, "day")
    return f": {advice} `{renamed.rpartition('.')[2]}: {duration}`"


def new_value(path: Sequence[str], value: object) -> str | None:
    """The new name of a key's value; None if it was not renamed."""
    return RENAMED_VALUES.get((_pattern(path), value)) if isinstance(value, str) else None


def upgrade(value: Any, path: Sequence[str] = ()) -> Any:
    """A part of a stored spec with today's names and units.

    Args:
        value: content of the part, as an earlier version of the library or this one stored it.
        path: of the part; empty for the whole spec.
    """
    if isinstance(value, list):
        return [upgrade(item, (*path, str(number))) for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return new_value(path, value) or value
    content = {}
    for key, inner in value.items():
        renamed = RENAMED_KEYS.get(_pattern((*path, key)))
        name = renamed.rpartition(".")[2] if renamed else key  # a column's name may hold dots
        if name != key and key.endswith(_IN_DAYS) and isinstance(inner, int):
            inner = str(Duration(inner, "day"))
        content[name] = upgrade(inner, (*path, name))
    return content


def _pattern(path: Sequence[str]) -> str:
    """A path such as ``alerts.channels[].digest``."""
    return ".".join(path[:1]) + "".join("[]" if part.isdigit() else f".{part}" for part in path[1:])
