"""The ledger: an append-only record of all decisions about models, with actor, reason and evidence.

It is a Delta table. Each record contains the hash of the model's previous record. `verify` follows this chain, and
detects records that were changed, removed or inserted. The chain alone cannot show that its last records are gone,
table and log of it included; therefore number and hash of the last record are also in a file of their own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from enum import StrEnum
from typing import Any, cast

from perennial.core.dates import utc_now
from perennial.core.errors import LedgerError, StorageError
from perennial.core.settings import settings
from perennial.storage import locks, object_store
from perennial.storage.ledger_table import chain, table_files
from perennial.storage.ledger_table.chain import FIELDS, GENESIS, LedgerRecord
from perennial.storage.ledger_table.table_files import uri

__all__ = [
    "ANSWER",
    "FIELDS",
    "GENESIS",
    "Decision",
    "LedgerKind",
    "LedgerRecord",
    "Policy",
    "append",
    "find",
    "hashes",
    "head",
    "head_uri",
    "iterate",
    "last",
    "last_records",
    "merge_files",
    "models",
    "open_holds",
    "reading_once",
    "records",
    "unanswered_proposals",
    "uri",
    "verify",
]


class LedgerKind(StrEnum):
    """The subject of a record."""

    RETRAINING = "retraining"
    TRAINING = "training"
    PROMOTION = "promotion"
    TRIAL = "trial"
    ROLLBACK = "rollback"
    EXTERNAL_CHANGE = "external change"
    ALERTING = "alerting"
    GENERATION = "generation"
    VERIFICATION = "verification"
    SCHEDULES = "schedules"
    REPRODUCTION = "reproduction"
    APPROVAL = "approval"
    ROLLBACK_DRILL = "rollback drill"
    ERASURE = "erasure"
    HOLD = "hold"
    RETENTION = "retention"
    SIGNATURE = "signature"


class Decision(StrEnum):
    """The outcome of a decision; each value belongs to the kind in the comment above it."""

    # retraining
    REQUESTED = "requested"
    PROPOSED = "proposed"
    DECLINED = "declined"  # approval, too
    # training: accepted or rejected by the gate
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    # trial, generation
    STARTED = "started"
    # trial, rollback drill
    PASSED = "passed"
    CANCELLED = "cancelled"  # trial
    # training, trial, rollback drill, reproduction
    FAILED = "failed"
    # promotion
    PROMOTED = "promoted"
    # rollback
    ROLLED_BACK = "rolled back"
    # external change: nothing done, champion adopted, or the recorded champion put back
    REPORTED = "reported"  # verification, too
    FOLLOWED = "followed"
    RESTORED = "restored"
    # alerting
    MUTED = "muted"
    UNMUTED = "unmuted"
    # generation
    WIDENED = "widened"
    # alerting: a person closed an incident; verification: nothing is wrong any more
    RESOLVED = "resolved"
    # schedules: a person paused or resumed the model's DAGs in the console
    PAUSED = "paused"
    RESUMED = "resumed"
    # reproduction: trained again, a version was the same model or another one
    REPRODUCED = "reproduced"
    DIFFERENT = "different"
    # approval: a person's answer to whether a version becomes champion
    APPROVED = "approved"
    # erasure: the rows of keys were removed
    ERASED = "erased"
    # hold, which also starts: the hold ended
    RELEASED = "released"
    # retention: what was older than the spec keeps was deleted
    DELETED = "deleted"
    # signature: a version that was registered without one was signed
    SIGNED = "signed"


class Policy(StrEnum):
    """The actor of an automatic decision: the policy that decided, whoever started the run.

    Evidence `triggered_by` names who started the run.
    """

    RETRAINING = "retraining policy"
    GATE = "gate"
    TRIAL = "trial policy"


#: The key of a person's answer to a proposed retraining, or of its absence, in the evidence of a decision.
ANSWER = "answer"
#: Records that `iterate` reads at once.
BATCH_RECORDS = 10_000
#: Records by lake and model, within `reading_once`.
_snapshot: ContextVar[dict[tuple[str, str], list[LedgerRecord]] | None] = ContextVar(
    "_snapshot", default=None
)


def head_uri(model: str) -> str:
    """The file with the number and the hash of a model's last record."""
    return f"{settings().lake}/ledger_heads/{model}.json"


def models() -> list[str]:
    """Names of the models that have records, or had some before they were deleted, in order.

    Raises:
        StorageError: the lake cannot be read.
    """
    heads = object_store.list_files(f"{settings().lake}/ledger_heads")
    known = {name.removesuffix(".json") for name in heads if name.endswith(".json")}
    return sorted(known | table_files.models())


def append(
    model: str,
    *,
    kind: LedgerKind,
    decision: Decision,
    reason: str,
    actor: str,
    evidence: Mapping[str, Any] | None = None,
    partition: str | None = None,
    model_version: str | None = None,
) -> LedgerRecord:
    """Add one record to a model's chain.

    Args:
        model: name of the model.
        kind: subject of the decision.
        decision: its outcome.
        reason: why, in a sentence.
        actor: who or what decided.
        evidence: what the decision rests on; small and JSON-serialisable.
        partition: the partition date, or range, it concerns.
        model_version: the version it concerns.

    Returns:
        The record.

    Raises:
        StorageError: the lake cannot be written; nothing was recorded.
    """
    with locks.hold(f"ledger-{model}"):
        sequence, previous, is_whole = _last(model)
        row: dict[str, Any] = {
            "model": model,
            "sequence": sequence + 1,
            "recorded_at": utc_now(),
            "kind": str(kind),
            "decision": str(decision),
            "reason": reason,
            "evidence": chain.evidence_text(evidence or {}),
            "actor": str(actor),
            "partition": partition or "",
            "model_version": model_version or "",
            "previous": previous,
        }
        row["hash"] = chain.row_hash(row)
        table_files.append(row)
        # Once records are missing, the file stays as it is: it shows how many there were. If it cannot be written, the
        # next record writes it.
        with contextlib.suppress(StorageError):
            if is_whole:
                head = {"sequence": row["sequence"], "hash": row["hash"]}
                object_store.write_text(head_uri(model), json.dumps(head))
    return cast(LedgerRecord, row | {"evidence": dict(evidence or {})})


def last(model: str) -> tuple[int, str]:
    """Number and hash of a model's last record, without reading all records; 0 and `GENESIS` before the first."""
    return _last(model)[:2]


def last_records(until: str = "") -> dict[str, tuple[int, str]]:
    """Number and hash of the last record of each model that has one.

    Args:
        until: time (UTC, as `recorded_at`); only the records before the first one of that time or a later one count, so
            that no record that was added afterwards does, whatever its time.

    Raises:
        StorageError: as `records`.
    """

    def last_of(model: str) -> tuple[int, str]:
        if not until:
            return last(model)
        earlier = (0, GENESIS)
        for record in iterate(model):
            if record["recorded_at"] >= until:
                break
            earlier = record["sequence"], record["hash"]
        return earlier

    return {model: (number, digest) for model in models() for number, digest in [last_of(model)] if number}


def _last(model: str) -> tuple[int, str, bool]:
    """Number and hash of a model's last record, and whether no record is known to be missing.

    They are in a file beside the table. The records are read only if the table says otherwise, as after an interrupted
    append.
    """
    newest = max(table_files.of_model(model), key=lambda file: file.last, default=None)
    with contextlib.suppress(ValueError, TypeError, KeyError):  # the chain says what is wrong with the file
        sequence, digest = _parse_head(head(model))
        if newest and newest.last == sequence:
            # the statistics of a file of several records do not say which hash is the last one's
            stored = newest.last_hash if newest.rows == 1 else hashes(model, [sequence]).get(sequence)
            if stored == digest:
                return sequence, digest, True
    known = _read(model)
    is_whole = not _missing_records(model, len(known), {r["sequence"]: r["hash"] for r in known})
    return (known[-1]["sequence"], known[-1]["hash"], is_whole) if known else (0, GENESIS, is_whole)


def _parse_head(text: str) -> tuple[int, str]:
    """Number and hash of the last record, from the file that holds them."""
    content = json.loads(text)
    return int(content["sequence"]), str(content["hash"])


def records(model: str, *kinds: LedgerKind) -> list[LedgerRecord]:
    """A model's records in order.

    Args:
        model: name of the model.
        kinds: only records of these kinds, and only their files are read; of all kinds by default.

    Raises:
        StorageError: the ledger cannot be read, or a file of it is missing or damaged.
    """
    snapshot = _snapshot.get()
    if snapshot is None:
        return _read(model, kinds)
    key = (uri(), model)
    if key not in snapshot:
        snapshot[key] = _read(model)
    return [r for r in snapshot[key] if not kinds or r["kind"] in kinds]


def open_holds(model: str) -> list[LedgerRecord]:
    """The ledger's records of the holds on a model that have not ended, in order."""
    started: dict[int, LedgerRecord] = {}
    for record in records(model, LedgerKind.HOLD):
        if record["decision"] == Decision.STARTED:
            started[record["sequence"]] = record
        else:  # a record without the number ends them all
            ended = record["evidence"].get("hold")
            for number in list(started) if ended is None else [ended]:
                started.pop(number, None)
    return list(started.values())


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Read the records of each model once in the block, for a page that shows what several functions make of them."""
    token = _snapshot.set({})
    try:
        yield
    finally:
        _snapshot.reset(token)


def find(
    model: str,
    *kinds: LedgerKind,
    decisions: Collection[Decision] = (),
    version: str = "",
    until: str = "",
    last: int = 0,
) -> list[LedgerRecord]:
    """Records that fit all conditions, in order; only these are read in full, however long the ledger is.

    Args:
        model: name of the model.
        kinds: their kinds; all by default.
        decisions: their decisions; all by default.
        version: version of the model that they concern.
        until: time (UTC, as `recorded_at`) before which they were recorded.
        last: only so many of the latest ones; all by default.

    Raises:
        StorageError: as `records`.
    """
    import pyarrow.compute as pc

    condition = pc.scalar(True)
    for column, values in (
        ("kind", kinds),
        ("decision", decisions),
        ("model_version", [version] if version else []),
    ):
        if values:
            condition &= pc.field(column).isin(list(map(str, values)))
    if until:
        condition &= pc.field("recorded_at") < until
    files = table_files.of_model(model, kinds)
    matching = table_files.read_columns(model, files, ["sequence"], condition)
    wanted = sorted(cast("list[int]", matching["sequence"].to_pylist()))[-last:]
    # their evidence, of which there is most, is read from these records' files only
    return table_files.read(
        model, table_files.having(files, wanted), condition & pc.field("sequence").isin(wanted)
    )


def hashes(model: str, sequences: Collection[int]) -> dict[int, str]:
    """Hashes of records, by number; without those that the ledger does not have.

    Raises:
        StorageError: as `records`.
    """
    import pyarrow.compute as pc

    files = table_files.having(table_files.of_model(model), sequences)
    stored = table_files.read_columns(
        model, files, ["sequence", "hash"], pc.field("sequence").isin(list(sequences))
    )
    pairs = zip(stored["sequence"].to_pylist(), stored["hash"].to_pylist(), strict=True)
    return dict(cast("Iterator[tuple[int, str]]", pairs))


def iterate(model: str) -> Iterator[LedgerRecord]:
    """All records of a model in order, of which only a part is in memory at a time.

    Raises:
        StorageError: as `records`.
    """
    snapshot = _snapshot.get() or {}
    if (uri(), model) in snapshot:
        yield from snapshot[uri(), model]
        return
    files = sorted(table_files.of_model(model), key=lambda file: file.first)
    waiting: list[LedgerRecord] = []
    while files:
        count = row_count = 0
        while count < len(files) and row_count < BATCH_RECORDS:
            row_count += files[count].rows
            count += 1
        batch, files = files[:count], files[count:]
        waiting = sorted([*waiting, *table_files.read(model, batch)], key=lambda r: r["sequence"])
        ready = [r for r in waiting if not files or r["sequence"] < files[0].first]
        yield from ready
        waiting = waiting[len(ready) :]


def _read(model: str, kinds: Collection[LedgerKind] = ()) -> list[LedgerRecord]:
    """As `records`, from the table."""
    import pyarrow.compute as pc

    condition = pc.field("kind").isin(list(map(str, kinds))) if kinds else None
    return table_files.read(model, table_files.of_model(model, kinds), condition)


def merge_files(model: str) -> bool:
    """Make larger files of a model's small ones, if there are many: each append writes one.

    Returns:
        Whether it was done.

    Raises:
        StorageError: the lake cannot be read or written.
    """
    return table_files.merge(model)


def head(model: str) -> str:
    """What identifies a model's last record, without reading the table; empty if there is none.

    Raises:
        StorageError: the lake cannot be read.
    """
    try:
        return object_store.read_text(head_uri(model))
    except FileNotFoundError:
        return ""


def unanswered_proposals(records: Iterable[LedgerRecord]) -> list[LedgerRecord]:
    """The proposed retrainings that nobody has answered, in order of their partitions' first decisions.

    Args:
        records: of one model, in order.
    """
    latest: dict[str, LedgerRecord] = {}
    for record in records:
        if record["kind"] == LedgerKind.RETRAINING and not record["evidence"].get("backfill"):
            latest[record["partition"]] = record
    return [record for record in latest.values() if record["decision"] == Decision.PROPOSED]


def verify(model: str) -> int:
    """Check a model's chain; returns how many records it has.

    Raises:
        LedgerError: the chain is broken, or the table was changed in another way than by appending.
    """
    wanted = 0
    with contextlib.suppress(ValueError, TypeError, KeyError):
        wanted, _ = _parse_head(head(model))
    count, digest = chain.check_chain(model, iterate(model), wanted)
    if missing := _missing_records(model, count, {wanted: digest}):
        raise LedgerError(
            missing,
            f"restore the ledger from a backup of the lake; to go on with the records that are there, delete "
            f"{head_uri(model)}",
            model=model,
        )
    for change in table_files.other_changes():
        raise LedgerError(
            change, "compare with a backup of the lake: decisions were tampered with", model=model
        )
    return count


def _missing_records(model: str, count: int, digests: Mapping[int, str]) -> str:
    """Which of the records that were appended are missing at the end of a chain; empty if none is.

    Args:
        model: name of the model.
        count: how many records there are.
        digests: hashes of records, by number; that of the last one that was appended is needed.

    Raises:
        StorageError: the file with the last record's number cannot be read.
    """
    text = head(model)
    if not text:  # as in a lake that was written before there was such a file
        return ""
    try:
        sequence, digest = _parse_head(text)
    except (ValueError, TypeError, KeyError):
        return f"{head_uri(model)} does not hold the number and the hash of the ledger's last record"
    if count < sequence:
        return f"the ledger has {count} records and had {sequence}: the last ones are missing"
    if digests.get(sequence) != digest:
        return f"record {sequence} of the ledger is not the one that was appended"
    return ""
