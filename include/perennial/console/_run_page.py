"""What the page of a run shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from perennial.console import overview
from perennial.console.actions import RunDetails
from perennial.status import history
from perennial.status.history import Entry
from perennial.storage import ledger, pages
from perennial.storage.ledger import LedgerKind
from perennial.storage.pages import Page

#: Kinds of reports by stage.
_KINDS = {"data": ("validation", "profile"), "monitor": ("monitor",), "train": ("training",)}
#: Steps that write manifests, by stage.
_STEPS = {"data": ("data", "labels"), "score": ("score",), "monitor": ("monitor",), "train": ("train",)}
#: Kinds of decisions about versions.
_OF_VERSIONS = (LedgerKind.TRAINING, LedgerKind.PROMOTION)
#: Partitions of a run that the page lists.
MAX_PARTITIONS = 100


@dataclass(frozen=True)
class RunPage:
    """A run.

    Attributes:
        model: name of the model.
        stage: such as ``data``.
        run: what Airflow says about it.
        finished: step, partition and entry of what it finished, the latest partition first.
        total: number of what it finished.
        decisions: records of the ledger that name it, or the versions that it trained.
        reports: of its partitions.
    """

    model: str
    stage: str
    run: RunDetails
    finished: list[tuple[str, str, Entry]] = field(default_factory=list)
    total: int = 0
    decisions: list[dict[str, Any]] = field(default_factory=list)
    reports: list[Page] = field(default_factory=list)


def compose(model: str, stage: str, run: RunDetails) -> RunPage | None:
    """Read what a run did; None if it is not a model's.

    Args:
        model: name of the model.
        stage: of the run.
        run: what Airflow says about it.

    Raises:
        StorageError: the lake cannot be read.
    """
    if overview.of_model(model) is None:
        return None
    steps = history.load(model)[0]
    finished = [
        (step, key, entry)
        for step in _STEPS.get(stage, ())
        for key, entry in steps.of(step).items()
        if entry.run_id == run.run_id
    ]
    finished.sort(key=lambda item: item[1], reverse=True)
    keys = {key for _, key, _ in finished} or ({run.partition} - {""})
    listed = [page for page in pages.find(model) if page.kind in _KINDS.get(stage, ())]
    concerned = [page for page in listed if any(page.concerns(key, key) for key in keys)]
    # Records about versions name the run in MLflow by that key; a rollback names that in Airflow beside it.
    trained = {entry.version for step, _, entry in finished if step == "train"} - {""}
    decisions = [
        {key: record[key] for key in ("kind", "decision", "model_version", "partition", "reason")}
        for record in ledger.records(model)
        if run.run_id in (record["evidence"].get("run_id"), record["evidence"].get("airflow_run"))
        or (record["kind"] in _OF_VERSIONS and record["model_version"] in trained)
    ]
    return RunPage(
        model, stage, run, finished[:MAX_PARTITIONS], len(finished), decisions, concerned[:MAX_PARTITIONS]
    )
