"""Incidents: what is wrong with a model, from the first bad sign until it is well again.

One incident at a time for each signal of a model. People are told when it opens, when it gets worse, and when it ends;
everything between is counted. Kept as one small JSON file a model, written whole under the model's lock. A notice
stays in the file's outbox until its channel has it: it is delivered at least once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from perennial.core import dates
from perennial.core.errors import PerennialError, StorageError
from perennial.core.settings import settings
from perennial.spec.alerts import Channel, Mute, Severity, matches
from perennial.spec.constraints import SignalState
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, locks, object_store

#: Signals that tell of a run and not of the model. A verdict of an old date says nothing about today; a run that failed
#: did fail, whatever its date.
RUN_SIGNAL_PREFIXES = ("failure:", "deadline:")
#: Notices kept for channels that do not take them; the oldest go first.
MAX_OUTBOX_NOTICES = 200


@dataclass(frozen=True)
class SignalObservation:
    """A signal as it was seen once.

    Attributes:
        state: ``undetermined`` neither opens an incident nor ends one.
        reason: why, for people; holds no values of the data.
        part: which of several parallel tasks it is about; -1: there is one.
        details: small and JSON-able, for machines: run, log.
    """

    state: SignalState
    reason: str = ""
    part: int = -1
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Incident:
    """One stretch of a signal being bad. Dates are partition dates; empty for a run that has none.

    Attributes:
        number: counts the incidents of this signal.
        severity, worst: the latest state, and the worst one so far; ``reason`` and ``worst_reason`` belong to them.
        count: how often it was seen. first, last: the dates it was seen at.
        closed: the date at which it was well again; empty while it is open.
        told: channels that were told of it.
        changed_at: when that was written (UTC).
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
    told: list[str] = field(default_factory=list)
    part: int = -1
    changed_at: str = ""


@dataclass(frozen=True)
class Notice:
    """What one channel is to be told of one incident."""

    id: str
    channel: str
    kind: Literal["opened", "updated", "closed"]
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
        state = {
            "opened": f"is {self.severity}",
            "updated": f"got worse, is {self.severity}",
            "closed": "is well again",
        }
        return f"{self.model}: {self.signal} {state[self.kind]}" + (
            f", partition {self.last}" if self.last else ""
        )

    @property
    def text(self) -> str:
        """Some lines: title, reason, history, owner, and where to look."""
        seen = "once" if self.count == 1 else f"{self.count} times since {self.first}"
        lines = [
            self.title,
            self.reason,
            f"Incident {self.number} of {self.signal}, seen {seen}. Owner: {self.owner}",
            *(f"{key}: {self.details[key]}" for key in ("run_id", "log") if self.details.get(key)),
        ]
        return "\n".join(filter(None, lines))


@dataclass
class IncidentLog:
    """Everything that is known of one model's incidents.

    Attributes:
        incidents: the open incident of each signal, or its last one.
        judged: the latest date that a verdict of each signal was for.
        mutes: those made by hand, as `Mute`'s JSON. recorded: those of the spec that the ledger has.
        outbox: notices not yet delivered.
    """

    incidents: dict[str, Incident] = field(default_factory=dict)
    judged: dict[str, str] = field(default_factory=dict)
    mutes: list[dict[str, Any]] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)
    outbox: list[Notice] = field(default_factory=list)

    @property
    def open(self) -> list[Incident]:
        """The open incidents, the worst first."""
        found = [i for i in self.incidents.values() if not i.closed]
        return sorted(found, key=lambda i: (i.severity != "bad", i.first, i.signal))

    def muted(self, spec: ModelSpec | None, signal: str, day: str) -> Mute | None:
        """What mutes a signal at a partition date (today where there is none): by hand, or in the spec."""
        day = day or _now()[:10]
        by_hand = [Mute.model_validate(m) for m in self.mutes]
        both = [*by_hand, *(spec.alerts.mute if spec else [])]
        return next((m for m in both if day <= m.until.isoformat() and matches(m.signals, signal)), None)


def log_uri(model: str) -> str:
    """Where a model's incidents are kept."""
    return f"{settings().lake}/incidents/{model}.json"


def read_log(model: str) -> IncidentLog:
    """A model's incidents.

    Raises:
        StorageError: they cannot be read.
    """
    try:
        found = json.loads(object_store.read_text(log_uri(model)))
        found["incidents"] = {name: Incident(**item) for name, item in found["incidents"].items()}
        found["outbox"] = [Notice(**item) for item in found["outbox"]]
        return IncidentLog(**found)
    except FileNotFoundError:
        return IncidentLog()
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{log_uri(model)} does not hold incidents: {error}",
            "remove it: open incidents are then told anew, and mutes made by hand are lost",
            model=model,
        ) from error


def record_signals(spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]) -> list[Notice]:
    """Take in what was found out at a partition date; opens, goes on with and ends incidents.

    What was taken in before changes nothing, and neither does a verdict older than the latest one.

    Returns:
        The outbox: the notices that this made, and those that were not delivered yet.

    Args:
        as_of: the partition date; empty for a run that has none.

    Raises:
        StorageError, BusyError: it could not be written.
    """
    if as_of:
        dates.parse_date(as_of, "as_of")
    book = read_log(spec.name)
    if not _apply_signals(book, spec, as_of, signals):
        return book.outbox
    with locks.hold(f"incidents-{spec.name}"):
        book = read_log(spec.name)
        _apply_signals(book, spec, as_of, signals)
        for mute in _mutes_to_record(book, spec):
            _record(spec.name, mute, "model.yaml")
            book.recorded.append(_mute_key(mute))
        _write(spec.name, book)
    return book.outbox


def notices_without_history(
    spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]
) -> list[Notice]:
    """The notices that `update` would make if nothing had happened before, where the lake cannot be asked."""
    book = IncidentLog()
    _apply_signals(book, spec, as_of, signals)
    return book.outbox


def observations_from_verdict(result: Mapping[str, Any]) -> dict[str, SignalObservation]:
    """The signals of a monitor step's result."""
    found = result.get("signals") or {}
    return {
        name: SignalObservation(item["state"], str(item.get("reason") or "")) for name, item in found.items()
    }


def deliver_notices(spec: ModelSpec, deliver: Callable[[Channel, Notice], bool]) -> int:
    """Deliver what is in the outbox; returns how many notices are left there for another time.

    Args:
        deliver: tells one channel; whether it took the notice.

    Raises:
        BusyError: another task is delivering. StorageError: the outbox cannot be read or written.
    """
    channels = {c.name: c for c in spec.alerts.all()}
    left = 0
    with locks.hold(f"notices-{spec.name}"):  # what two tasks send at once would come twice
        for notice in read_log(spec.name).outbox:
            channel = channels.get(notice.channel)  # a channel that was removed takes nothing more
            if channel is None or deliver(channel, notice):
                with locks.hold(f"incidents-{spec.name}"):
                    book = read_log(spec.name)
                    book.outbox = [n for n in book.outbox if n.id != notice.id]
                    _write(spec.name, book)
            else:
                left += 1
    return left


def mute_signals(model: str, mute: Mute, actor: str) -> None:
    """Mute signals by hand; a mute of the same signals takes the place of the one before. The ledger records it."""
    with locks.hold(f"incidents-{model}"):
        book = read_log(model)
        book.mutes = [m for m in book.mutes if m["signals"] != mute.signals] + [mute.model_dump(mode="json")]
        _record(model, mute, actor)
        _write(model, book)


def _record(model: str, mute: Mute, actor: str) -> None:
    ledger.append(
        model,
        kind="alerting",
        decision="muted",
        reason=mute.reason,
        actor=actor,
        evidence=mute.model_dump(mode="json", exclude={"reason"}),
    )


def _mute_key(mute: Mute) -> str:
    return mute.model_dump_json()


def _mutes_to_record(book: IncidentLog, spec: ModelSpec) -> list[Mute]:
    return [m for m in spec.alerts.mute if _mute_key(m) not in book.recorded]


def _write(model: str, book: IncidentLog) -> None:
    book.outbox = book.outbox[-MAX_OUTBOX_NOTICES:]
    object_store.write_text(log_uri(model), json.dumps(asdict(book), indent=1, sort_keys=True, default=str))


def _apply_signals(
    book: IncidentLog, spec: ModelSpec, as_of: str, signals: Mapping[str, SignalObservation]
) -> bool:
    """Change the book by signals; whether anything in it is to be written."""
    before = json.dumps(asdict(book), default=str)
    for name, signal in signals.items():
        if signal.state not in ("ok", "suspected", "bad", "undetermined"):
            raise PerennialError(
                f"signal {name} is {signal.state!r}", "this is a defect: report it", model=spec.name
            )
        if signal.state == "undetermined":
            continue
        if not name.startswith(RUN_SIGNAL_PREFIXES):
            if as_of < book.judged.get(name, ""):
                continue
            book.judged[name] = as_of
        found = book.incidents.get(name)
        if signal.state == "ok":
            if found and not found.closed and _ends_incident(found, as_of, signal):
                _close(book, spec, found, as_of, signal)
        else:
            _open_or_continue(book, spec, name, as_of, signal, signal.state)
    return json.dumps(asdict(book), default=str) != before or bool(_mutes_to_record(book, spec))


def _ends_incident(incident: Incident, as_of: str, signal: SignalObservation) -> bool:
    """Whether being well at a date ends it: not if it was bad at a later one, or in another part of the same one."""
    return as_of > incident.last or (as_of == incident.last and signal.part == incident.part)


def _open_or_continue(
    book: IncidentLog, spec: ModelSpec, name: str, as_of: str, signal: SignalObservation, state: Severity
) -> None:
    """Open an incident, or go on with the one that is open."""
    reason = signal.reason[:2000]
    found = book.incidents.get(name)
    worse = False
    if found is None or found.closed:
        number = found.number + 1 if found else 1
        found = Incident(
            name, number, state, state, reason, reason, as_of, as_of, part=signal.part, changed_at=_now()
        )
        book.incidents[name] = found
    else:
        worse = state == "bad" and found.worst == "suspected"
        if as_of != found.last:
            found.count += 1
            found.changed_at = _now()
        if as_of >= found.last:
            found.severity, found.reason, found.part = state, reason, signal.part
        if worse:
            found.worst, found.worst_reason = state, reason
        found.first, found.last = min(found.first, as_of), max(found.last, as_of)
    if book.muted(spec, name, as_of):
        return
    for channel in spec.alerts.all():
        if channel.wants(name, found.worst):
            if channel.name not in found.told:
                found.told.append(channel.name)
                _add_notice(book, spec, found, channel.name, "opened", signal)
            elif worse:
                _add_notice(book, spec, found, channel.name, "updated", signal)


def _close(
    book: IncidentLog, spec: ModelSpec, incident: Incident, as_of: str, signal: SignalObservation
) -> None:
    incident.closed, incident.changed_at = as_of, _now()
    if not book.muted(spec, incident.signal, as_of):
        for channel in incident.told:
            _add_notice(book, spec, incident, channel, "closed", signal)


def _add_notice(
    book: IncidentLog,
    spec: ModelSpec,
    incident: Incident,
    channel: str,
    kind: Literal["opened", "updated", "closed"],
    signal: SignalObservation,
) -> None:
    book.outbox.append(
        Notice(
            f"{incident.signal}/{incident.number}/{kind}/{channel}",
            channel,
            kind,
            spec.name,
            spec.owner,
            incident.signal,
            incident.number,
            incident.worst,
            signal.reason[:2000] if kind == "closed" else incident.worst_reason,
            incident.count,
            incident.first,
            incident.closed or incident.last,
            dict(signal.details),
        )
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
