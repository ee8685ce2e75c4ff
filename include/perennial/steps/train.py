"""The train step: pin a dataset version; fit, evaluate, register and record a challenger."""

from __future__ import annotations

import contextlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from perennial.core import runtime
from perennial.core.errors import DataError, PerennialError, StorageError
from perennial.core.settings import settings
from perennial.features import reference_tables
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.modeling.registry import ModelVersion
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.manifests import Manifest
from perennial.training import tracking
from perennial.training.artifacts import ModelArtifacts, build_artifacts
from perennial.training.candidates import Candidate, TrainingJob, fit_best_candidate
from perennial.training.challenger_evaluation import Evaluation, TrainingSource
from perennial.training.checkpoint import Checkpoint
from perennial.training.search import GpuReport
from perennial.training.windows import Windows, candidate_windows


class DatasetVersions(TypedDict):
    """Versions of the tables that a training read.

    Attributes:
        published: version of the published rows.
        labels: version of the labels; None if the rows contain them.
        references: version of each reference table, by name.
    """

    published: int
    labels: int | None
    references: dict[str, int]


class RowCounts(TypedDict):
    """Numbers of rows by what they were used for."""

    fit: int
    valid: int
    holdout: int


class GateResult(TypedDict):
    """The result of the gate.

    Attributes:
        passed: whether the challenger passed.
        reasons: a sentence for each criterion.
        against_champion: `Comparison.as_dict` with the champion; None if there was none.
        against_baselines: `Comparison.as_dict` with each baseline model, by name.
        champion: version of the champion; None if there was none.
    """

    passed: bool
    reasons: list[str]
    against_champion: dict[str, Any] | None
    against_baselines: dict[str, dict[str, Any]]
    champion: str | None


class TrainResult(TypedDict):
    """The result of a training.

    Attributes:
        as_of: partition date of the training; later data was not used.
        run_id: MLflow run.
        version: registered version.
        digest: SHA-256 of the model file.
        dataset_version: versions of the tables that were read.
        device: device that trained: ``cpu`` or ``cuda``.
        gpu: use of the GPUs; None without a GPU.
        workers: number of processes that fitted the model together.
        rounds: boosting rounds of the model.
        external_memory: whether the binned matrix was on disk.
        trials: number of search trials.
        resumed_rounds: rounds from the checkpoint of an interrupted training.
        metrics: metrics on the held-out rows, by name.
        reason: why the training was requested.
        window: name of the best window.
        since: date of the change that the retraining responds to; empty if there was none.
        status: ``trained``, or ``unchanged`` if the same inputs were trained before.
        gate: result of the gate.
        rows: numbers of rows.
    """

    as_of: str
    run_id: str
    version: str
    digest: str
    dataset_version: DatasetVersions
    device: str
    gpu: GpuReport | None
    workers: int
    rounds: int
    external_memory: bool
    trials: int
    resumed_rounds: int
    metrics: dict[str, float]
    reason: str
    window: str
    since: str
    status: Literal["trained", "unchanged"]
    gate: GateResult
    rows: RowCounts


@dataclass(frozen=True)
class _Request:
    """The arguments of the step."""

    as_of: str
    reason: str
    actor: str
    run_id: str
    workers: int
    rendezvous: str | None


@dataclass(frozen=True)
class _PinnedData:
    """What a training reads, fixed when it starts.

    Attributes:
        version: version of the published rows.
        labels_version: version of the labels; None if the rows contain them.
        reference_versions: version of each reference table, by name.
        windows: candidate windows, by name.
        champion: the champion; None if there is none.
        since: date of the change that the retraining responds to; empty if there is none.
        inputs: what the result depends on, for the manifest.
    """

    version: int
    labels_version: int | None
    reference_versions: dict[str, int]
    windows: dict[str, Windows]
    champion: ModelVersion | None
    since: str
    inputs: dict[str, Any]

    @property
    def champion_version(self) -> str | None:
        """Number of the champion's version."""
        return self.champion.version if self.champion else None


def train(
    spec: ModelSpec,
    *,
    as_of: str,
    reason: str = "",
    force: bool = False,
    run_id: str = "",
    workers: int = 1,
    rendezvous: str | None = None,
    actor: str = "",
) -> TrainResult:
    """Train, evaluate and register a challenger as of a partition date; nothing is promoted.

    Args:
        spec: the model.
        as_of: partition date.
        reason: why it was requested, for the ledger.
        force: train again even if the same inputs were trained before.
        run_id: id of the Airflow run, for the manifest.
        workers: number of processes that fit the model together.
        rendezvous: URI of the file where workers that run elsewhere find this process
            (`perennial.training.dask_cluster`); processes of this machine when not given.
        actor: who requested it, for the ledger.

    Raises:
        DataError: too few labelled rows.
        PerennialError: cuda was requested and there is none.
        RegistryError: MLflow cannot be reached.
        WorkersUnavailableError: a worker did not connect.
        StepInterruptedError: a worker was lost.
        StorageError: the working folder cannot be used.
    """
    started = time.monotonic()
    request = _Request(as_of, reason, actor, run_id, workers, rendezvous)
    pinned = _pin(spec, as_of)
    completed = None if force else manifests.find_completed(spec.name, "train", as_of, pinned.inputs)
    if completed and _is_valid(spec, completed, pinned.champion):
        return cast(TrainResult, completed.result | {"status": "unchanged"})
    candidate, version = _train_challenger(spec, request, pinned)
    result = _result(request, pinned, candidate, version)
    _record(spec, request, pinned, result, started)
    return result


def _pin(spec: ModelSpec, as_of: str) -> _PinnedData:
    """Pin the table versions that the training reads, and the candidate windows.

    Raises:
        DataError: nothing was published, no label has arrived, or there are too few partitions.
    """
    published = delta_tables.table_uri("published", spec.name)
    labels = None if spec.label.source is None else delta_tables.table_uri("labels", spec.name)
    version = delta_tables.version(published)
    labels_version = delta_tables.version(labels) if labels else None
    if version is None or (labels and labels_version is None):
        raise DataError(
            "nothing was published yet" if version is None else "no label has arrived yet",
            "run the data DAG first, with start and end",
            model=spec.name,
            partition=as_of,
        )
    since = _change_date(spec, as_of)
    available = delta_tables.partitions(labels or published, labels_version if labels else version)
    windows = candidate_windows(spec, as_of, available, since)
    first = min(w.fit[0] for w in windows.values())
    last = next(iter(windows.values())).holdout[-1]
    champion = registry.get_champion(spec)
    reference_versions = reference_tables.sync_to_lake(spec)
    inputs: dict[str, Any] = {
        "rows": delta_tables.partitions_digest(published, first, last, version),
        "spec": spec.digest,
        "labels": delta_tables.partitions_digest(labels, first, last, labels_version) if labels else "",
        "references": reference_versions,
        "since": since,
    }
    return _PinnedData(version, labels_version, reference_versions, windows, champion, since, inputs)


def _change_date(spec: ModelSpec, as_of: str) -> str:
    """The date of the change that the retraining responds to; empty if there is none."""
    decisions = [r for r in ledger.records(spec.name, LedgerKind.RETRAINING) if r["partition"] == as_of]
    return str(decisions[-1]["evidence"].get("since") or "") if decisions else ""


def _is_valid(spec: ModelSpec, completed: Manifest, champion: ModelVersion | None) -> bool:
    """Whether a finished training need not run again.

    A challenger that passed the gate against an earlier champion cannot be promoted any more, so it is trained again.
    """
    gate, champion_version = completed.result["gate"], champion.version if champion else None
    if not gate["passed"] or champion_version in (gate["champion"], completed.result["version"]):
        return True
    promotions = ledger.records(spec.name, LedgerKind.PROMOTION)
    return any(r["model_version"] == completed.result["version"] for r in promotions)


def _train_challenger(
    spec: ModelSpec, request: _Request, pinned: _PinnedData
) -> tuple[Candidate, ModelVersion]:
    """Fit, evaluate and register the best candidate, as a run in MLflow.

    A failure is recorded in MLflow and in the ledger.
    """
    features = FeatureQuery(spec, pinned.reference_versions)
    source = TrainingSource(spec, features, pinned.version, pinned.labels_version)
    checkpoints = _checkpoints(spec, request, pinned)
    run = tracking.TrainingRun(spec, request.as_of, request.reason)
    try:
        with _working_folder() as folder:
            job = TrainingJob(
                source,
                pinned.champion,
                Path(folder),
                checkpoints,
                run.log_trial,
                request.workers,
                request.rendezvous,
            )
            candidate = fit_best_candidate(job, pinned.windows)
            version = _evaluate_and_register(run, candidate, job, request)
        run.finish()
        for checkpoint in checkpoints.values():
            checkpoint.clear()
    except BaseException as error:
        run.fail()
        _record_failure(spec, request, error)
        if isinstance(error, OSError):
            raise StorageError(
                f"the working folder {settings().home / 'tmp'} cannot be used: {error}",
                "check that the disk has room for the training's rows; then run it again",
                model=spec.name,
                partition=request.as_of,
            ) from error
        raise
    return candidate, version


def _checkpoints(spec: ModelSpec, request: _Request, pinned: _PinnedData) -> dict[str, Checkpoint]:
    """The checkpoint of each window, by its name."""
    inputs = pinned.inputs
    if request.workers > 1:
        # Another number of workers bins the rows differently, so it cannot continue from this checkpoint.
        inputs = inputs | {"workers": request.workers}
    return {
        name: Checkpoint.for_inputs(spec.name, request.as_of, inputs | {"window": name})
        for name in pinned.windows
    }


def _working_folder() -> tempfile.TemporaryDirectory[str]:
    parent = settings().home / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="train-", dir=parent)


def _evaluate_and_register(
    run: tracking.TrainingRun, candidate: Candidate, job: TrainingJob, request: _Request
) -> ModelVersion:
    """Evaluate the candidate while its artifacts are built, and register it.

    If the rows do not fit in memory, evaluation and artifacts are computed one after the other.
    """
    source = job.source
    if candidate.fitted.external_memory:
        _ = candidate.evaluation
    with ThreadPoolExecutor(1, thread_name_prefix="artifacts") as pool:
        # A separate FeatureQuery, because the evaluation uses the other one at the same time.
        features = FeatureQuery(source.spec, source.features.reference_versions)
        building = pool.submit(
            build_artifacts,
            replace(source, features=features),
            candidate.model,
            candidate.windows,
            job.folder,
            job.champion,
        )
        evaluation = candidate.evaluation
        document = evaluation.as_dict() | {
            "window": candidate.window_name,
            "champion": job.champion.version if job.champion else None,
        }

        def artifacts() -> ModelArtifacts:
            return building.result().with_document("evaluation.json", document)

        registration = tracking.Registration(
            candidate.model,
            candidate.fitted,
            candidate.example,
            evaluation.metrics,
            _tags(source, candidate, request),
            _description(request, evaluation),
        )
        return run.register(registration, artifacts)


def _tags(source: TrainingSource, candidate: Candidate, request: _Request) -> dict[str, str]:
    """The tags of the registered version, without its digest."""
    return {
        "as_of": request.as_of,
        "task": source.spec.task,
        "spec_digest": source.spec.digest,
        "code_version": runtime.code_version(),
        "dataset_version": f"published@{source.version} labels@{source.labels_version}",
        "device": candidate.fitted.device,
        "trained_range": str(candidate.windows.trained_range),
        "holdout_range": str(candidate.windows.holdout_range),
        "reason": request.reason,
    }


def _description(request: _Request, evaluation: Evaluation) -> str:
    """The description of the version on its page in MLflow, Markdown."""
    verdict = "Passed the gate" if evaluation.passed else "Rejected by the gate"
    lines = [f"{verdict}. Trained as of {request.as_of}: {request.reason or 'requested by hand'}", ""]
    return "\n".join([*lines, *(f"- {reason}" for reason in evaluation.reasons)])


def _record_failure(spec: ModelSpec, request: _Request, error: BaseException) -> None:
    """Record in the ledger that the training failed.

    The request is then no longer open, so that the next verdict may request a retraining again.
    """
    with contextlib.suppress(PerennialError):  # the training's own error is raised, not this one
        ledger.append(
            spec.name,
            kind=LedgerKind.TRAINING,
            decision=Decision.FAILED,
            reason=str(error).split("\n")[0][:500] or type(error).__name__,
            actor="training",
            partition=request.as_of,
            evidence={
                "as_of": request.as_of,
                "request": {"actor": request.actor, "reason": request.reason},
                "error": type(error).__name__,
            },
        )


def _result(
    request: _Request, pinned: _PinnedData, candidate: Candidate, version: ModelVersion
) -> TrainResult:
    fitted, evaluation = candidate.fitted, candidate.evaluation
    comparisons = evaluation.as_dict()
    return {
        "as_of": request.as_of,
        "run_id": version.run_id,
        "version": version.version,
        "digest": version.digest,
        "dataset_version": {
            "published": pinned.version,
            "labels": pinned.labels_version,
            "references": pinned.reference_versions,
        },
        "device": fitted.device,
        "gpu": fitted.gpu,
        "workers": request.workers,
        "rounds": fitted.rounds,
        "external_memory": fitted.external_memory,
        "trials": len(fitted.trials),
        "resumed_rounds": fitted.resumed_rounds,
        "metrics": evaluation.metrics,
        "reason": request.reason,
        "window": candidate.window_name,
        "since": pinned.since,
        "status": "trained",
        "gate": {
            "passed": evaluation.passed,
            "reasons": evaluation.reasons,
            "against_champion": comparisons["against_champion"],
            "against_baselines": comparisons["against_baselines"],
            "champion": pinned.champion_version,
        },
        "rows": {
            "fit": candidate.fit_rows,
            "valid": candidate.rows - candidate.fit_rows,
            "holdout": evaluation.rows,
        },
    }


def _record(
    spec: ModelSpec, request: _Request, pinned: _PinnedData, result: TrainResult, started: float
) -> None:
    """Record the training in the ledger, and write its manifest last."""
    gate = result["gate"]
    ledger.append(
        spec.name,
        kind=LedgerKind.TRAINING,
        decision=Decision.ACCEPTED if gate["passed"] else Decision.REJECTED,
        partition=request.as_of,
        reason="; ".join(gate["reasons"]),
        actor="gate",
        model_version=result["version"],
        evidence={
            "as_of": request.as_of,
            "request": {"actor": request.actor, "reason": request.reason},
            "run_id": result["run_id"],
            "metrics": result["metrics"],
            "window": result["window"],
            "gpu_seconds": round(time.monotonic() - started, 1) if result["device"] == "cuda" else 0.0,
            "champion": gate["champion"],
        },
    )
    rows = result["rows"]["fit"] + result["rows"]["valid"]
    manifests.write(
        Manifest(
            spec.name,
            "train",
            request.as_of,
            pinned.inputs,
            dict(result),
            outputs={"digest": result["digest"]},
            rows_in=rows,
            rows_out=rows,
            device=result["device"],
            model_version=result["version"],
            run_id=request.run_id,
        ),
        started,
    )
