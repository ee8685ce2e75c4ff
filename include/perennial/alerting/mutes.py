"""Mutes by hand: a signal, until when, and why, checked against the partitions of the model."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from perennial.alerting import incidents
from perennial.core import dates, partitions
from perennial.core.errors import PerennialError
from perennial.spec.alerts import MAX_MUTE_DAYS, Mute
from perennial.spec.model_spec import ModelSpec

__all__ = ["check_mute", "mute_by_hand"]


def mute_by_hand(spec: ModelSpec, signal: str, until: str, reason: str, actor: str) -> Mute:
    """Mute a signal, or a pattern of signals, of a model.

    Args:
        spec: the model.
        signal: the signal, or a pattern.
        until: last date that is muted.
        reason: why, for the ledger.
        actor: who mutes, for the ledger.

    Raises:
        PerennialError: as `check_mute`.
    """
    mute = check_mute(spec, signal, until, reason)
    incidents.mute_signals(spec.name, mute, actor)
    return mute


def check_mute(spec: ModelSpec, signal: str, until: str, reason: str) -> Mute:
    """Refuse a mute that is not possible, or would mute nothing.

    The date is checked against the partitions of the model, since those, and not the days of the calendar, are muted.

    Raises:
        PerennialError: there is no such signal, the date is in the past or too far away, or the reason is too short.
    """
    values: Mapping[str, object] = {"signals": [signal], "until": until, "reason": reason}
    try:
        mute = Mute.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        raise PerennialError(
            f"{key} is {values[key]!r}: {first['msg']}",
            f"perennial mute {spec.name} features --until {_today(1)} --reason 'why'",
            model=spec.name,
        ) from None
    _check_until(spec, signal, until)
    return mute


def _check_until(spec: ModelSpec, signal: str, until: str) -> None:
    """Refuse a date before the partitions that are still to come, or a year after the latest one."""
    latest = incidents.read_log(spec.name).latest_date
    latest = latest and partitions.date_of(latest)
    first, last = latest or spec.schedule.start.isoformat(), dates.add_days(latest or _today(), MAX_MUTE_DAYS)
    if until < first:
        raise PerennialError(
            f"until {until} is before {first}, {'the latest partition' if latest else 'the first partition'}: "
            "nothing would be muted",
            f"give a later date; to end a mute: perennial unmute {spec.name} '{signal}'",
            model=spec.name,
        )
    if until > last:
        raise PerennialError(
            f"until {until} is more than {MAX_MUTE_DAYS} days after {latest or 'today'}",
            f"give a date up to {last}, and renew the mute then; a channel that is never to get the signal "
            "leaves it out of its alerts.channels[].signals",
            model=spec.name,
        )


def _today(after: int = 0) -> str:
    return dates.add_days(dates.utc_now()[:10], after)
