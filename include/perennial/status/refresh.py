"""Writes the status record of a model, from what the lake has."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from perennial.core import unexpected_errors
from perennial.core.dates import utc_now, utc_timestamp
from perennial.core.settings import settings
from perennial.lifecycle import champion as champion_module
from perennial.spec.model_spec import ModelSpec
from perennial.status import cost, record
from perennial.status import history as history_module
from perennial.status.history import PARTITION_STEPS, Entry, History
from perennial.status.record import SERIES_LENGTH, ChampionStatus, ModelStatus, VerdictStatus
from perennial.storage import ledger, locks, object_store, pages
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord

#: Stages, by the step whose manifests show that they are done.
STAGES = {
    "data": "published",
    "labels": "labelled",
    "score": "scored",
    "monitor": "monitored",
    "train": "trained",
}
#: Seconds to wait for another step that writes the same record.
LOCK_SECONDS = 20
#: Partitions with quarantined rows that the record names.
_MAX_QUARANTINED = 40
log = logging.getLogger("perennial")


def refresh_quietly(spec: ModelSpec) -> None:
    """As `refresh`, for the end of a step: whatever fails is only logged, since no step depends on the record."""
    try:
        refresh(spec)
    except BaseException as error:
        if not unexpected_errors.is_failure(error):
            raise
        log.warning("The status of %s was not written: %s", spec.name, pages.why(error))


def refresh(spec: ModelSpec, *, rebuild: bool = False) -> ModelStatus:
    """Write the status record of a model.

    Args:
        spec: the model.
        rebuild: read all manifests anew, also those that the index has.

    Raises:
        StorageError: the lake cannot be read or written.
        LockHeldError: another process is writing it.
    """
    # One after the other: the record written last then comes from the lake as it was last.
    with locks.hold(f"status-{spec.name}", timeout=LOCK_SECONDS):
        history, is_new = history_module.load(spec.name, rebuild=rebuild)
        status = compose(spec, history, None if rebuild else record.read(spec.name))
        if is_new:
            history_module.store(spec.name, history)
        record.write(status)
    return status


def compose(spec: ModelSpec, history: History, previous: ModelStatus | None = None) -> ModelStatus:
    """The status of a model; nothing is written.

    Args:
        spec: the model.
        history: index of its manifests.
        previous: the record before, for the cost of months whose manifests are no longer indexed.

    Raises:
        StorageError: the ledger cannot be read.
    """
    monitored = history.of("monitor")
    window = list(monitored.items())[-SERIES_LENGTH:]
    latest = window[-1] if window else None
    published = history.of("data")
    prices = cost.prices(spec)
    return ModelStatus(
        model=spec.name,
        written_at=utc_now(),
        task=spec.task,
        owner=spec.owner,
        description=spec.description,
        tags=list(spec.tags),
        unit=spec.cadence.unit,
        week_starts=spec.cadence.week_starts,
        timezone=spec.cadence.timezone,
        first_due=spec.first_partition,
        last_due=spec.last_partition or "",
        verdict=_verdict(*latest) if latest else None,
        metric=spec.metric,
        performance=[(key, entry.details.get("performance")) for key, entry in window],
        performance_at_training=latest[1].details.get("performance_at_training") if latest else None,
        drift=[(key, entry.details.get("drift_share")) for key, entry in window],
        drift_limit=spec.monitoring.drift_share,
        last={stage: max(history.of(step)) for step, stage in STAGES.items() if history.of(step)},
        partitions=len(published),
        quarantined=_quarantined(history),
        failed=_failed(spec.name),
        unreadable=history.unreadable,
        cost=cost.by_month(cost.runs(history, prices), previous.cost if previous else {}),
        currency=cost.currency(prices),
        **_of_ledger(spec, previous),
    )


def _of_ledger(spec: ModelSpec, previous: ModelStatus | None) -> dict[str, Any]:
    """What the ledger says; it is read only if it has a new record."""
    head = ledger.head(spec.name)
    if previous and head and head == previous.ledger_head:
        return {
            key: getattr(previous, key)
            for key in ("champion", "trial", "decision", "proposals", "ledger_head")
        }
    kinds = (*champion_module.CHAMPION_CHANGES, LedgerKind.RETRAINING, LedgerKind.TRIAL)
    records = ledger.records(spec.name, *kinds)
    changes = champion_module.changes(records)
    return {
        "champion": _champion(changes[-1]) if changes else None,
        "trial": _trial(records),
        "decision": _decision(records),
        "proposals": _proposals(spec, records),
        "ledger_head": head,
    }


def _champion(change: LedgerRecord) -> ChampionStatus:
    return ChampionStatus(
        version=change["model_version"],
        since=change["recorded_at"],
        partition=change["partition"],
        change=change["decision"],
        actor=change["actor"],
        reason=change["reason"],
    )


def _trial(records: Sequence[LedgerRecord]) -> str:
    """Version of the challenger on trial."""
    trials = [r for r in records if r["kind"] == LedgerKind.TRIAL]
    return trials[-1]["model_version"] if trials and trials[-1]["decision"] == Decision.STARTED else ""


def _verdict(as_of: str, entry: Entry) -> VerdictStatus:
    details = entry.details
    signals: Mapping[str, Any] = details.get("signals", {})
    return VerdictStatus(
        as_of=as_of,
        verdict=details.get("verdict", ""),
        reason=details.get("reason", ""),
        version=entry.version,
        performance=details.get("performance_verdict", ""),
        performance_reason=details.get("performance_reason", ""),
        bad_signals=[name for name, signal in signals.items() if signal["state"] == "bad"],
        suspected_signals=[name for name, signal in signals.items() if signal["state"] == "suspected"],
        report=details.get("report", ""),
    )


def _decision(records: Sequence[LedgerRecord]) -> dict[str, str]:
    """The latest decision on retraining that was not made in a backfill."""
    decisions = [
        r for r in records if r["kind"] == LedgerKind.RETRAINING and not r["evidence"].get("backfill")
    ]
    if not decisions:
        return {}
    last = max(decisions, key=lambda r: (r["partition"], r["sequence"]))
    keys = ("partition", "decision", "reason", "recorded_at", "actor")
    return {key: str(last[key]) for key in keys}  # type: ignore[literal-required]


def _proposals(spec: ModelSpec, records: Sequence[LedgerRecord]) -> list[dict[str, str]]:
    """The retrainings that were proposed and not answered; whether it is too late is for the reader to see."""
    return [
        {
            "partition": r["partition"],
            "reason": r["reason"],
            "until": utc_timestamp(
                datetime.fromisoformat(r["recorded_at"]) + timedelta(hours=spec.retraining.approval_hours)
            ),
        }
        for r in ledger.unanswered_proposals(records)
    ]


def _quarantined(history: History) -> dict[str, int]:
    """Rows and labels in quarantine by partition of the rows, the latest partitions only."""
    counts: dict[str, int] = defaultdict(int)
    for step in ("data", "labels"):
        for key, entry in history.of(step).items():
            counts[key] += entry.quarantined
    return dict(sorted((k, n) for k, n in counts.items() if n)[-_MAX_QUARANTINED:])


def _failed(model: str) -> dict[str, str]:
    """The latest partition that failed and was not done since, by step."""
    latest = {}
    for step in PARTITION_STEPS:
        folder = f"{settings().lake}/manifests/{model}/{step}"
        failed = {n.removesuffix(".json"): s for n, s in object_store.list_files(f"{folder}/failed").items()}
        if not failed:
            continue
        done = object_store.list_files(folder)
        open_ones = [
            key
            for key, stat in failed.items()
            if f"{key}.json" not in done or done[f"{key}.json"].modified_ns < stat.modified_ns
        ]
        if open_ones:
            latest[step] = max(open_ones)
    return latest
