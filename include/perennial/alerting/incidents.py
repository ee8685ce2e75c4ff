"""Incidents: problems of a model, from the first bad signal until the signal is ok again.

Each signal of a model has at most one open incident. Channels are notified when it opens, gets worse and closes; other
observations are only counted. The incidents of a model are stored in one small JSON file, which is written atomically
under the model's lock. A notice stays in the file's outbox until its channel has accepted it, so that it is delivered
at least once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from perennial.alerting._incident_log import (
    Announcement,
    Incident,
    IncidentLog,
    Notice,
    SignalObservation,
    apply_signals,
    close_incident,
    mutes_to_record,
)
from perennial.core import partitions
from perennial.core.errors import PerennialError, StorageFaultError
from perennial.core.settings import settings
from perennial.spec.alerts import Channel, Mute
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, locks, object_store
from perennial.storage.ledger import Decision, LedgerKind

__all__ = [
    "Announcement",
    "Incident",
    "IncidentLog",
    "Notice",
    "SignalObservation",
    "announce",
    "deliver_notices",
    "log_uri",
    "mute_signals",
    "notices_without_history",
    "observations_from_verdict",
    "read_log",
    "record_signals",
    "resolve_incident",
    "unmute_signals",
]

#: Most undelivered notices that are stored; the oldest are dropped first.
MAX_OUTBOX_NOTICES = 200


def log_uri(model: str) -> str:
    """The file of a model's incidents."""
    return f"{settings().lake}/incidents/{model}.json"


def read_log(model: str) -> IncidentLog:
    """Read a model's incidents.

    Raises:
        StorageError: the file cannot be read.
        StorageFaultError: it holds something else.
    """
    try:
        content = json.loads(object_store.read_text(log_uri(model)))
        content["incidents"] = {name: Incident(**item) for name, item in content["incidents"].items()}
        content["outbox"] = [Notice(**item) for item in content["outbox"]]
        content["announcements"] = [Announcement(**item) for item in content.get("announcements", ())]
        log = IncidentLog(**content)
        _forget_future_dates(log)
        return log
    except FileNotFoundError:
        return IncidentLog()
    except (ValueError, TypeError, KeyError) as error:
        raise StorageFaultError(
            f"{log_uri(model)} does not hold incidents: {error}",
            "delete it: open incidents are then reported again, and mutes set by hand are lost",
            model=model,
        ) from error


def _forget_future_dates(log: IncidentLog) -> None:
    """Remove dates that cannot exist yet, which earlier versions recorded: everything after them was ignored."""
    latest = partitions.DAILY.latest()
    log.verdict_dates = {name: day for name, day in log.verdict_dates.items() if day[:10] <= latest}
    for incident in log.incidents.values():
        incident.first = incident.first if incident.first[:10] <= latest else ""
        incident.last = incident.last if incident.last[:10] <= latest else ""


def record_signals(spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]) -> list[Notice]:
    """Open, continue and close incidents according to the signals of a partition date.

    Repeated observations change nothing, and neither does a verdict for a date before the latest one. A date in the
    future says nothing about the model: such runs are refused, and open no incident.

    Args:
        spec: the model.
        as_of: the partition date; empty for a run that has none.
        signals: observations by the signal's name.

    Returns:
        The outbox: new notices, and earlier ones that are not delivered yet.

    Raises:
        StorageError: the incidents cannot be read or written.
        LockHeldError: another task holds their lock.
    """
    if as_of:
        spec.cadence.parse(as_of, "as_of")
    log = read_log(spec.name)
    if not apply_signals(log, spec, as_of, signals):
        return log.outbox
    with locks.hold(f"incidents-{spec.name}"):
        log = read_log(spec.name)
        apply_signals(log, spec, as_of, signals)
        for mute in mutes_to_record(log, spec):
            _record_mute(spec.name, mute, "model.yaml")
            log.recorded_mutes.append(mute.model_dump_json())
        _write(spec.name, log)
    return log.outbox


def notices_without_history(
    spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]
) -> list[Notice]:
    """Compose the notices of `record_signals` for a model without incidents, without the lake.

    Used when the lake cannot be reached.

    Args:
        spec: the model.
        as_of: the partition date; empty for a run that has none.
        signals: observations by the signal's name.
    """
    log = IncidentLog()
    apply_signals(log, spec, as_of, signals)
    return log.outbox


def observations_from_verdict(result: Mapping[str, Any]) -> dict[str, SignalObservation]:
    """The signals in a monitor step's result, by name, each with the report that shows it."""
    signals = result.get("signals") or {}
    details = {"report": result["report"]} if result.get("report") else {}
    return {
        name: SignalObservation(signal["state"], str(signal.get("reason") or ""), details=details)
        for name, signal in signals.items()
    }


def announce(model: str, announcements: Iterable[Announcement], sequence: int = 0) -> None:
    """Put announcements into the outbox.

    Args:
        model: name of the model.
        announcements: of one decision or of several.
        sequence: the ledger's last record that they announce; 0 if they announce none.
    """
    with locks.hold(f"incidents-{model}"):
        log = read_log(model)
        if sequence and sequence <= log.announced:  # another task was faster
            return
        log.announcements += announcements
        log.announced = max(sequence, log.announced)
        _write(model, log)


def deliver_notices(spec: ModelSpec, deliver: Callable[[Channel, Notice | Announcement], bool]) -> int:
    """Deliver the outbox: notices of incidents, and announcements of decisions.

    Args:
        spec: the model.
        deliver: sends a message to a channel; returns whether the channel accepted it.

    Returns:
        The number of messages that stay in the outbox.

    Raises:
        LockHeldError: another task is delivering.
        StorageError: the outbox cannot be read or written.
    """
    channels = {c.name: c for c in spec.alerts.all_channels()}
    undelivered = 0
    with locks.hold(f"notices-{spec.name}"):  # two tasks in parallel would send each notice twice
        for notice in read_log(spec.name).undelivered:
            channel = channels.get(notice.channel)  # None: the channel was removed from the spec
            if channel is None or deliver(channel, notice):
                with locks.hold(f"incidents-{spec.name}"):
                    log = read_log(spec.name)
                    log.outbox = [n for n in log.outbox if n.id != notice.id]
                    log.announcements = [a for a in log.announcements if a.id != notice.id]
                    _write(spec.name, log)
            else:
                undelivered += 1
    return undelivered


def mute_signals(model: str, mute: Mute, actor: str) -> None:
    """Mute signals, and record it in the ledger; replaces an earlier mute of the same signals.

    Args:
        model: name of the model.
        mute: the signals, until when, and why.
        actor: who mutes, for the ledger.
    """
    with locks.hold(f"incidents-{model}"):
        log = read_log(model)
        others = [m for m in log.mutes if m["signals"] != mute.signals]
        log.mutes = [*others, mute.model_dump(mode="json")]
        _record_mute(model, mute, actor)
        _write(model, log)


def unmute_signals(model: str, signal: str, actor: str) -> None:
    """End a mute from the command line, and record it in the ledger.

    Args:
        model: name of the model.
        signal: the signal, or the pattern, as it was muted.
        actor: who ends it, for the ledger.

    Raises:
        PerennialError: it is not muted from the command line.
    """
    with locks.hold(f"incidents-{model}"):
        log = read_log(model)
        ended = [m for m in log.mutes if m["signals"] == [signal]]
        if not ended:
            names = ", ".join(name for m in log.mutes for name in m["signals"])
            raise PerennialError(
                f"{signal} is not muted from the command line",
                (f"muted are: {names}; " if names else "")
                + "a mute of model.yaml ends when it is removed from there",
                model=model,
            )
        log.mutes = [m for m in log.mutes if m not in ended]
        ledger.append(
            model,
            kind=LedgerKind.ALERTING,
            decision=Decision.UNMUTED,
            reason=f"the mute until {ended[0]['until']} was ended ({ended[0]['reason']})",
            actor=actor,
            evidence={"signals": [signal], "until": ended[0]["until"]},
        )
        _write(model, log)


def resolve_incident(spec: ModelSpec, signal: str, reason: str, actor: str) -> Incident:
    """Close an incident that no later run or verdict will close, and record it in the ledger.

    The next bad observation opens another one.

    Args:
        spec: the model.
        signal: name of the signal.
        reason: why it is over; sent to the channels that were notified.
        actor: who says so, for the ledger.

    Returns:
        The incident.

    Raises:
        PerennialError: the signal has no open incident.
    """
    with locks.hold(f"incidents-{spec.name}"):
        log = read_log(spec.name)
        incident = next((i for i in log.open if i.signal == signal), None)
        if incident is None:
            names = ", ".join(i.signal for i in log.open)
            raise PerennialError(
                f"{signal} has no open incident",
                f"open incidents: {names}" if names else "there is nothing to resolve",
                model=spec.name,
            )
        explanation = f"resolved by {actor}: {reason}"
        close_incident(log, spec, incident, incident.last, SignalObservation("ok", explanation))
        ledger.append(
            spec.name,
            kind=LedgerKind.ALERTING,
            decision=Decision.RESOLVED,
            reason=reason,
            actor=actor,
            evidence={"signal": signal, "number": incident.number, "incident": incident.explanation},
        )
        _write(spec.name, log)
    return incident


def _record_mute(model: str, mute: Mute, actor: str) -> None:
    ledger.append(
        model,
        kind=LedgerKind.ALERTING,
        decision=Decision.MUTED,
        reason=mute.reason,
        actor=actor,
        evidence=mute.model_dump(mode="json", exclude={"reason"}),
    )


def _write(model: str, log: IncidentLog) -> None:
    log.outbox = log.outbox[-MAX_OUTBOX_NOTICES:]
    log.announcements = log.announcements[-MAX_OUTBOX_NOTICES:]
    object_store.write_text(log_uri(model), json.dumps(asdict(log), indent=1, sort_keys=True, default=str))
