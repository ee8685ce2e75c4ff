"""The state of each partition of a model: published, scored, labelled, missing, failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from perennial.core.settings import settings
from perennial.lifecycle import backlog
from perennial.spec.model_spec import ModelSpec
from perennial.status.history import History
from perennial.storage import object_store

#: States, with what they mean, in the order of a legend.
STATES = {
    "published": "published",
    "scored": "scored",
    "labelled": "scored, labels arrived",
    "missing": "due, not published",
    "failed": "failed",
    "none": "not due",
}


@dataclass(frozen=True)
class PartitionState:
    """One partition.

    Attributes:
        key: of the partition.
        state: one of `STATES`.
        rows: published rows.
        quarantined: rows and labels in quarantine.
        version: version of the model that scored it.
        labels: labels that arrived.
    """

    key: str
    state: str
    rows: int = 0
    quarantined: int = 0
    version: str = ""
    labels: int = 0

    @property
    def text(self) -> str:
        """The numbers in words."""
        parts = [f"{self.rows:,} rows"] if self.state not in ("none", "missing") else []
        if self.quarantined:
            parts.append(f"{self.quarantined:,} in quarantine")
        if self.version:
            parts.append(f"scored by version {self.version}")
        if self.labels:
            parts.append(f"{self.labels:,} labels")
        return ", ".join(parts)


def states(
    spec: ModelSpec, history: History, limit: int, moment: datetime | None = None
) -> list[PartitionState]:
    """The states of the latest partitions, in order.

    Args:
        spec: the model.
        history: index of its manifests.
        limit: partitions at most.
        moment: the time, for what is due; now by default.

    Raises:
        StorageError: the lake cannot be read.
    """
    data, labels, scores = (history.of(step) for step in ("data", "labels", "score"))
    failed = _failed(spec.name)
    cadence = spec.cadence
    due = cadence.last_ended(moment or datetime.now(UTC))
    due = min(due, spec.last_partition) if spec.last_partition else due
    known = [*data, *labels, *scores, *failed]
    if not known:
        return []
    last = max([*known, due])
    first = max(min(known), cadence.shift(last, 1 - limit))

    def state_of(key: str) -> PartitionState:
        published, labelled, scored = data.get(key), labels.get(key), scores.get(key)
        if scored and published:
            has_labels = labelled is not None or spec.label.source is None
            state = "labelled" if has_labels else "scored"
        elif key in failed and not published:
            state = "failed"
        elif published:
            state = "published"
        else:
            is_due = spec.first_partition <= key <= due and backlog.has_tick(spec, spec.schedule.data, key)
            state = "missing" if is_due else "none"
        return PartitionState(
            key,
            state,
            rows=published.rows_out if published else 0,
            quarantined=sum(e.quarantined for e in (published, labelled) if e),
            version=scored.version if scored else "",
            labels=labelled.rows_out if labelled else 0,
        )

    return [state_of(key) for key in cadence.range(first, last)]


def _failed(model: str) -> set[str]:
    """Partitions whose data step failed."""
    folder = f"{settings().lake}/manifests/{model}/data/failed"
    return {name.removesuffix(".json") for name in object_store.list_files(folder)}
