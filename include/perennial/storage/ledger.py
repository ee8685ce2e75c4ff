"""The ledger: who or what decided what, when, for which model, version and partition, on which evidence.

A Delta table that is only ever appended to. Each record carries the hash of the one before it, a chain for each
model, so that a record that was changed, removed or slipped in is found by `verify`.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from perennial.core.errors import LedgerError, StorageError
from perennial.core.settings import settings
from perennial.storage import delta_tables, duckdb_session, locks

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
GENESIS = "0" * 64


def uri() -> str:
    """The ledger's table."""
    return f"{settings().lake}/ledger"


def append(
    model: str,
    *,
    kind: str,
    decision: str,
    reason: str,
    actor: str,
    evidence: dict[str, Any] | None = None,
    partition: str | None = None,
    model_version: str | None = None,
) -> dict[str, Any]:
    """Add one record to a model's chain and return it.

    Args:
        kind: what was decided upon: promotion, rollback, retraining, training.
        decision: the outcome, in a word or two.
        evidence: what it rests on; small and JSON-able.

    Raises:
        StorageError: the lake cannot be written. Nothing was recorded then.
    """
    import pyarrow as pa
    from deltalake import write_deltalake
    from deltalake.exceptions import DeltaError

    with locks.hold(f"ledger-{model}"):
        before = records(model)
        record: dict[str, Any] = {
            "model": model,
            "sequence": before[-1]["sequence"] + 1 if before else 1,
            "recorded_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "kind": kind,
            "decision": decision,
            "reason": reason,
            "evidence": json.dumps(evidence or {}, sort_keys=True, default=str),
            "actor": actor,
            "partition": partition or "",
            "model_version": model_version or "",
            "previous": before[-1]["hash"] if before else GENESIS,
        }
        record["hash"] = _hash(record)
        fields = [pa.field(f, pa.int64() if f == "sequence" else pa.string()) for f in (*FIELDS, "hash")]
        try:
            write_deltalake(
                uri(),
                pa.Table.from_pylist([record], pa.schema(fields)),
                mode="append",
                partition_by=["model"],
                storage_options=settings().storage_options,
            )
        except (DeltaError, OSError) as error:
            raise StorageError(
                f"the ledger cannot be written: {error}",
                "check that the lake has room and may be written; then run it again",
                model=model,
                partition=partition,
            ) from error
    return record | {"evidence": evidence or {}}


def records(model: str, kind: str | None = None) -> list[dict[str, Any]]:
    """A model's records in order, ``evidence`` as a dict; of one kind where given."""
    table = delta_tables.open_table(uri())
    if table is None:
        return []
    rows = table.to_pyarrow_table(partitions=[("model", "=", model)], filesystem=_filesystem()).to_pylist()
    rows.sort(key=lambda r: r["sequence"])
    return [r | {"evidence": json.loads(r["evidence"])} for r in rows if kind in (None, r["kind"])]


def _filesystem() -> Any:
    return duckdb_session.table_filesystem(uri()) if settings().lake.startswith("s3://") else None


def verify(model: str) -> int:
    """Check a model's chain; returns how many records it holds.

    Raises:
        LedgerError: the first record that does not fit.
    """
    previous, rows = GENESIS, records(model)
    for expected, row in enumerate(rows, 1):
        whole = row | {"evidence": json.dumps(row["evidence"], sort_keys=True)}
        if row["sequence"] != expected or row["previous"] != previous or row["hash"] != _hash(whole):
            raise LedgerError(
                f"record {row['sequence']} of the ledger was changed, or one before it is missing",
                "compare with a backup of the lake: decisions were tampered with",
                model=model,
            )
        previous = row["hash"]
    table = delta_tables.open_table(uri())
    for commit in table.history() if table else []:
        if not _only_adds_rows(commit):
            raise LedgerError(
                f"the ledger's table was changed by {commit.get('operation')} in its version {commit.get('version')}: "
                "records may be missing",
                "compare with a backup of the lake: decisions were tampered with",
                model=model,
            )
    return len(rows)


def _only_adds_rows(commit: dict[str, Any]) -> bool:
    """Whether a commit only added rows, or left them as they are: a chain cannot show that its last link is gone."""
    mode = str(commit.get("operationParameters", {}).get("mode", "")).lower()
    return commit.get("operation") in ("OPTIMIZE", "VACUUM START", "VACUUM END") or mode in (
        "append",
        "errorifexists",
    )


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([record[f] for f in FIELDS]).encode()).hexdigest()
