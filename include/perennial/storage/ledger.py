"""The ledger: an append-only record of all decisions about models, with actor, reason and evidence.

It is a Delta table. Each record contains the hash of the model's previous record. `verify` follows this chain, and
detects records that were changed, removed or inserted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypedDict, cast

from perennial.core.dates import utc_now
from perennial.core.errors import LedgerError, StorageError
from perennial.core.settings import settings
from perennial.storage import delta_tables, duckdb_session, locks


class LedgerKind(StrEnum):
    """The subject of a record."""

    RETRAINING = "retraining"
    TRAINING = "training"
    PROMOTION = "promotion"
    TRIAL = "trial"
    ROLLBACK = "rollback"
    EXTERNAL_CHANGE = "external change"
    ALERTING = "alerting"


class Decision(StrEnum):
    """The outcome of a decision; each value belongs to the kind in the comment above it."""

    # retraining
    REQUESTED = "requested"
    PROPOSED = "proposed"
    DECLINED = "declined"
    # training: accepted or rejected by the gate
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    # trial
    STARTED = "started"
    PASSED = "passed"
    CANCELLED = "cancelled"
    # training, trial
    FAILED = "failed"
    # promotion
    PROMOTED = "promoted"
    # rollback
    ROLLED_BACK = "rolled back"
    # external change
    REPORTED = "reported"
    # alerting
    MUTED = "muted"


class LedgerRecord(TypedDict):
    """One record. A field that does not apply is an empty string.

    Attributes:
        sequence: number of the record in its model's chain, from 1.
        recorded_at: UTC, as `dates.utc_now` writes it.
        kind: a value of `LedgerKind`.
        decision: a value of `Decision`.
        evidence: what the decision rests on.
        actor: who or what decided.
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
#: The previous hash in the first record of a chain.
GENESIS = "0" * 64


def uri() -> str:
    """The ledger's table."""
    return f"{settings().lake}/ledger"


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
        chain = records(model)
        row: dict[str, Any] = {
            "model": model,
            "sequence": chain[-1]["sequence"] + 1 if chain else 1,
            "recorded_at": utc_now(),
            "kind": str(kind),
            "decision": str(decision),
            "reason": reason,
            "evidence": json.dumps(evidence or {}, sort_keys=True, default=str),
            "actor": actor,
            "partition": partition or "",
            "model_version": model_version or "",
            "previous": chain[-1]["hash"] if chain else GENESIS,
        }
        row["hash"] = _hash(row)
        _write(row)
    return cast(LedgerRecord, row | {"evidence": dict(evidence or {})})


def _write(row: dict[str, Any]) -> None:
    """Append one row to the table."""
    import pyarrow as pa
    from deltalake import write_deltalake
    from deltalake.exceptions import DeltaError

    fields = [pa.field(f, pa.int64() if f == "sequence" else pa.string()) for f in (*FIELDS, "hash")]
    try:
        write_deltalake(
            uri(),
            pa.Table.from_pylist([row], pa.schema(fields)),
            mode="append",
            partition_by=["model"],
            storage_options=settings().storage_options,
        )
    except (DeltaError, OSError) as error:
        raise StorageError(
            f"the ledger cannot be written: {error}",
            "check that the lake has room and may be written; then run it again",
            model=row["model"],
            partition=row["partition"] or None,
        ) from error


def records(model: str, kind: LedgerKind | None = None) -> list[LedgerRecord]:
    """A model's records in order.

    Args:
        model: name of the model.
        kind: only records of this kind; of all kinds by default.
    """
    table = delta_tables.open_table(uri())
    if table is None:
        return []
    rows = table.to_pyarrow_table(partitions=[("model", "=", model)], filesystem=_filesystem()).to_pylist()
    rows.sort(key=lambda r: r["sequence"])
    records = [r | {"evidence": json.loads(r["evidence"])} for r in rows if kind in (None, r["kind"])]
    return cast("list[LedgerRecord]", records)


def _filesystem() -> Any:
    return duckdb_session.table_filesystem(uri()) if settings().lake.startswith("s3://") else None


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
    table = delta_tables.open_table(uri())
    for commit in table.history() if table else []:
        if not _only_adds_rows(commit):
            raise LedgerError(
                f"the ledger's table was changed by {commit.get('operation')} in its version {commit.get('version')}: "
                "records may be missing",
                "compare with a backup of the lake: decisions were tampered with",
                model=model,
            )
    return len(chain)


def _only_adds_rows(commit: dict[str, Any]) -> bool:
    """Whether a commit of the table removed no rows.

    The chain alone cannot show that its last record was removed.
    """
    mode = str(commit.get("operationParameters", {}).get("mode", "")).lower()
    return commit.get("operation") in ("OPTIMIZE", "VACUUM START", "VACUUM END") or mode in (
        "append",
        "errorifexists",
    )


def _hash(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([row[f] for f in FIELDS]).encode()).hexdigest()
