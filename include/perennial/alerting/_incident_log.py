"""The incidents of one model as data, and what a signal does to them: nothing here reads or writes a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from perennial.core import dates, partitions
from perennial.core.errors import PerennialError
from perennial.spec.alerts import Mute, Severity, matches, signal_measure
from perennial.spec.constraints import SignalState
from perennial.spec.model_spec import ModelSpec

NoticeKind = Literal["opened", "updated", "closed"]

#: Signals about runs, not about the model. A verdict for an earlier date than the latest is ignored, but a failed run
#: is a problem whatever its date.
RUN_SIGNAL_PREFIXES = ("failure:", "deadline:")
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

    A failed run of a date that the schedule does not have, such as a mistyped one, counts as a run without a date:
    the next success ends it.

    Attributes:
        signal: name of the signal.
        number: number of this incident among those of the signal, from 1.
        severity: the latest state.
        worst: the worst state so far.
        reason: reason of the latest state.
        worst_reason: reason of the worst state.
        first: the first date on which it was observed.
        last: the last date on which it was observed.
        count: number of observations: of dates, or of runs that have none.
        closed: the date on which the signal was ok again, or, without a date, that day; empty while it is open.
        notified_channels: names of the channels that got a notice.
        part: map index of the mapped task that reported it last; -1 if the task is not mapped.
        run_id: the run that was observed last; empty for a verdict.
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
    run_id: str = ""
    changed_at: str = ""

    @property
    def explanation(self) -> str:
        """Why it is what it is now; the worst reason as well, if it was worse before."""
        if self.severity == self.worst:
            return self.reason or self.worst_reason
        return f"{self.reason}; before, it was {self.worst}: {self.worst_reason}"

    @property
    def observed(self) -> str:
        """How often it was observed, and when last."""
        if self.count == 1:
            return "observed once"
        return f"observed {self.count} times" + (f", last {self.last}" if self.last else "")


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
        observed = "once" if self.count == 1 else f"{self.count} times"
        if self.count > 1 and self.first:
            observed += f" since {self.first}"
        measure = signal_measure(self.signal)
        signal = f"{self.signal} ({measure})" if measure else self.signal
        lines = [
            self.title,
            self.reason,
            f"Incident {self.number} of {signal}, observed {observed}. Owner: {self.owner}",
            *(f"{key}: {self.details[key]}" for key in ("run_id", "log") if self.details.get(key)),
        ]
        return "\n".join(filter(None, lines))


@dataclass(frozen=True)
class Announcement:
    """A message about one decision for one channel.

    Attributes:
        id: unique among those of the model.
        channel: name of the channel.
        decision: name of the decision, as in ``alerts.channels[].decisions``.
        title: one line.
        text: the whole message, title included.
        details: small, JSON-serialisable details for programs.
    """

    id: str
    channel: str
    decision: str
    title: str
    text: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class IncidentLog:
    """Incidents, mutes and undelivered notices of one model.

    Attributes:
        incidents: the latest incident of each signal, by the signal's name.
        verdict_dates: the latest date that each signal has a verdict for.
        mutes: mutes from the command line, as JSON of `Mute`.
        recorded_mutes: mutes of the spec that are recorded in the ledger, as JSON.
        outbox: notices that are not delivered yet.
        announcements: announcements of decisions that are not delivered yet.
        announced: the ledger's last record whose decision was announced, or was not to be.
    """

    incidents: dict[str, Incident] = field(default_factory=dict)
    verdict_dates: dict[str, str] = field(default_factory=dict)
    mutes: list[dict[str, Any]] = field(default_factory=list)
    recorded_mutes: list[str] = field(default_factory=list)
    outbox: list[Notice] = field(default_factory=list)
    announcements: list[Announcement] = field(default_factory=list)
    announced: int = 0

    @property
    def open(self) -> list[Incident]:
        """The open incidents: bad ones first, then by date."""
        incidents = [i for i in self.incidents.values() if not i.closed]
        return sorted(incidents, key=lambda i: (i.severity != "bad", i.first, i.signal))

    @property
    def undelivered(self) -> list[Notice | Announcement]:
        """What waits to be delivered."""
        return [*self.outbox, *self.announcements]

    @property
    def latest_date(self) -> str:
        """The latest date that was observed of any signal; empty if there is none."""
        observed = [*self.verdict_dates.values(), *(i.closed or i.last for i in self.incidents.values())]
        return max(observed, default="")

    def muted(self, spec: ModelSpec, signal: str, day: str) -> bool:
        """Whether a signal is muted, from the command line or by the spec.

        Args:
            spec: the model.
            signal: name of the signal.
            day: the partition date; today if empty.
        """
        day = partitions.date_of(day) if day else dates.utc_now()[:10]
        by_hand = ((m["until"], m["signals"]) for m in self.mutes)
        of_spec = ((m.until.isoformat(), m.signals) for m in spec.alerts.mute)
        return any(day <= until and matches(signals, signal) for until, signals in (*by_hand, *of_spec))


def apply_signals(
    log: IncidentLog, spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]
) -> bool:
    """Update the log with signals; returns whether it has to be written."""
    if as_of and as_of > spec.cadence.latest():
        return False
    before = json.dumps(asdict(log), default=str)
    for name, signal in signals.items():
        if signal.state not in get_args(SignalState):
            raise PerennialError(
                f"signal {name} is {signal.state!r}", "this is a defect: report it", model=spec.name
            )
        if signal.state == "undetermined":
            continue
        day = as_of
        if name.startswith(RUN_SIGNAL_PREFIXES):
            if (
                signal.state != "ok"
                and spec.schedule.end
                and as_of
                and partitions.date_of(as_of) > spec.schedule.end.isoformat()
            ):
                day = ""  # no scheduled run reaches that date to end the incident
        else:
            if as_of < log.verdict_dates.get(name, ""):
                continue
            log.verdict_dates[name] = as_of
        incident = log.incidents.get(name)
        if signal.state != "ok":
            _open_or_continue(log, spec, name, day, signal, signal.state)
        elif incident and not incident.closed and _ends_incident(incident, as_of, signal):
            close_incident(log, spec, incident, as_of, signal)
    return json.dumps(asdict(log), default=str) != before or bool(mutes_to_record(log, spec))


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
            run_id=_run_id(signal),
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
    if as_of != incident.last if as_of else _run_id(signal) != incident.run_id:
        incident.count += 1
        incident.changed_at = dates.utc_now()
    if not as_of or as_of >= incident.last:
        incident.severity, incident.reason, incident.run_id = severity, reason, _run_id(signal)
    if as_of >= incident.last:
        incident.part = signal.part
    if severity == "bad" and incident.worst == "suspected":
        incident.worst, incident.worst_reason = severity, reason
    observed = list(filter(None, (incident.first, incident.last, as_of)))
    incident.first, incident.last = min(observed, default=""), max(observed, default="")


def _run_id(signal: SignalObservation) -> str:
    return str(signal.details.get("run_id") or "")


def close_incident(
    log: IncidentLog, spec: ModelSpec, incident: Incident, as_of: str, signal: SignalObservation
) -> None:
    """Close an incident on a date, or today; puts notices into the outbox."""
    incident.closed, incident.changed_at = as_of or dates.utc_now()[:10], dates.utc_now()
    if not log.muted(spec, incident.signal, as_of):
        for channel in incident.notified_channels:
            _add_notice(log, spec, incident, channel, "closed", signal, as_of)


def _add_notice(
    log: IncidentLog,
    spec: ModelSpec,
    incident: Incident,
    channel: str,
    kind: NoticeKind,
    signal: SignalObservation,
    closed: str = "",
) -> None:
    is_closed = kind == "closed"
    log.outbox.append(
        Notice(
            f"{incident.signal}/{incident.number}/{kind}/{channel}",
            channel,
            kind,
            spec.name,
            spec.owner,
            incident.signal,
            incident.number,
            incident.worst if is_closed else incident.severity,
            signal.reason[:MAX_REASON_LENGTH] if is_closed else incident.explanation,
            incident.count,
            incident.first,
            closed if is_closed else incident.last,
            dict(signal.details),
        )
    )


def mutes_to_record(log: IncidentLog, spec: ModelSpec) -> list[Mute]:
    """Mutes of the spec that the ledger does not have yet."""
    return [m for m in spec.alerts.mute if m.model_dump_json() not in log.recorded_mutes]
