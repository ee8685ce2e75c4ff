"""What the ledger records about each trained version: its MLflow run, its tags, and the digests of its files.

Whoever can write to MLflow can replace a model's files and edit its tags. So whatever decides is compared with the
ledger: `perennial.modeling.registry` loads no file whose digest differs from the recorded one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from perennial.core.errors import ArtifactError
from perennial.core.partitions import PartitionRange
from perennial.core.settings import settings
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind, LedgerRecord

#: Name of the model file among the recorded digests.
MODEL_FILE = "model.ubj"
#: Name of the file of the model that was evaluated, where the registered one was fitted once more afterwards.
EVALUATED_MODEL_FILE = "evaluated_model.ubj"

#: Name of the file with what is known about a version, its card.
CARD_FILE = "model_card.json"


@dataclass(frozen=True)
class TrainingRecord:
    """The ledger's record of one trained version.

    Attributes:
        version: number of the version, as text.
        run_id: MLflow run that trained it.
        model_id: MLflow's id of the logged model.
        tags: tags that the version was registered with, by name.
        digests: SHA-256 of each of its files, by name; empty in records that were written without them.
        recorded_at: time of the record, in UTC.
    """

    version: str
    run_id: str
    model_id: str
    tags: dict[str, str]
    digests: dict[str, str]
    recorded_at: str = ""

    @classmethod
    def parse(cls, record: LedgerRecord) -> TrainingRecord:
        """Read a record of the kind ``training`` that has a version."""
        evidence = record["evidence"]
        return cls(
            record["model_version"],
            str(evidence.get("run_id", "")),
            str(evidence.get("model_id", "")),
            dict(evidence.get("tags", {})),
            dict(evidence.get("digests", {})),
            record["recorded_at"],
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the model file; empty if none was recorded."""
        return self.digests.get(MODEL_FILE, "")

    @property
    def ranges(self) -> list[PartitionRange]:
        """The partitions that it was fitted on, fitted on once more, and evaluated on."""
        texts = (self.tags.get(name) for name in ("trained_range", "refit_range", "holdout_range"))
        return [PartitionRange.parse(text) for text in texts if text]


#: Records found by this process, by lake, model, version and run; they never change.
_records: dict[tuple[str, str, str, str], TrainingRecord] = {}


def evidence(model_id: str, tags: Mapping[str, str], digests: Mapping[str, str]) -> dict[str, Any]:
    """What a training's ledger record contains in addition to its ``run_id``, for `find`."""
    return {"model_id": model_id, "tags": dict(tags), "digests": dict(digests)}


def find(model: str, version: str, run_id: str) -> TrainingRecord | None:
    """Find the record of the training that made a version; None if the ledger has none.

    Args:
        model: name of the model.
        version: number of the version.
        run_id: MLflow run that trained it: a number is used again if somebody deletes the model in MLflow.
    """
    key = (settings().lake, model, version, run_id)
    if key not in _records:
        for record in all_records(model):
            _records[settings().lake, model, record.version, record.run_id] = record
    return _records.get(key)


@contextmanager
def reading(artifact: str, content: Any, version: int) -> Iterator[None]:
    """While the block reads the content of a stored JSON file: what is not as it expects is an error about the file.

    Args:
        artifact: name of the file.
        content: of it.
        version: of the format that the block reads.

    Raises:
        ArtifactError: it is of another format.
    """
    try:
        if content["format"] != version:
            raise ValueError(f"format {content['format']}")
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{artifact} cannot be used: {error}", "train again: training writes it"
        ) from error


def all_records(model: str) -> list[TrainingRecord]:
    """The records of all trained versions of a model, in order."""
    records = ledger.records(model, LedgerKind.TRAINING)
    return [TrainingRecord.parse(r) for r in records if r["model_version"]]
