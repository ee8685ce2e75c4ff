"""What a training was asked for, and what it reads, fixed when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perennial.core import runtime
from perennial.core.errors import DataReplacedError
from perennial.features import feature_tables, reference_tables
from perennial.ingestion import erasure_requests
from perennial.modeling import registry
from perennial.modeling.registry import ModelVersion
from perennial.spec import spec_changes
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.storage.object_store import FileStat
from perennial.training.checkpoint import Checkpoint
from perennial.training.runs.run_content import AirflowRun, DatasetVersion
from perennial.training.windows import Windows


@dataclass(frozen=True)
class TrainingRequest:
    """What a training was asked for.

    Attributes:
        as_of: partition date; later data is not used.
        reason: why it was requested.
        actor: who requested it.
        run_id: id of the Airflow run; empty outside Airflow.
        workers: number of processes that fit the model together.
        rendezvous: URI of the file where workers that run elsewhere find the trainer; None without such workers.
        run_url: address of the Airflow run.
    """

    as_of: str
    reason: str
    actor: str
    run_id: str
    workers: int
    rendezvous: str | None
    run_url: str

    @property
    def airflow_run(self) -> AirflowRun:
        """The run of Airflow that the training belongs to."""
        return AirflowRun(self.run_id, self.run_url) if self.run_id else AirflowRun()


@dataclass(frozen=True)
class PinnedData:
    """What a training reads, fixed when it starts.

    Attributes:
        version: version of the published rows.
        labels_version: version of the labels; None if the rows contain them.
        reference_versions: version of each reference table and each feature table, by name.
        windows: candidate windows, by name.
        champion: the champion; None if there is none, or if it is lost.
        lost_champion: version of a champion that cannot be compared with, because its files are gone or the ledger has
            no digests of them; empty otherwise.
        since: date of the change that the retraining responds to; empty if there is none.
        inputs: what the result depends on, for the manifest.
        erasures: files of the requests to erase rows, by model whose rows are read, before anything else was read.
    """

    version: int
    labels_version: int | None
    reference_versions: dict[str, int]
    windows: dict[str, Windows]
    champion: ModelVersion | None
    lost_champion: str
    since: str
    inputs: dict[str, Any]
    erasures: Mapping[str, Mapping[str, FileStat]] = field(default_factory=dict)

    @property
    def champion_version(self) -> str | None:
        """Number of the champion's version."""
        return self.champion.version if self.champion else self.lost_champion or None


def find_erasures(spec: ModelSpec) -> dict[str, dict[str, FileStat]]:
    """The files of the requests to erase rows, by model whose rows a training reads: its own, and feature tables'."""
    sources = {source.model for _, table in spec.feature_tables for source in table.sources}
    return {model: erasure_requests.files(model) for model in sorted({spec.name, *sources})}


def refuse_erased(spec: ModelSpec, pinned: PinnedData, as_of: str) -> None:
    """Refuse a model that has learned rows which were erased since the training began.

    Raises:
        DataReplacedError: some were.
    """
    windows = pinned.windows.values()
    first, last = min(w.fit[0] for w in windows), max(w.holdout[-1] for w in windows)
    joined = [f"features.{table.name}" for _, table in spec.feature_tables]
    for model, before in pinned.erasures.items():
        for request in erasure_requests.begun_since(model, before):
            among_rows = model == spec.name and any(first <= day <= last for day in request.partitions)
            if among_rows or any(request.total.rows.get(table) for table in joined):
                raise DataReplacedError(
                    f"rows of the training were erased while it ran (request {request.identifier} of {model})",
                    "train again: it then reads the rows that are left",
                    model=spec.name,
                    partition=as_of,
                )


def dataset_versions(spec: ModelSpec, pinned: PinnedData) -> list[DatasetVersion]:
    """The table versions that the training reads, for MLflow."""
    windows = pinned.windows.values()
    dates = f"{min(w.fit[0] for w in windows)}..{next(iter(windows)).holdout[-1]}"
    inputs = pinned.inputs
    published = delta_tables.table_uri("published", spec.name)
    datasets = [DatasetVersion(f"{spec.name}.published", published, pinned.version, inputs["rows"], dates)]
    if pinned.labels_version is not None:
        labels = delta_tables.table_uri("labels", spec.name)
        datasets.append(
            DatasetVersion(f"{spec.name}.labels", labels, pinned.labels_version, inputs["labels"], dates)
        )
    for reference in spec.references:
        version = pinned.reference_versions[reference.name]
        uri = reference_tables.uri(reference)
        datasets.append(DatasetVersion(reference.name, uri, version, f"version {version}"))
    for _, table in spec.feature_tables:
        version, uri = pinned.reference_versions[table.name], feature_tables.uri(table)
        datasets.append(DatasetVersion(table.name, uri, version, f"version {version}"))
    return datasets


def difference_to_champion(spec: ModelSpec, pinned: PinnedData) -> str:
    """Why the champion cannot be compared with what the spec trains; empty if it can, or there is none."""
    if pinned.lost_champion:
        return (
            f"the files of version {pinned.lost_champion} are lost or cannot be checked, and a person forced the "
            "training"
        )
    if pinned.champion is None:
        return ""
    difference = spec_changes.target_difference(registry.load_spec(pinned.champion), spec)
    return f"version {pinned.champion.version}: {difference}" if difference else ""


def make_checkpoints(spec: ModelSpec, request: TrainingRequest, pinned: PinnedData) -> dict[str, Checkpoint]:
    """The checkpoint of each window, by its name."""
    # Another version of the library may encode the same rows differently.
    inputs = pinned.inputs | {"library": runtime.library_digest()}
    if request.workers > 1:
        # Another number of workers bins the rows differently, so it cannot continue from this checkpoint.
        inputs = inputs | {"workers": request.workers}
    return {
        name: Checkpoint.for_inputs(spec.name, request.as_of, inputs | {"window": name})
        for name in pinned.windows
    }
