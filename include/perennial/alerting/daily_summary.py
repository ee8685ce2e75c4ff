"""The daily summary: one message each morning with incidents, decisions and mutes of all models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from perennial.alerting import incidents
from perennial.core.dates import utc_timestamp
from perennial.core.settings import settings
from perennial.spec.alerts import Channel, common_channel
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, object_store
from perennial.storage.ledger import Decision, LedgerKind

#: Decisions that are listed, with their texts.
REPORTED_DECISIONS: dict[tuple[str, str], str] = {
    (LedgerKind.RETRAINING, Decision.PROPOSED): "retraining proposed, it waits for approval",
    (LedgerKind.RETRAINING, Decision.REQUESTED): "retraining requested",
    (LedgerKind.PROMOTION, Decision.PROMOTED): "promoted",
    (LedgerKind.ROLLBACK, Decision.ROLLED_BACK): "rolled back",
    (LedgerKind.EXTERNAL_CHANGE, Decision.REPORTED): "champion changed outside promotion:",
    (LedgerKind.TRIAL, Decision.STARTED): "on trial",
    (LedgerKind.TRIAL, Decision.FAILED): "trial failed:",
}


@dataclass(frozen=True)
class DailySummary:
    """The message of one day.

    Attributes:
        title: one line.
        text: the whole message, title included.
        until: end (UTC) of the reported period.
        facts: counts, for programs.
    """

    title: str
    text: str
    until: str
    facts: dict[str, Any]


def compose(specs: Mapping[str, ModelSpec], moment: datetime | None = None) -> DailySummary:
    """Compose the summary of the time since the last one that was sent, or of one day if there is none.

    Args:
        specs: the models, by name.
        moment: end of the reported period, with time zone; now by default.

    Raises:
        StorageError: the lake cannot be read.
    """
    moment = moment or datetime.now(UTC)
    until, since = utc_timestamp(moment), _last_sent() or utc_timestamp(moment - timedelta(days=1))
    sections: dict[str, list[str]] = {
        "Open incidents": [],
        "Closed incidents": [],
        "Decisions": [],
        "Mutes": [],
    }
    for name, spec in specs.items():
        log = incidents.read_log(name)
        sections["Open incidents"] += [f"{name}: {line}" for line in _open(spec, log)]
        sections["Closed incidents"] += [f"{name}: {line}" for line in _closed(log, since)]
        sections["Decisions"] += [f"{name}: {line}" for line in _decisions(name, since)]
        sections["Mutes"] += [f"{name}: {line}" for line in _mutes(spec, log)]
    counts = {
        "incidents": len(sections["Open incidents"]),
        "closed": len(sections["Closed incidents"]),
        "decisions": len(sections["Decisions"]),
        "mutes": len(sections["Mutes"]),
    }
    facts = counts | {"models": len(specs), "since": since, "until": until}
    if not any(counts.values()):
        line = f"Perennial, {until[:10]}: no incidents and no decisions for {_count(len(specs), 'model')}."
        return DailySummary(line, line, until, facts)
    title = f"Perennial, {until[:10]}: {_count(counts['incidents'], 'open incident')}, " + _count(
        counts["decisions"], "decision"
    )
    parts = ["\n".join([head, *(f"- {line}" for line in lines)]) for head, lines in sections.items() if lines]
    return DailySummary(title, "\n\n".join([title, *parts]), until, facts)


def channels(specs: Iterable[ModelSpec]) -> list[Channel]:
    """The channels that get the daily summary, each address once.

    Args:
        specs: the models.
    """
    common = common_channel()
    selected = [
        *([common] if common else []),
        *(c for s in specs for c in s.alerts.channels if c.daily_summary),
    ]
    return list({c.model_dump_json(exclude={"name", "signals", "severity"}): c for c in selected}.values())


def mark_sent(summary: DailySummary) -> None:
    """Store the end of the reported period, at which the next summary starts."""
    object_store.write_text(_uri(), json.dumps({"until": summary.until}))


def _uri() -> str:
    return f"{settings().lake}/daily_summary.json"


def _last_sent() -> str | None:
    try:
        return str(json.loads(object_store.read_text(_uri()))["until"])
    except FileNotFoundError:
        return None


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"


def _open(spec: ModelSpec, log: incidents.IncidentLog) -> Iterator[str]:
    for incident in log.open:
        observed = (
            "observed once"
            if incident.count == 1
            else f"observed {incident.count} times, last {incident.last}"
        )
        muted = " (muted)" if log.muted(spec, incident.signal, incident.last) else ""
        since = incident.first or "a run without a date"
        yield f"{incident.signal} is {incident.severity} since {since}, {observed}{muted}: {incident.reason}"


def _closed(log: incidents.IncidentLog, since: str) -> Iterator[str]:
    for incident in log.incidents.values():
        if incident.closed and incident.changed_at >= since:
            yield f"{incident.signal}, {incident.worst} from {incident.first} to {incident.last}"


def _decisions(model: str, since: str) -> Iterator[str]:
    for record in ledger.records(model):
        text = REPORTED_DECISIONS.get((record["kind"], record["decision"]))
        if text and record["recorded_at"] >= since:
            is_retraining = record["kind"] == LedgerKind.RETRAINING
            version = "" if is_retraining else f" version {record['model_version']}"
            partition = f", partition {record['partition']}" if record["partition"] else ""
            yield f"{text}{version}{partition}: {record['reason']}"


def _mutes(spec: ModelSpec, log: incidents.IncidentLog) -> Iterator[str]:
    """Mutes that apply at the latest date of any signal, or today if there are no signals."""
    observed = [*log.verdict_dates.values(), *(i.closed or i.last for i in log.incidents.values())]
    day = max(observed, default="") or datetime.now(UTC).date().isoformat()
    of_spec = ((m.signals, m.until.isoformat(), m.reason) for m in spec.alerts.mute)
    by_hand = ((m["signals"], m["until"], m["reason"]) for m in log.mutes)
    for signals, until, reason in (*by_hand, *of_spec):
        if until >= day:
            yield f"{', '.join(signals)} until {until}: {reason}"
