"""The ledger: an append-only record of all decisions about models, with actor, reason and evidence.

It is a Delta table. Each record contains the hash of the model's previous record. `verify` follows this chain, and
detects records that were changed, removed or inserted. The chain alone cannot show that its last records are gone,
table and log of it included; therefore number and hash of the last record are also in a file of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypedDict, cast
from urllib.parse import unquote

from perennial.core.dates import utc_now
from perennial.core.errors import LedgerError, StorageError
from perennial.core.settings import settings
from perennial.storage import delta_tables, locks, object_store, storage_errors

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable


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
    # trial
    PASSED = "passed"
    CANCELLED = "cancelled"
    # training, trial
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


class Policy(StrEnum):
    """The actor of an automatic decision: the policy that decided, whoever started the run.

    Evidence `triggered_by` names who started the run.
    """

    RETRAINING = "retraining policy"
    GATE = "gate"
    TRIAL = "trial policy"


class LedgerRecord(TypedDict):
    """One record. A field that does not apply is an empty string.

    Attributes:
        sequence: number of the record in its model's chain, from 1.
        recorded_at: UTC, as `dates.utc_now` writes it.
        kind: a value of `LedgerKind`.
        decision: a value of `Decision`.
        evidence: what the decision rests on.
        actor: who decided: a person, a `Policy`, or the part of the library that found something.
        previous: the hash of the record before it; `GENESIS` for the first one.
        hash: SHA-256 of all other fields.
    """

    model: str
    sequence: int
    recorded_at: str
    kind: str
    decision: str
    reason: str
    evidence: dict[str, Any]
    actor: str
    partition: str
    model_version: str
    previous: str
    hash: str


#: The fields that a record's hash covers, in this order.
FIELDS = (
    "model",
    "sequence",
    "recorded_at",
    "kind",
    "decision",
    "reason",
    "evidence",
    "actor",
    "partition",
    "model_version",
    "previous",
)
#: The key of a person's answer to a proposed retraining, or of its absence, in the evidence of a decision.
ANSWER = "answer"
#: Records by lake and model, within `reading_once`.
_snapshot: ContextVar[dict[tuple[str, str], list[LedgerRecord]] | None] = ContextVar(
    "_snapshot", default=None
)
#: The previous hash in the first record of a chain.
GENESIS = "0" * 64


def uri() -> str:
    """The ledger's table."""
    return f"{settings().lake}/ledger"


def head_uri(model: str) -> str:
    """The file with the number and the hash of a model's last record."""
    return f"{settings().lake}/ledger_heads/{model}.json"


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
            "evidence": json.dumps(evidence or {}, sort_keys=True, default=str),
            "actor": str(actor),
            "partition": partition or "",
            "model_version": model_version or "",
            "previous": previous,
        }
        row["hash"] = _hash(row)
        _write(row)
        # Once records are missing, the file stays as it is: it shows how many there were. If it cannot be written, the
        # next record writes it.
        with contextlib.suppress(StorageError):
            if is_whole:
                head = {"sequence": row["sequence"], "hash": row["hash"]}
                object_store.write_text(head_uri(model), json.dumps(head))
    return cast(LedgerRecord, row | {"evidence": dict(evidence or {})})


def _last(model: str) -> tuple[int, str, bool]:
    """Number and hash of a model's last record, and whether no record is known to be missing.

    They are in a file beside the table. The records are read only if the table's statistics of its last file say
    otherwise, as after an interrupted append.
    """
    table = delta_tables.open_table(uri())
    statistics = _statistics(table, "partition.model", "max.sequence", "max.hash") if table else ()
    last = max(
        ((number, text) for name, number, text in statistics if name == model and number), default=None
    )
    with contextlib.suppress(ValueError, TypeError, KeyError):  # the chain says what is wrong with the file
        recorded = json.loads(head(model))
        if last == (recorded["sequence"], recorded["hash"]):
            return *last, True
    chain = _read(model)
    is_whole = not _missing_records(model, chain)
    return (chain[-1]["sequence"], chain[-1]["hash"], is_whole) if chain else (0, GENESIS, is_whole)


def _write(row: dict[str, Any]) -> None:
    """Append one row to the table."""
    import pyarrow as pa
    from deltalake import write_deltalake

    with storage_errors.writing(uri(), model=row["model"], partition=row["partition"] or None):
        if delta_tables.open_table(uri()) is None:
            delta_tables.create(uri(), _schema(), {}, partition_by=["model"])
        write_deltalake(
            uri(),
            pa.Table.from_pylist([row], _schema()),
            mode="append",
            partition_by=["model"],
            storage_options=settings().storage_options,
        )


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


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Read the records of each model once in the block, for a page that shows what several functions make of them."""
    token = _snapshot.set({})
    try:
        yield
    finally:
        _snapshot.reset(token)


def _read(model: str, kinds: Collection[LedgerKind] = ()) -> list[LedgerRecord]:
    """As `records`, from the table."""
    import pyarrow as pa
    import pyarrow.dataset

    table = delta_tables.open_table(uri())
    if table is None:
        return []
    files = _files(table, model, kinds)
    if not files:
        return []
    remote = object_store.is_remote(uri())
    with storage_errors.reading(uri(), model=model):
        # The log's statistics say which files are needed: a tenth of the time that the table's own reader takes.
        dataset = pyarrow.dataset.dataset(
            [f"{uri().removeprefix('s3://')}/{file}" for file in files],
            schema=_schema().remove(0),  # the model is the partition, and not in the files
            filesystem=object_store.filesystem() if remote else None,
            format="parquet",
        )
        stored = dataset.to_table()
    rows = stored.append_column("model", pa.repeat(model, len(stored))).select([*FIELDS, "hash"]).to_pylist()
    rows.sort(key=lambda r: r["sequence"])
    records = [r | {"evidence": json.loads(r["evidence"])} for r in rows if not kinds or r["kind"] in kinds]
    return cast("list[LedgerRecord]", records)


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


def _files(table: DeltaTable, model: str, kinds: Collection[LedgerKind]) -> list[str]:
    """Paths, relative to the table, of files that may have a model's records of some kinds (all if none is given)."""
    return [
        unquote(path)
        for path, name, low, high in _statistics(table, "path", "partition.model", "min.kind", "max.kind")
        if name == model and (not kinds or low is None or any(low <= kind <= high for kind in kinds))
    ]


def _statistics(table: DeltaTable, *columns: str) -> Iterator[tuple[Any, ...]]:
    """What the table's log says of each of its files; None where it does not."""
    actions = table.get_add_actions(flatten=True)
    known = actions.schema.names  # without files there are no statistics
    values = [actions[c].to_pylist() if c in known else [None] * actions.num_rows for c in columns]
    return zip(*values, strict=True)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([pa.field(f, pa.int64() if f == "sequence" else pa.string()) for f in (*FIELDS, "hash")])


def verify(model: str) -> int:
    """Check a model's chain; returns how many records it holds.

    Raises:
        LedgerError: the chain is broken, or the table was changed in another way than by appending.
    """
    previous, chain = GENESIS, records(model)
    for sequence, record in enumerate(chain, 1):
        row = {**record, "evidence": json.dumps(record["evidence"], sort_keys=True)}
        if record["sequence"] != sequence or record["previous"] != previous or record["hash"] != _hash(row):
            raise LedgerError(
                f"record {record['sequence']} of the ledger was changed, or one before it is missing",
                "compare with a backup of the lake: decisions were tampered with",
                model=model,
            )
        previous = record["hash"]
    if missing := _missing_records(model, chain):
        raise LedgerError(
            missing,
            f"restore the ledger from a backup of the lake; to go on with the records that are there, delete "
            f"{head_uri(model)}",
            model=model,
        )
    table = delta_tables.open_table(uri())
    with storage_errors.reading(uri(), model=model):
        history = table.history() if table else []
    for commit in history:
        if not _only_adds_rows(commit):
            raise LedgerError(
                f"the ledger's table was changed by {commit.get('operation')} in its version {commit.get('version')}: "
                "records may be missing",
                "compare with a backup of the lake: decisions were tampered with",
                model=model,
            )
    return len(chain)


def _missing_records(model: str, chain: list[LedgerRecord]) -> str:
    """Which of the records that were appended are missing at the end of a chain; empty if none is.

    Raises:
        StorageError: the file with the last record's number cannot be read.
    """
    try:
        head = json.loads(object_store.read_text(head_uri(model)))
        sequence, last = int(head["sequence"]), str(head["hash"])
    except FileNotFoundError:  # as in a lake that was written before there was such a file
        return ""
    except (ValueError, TypeError, KeyError):
        return f"{head_uri(model)} does not hold the number and the hash of the ledger's last record"
    if len(chain) < sequence:
        return f"the ledger has {len(chain)} records and had {sequence}: the last ones are missing"
    if chain[sequence - 1]["hash"] != last:
        return f"record {sequence} of the ledger is not the one that was appended"
    return ""


def _only_adds_rows(commit: dict[str, Any]) -> bool:
    """Whether a commit of the table removed no rows.

    The chain alone cannot show that its last record was removed.
    """
    mode = str(commit.get("operationParameters", {}).get("mode", "")).lower()
    return commit.get("operation") in ("OPTIMIZE", "VACUUM START", "VACUUM END") or mode in (
        "append",
        "errorifexists",
        "ignore",  # creates the table where there is none
    )


def _hash(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([row[f] for f in FIELDS]).encode()).hexdigest()
