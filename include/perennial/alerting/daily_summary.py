"""The morning's digest: one message on all models, of what is wrong, what was decided, and what is muted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from perennial.alerting import incidents
from perennial.core.settings import settings
from perennial.spec.alerts import Channel, common_channel
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, object_store

FORMAT = "%Y-%m-%dT%H:%M:%SZ"
#: Decisions that are news, by their kind, and what they are called. That nothing was decided is none.
REPORTED_DECISIONS = {
    ("retraining", "proposed"): "retraining proposed, it waits for an answer",
    ("retraining", "requested"): "retraining asked for",
    ("promotion", "promoted"): "promoted",
    ("rollback", "rolled back"): "rolled back",
    ("champion moved outside", "reported"): "champion moved outside promotion",
    ("shadow", "begun"): "on trial",
    ("shadow", "failed"): "given up after its trial",
}


@dataclass(frozen=True)
class DailySummary:
    """What is told, and the moment (UTC) up to which it tells."""

    title: str
    text: str
    until: str
    facts: dict[str, Any]


def compose(specs: Mapping[str, ModelSpec], now: datetime | None = None) -> DailySummary:
    """What there is to tell since the digest before, or of the last day where there was none.

    Raises:
        StorageError: the lake cannot be read.
    """
    until = (now or datetime.now(UTC)).strftime(FORMAT)
    since = _last_sent() or ((now or datetime.now(UTC)) - timedelta(days=1)).strftime(FORMAT)
    found: dict[str, list[str]] = {"Open incidents": [], "Ended": [], "Decided": [], "Muted": []}
    for name, spec in specs.items():
        book = incidents.read_log(name)
        found["Open incidents"] += [f"{name}: {line}" for line in _open(spec, book)]
        ended = [i for i in book.incidents.values() if i.closed and i.changed_at >= since]
        found["Ended"] += [f"{name}: {i.signal}, bad from {i.first} to {i.last}" for i in ended]
        found["Decided"] += [f"{name}: {line}" for line in _decided(name, since)]
        found["Muted"] += [f"{name}: {line}" for line in _muted(spec, book)]
    counts = {"incidents": len(found["Open incidents"]), "ended": len(found["Ended"]), "decided": len(found["Decided"]),
              "muted": len(found["Muted"])}  # fmt: skip
    facts = counts | {"models": len(specs), "since": since, "until": until}
    if not any(found.values()):
        line = f"Perennial, {until[:10]}: all is well with {len(specs)} models, and nothing was decided."
        return DailySummary(line, line, until, facts)
    title = f"Perennial, {until[:10]}: {_count(counts['incidents'], 'open incident')}, " + _count(
        counts["decided"], "decision"
    )
    parts = ["\n".join([head, *(f"- {line}" for line in lines)]) for head, lines in found.items() if lines]
    return DailySummary(title, "\n\n".join([title, *parts]), until, facts)


def channels(specs: Iterable[ModelSpec]) -> list[Channel]:
    """The channels that get the digest, each place once."""
    common = common_channel()
    found = [*([common] if common else []), *(c for s in specs for c in s.alerts.channels if c.daily_summary)]
    return list({c.model_dump_json(exclude={"name", "signals", "severity"}): c for c in found}.values())


def mark_sent(digest: DailySummary) -> None:
    """Remember up to when people were told."""
    object_store.write_text(_uri(), json.dumps({"until": digest.until}))


def _uri() -> str:
    return f"{settings().lake}/digest.json"


def _last_sent() -> str | None:
    try:
        return str(json.loads(object_store.read_text(_uri()))["until"])
    except FileNotFoundError:
        return None


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"


def _open(spec: ModelSpec, book: incidents.IncidentLog) -> Iterator[str]:
    for item in book.open:
        seen = "seen once" if item.count == 1 else f"seen {item.count} times, last {item.last}"
        muted = " (muted)" if book.muted(spec, item.signal, item.last) else ""
        since = item.first or "a run without a date"
        yield f"{item.signal} is {item.severity} since {since}, {seen}{muted}: {item.reason}"


def _decided(model: str, since: str) -> Iterator[str]:
    for record in ledger.records(model):
        what = REPORTED_DECISIONS.get((record["kind"], record["decision"]))
        if what and record["recorded_at"] >= since:
            version = "" if record["kind"] == "retraining" else f" version {record['model_version']}"
            partition = f", partition {record['partition']}" if record["partition"] else ""
            yield f"{what}{version}{partition}: {record['reason']}"


def _muted(spec: ModelSpec, book: incidents.IncidentLog) -> Iterator[str]:
    """Mutes that still hold at the latest date that anything was found out at; today where nothing was."""
    seen = [*book.judged.values(), *(i.closed or i.last for i in book.incidents.values())]
    day = max(seen, default="") or datetime.now(UTC).date().isoformat()
    by_hand = [(m["signals"], m["until"], m["reason"]) for m in book.mutes]
    for signals, until, reason in (
        *by_hand,
        *((m.signals, m.until.isoformat(), m.reason) for m in spec.alerts.mute),
    ):
        if until >= day:
            yield f"{', '.join(signals)} until {until}: {reason}"
