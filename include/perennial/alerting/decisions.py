"""Decisions that people are told of: in the daily summary, and at once on the channels that name them.

The ledger is the source: what is new in it is announced, whoever or whatever decided. Announcements wait in the outbox
of the model's incidents, so that each is delivered at least once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from perennial.alerting import incidents
from perennial.alerting.incidents import Announcement
from perennial.core import dates
from perennial.spec.alerts import Channel, DecisionName
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord

#: Decisions that are reported: the name by which a channel asks for them (None: only the daily summary has them), and
#: the text.
_REPORTED: dict[tuple[str, str], tuple[DecisionName | None, str]] = {
    (LedgerKind.RETRAINING, Decision.REQUESTED): ("retraining", "retraining requested"),
    (LedgerKind.RETRAINING, Decision.DECLINED): ("declined", "retraining declined"),
    (LedgerKind.APPROVAL, Decision.APPROVED): (None, "promotion approved:"),
    (LedgerKind.APPROVAL, Decision.DECLINED): ("declined", "promotion declined:"),
    (LedgerKind.TRAINING, Decision.REJECTED): ("rejection", "rejected by the gate:"),
    (LedgerKind.PROMOTION, Decision.PROMOTED): ("promotion", "promoted"),
    (LedgerKind.ROLLBACK, Decision.ROLLED_BACK): ("rollback", "rolled back to"),
    (LedgerKind.EXTERNAL_CHANGE, Decision.REPORTED): (
        "external_change",
        "champion changed outside promotion:",
    ),
    (LedgerKind.EXTERNAL_CHANGE, Decision.FOLLOWED): (
        "external_change",
        "champion changed outside promotion, and adopted:",
    ),
    (LedgerKind.EXTERNAL_CHANGE, Decision.RESTORED): (
        "external_change",
        "champion changed outside promotion, and put back:",
    ),
    (LedgerKind.TRIAL, Decision.STARTED): ("trial", "on trial"),
    (LedgerKind.TRIAL, Decision.FAILED): ("trial", "trial failed:"),
    (LedgerKind.VERIFICATION, Decision.REPORTED): (None, "not what was written:"),
    (LedgerKind.GENERATION, Decision.STARTED): (None, "new generation of its tables:"),
    (LedgerKind.GENERATION, Decision.WIDENED): (None, "column converted:"),
}
#: Hours after which a decision is no longer announced: a channel that is added hears nothing of the past.
ANNOUNCED_HOURS = 24


def name_of(record: LedgerRecord) -> DecisionName | None:
    """The name by which a channel asks for this decision; None if it is not announced."""
    return _REPORTED[record["kind"], record["decision"]][0] if is_reported(record) else None


def is_reported(record: LedgerRecord) -> bool:
    """Whether people are told of this record; not of a retraining that no trigger, or the policy, asked for."""
    is_retraining = record["kind"] == LedgerKind.RETRAINING
    if is_retraining and record["decision"] == Decision.DECLINED and ledger.ANSWER not in record["evidence"]:
        return False
    return (record["kind"], record["decision"]) in _REPORTED


def describe(record: LedgerRecord) -> str:
    """A reported decision in one line: what, which version, which partition, why."""
    return f"{_headline(record)}: {record['reason']}"


def _headline(record: LedgerRecord) -> str:
    text = _REPORTED[record["kind"], record["decision"]][1]
    is_retraining = record["kind"] == LedgerKind.RETRAINING
    version = "" if is_retraining or not record["model_version"] else f" version {record['model_version']}"
    partition = f", partition {record['partition']}" if record["partition"] else ""
    return f"{text}{version}{partition}"


def open_questions(
    spec: ModelSpec, records: Iterable[LedgerRecord], moment: datetime
) -> Iterator[LedgerRecord]:
    """The proposed retrainings that wait for a person's answer.

    Args:
        spec: the model.
        records: of its ledger, in order.
        moment: a proposal that is older than ``retraining.approval_hours`` at this time is no longer open.
    """
    since = dates.utc_timestamp(moment - timedelta(hours=spec.retraining.approval_hours))
    for record in ledger.unanswered_proposals(records):
        if record["recorded_at"] >= since:
            yield record


def announce_new(spec: ModelSpec) -> bool:
    """Put the decisions that are new in the ledger into the outbox, for the channels that want them.

    Args:
        spec: the model.

    Returns:
        Whether anything waits to be delivered.

    Raises:
        StorageError: the ledger or the incidents cannot be read or written.
        LockHeldError: another task holds their lock.
    """
    channels = [c for c in spec.alerts.all_channels() if any(map(c.announces, get_args(DecisionName)))]
    log = incidents.read_log(spec.name)
    records = ledger.records(spec.name) if channels else []
    if records and records[-1]["sequence"] > log.announced:
        since = dates.utc_timestamp(datetime.now(UTC) - timedelta(hours=ANNOUNCED_HOURS))
        new = [r for r in records if r["sequence"] > log.announced and r["recorded_at"] >= since]
        announcements = [
            _announcement(spec, channel, record, name)
            for record in new
            if (name := name_of(record))
            for channel in channels
            if channel.announces(name)
        ]
        incidents.announce(spec.name, announcements, records[-1]["sequence"])
        log = incidents.read_log(spec.name)
    return bool(log.undelivered)


def ask(spec: ModelSpec, *, subject: str, key: str, text: str, details: dict[str, Any]) -> None:
    """Put a question to a person into the outbox, for the channels that want it.

    Args:
        spec: the model.
        subject: what is to be approved.
        key: unique among the questions about the model.
        text: the question, and where to answer it.
        details: for programs.

    Raises:
        StorageError: the incidents cannot be read or written.
        LockHeldError: another task holds their lock.
    """
    title = f"{spec.name}: approve {subject}?"
    questions = [
        Announcement(f"approval/{key}/{c.name}", c.name, "approval", title, text, details)
        for c in spec.alerts.all_channels()
        if c.announces("approval")
    ]
    if questions:
        incidents.announce(spec.name, questions)


def _announcement(
    spec: ModelSpec, channel: Channel, record: LedgerRecord, name: DecisionName
) -> Announcement:
    title = f"{spec.name}: {_headline(record)}"
    text = f"{title}\n{record['reason']}\nDecided by {record['actor']}. Owner: {spec.owner}"
    details = {
        "model": spec.name, "owner": spec.owner, "partition": record["partition"], "version": record["model_version"],
        "reason": record["reason"], "actor": record["actor"], "recorded_at": record["recorded_at"],
    }  # fmt: skip
    if report := record["evidence"].get("report"):
        details["report"] = report
    return Announcement(
        f"decision/{record['sequence']}/{channel.name}", channel.name, name, title, text, details
    )
