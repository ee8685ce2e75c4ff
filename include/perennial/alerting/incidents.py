"""Incidents: problems of a model, from the first bad signal until the signal is ok again.

Each signal of a model has at most one open incident. Channels are notified when it opens, gets worse and closes; other
observations are only counted. The incidents of a model are stored in one small JSON file, which is written atomically
under the model's lock. A notice stays in the file's outbox until its channel has accepted it, so that it is delivered
at least once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from perennial.core import dates
from perennial.core.errors import PerennialError, StorageError
from perennial.core.settings import settings
from perennial.spec.alerts import Channel, Mute, Severity, matches
from perennial.spec.constraints import SignalState
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, locks, object_store
from perennial.storage.ledger import Decision, LedgerKind

NoticeKind = Literal["opened", "updated", "closed"]

#: Signals about runs, not about the model. A verdict for an earlier date than the latest is ignored, but a failed run
#: is a problem whatever its date.
RUN_SIGNAL_PREFIXES = ("failure:", "deadline:")
#: Most undelivered notices that are stored; the oldest are dropped first.
MAX_OUTBOX_NOTICES = 200
#: Characters of a reason that are stored.
MAX_REASON_LENGTH = 2000


@dataclass(frozen=True)
class SignalObservation:
    """The state of a signal at one partition date.

    Attributes:
        state: ``undetermined`` neither opens an incident nor closes one.
        reason: explanation for people, without values of the data.
        part: Airflow's map index of the mapped task that reports it; -1 if the task is not mapped.
        details: small, JSON-serialisable details for programs: run, log.
    """

    state: SignalState
    reason: str = ""
    part: int = -1
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Incident:
    """A period in which a signal is not ok. Dates are partition dates, empty for runs without one.

    Attributes:
        signal: name of the signal.
        number: number of this incident among those of the signal, from 1.
        severity: the latest state.
        worst: the worst state so far.
        reason: reason of the latest state.
        worst_reason: reason of the worst state.
        first: the first date on which it was observed.
        last: the last date on which it was observed.
        count: number of dates on which it was observed.
        closed: the date on which the signal was ok again; empty while the incident is open.
        notified_channels: names of the channels that got a notice.
        part: map index of the mapped task that reported it last; -1 if the task is not mapped.
        changed_at: time of the last change (UTC).
    """

    signal: str
    number: int
    severity: Severity
    worst: Severity
    reason: str
    worst_reason: str
    first: str
    last: str
    count: int = 1
    closed: str = ""
    notified_channels: list[str] = field(default_factory=list)
    part: int = -1
    changed_at: str = ""


@dataclass(frozen=True)
class Notice:
    """A message about one incident for one channel."""

    id: str
    channel: str
    kind: NoticeKind
    model: str
    owner: str
    signal: str
    number: int
    severity: Severity
    reason: str
    count: int
    first: str
    last: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """One line."""
        change = {
            "opened": f"is {self.severity}",
            "updated": f"got worse, is {self.severity}",
            "closed": "recovered",
        }
        return f"{self.model}: {self.signal} {change[self.kind]}" + (
            f", partition {self.last}" if self.last else ""
        )

    @property
    def text(self) -> str:
        """Title, reason, history, owner, run and log; one a line."""
        observed = "once" if self.count == 1 else f"{self.count} times since {self.first}"
        lines = [
            self.title,
            self.reason,
            f"Incident {self.number} of {self.signal}, observed {observed}. Owner: {self.owner}",
            *(f"{key}: {self.details[key]}" for key in ("run_id", "log") if self.details.get(key)),
        ]
        return "\n".join(filter(None, lines))


@dataclass
class IncidentLog:
    """Incidents, mutes and undelivered notices of one model.

    Attributes:
        incidents: the latest incident of each signal, by the signal's name.
        verdict_dates: the latest date that each signal has a verdict for.
        mutes: mutes from the command line, as JSON of `Mute`.
        recorded_mutes: mutes of the spec that are recorded in the ledger, as JSON.
        outbox: notices that are not delivered yet.
    """

    incidents: dict[str, Incident] = field(default_factory=dict)
    verdict_dates: dict[str, str] = field(default_factory=dict)
    mutes: list[dict[str, Any]] = field(default_factory=list)
    recorded_mutes: list[str] = field(default_factory=list)
    outbox: list[Notice] = field(default_factory=list)

    @property
    def open(self) -> list[Incident]:
        """The open incidents: bad ones first, then by date."""
        incidents = [i for i in self.incidents.values() if not i.closed]
        return sorted(incidents, key=lambda i: (i.severity != "bad", i.first, i.signal))

    def muted(self, spec: ModelSpec | None, signal: str, day: str) -> Mute | None:
        """The mute of a signal, from the command line or the spec; None if it is not muted.

        Args:
            spec: the model; without it, only mutes of the command line count.
            signal: name of the signal.
            day: the partition date; today if empty.
        """
        day = day or dates.utc_now()[:10]
        mutes = [*(Mute.model_validate(m) for m in self.mutes), *(spec.alerts.mute if spec else [])]
        return next((m for m in mutes if day <= m.until.isoformat() and matches(m.signals, signal)), None)


def log_uri(model: str) -> str:
    """The file of a model's incidents."""
    return f"{settings().lake}/incidents/{model}.json"


def read_log(model: str) -> IncidentLog:
    """Read a model's incidents.

    Raises:
        StorageError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(object_store.read_text(log_uri(model)))
        content["incidents"] = {name: Incident(**item) for name, item in content["incidents"].items()}
        content["outbox"] = [Notice(**item) for item in content["outbox"]]
        return IncidentLog(**content)
    except FileNotFoundError:
        return IncidentLog()
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{log_uri(model)} does not hold incidents: {error}",
            "delete it: open incidents are then reported again, and mutes set by hand are lost",
            model=model,
        ) from error


def record_signals(spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]) -> list[Notice]:
    """Open, continue and close incidents according to the signals of a partition date.

    Repeated observations change nothing, and neither does a verdict for a date before the latest one.

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
        dates.parse_date(as_of, "as_of")
    log = read_log(spec.name)
    if not _apply_signals(log, spec, as_of, signals):
        return log.outbox
    with locks.hold(f"incidents-{spec.name}"):
        log = read_log(spec.name)
        _apply_signals(log, spec, as_of, signals)
        for mute in _mutes_to_record(log, spec):
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
    _apply_signals(log, spec, as_of, signals)
    return log.outbox


def observations_from_verdict(result: Mapping[str, Any]) -> dict[str, SignalObservation]:
    """The signals in a monitor step's result, by name."""
    signals = result.get("signals") or {}
    return {
        name: SignalObservation(signal["state"], str(signal.get("reason") or ""))
        for name, signal in signals.items()
    }


def deliver_notices(spec: ModelSpec, deliver: Callable[[Channel, Notice], bool]) -> int:
    """Deliver the outbox.

    Args:
        spec: the model.
        deliver: sends a notice to a channel; returns whether the channel accepted it.

    Returns:
        The number of notices that stay in the outbox.

    Raises:
        LockHeldError: another task is delivering.
        StorageError: the outbox cannot be read or written.
    """
    channels = {c.name: c for c in spec.alerts.all_channels()}
    undelivered = 0
    with locks.hold(f"notices-{spec.name}"):  # two tasks in parallel would send each notice twice
        for notice in read_log(spec.name).outbox:
            channel = channels.get(notice.channel)  # None: the channel was removed from the spec
            if channel is None or deliver(channel, notice):
                with locks.hold(f"incidents-{spec.name}"):
                    log = read_log(spec.name)
                    log.outbox = [n for n in log.outbox if n.id != notice.id]
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


def _record_mute(model: str, mute: Mute, actor: str) -> None:
    ledger.append(
        model,
        kind=LedgerKind.ALERTING,
        decision=Decision.MUTED,
        reason=mute.reason,
        actor=actor,
        evidence=mute.model_dump(mode="json", exclude={"reason"}),
    )


def _mutes_to_record(log: IncidentLog, spec: ModelSpec) -> list[Mute]:
    """Mutes of the spec that the ledger does not have yet."""
    return [m for m in spec.alerts.mute if m.model_dump_json() not in log.recorded_mutes]


def _write(model: str, log: IncidentLog) -> None:
    log.outbox = log.outbox[-MAX_OUTBOX_NOTICES:]
    object_store.write_text(log_uri(model), json.dumps(asdict(log), indent=1, sort_keys=True, default=str))


def _apply_signals(
    log: IncidentLog, spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]
) -> bool:
    """Update the log with signals; returns whether it has to be written."""
    before = json.dumps(asdict(log), default=str)
    for name, signal in signals.items():
        if signal.state not in get_args(SignalState):
            raise PerennialError(
                f"signal {name} is {signal.state!r}", "this is a defect: report it", model=spec.name
            )
        if signal.state == "undetermined":
            continue
        if not name.startswith(RUN_SIGNAL_PREFIXES):
            if as_of < log.verdict_dates.get(name, ""):
                continue
            log.verdict_dates[name] = as_of
        incident = log.incidents.get(name)
        if signal.state != "ok":
            _open_or_continue(log, spec, name, as_of, signal, signal.state)
        elif incident and not incident.closed and _ends_incident(incident, as_of, signal):
            _close(log, spec, incident, as_of, signal)
    return json.dumps(asdict(log), default=str) != before or bool(_mutes_to_record(log, spec))


def _ends_incident(incident: Incident, as_of: str, signal: SignalObservation) -> bool:
    """Whether an ok signal closes an incident: not if a later date, or another mapped task, was bad."""
    return as_of > incident.last or (as_of == incident.last and signal.part == incident.part)


def _open_or_continue(
    log: IncidentLog, spec: ModelSpec, name: str, as_of: str, signal: SignalObservation, severity: Severity
) -> None:
    """Open an incident, or continue the open one; puts notices into the outbox."""
    incident, got_worse = log.incidents.get(name), False
    if incident is None or incident.closed:
        number = incident.number + 1 if incident else 1
        reason = signal.reason[:MAX_REASON_LENGTH]
        incident = Incident(
            name,
            number,
            severity,
            severity,
            reason,
            reason,
            as_of,
            as_of,
            part=signal.part,
            changed_at=dates.utc_now(),
        )
        log.incidents[name] = incident
    else:
        got_worse = severity == "bad" and incident.worst == "suspected"
        _continue(incident, as_of, signal, severity)
    if log.muted(spec, name, as_of):
        return
    for channel in spec.alerts.all_channels():
        if channel.accepts(name, incident.worst):
            if channel.name not in incident.notified_channels:
                incident.notified_channels.append(channel.name)
                _add_notice(log, spec, incident, channel.name, "opened", signal)
            elif got_worse:
                _add_notice(log, spec, incident, channel.name, "updated", signal)


def _continue(incident: Incident, as_of: str, signal: SignalObservation, severity: Severity) -> None:
    """Add one more observation to an open incident."""
    reason = signal.reason[:MAX_REASON_LENGTH]
    if as_of != incident.last:
        incident.count += 1
        incident.changed_at = dates.utc_now()
    if as_of >= incident.last:
        incident.severity, incident.reason, incident.part = severity, reason, signal.part
    if severity == "bad" and incident.worst == "suspected":
        incident.worst, incident.worst_reason = severity, reason
    incident.first, incident.last = min(incident.first, as_of), max(incident.last, as_of)


def _close(
    log: IncidentLog, spec: ModelSpec, incident: Incident, as_of: str, signal: SignalObservation
) -> None:
    incident.closed, incident.changed_at = as_of, dates.utc_now()
    if not log.muted(spec, incident.signal, as_of):
        for channel in incident.notified_channels:
            _add_notice(log, spec, incident, channel, "closed", signal)


def _add_notice(
    log: IncidentLog,
    spec: ModelSpec,
    incident: Incident,
    channel: str,
    kind: NoticeKind,
    signal: SignalObservation,
) -> None:
    log.outbox.append(
        Notice(
            f"{incident.signal}/{incident.number}/{kind}/{channel}",
            channel,
            kind,
            spec.name,
            spec.owner,
            incident.signal,
            incident.number,
            incident.worst,
            signal.reason[:MAX_REASON_LENGTH] if kind == "closed" else incident.worst_reason,
            incident.count,
            incident.first,
            incident.closed or incident.last,
            dict(signal.details),
        )
    )
