"""The chain of a model's records: each has the hash of its own content, and of the record before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from perennial.core.errors import LedgerError


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
#: The previous hash in the first record of a chain.
GENESIS = "0" * 64


def row_hash(row: Mapping[str, Any]) -> str:
    """The hash of a record as it is stored, with its evidence as text."""
    return hashlib.sha256(json.dumps([row[f] for f in FIELDS]).encode()).hexdigest()


def check_chain(model: str, records: Iterable[LedgerRecord], wanted: int = 0) -> tuple[int, str]:
    """Check that the records are those of one chain, from its first one, in order.

    Args:
        model: name of the model.
        records: its records.
        wanted: number of a record.

    Returns:
        How many records there are; and the hash of the wanted one, empty if there is no such record.

    Raises:
        LedgerError: a record was changed, or one is missing, inserted or at another place.
    """
    previous, count, wanted_hash = GENESIS, 0, ""
    for count, record in enumerate(records, 1):
        if (
            record["model"] != model
            or record["sequence"] != count
            or record["previous"] != previous
            or record["hash"] != row_hash({**record, "evidence": evidence_text(record["evidence"])})
        ):
            raise LedgerError(
                f"record {record['sequence']} of the ledger was changed, or one before it is missing",
                "compare with a backup of the lake: decisions were tampered with",
                model=model,
            )
        previous = record["hash"]
        if count == wanted:
            wanted_hash = previous
    return count, wanted_hash


def evidence_text(evidence: Mapping[str, Any]) -> str:
    """Evidence as it is stored, and as its hash covers it."""
    return json.dumps(evidence, sort_keys=True, default=str)
