"""What was decided about a version since it was registered: it follows the card wherever the ledger can be read."""

from __future__ import annotations

from collections.abc import Iterable

from perennial.governance.model_card.document import Gap, Paragraph, Section, Table
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind, LedgerRecord

#: Kinds of records that concern a version, besides its training.
_KINDS = (
    LedgerKind.APPROVAL, LedgerKind.PROMOTION, LedgerKind.TRIAL, LedgerKind.ROLLBACK, LedgerKind.EXTERNAL_CHANGE,
    LedgerKind.REPRODUCTION,
)  # fmt: skip


def decision_sections(model: str, version: str, run_id: str) -> list[Section]:
    """Approvals, promotions, trials, rollbacks and reproductions of a version, in order.

    Args:
        model: name of the model.
        version: number of the version.
        run_id: MLflow run that trained it: a number is used again if the model is deleted in MLflow.

    Raises:
        StorageError: the ledger cannot be read.
    """
    records = [*_of_version(ledger.records(model), version, run_id)]
    heading = "Decisions since it was registered"
    if not records:
        return [Section(heading, [Paragraph("None: it was neither approved nor promoted.")])]
    rows = [(r["recorded_at"], r["kind"], r["decision"], r["actor"], r["reason"]) for r in records]
    blocks: list[Table | Gap] = [Table(["recorded (UTC)", "what", "decision", "by", "reason"], rows)]
    if not any(r["kind"] == LedgerKind.REPRODUCTION for r in records):
        blocks.append(Gap("Whether it can be made again", f"run perennial reproduce {model} {version}"))
    return [Section(heading, blocks)]


def _of_version(records: Iterable[LedgerRecord], version: str, run_id: str) -> Iterable[LedgerRecord]:
    for record in records:
        recorded_run = record["evidence"].get("run_id") or run_id
        if record["kind"] in _KINDS and record["model_version"] == version and recorded_run == run_id:
            yield record
