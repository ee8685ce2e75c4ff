"""The train step: pin a dataset version; fit, evaluate, register and record a challenger."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

from perennial.core import unexpected_errors
from perennial.core.errors import ArtifactError, DataError, PerennialError
from perennial.core.settings import settings
from perennial.features import feature_tables, lineage, point_in_time, reference_copies, reference_tables
from perennial.features.engine import FeatureQuery
from perennial.governance import holds, version_documents
from perennial.governance.model_card.collection import Training
from perennial.ingestion import model_tables
from perennial.lifecycle import champion as champion_module
from perennial.modeling import performance, registry, training_records
from perennial.modeling.registry import ModelVersion
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, ledger, leftovers, manifests, storage_errors
from perennial.storage.ledger import Decision, LedgerKind, Policy
from perennial.storage.manifests import Manifest
from perennial.training import tracking
from perennial.training.artifacts import ModelArtifacts, build_artifacts
from perennial.training.candidates import Candidate, TrainingJob, fit_best_candidate
from perennial.training.challenger_evaluation import TrainingSource
from perennial.training.checkpoint import Checkpoint
from perennial.training.gate import fairness
from perennial.training.runs import recipe as recipes
from perennial.training.runs.recipe import Recipe
from perennial.training.runs.train_result import TrainResult, train_result
from perennial.training.runs.training_inputs import (
    PinnedData,
    TrainingRequest,
    dataset_versions,
    difference_to_champion,
    find_erasures,
    make_checkpoints,
    refuse_erased,
)
from perennial.training.runs.version_facts import (
    learning_curve,
    report_facts,
    version_description,
    version_tags,
)
from perennial.training.studies import schedule
from perennial.training.tracking import RegisteredVersion
from perennial.training.training_report import TrainingReport
from perennial.training.windows import candidate_windows, regular_holdout

#: Errors of the system that concern the working folder: no room, no access.
_FOLDER_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


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
    run_url: str = "",
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
        run_url: address of the Airflow run, for MLflow.

    Raises:
        DataError: too few labelled rows.
        PerennialError: cuda was requested and there is none.
        RegistryError: MLflow cannot be reached.
        WorkersUnavailableError: a worker did not connect.
        StepInterruptedError: a worker was lost.
        StorageError: the working folder cannot be used.
        DataReplacedError: rows that it read were erased while it ran.
    """
    started = time.monotonic()
    spec.cadence.parse(as_of, "as_of")
    request = TrainingRequest(as_of, reason, actor, run_id, workers, rendezvous, run_url)
    try:
        lineage.check_label(spec)
        pinned = _pin(spec, as_of, force)
        completed = None if force else manifests.find_completed(spec.name, "train", as_of, pinned.inputs)
        if completed and _is_valid(spec, completed, pinned):
            return cast(TrainResult, completed.result | {"status": "unchanged"})
        candidate, registered, report = _train_challenger(spec, request, pinned)
        digest = registered.digests[training_records.MODEL_FILE]
        result = train_result(request, pinned, candidate, registered.version, digest, report)
        with contextlib.ExitStack() as stack:
            try:  # an erasure finds the version in the ledger, or is found here
                stack.enter_context(holds.no_deletion(spec.name))
                refuse_erased(spec, pinned, as_of)
            except PerennialError:
                _withdraw(registered.version)
                raise
            _record(spec, request, pinned, result, registered, started)
    except BaseException as error:
        _record_failure(spec, request, error)
        raise
    return result


def _withdraw(version: ModelVersion) -> None:
    """Take a version out of MLflow that the ledger does not get; what fails of it does not hide why."""
    with contextlib.suppress(PerennialError):
        registry.remove_alias(version.name, version.version, "challenger")
        tracking.delete_version(version)


def _pin(spec: ModelSpec, as_of: str, force: bool) -> PinnedData:
    """Pin the table versions that the training reads, the candidate windows, and the champion.

    Raises:
        DataError: nothing was published, no label has arrived, or there are too few partitions.
        SpecError: the spec does not fit the tables.
        ArtifactError: the champion cannot be compared with, and the training is not forced; MLflow has a champion that
            the ledger does not know; or a model of somebody else has this model's name.
        RegistryError: MLflow cannot be reached.
    """
    erasures = find_erasures(spec)
    published = delta_tables.table_uri("published", spec.name)
    labels = None if spec.label.source is None else delta_tables.table_uri("labels", spec.name)
    version = delta_tables.version(published)
    labels_version = delta_tables.version(labels) if labels else None
    if version is None or (labels and labels_version is None):
        raise DataError(
            "nothing was published yet" if version is None else "no label has arrived yet",
            "run the data DAG first, with start and end"
            if version is None
            else f"labels arrive {spec.label.arrives_after} after their rows: check the label feed "
            f"({spec.label.source}), and run the data DAG for the dates that they arrive with",
            model=spec.name,
            partition=as_of,
        )
    model_tables.check(spec, ("published", "labels"))
    since, is_regular = _requested_for(spec, as_of)
    rows = delta_tables.rows_by_partition(published, version)
    if labels:  # labels may wait for their rows, as rows wait for their labels
        labelled = delta_tables.rows_by_partition(labels, labels_version)
        rows = {day: min(count, labelled[day]) for day, count in rows.items() if day in labelled}
    held_out = regular_holdout(spec) if is_regular and not since else None
    windows = candidate_windows(spec, as_of, list(rows), since, rows, held_out)
    champion, lost_champion = _loadable_champion(spec, as_of, force)
    if champion is None:  # a first model learns from all that it may
        windows = {n: w for n, w in windows.items() if n not in ("medium", "short")} or windows
    first = min(w.fit[0] for w in windows.values())
    last = next(iter(windows.values())).holdout[-1]
    reference_versions = reference_tables.sync_to_lake(spec)
    tables = feature_tables.sync_to_lake(spec, first, last)
    inputs: dict[str, Any] = {
        "rows": delta_tables.partitions_digest(published, first, last, version),
        "spec": spec.digest,
        "labels": delta_tables.partitions_digest(labels, first, last, labels_version) if labels else "",
        "references": reference_copies.versions_within(
            spec, reference_versions, (day for day in rows if first <= day <= last)
        ),
        "since": since,
    }
    if list(windows) != ["sliding"]:
        inputs["windows"] = list(windows)
    if held_out:
        inputs["held_out"] = held_out
    if tables:
        inputs["tables"] = point_in_time.range_digests(spec, tables, first, last)
    references = reference_versions | tables
    return PinnedData(
        version, labels_version, references, windows, champion, lost_champion, since, inputs, erasures
    )


def _loadable_champion(spec: ModelSpec, as_of: str, force: bool) -> tuple[ModelVersion | None, str]:
    """The champion that the gate compares with, before the training spends time.

    Returns:
        The champion, and an empty text; or None, and the version of a champion whose files are lost or cannot be
        checked, if the training is forced: a person then decides that the challenger need not be compared with it.
    """
    try:
        champion = champion_module.get_champion(spec, partition=as_of, actor="training")
    except ArtifactError:
        recorded = champion_module.read_state(spec).recorded
        if force and recorded is not None:
            return None, recorded
        raise
    if champion.version is None and champion.deviation:
        raise champion_module.deviation_error(spec, champion, as_of)
    if champion.version is None:
        champion_module.check_name(spec)
        return None, ""
    try:
        registry.load_spec(champion.version)
        registry.load_model(champion.version)
    except ArtifactError as error:
        if force:
            return None, champion.version.version
        raise ArtifactError(
            f"the challenger could not be compared with version {champion.version.version}, the champion: "
            f"{error.cause}",
            "restore MLflow's artifact store, or roll back to another version; or train with force: the challenger is "
            "then promoted without this comparison if it passes the rest of the gate",
            model=spec.name,
            partition=as_of,
        ) from error
    return champion.version, ""


def _requested_for(spec: ModelSpec, as_of: str) -> tuple[str, bool]:
    """Why the training was requested.

    Returns:
        The date of the change that it responds to, empty if there is none; and whether it is a regular one.
    """
    decisions = [r for r in ledger.records(spec.name, LedgerKind.RETRAINING) if r["partition"] == as_of]
    evidence = decisions[-1]["evidence"] if decisions else {}
    return str(evidence.get("since") or ""), evidence.get("triggers") == ["regular"]


def _is_valid(spec: ModelSpec, completed: Manifest, pinned: PinnedData) -> bool:
    """Whether a finished training need not run again.

    The gate's answer holds for the champion that it compared with: a challenger that was judged by another one, or
    without a comparison that is possible now, is trained again; also one that passed and that MLflow has lost since.
    """
    gate, version = completed.result["gate"], completed.result["version"]
    promotions = ledger.records(spec.name, LedgerKind.PROMOTION)
    if pinned.champion_version == version or any(r["model_version"] == version for r in promotions):
        return True
    if pinned.champion_version != gate["champion"]:
        return False
    if difference_to_champion(spec, pinned) != gate["not_compared"]:
        return False
    registered = registry.find_version(spec.name, version)
    is_lost = registered is None or registered.run_id != completed.result["run_id"]
    return not (gate["passed"] and is_lost)


def _train_challenger(
    spec: ModelSpec, request: TrainingRequest, pinned: PinnedData
) -> tuple[Candidate, RegisteredVersion, str]:
    """Fit, evaluate and register the best candidate, as a run in MLflow; a failure is recorded there.

    Returns:
        The candidate, its version, and the URI of the report.
    """
    started = time.monotonic()
    features = FeatureQuery(spec, pinned.reference_versions)
    source = TrainingSource(spec, features, pinned.version, pinned.labels_version)
    checkpoints = make_checkpoints(spec, request, pinned)
    run = tracking.TrainingRun(
        spec,
        request.as_of,
        request.reason,
        dataset_versions(spec, pinned),
        request.airflow_run,
    )
    try:
        not_compared = difference_to_champion(spec, pinned)
        recipe = Recipe.of(spec, request, pinned, not_compared)
        with leftovers.temporary_folder("train-") as folder:
            job = TrainingJob(
                source,
                None if not_compared else pinned.champion,
                folder,
                checkpoints,
                run.log_trial,
                request.workers,
                request.rendezvous,
                not_compared,
            )
            candidate = fit_best_candidate(job, pinned.windows)
            schedule.run(job, candidate, request.as_of, time.monotonic() - started)
            refuse_erased(spec, pinned, request.as_of)
            registered, report = _evaluate_and_register(run, candidate, job, request, recipe)
        run.finish()
        for checkpoint in checkpoints.values():
            checkpoint.clear()
        Checkpoint.remove_stale(spec.name)
    except BaseException as error:
        run.fail()
        if isinstance(error, OSError) and _concerns_folder(error):
            raise storage_errors.failure(
                f"the working folder {settings().home / 'tmp'} cannot be used: "
                f"{os.strerror(error.errno or errno.ENOSPC)}",
                error,
                model=spec.name,
                partition=request.as_of,
            ) from error
        raise
    return candidate, registered, report


def _concerns_folder(error: OSError) -> bool:
    """Whether an error says that the working folder has no room, or that this user has no access to it."""
    # NumPy does not pass on the number of an error while it writes: "100 requested and 0 written".
    return error.errno in _FOLDER_ERRORS or (error.errno is None and str(error).endswith(" written"))


def _evaluate_and_register(
    run: tracking.TrainingRun,
    candidate: Candidate,
    job: TrainingJob,
    request: TrainingRequest,
    recipe: Recipe,
) -> tuple[RegisteredVersion, str]:
    """Evaluate the candidate while its artifacts are built, register it, and draw its report.

    If the rows do not fit in memory, evaluation and artifacts are computed one after the other.

    Returns:
        The version, and the URI of the report.
    """
    source = job.source
    if candidate.fitted.external_memory:
        _ = candidate.evaluation
    with ThreadPoolExecutor(1, thread_name_prefix="artifacts") as pool:
        # A separate FeatureQuery, because the evaluation uses the other one at the same time.
        features = FeatureQuery(source.spec, source.features.reference_versions)
        building = pool.submit(_build_artifacts, replace(source, features=features), candidate, job)
        evaluation = candidate.evaluation
        registration = tracking.Registration(
            candidate.registered_model,
            candidate.fitted,
            candidate.example,
            evaluation.metrics,
            version_tags(source, candidate, request),
            version_description(source.spec, request, candidate),
            evaluation.passed,
            learning_curve(source.spec, candidate),
        )
        complete = functools.cache(lambda: _complete(building.result(), candidate, job, recipe))

        def describe(version: RegisteredVersion) -> Mapping[str, str]:
            documents = complete().documents
            training = Training(source.spec, request, recipe, candidate, source.features, documents)
            return version_documents.describe(training, version)

        registered = run.register(registration, complete, describe)
        importance = building.result().documents["importance.json"]
    report = TrainingReport(
        source.spec, request.as_of, candidate, importance, report_facts(source, candidate, request)
    )
    run.log_plots(report.files())
    run_page = settings().mlflow_run_page(registered.version.run_id)
    return registered, report.write(registered.version.version, run_page)


def _build_artifacts(source: TrainingSource, candidate: Candidate, job: TrainingJob) -> ModelArtifacts:
    """The artifacts of the candidate, with its explanation, and without its evaluation."""
    artifacts = build_artifacts(
        source, candidate.model, candidate.windows, job.folder, job.champion, candidate.share
    )
    return version_documents.add_explanation(source.spec, candidate, artifacts)


def _complete(
    artifacts: ModelArtifacts, candidate: Candidate, job: TrainingJob, recipe: Recipe
) -> ModelArtifacts:
    """Add the evaluation, the recipe, the studies, and the model that was evaluated if another one is registered."""
    evaluation = candidate.evaluation
    documents = artifacts.documents | {
        "evaluation.json": evaluation.as_dict()
        | {
            "window": candidate.window_name,
            "reasons": candidate.reasons,
            "window_losses": candidate.window_losses,
            "algorithm": candidate.model.algorithm,
            "algorithm_losses": candidate.algorithm_losses,
            "champion": job.champion.version if job.champion else None,
        },
        recipes.ARTIFACT: recipe.as_dict(),
        **candidate.studies,
    }
    if evaluation.performance:
        documents[performance.ARTIFACT] = evaluation.performance.as_dict()
    if evaluation.fairness:
        documents[fairness.ARTIFACT] = evaluation.fairness.as_dict()
    files = [*artifacts.files]
    if candidate.registered_model is not candidate.model:
        files.append(job.folder / training_records.EVALUATED_MODEL_FILE)
        candidate.model.save(files[-1])
    return ModelArtifacts(documents, files)


def _record_failure(spec: ModelSpec, request: TrainingRequest, error: BaseException) -> None:
    """Record in the ledger that the training failed, whatever failed and whenever it did.

    The request is then no longer open, so that the next verdict may request a retraining again. Without the ledger
    itself, the request counts as abandoned after ``retraining.abandoned_after``.
    """
    if unexpected_errors.is_failure(error):
        error = unexpected_errors.translate(error, "step train", hide=spec.hides_values)
    reason = error.cause if isinstance(error, PerennialError) else f"stopped by {type(error).__name__}"
    with contextlib.suppress(PerennialError):  # the training's own error is raised, not this one
        ledger.append(
            spec.name,
            kind=LedgerKind.TRAINING,
            decision=Decision.FAILED,
            reason=reason.split("\n")[0][:500],
            actor="training",
            partition=request.as_of,
            evidence={
                "as_of": request.as_of,
                "request": {"actor": request.actor, "reason": request.reason},
                "error": type(error).__name__,
            },
        )


def _record(
    spec: ModelSpec,
    request: TrainingRequest,
    pinned: PinnedData,
    result: TrainResult,
    registered: RegisteredVersion,
    started: float,
) -> None:
    """Record the training in the ledger, and write its manifest last."""
    gate = result["gate"]
    ledger.append(
        spec.name,
        kind=LedgerKind.TRAINING,
        decision=Decision.ACCEPTED if gate["passed"] else Decision.REJECTED,
        partition=request.as_of,
        reason="; ".join(gate["reasons"]),
        actor=Policy.GATE,
        model_version=result["version"],
        evidence={
            "as_of": request.as_of,
            "request": {"actor": request.actor, "reason": request.reason},
            "run_id": result["run_id"],
            "report": result["report"],
            "metrics": result["metrics"],
            "window": result["window"],
            "gpu_seconds": round(time.monotonic() - started, 1) if result["device"] == "cuda" else 0.0,
            "champion": gate["champion"],
        }
        | training_records.evidence(registered.version.model_id, registered.tags, registered.digests),
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
