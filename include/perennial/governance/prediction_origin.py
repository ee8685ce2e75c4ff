"""Where a stored prediction comes from: version, data, code, features, gate and approval.

The answer is composed of what was recorded when the partition was scored and when the version was trained: the
prediction, the manifest of scoring, and the ledger. MLflow is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perennial.core.errors import DataError
from perennial.features import serving_log
from perennial.governance import prediction_explanation
from perennial.lifecycle import champion
from perennial.lifecycle.champion import CHAMPION_CHANGES
from perennial.modeling import training_records
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, manifests
from perennial.storage.ledger import LedgerKind, LedgerRecord


@dataclass(frozen=True)
class PredictionOrigin:
    """Where a prediction comes from. What was not recorded is empty.

    Attributes:
        model: name of the model.
        partition: partition of the row.
        key: values of the row's key, by column.
        prediction: the stored prediction.
        scored_at: when the partition was scored (UTC).
        scored_by: the Airflow run that scored it.
        scoring_code: code version that scored it.
        rows_digest: digest of the published files that were scored.
        tables_at_scoring: version of each reference table and feature table that scoring read, by name.
        version: the version that made the prediction.
        model_digest: SHA-256 of its file.
        role: ``champion``, or ``challenger`` of an A/B trial.
        trained_as_of: partition date of its training.
        trained_on: partitions that it was fitted on.
        data: versions of published rows and labels that its training read.
        training_code: code version that trained it.
        spec_digest: digest of the model's spec that it was trained by, with the SQL of its features.
        recipe_digest: SHA-256 of its recipe, by which it can be made again.
        training: the ledger's record of its training.
        approval: the ledger's record of a person's answer before its promotion; None where none was asked for.
        promotion: the ledger's record that made it champion before the partition was scored; None for a challenger.
    """

    model: str
    partition: str
    key: dict[str, str]
    prediction: float | str
    scored_at: str
    scored_by: str
    scoring_code: str
    rows_digest: str
    tables_at_scoring: dict[str, Any]
    version: str
    model_digest: str
    role: str
    trained_as_of: str
    trained_on: str
    data: str
    training_code: str
    spec_digest: str
    recipe_digest: str
    training: LedgerRecord
    approval: LedgerRecord | None
    promotion: LedgerRecord | None


def find_origin(spec: ModelSpec, partition: str, key: Mapping[str, str]) -> PredictionOrigin:
    """Find where the stored prediction of one row comes from.

    Args:
        spec: the model.
        partition: partition of the row.
        key: value of each column of the key, as text.

    Raises:
        PerennialError: this is no partition or no key of the model.
        DataError: the row has no prediction, or the ledger has no training of the version that made it.
        StorageError: the lake cannot be read.
    """
    spec.cadence.parse(partition)
    scored = manifests.read(spec.name, "score", partition)
    if scored is None:
        raise DataError(
            "the partition has not been scored", "score it first", model=spec.name, partition=partition
        )
    stored = prediction_explanation.read_row(spec, "predictions", partition, key)
    number = str(stored.column(spec.lake_column("model_version"))[0].as_py())
    is_champion = number == scored.inputs["version"]
    read = serving_log.scored_with(scored, number)
    # one search: of a long ledger, each takes a while
    kinds = (LedgerKind.TRAINING, LedgerKind.APPROVAL, *CHAMPION_CHANGES)
    records = ledger.find(spec.name, *kinds, version=number)
    training = _training(spec, records, read.digest, partition)
    evidence = training["evidence"]
    tags = evidence.get("tags", {})
    return PredictionOrigin(
        model=spec.name,
        partition=partition,
        key=dict(key),
        prediction=stored.column(spec.lake_column("prediction"))[0].as_py(),
        scored_at=scored.finished_at,
        scored_by=scored.run_id,
        scoring_code=scored.code_version,
        rows_digest=scored.inputs["rows"],
        tables_at_scoring=read.tables,
        version=number,
        model_digest=read.digest,
        role="champion" if is_champion else "challenger",
        trained_as_of=training["partition"],
        trained_on=str(tags.get("refit_range") or tags.get("trained_range", "")),
        data=str(tags.get("dataset_version", "")),
        training_code=str(tags.get("code_version", "")),
        spec_digest=str(tags.get("spec_digest", "")),
        recipe_digest=str(evidence.get("digests", {}).get("recipe.json", "")),
        training=training,
        approval=_last(
            r
            for r in records
            if r["kind"] == LedgerKind.APPROVAL and r["evidence"].get("run_id") == evidence.get("run_id")
        ),
        # a later promotion does not explain the scoring
        promotion=_last(
            r for r in champion.changes(records) if r["recorded_at"] <= scored.finished_at and is_champion
        ),
    )


def _training(spec: ModelSpec, records: Sequence[LedgerRecord], digest: str, partition: str) -> LedgerRecord:
    """The record of the training that made a model file: a version's number is used again if MLflow loses the model."""
    trainings = [
        r
        for r in records
        if r["kind"] == LedgerKind.TRAINING
        and r["evidence"].get("digests", {}).get(training_records.MODEL_FILE) == digest
    ]
    if trainings:
        return trainings[-1]
    raise DataError(
        "the ledger has no training of the model file that made this prediction",
        "restore the ledger from a backup, then run `perennial verify`",
        model=spec.name,
        partition=partition,
    )


def _last(records: Iterable[LedgerRecord]) -> LedgerRecord | None:
    return next(iter(list(records)[::-1]), None)
