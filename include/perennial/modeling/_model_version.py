"""One registered version, as MLflow describes it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from perennial.core.partitions import PartitionRange
from perennial.modeling import mlflow_api


@dataclass(frozen=True)
class ModelVersion:
    """One registered version.

    Attributes:
        name: name of the model.
        version: number of the version, as text.
        run_id: MLflow run that trained it.
        model_id: MLflow's id of the logged model.
        tags: tags of the version, by name.
    """

    name: str
    version: str
    run_id: str
    model_id: str
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the model file."""
        return self.tags.get("digest", "")

    @property
    def as_of(self) -> str:
        """The partition date as of which it was trained and evaluated."""
        return self.tags.get("as_of", "")

    @property
    def trained_range(self) -> PartitionRange:
        """Partitions that it was fitted on, those for early stopping included."""
        return PartitionRange.parse(self.tags["trained_range"])

    @property
    def refit_range(self) -> PartitionRange | None:
        """Partitions that it was fitted on once more after its evaluation; None if it was not."""
        return PartitionRange.parse(self.tags["refit_range"]) if self.tags.get("refit_range") else None

    @property
    def holdout_range(self) -> PartitionRange:
        """Partitions that it was evaluated on."""
        return PartitionRange.parse(self.tags["holdout_range"])


def parse_version(path: str, content: dict[str, Any], model: str) -> ModelVersion:
    """Read MLflow's description of a version.

    Args:
        path: what was called, for messages.
        content: the answer.
        model: name of the model that was asked for.

    Raises:
        RegistryError: the answer does not describe a version of that model.
    """
    version = content.get("model_version")
    tags = version.get("tags", []) if isinstance(version, dict) else None
    if (
        not isinstance(version, dict)
        or version.get("name") != model
        or not str(version.get("version", "")).isdigit()
        or not all(isinstance(version.get(key, ""), str) for key in ("run_id", "source"))
        or not isinstance(tags, list)
        or not all(isinstance(t, dict) and isinstance(t.get("key"), str) for t in tags)
    ):
        raise mlflow_api.unexpected_answer(path, json.dumps(content))
    return ModelVersion(
        model,
        str(version["version"]),
        version.get("run_id", ""),
        version.get("source", "").removeprefix("models:/"),
        {t["key"]: str(t.get("value", "")) for t in tags},
    )
