"""The daily summary: one message each morning about all models.

It lists open questions, incidents, undetermined verdicts, decisions (refusals, too) and mutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from perennial.alerting import decisions, incidents
from perennial.core.dates import utc_timestamp
from perennial.core.partitions import date_of
from perennial.core.settings import settings
from perennial.spec.alerts import Channel, common_channel
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, object_store, pages
from perennial.storage.ledger import LedgerKind, LedgerRecord

#: The section of models whose incidents or decisions cannot be read.
_UNKNOWN = "Not known"


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


def compose(
    specs: Mapping[str, ModelSpec],
    moment: datetime | None = None,
    model_page: Callable[[str], str] = lambda model: "",
) -> DailySummary:
    """Compose the summary of the time since the last one that was sent, or of one day if there is none.

    Args:
        specs: the models, by name.
        moment: end of the reported period, with time zone; now by default.
        model_page: gives the address of a model's page, which ends the message if something is told of the model.

    Raises:
        StorageError: the lake cannot be read.
    """
    moment = moment or datetime.now(UTC)
    until, since = utc_timestamp(moment), _last_sent() or utc_timestamp(moment - timedelta(days=1))
    sections: dict[str, list[str]] = {
        "Open questions": [],
        "Open incidents": [],
        "Closed incidents": [],
        "Undetermined verdicts": [],
        "Decisions": [],
        "Mutes": [],
        _UNKNOWN: [],
    }
    mentioned = []
    for name, spec in specs.items():
        content, reason = pages.attempt(
            f"the daily summary of {name}", partial(_content, spec, since, moment)
        )
        content = content or {_UNKNOWN: [f"its state cannot be read: {reason}"]}
        for section, lines in content.items():
            sections[section] += [f"{name}: {line}" for line in lines]
        if any(content.values()) and (address := model_page(name)):
            mentioned.append(f"{name}: {address}")
    counts = {
        "questions": len(sections["Open questions"]),
        "incidents": len(sections["Open incidents"]),
        "closed": len(sections["Closed incidents"]),
        "undetermined": len(sections["Undetermined verdicts"]),
        "decisions": len(sections["Decisions"]),
        "mutes": len(sections["Mutes"]),
        "unknown": len(sections[_UNKNOWN]),
    }
    facts = counts | {"models": len(specs), "since": since, "until": until}
    if not any(counts.values()):
        line = f"Perennial, {until[:10]}: no incidents and no decisions for {_count(len(specs), 'model')}."
        return DailySummary(line, line, until, facts)
    title = f"Perennial, {until[:10]}: {_count(counts['incidents'], 'open incident')}, " + _count(
        counts["decisions"], "decision"
    )
    if counts["questions"]:
        title += f", {_count(counts['questions'], 'open question')}"
    sections["Pages of these models"] = mentioned
    parts = ["\n".join([head, *(f"- {line}" for line in lines)]) for head, lines in sections.items() if lines]
    return DailySummary(title, "\n\n".join([title, *parts]), until, facts)


def _content(spec: ModelSpec, since: str, moment: datetime) -> dict[str, list[str]]:
    """The lines on one model, by section."""
    log, records = incidents.read_log(spec.name), ledger.records(spec.name)
    return {
        "Open questions": [
            f"retrain as of {r['partition']}? Answer in Airflow: {r['reason']}"
            for r in decisions.open_questions(spec, records, moment)
        ],
        "Open incidents": list(_open(spec, log)),
        "Closed incidents": list(_closed(log, since)),
        "Undetermined verdicts": list(_undetermined(records)),
        "Decisions": [
            decisions.describe(r) for r in records if r["recorded_at"] >= since and decisions.is_reported(r)
        ],
        "Mutes": list(_mutes(spec, log)),
    }


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
    return list(
        {
            c.model_dump_json(exclude={"name", "signals", "severity", "decisions"}): c for c in selected
        }.values()
    )


def mark_sent(summary: DailySummary) -> None:
    """Store the end of the reported period, at which the next summary starts."""
    object_store.write_text(_uri(), json.dumps({"until": summary.until}))


def _uri() -> str:
    return f"{settings().lake}/daily_summary.json"


def _last_sent() -> str | None:
    try:
        return str(json.loads(object_store.read_text(_uri()))["until"])
    except (
        FileNotFoundError,
        ValueError,
        KeyError,
        TypeError,
    ):  # no file, or a damaged one: as if none was sent
        return None


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"


def _open(spec: ModelSpec, log: incidents.IncidentLog) -> Iterator[str]:
    for incident in log.open:
        muted = " (muted)" if log.muted(spec, incident.signal, incident.last) else ""
        since = incident.first or "a run without a date"
        yield (
            f"{incident.signal} is {incident.severity} since {since}, {incident.observed}{muted}: "
            f"{incident.explanation}"
        )


def _closed(log: incidents.IncidentLog, since: str) -> Iterator[str]:
    for incident in log.incidents.values():
        if incident.closed and incident.changed_at >= since:
            yield f"{incident.signal}, {incident.worst} from {incident.first} to {incident.last}"


def _undetermined(records: Sequence[LedgerRecord]) -> Iterator[str]:
    """The latest verdict, if it is undetermined: nobody can say that such a model is fine."""
    verdicts = [
        r
        for r in records
        if r["kind"] == LedgerKind.RETRAINING
        and r["evidence"].get("verdict")
        and not r["evidence"].get("backfill")
    ]
    latest = max(verdicts, key=lambda r: (r["partition"], r["sequence"]), default=None)
    if latest and latest["evidence"]["verdict"] == "undetermined":
        yield f"as of {latest['partition']}: {latest['reason']}"


def _mutes(spec: ModelSpec, log: incidents.IncidentLog) -> Iterator[str]:
    """Mutes that apply at the latest date of any signal, or today if there are no signals."""
    day = date_of(log.latest_date) if log.latest_date else datetime.now(UTC).date().isoformat()
    of_spec = ((m.signals, m.until.isoformat(), m.reason) for m in spec.alerts.mute)
    by_hand = ((m["signals"], m["until"], m["reason"]) for m in log.mutes)
    for signals, until, reason in (*by_hand, *of_spec):
        if until >= day:
            yield f"{', '.join(signals)} until {until}: {reason}"
