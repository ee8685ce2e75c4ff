"""Trainings as runs in MLflow: their search trials, and the registration of models."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.core import patches, runtime, unexpected_errors
from perennial.core.errors import ArtifactError, LockHeldError, RegistryRequestError
from perennial.core.settings import settings
from perennial.modeling import mlflow_api, registry, training_records
from perennial.modeling.metrics import EVAL_METRICS
from perennial.modeling.registry import ModelVersion
from perennial.modeling.signing import versions
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.model_spec import ModelSpec
from perennial.storage import leftovers, object_store, pages
from perennial.training.artifacts import ModelArtifacts
from perennial.training.checkpoint import LearningCurve, SearchTrial
from perennial.training.runs import run_content, signature
from perennial.training.runs.liveness import LOCK_TAG, close_stale_runs, hold_liveness_lock
from perennial.training.runs.run_content import AirflowRun, DatasetVersion
from perennial.training.runs.system_metrics import SystemMetrics
from perennial.training.search import FitResult

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run

#: Folder of a run's pictures, apart from the files whose digests are checked.
PLOT_FOLDER = "plots"


@dataclass(frozen=True)
class Registration:
    """What is registered as a new version.

    Attributes:
        model: the model.
        fitted: result of the search and the final fit.
        example: a few encoded rows, shape (rows, columns).
        metrics: metrics on the held-out rows, by name.
        tags: tags of the version, without its digest.
        description: description of the version, Markdown.
        passed: whether it passed the gate, and is a challenger.
        learning_curve: of the trial with the model's parameters; None without boosting.
    """

    model: TrainedModel
    fitted: FitResult
    example: np.ndarray
    metrics: dict[str, float]
    tags: dict[str, str]
    description: str
    passed: bool = True
    learning_curve: LearningCurve | None = None


@dataclass(frozen=True)
class RegisteredVersion:
    """A registered version, and what the ledger records about it.

    Attributes:
        version: the version, as MLflow has it.
        tags: tags that it was registered with, by name.
        digests: SHA-256 of each of its files, by name.
    """

    version: ModelVersion
    tags: dict[str, str]
    digests: dict[str, str]


class TrainingRun:
    """One training as a run in MLflow; its search trials are nested runs.

    First, runs that are still RUNNING although their training was killed are closed.

    Args:
        spec: the model.
        as_of: partition date of the training.
        reason: why it was requested.
        datasets: what it reads.
        airflow: the run of Airflow that it belongs to.

    Raises:
        RegistryError: MLflow cannot be reached.
    """

    def __init__(
        self,
        spec: ModelSpec,
        as_of: str,
        reason: str,
        datasets: Sequence[DatasetVersion] = (),
        airflow: AirflowRun = AirflowRun(),  # noqa: B008 - it is immutable
    ) -> None:
        os.environ.setdefault("DO_NOT_TRACK", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the Airflow task is retried, too
        # Fails within a second if the server is down, instead of after the training.
        registry.get_version_by_alias(spec.name)
        versions.require_key(spec.name)
        import mlflow

        mlflow.set_tracking_uri(settings().mlflow_uri)
        self.spec, self.client = spec, mlflow.MlflowClient()
        with contextlib.ExitStack() as stack, self._translate_errors():
            stack.enter_context(patches.mlflow_outside_databricks())
            lock = hold_liveness_lock(spec.name, stack)
            self._experiment = self._open_experiment()
            close_stale_runs(self.client, self._experiment, lock)
            self.run: Run = self.client.create_run(
                self._experiment,
                run_name=f"{spec.name} {as_of}",
                tags={
                    "model": spec.name,
                    "as_of": as_of,
                    "reason": reason,
                    "spec_digest": spec.digest,
                    "code_version": runtime.code_version(),
                    LOCK_TAG: lock,
                    **run_content.airflow_tags(spec, as_of, reason, airflow),
                },
            )
            if datasets:
                self._log_inputs(run_content.dataset_inputs(datasets))
            self._system_metrics = SystemMetrics(self.run.info.run_id)
            self._liveness_lock = stack.pop_all()

    def _log_inputs(self, inputs: list[DatasetInput]) -> None:
        """Log what is read; once more if another training of the same data did so at the same moment.

        MLflow's server looks for a data set and then inserts it, so that the later of two insertions fails.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_inputs(self.run.info.run_id, inputs)
        except MlflowException as error:
            if "unique constraint" not in str(error).lower():
                raise
            self.client.log_inputs(self.run.info.run_id, inputs)

    def _open_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(self.spec.name)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise RegistryRequestError(
                f"MLflow's experiment {self.spec.name} (id {experiment.experiment_id}) is deleted",
                "restore it: mlflow experiments restore --experiment-id "
                f"{experiment.experiment_id}; then train again",
                model=self.spec.name,
            )
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            return str(self.client.create_experiment(self.spec.name))
        except MlflowException:  # another training of this model has created it
            experiment = self.client.get_experiment_by_name(self.spec.name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def log_trial(self, trial: SearchTrial) -> None:
        """Record one search trial as a nested run.

        Raises:
            RegistryError: MLflow refused or cannot be reached.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        with self._translate_errors():
            nested = self.client.create_run(
                self._experiment,
                run_name=trial.name,
                tags={MLFLOW_PARENT_RUN_ID: self.run.info.run_id},
            )
            self._log(
                nested.info.run_id,
                {**trial.params, "group_categories": trial.group_categories},
                {"loss": trial.loss, "rounds": trial.rounds, "seconds": trial.seconds},
                (EVAL_METRICS[self.spec.task, self.spec.metric], trial.curve),
            )
            self.client.set_terminated(nested.info.run_id)

    def _log(
        self,
        run_id: str,
        params: dict[str, Any],
        metrics: dict[str, float],
        learning_curve: LearningCurve | None = None,
        model_id: str | None = None,
    ) -> None:
        """Log parameters, metrics and a learning curve, whose steps are rounds, in one request.

        ``model_id`` names the logged model that MLflow shows the metrics of, too.
        """
        from mlflow.entities import Metric, Param

        timestamp = int(time.time() * 1000)
        values = [Metric(k, float(v), timestamp, 0, model_id) for k, v in metrics.items()]
        name, points = learning_curve or ("", ())
        for number, train, valid in points:
            values.append(Metric(f"valid-{name}", valid, timestamp, number))
            if train is not None:
                values.append(Metric(f"train-{name}", train, timestamp, number))
        self.client.log_batch(run_id, values, [Param(k, str(v)) for k, v in params.items()])

    def log_plots(self, files: Mapping[str, str]) -> None:
        """Store pictures with the run; if that fails, the log says so.

        Args:
            files: content by file name.
        """

        def upload() -> None:
            with leftovers.temporary_folder("train-") as folder:
                for name, content in files.items():
                    (folder / name).write_text(content)
                self.client.log_artifacts(self.run.info.run_id, str(folder), PLOT_FOLDER)

        if files:
            pages.attempt("the plots in MLflow", upload)

    def finish(self) -> None:
        """Mark the run as finished.

        Raises:
            RegistryError: MLflow refused or cannot be reached.
        """
        self._system_metrics.close()
        with self._translate_errors():
            self.client.set_terminated(self.run.info.run_id)
        self._release_lock()

    def fail(self) -> None:
        """Mark the run as failed, if MLflow can be reached; the caller raises the training's error."""
        import requests
        from mlflow.exceptions import MlflowException

        self._system_metrics.close()
        with contextlib.suppress(MlflowException, requests.RequestException):
            self.client.set_terminated(self.run.info.run_id, "FAILED")
        self._release_lock()

    def _release_lock(self) -> None:
        """Release the lock after the run's status is written; earlier, another training would close it."""
        # On S3 the lease may have been lost, which does not matter after the end of the training.
        with contextlib.suppress(LockHeldError):
            self._liveness_lock.close()

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise MLflow's exceptions as `RegistryError`."""
        import requests
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, requests.RequestException) as error:
            raise unexpected_errors.registry_error_kind(error)(
                f"MLflow failed: {(str(error).splitlines() or [type(error).__name__])[0][:300]}",
                f"{_remedy(error)}; then train again: nothing was promoted",
                model=self.spec.name,
            ) from error

    def register(
        self,
        registration: Registration,
        artifacts: Callable[[], ModelArtifacts],
        describe: Callable[[RegisteredVersion], Mapping[str, str]] = lambda _: {},
    ) -> RegisteredVersion:
        """Log everything and register the version, with the alias ``challenger`` if it passed the gate.

        Args:
            registration: what is registered.
            artifacts: returns the files that are stored with the model; called after the model is logged, because they
                may still be built in another thread.
            describe: returns the content of files that are stored, too, by name; called once the version has a number.

        Raises:
            ArtifactError: the model that MLflow stored differs from the one that was logged.
            PerennialError: the version cannot be signed.
            RegistryError: MLflow refused or cannot be reached.
        """
        name, fitted = self.spec.name, registration.fitted
        with self._translate_errors():
            with leftovers.temporary_folder("train-") as folder:
                digest = registration.model.save(folder / "model.ubj")
            tags = registration.tags | {"digest": digest}
            model_uri = self._log_model(registration, tags)
            digests = self._log_artifacts(artifacts()) | {training_records.MODEL_FILE: digest}
            version = self._register_version(model_uri, tags)
            digests |= self._log_texts(describe(RegisteredVersion(version, tags, digests)))
            signature.store(self.client, name, self.run.info.run_id, digests)
            registry.check_files(version, digests)
            if registry.load_model(version, digest=digest).booster.num_boosted_rounds() != fitted.rounds:
                raise ArtifactError(
                    f"version {version.version} was changed by MLflow's artifact store",
                    "check the artifact store, then train again",
                    model=name,
                )
            if registration.passed:
                registry.set_alias(name, version.version, "challenger")
            self.client.update_registered_model(name, self.spec.description)
            self.client.update_model_version(name, version.version, registration.description)
            return RegisteredVersion(version, tags, digests)

    def _register_version(self, model_uri: str, tags: dict[str, str]) -> ModelVersion:
        """Register a version under a number that the ledger does not have.

        After a model was deleted in MLflow, or MLflow was restored from a backup, it would give numbers a second time;
        predictions and decisions of two versions could then not be told apart. A version with such a number is deleted,
        or, where MLflow lets only its administrators delete, stays with a description that says so.
        """
        import mlflow

        name = self.spec.name
        recorded = [int(r.version) for r in training_records.all_records(name) if r.version.isdigit()]
        while True:
            with _without_progress_lines():
                number = str(mlflow.register_model(model_uri, name, tags=tags).version)
            if int(number) > max(recorded, default=0):
                return registry.get_version(name, number)
            try:
                self.client.delete_model_version(name, number)
            except mlflow.MlflowException as error:
                if error.error_code != "PERMISSION_DENIED":
                    raise
                why = f"Not used: the ledger has another version {number}, and only an administrator deletes this one."
                self.client.update_model_version(name, number, why)

    def _log_model(self, registration: Registration, tags: dict[str, str]) -> str:
        """Log parameters, metrics and the model; returns the model's URI."""
        import mlflow
        import pandas as pd
        import xgboost
        from mlflow.models import infer_signature

        model, fitted, run_id = registration.model, registration.fitted, self.run.info.run_id
        params = {k: v for k, v in fitted.params.items() if k not in ("verbosity", "nthread")}
        params |= {"rounds": fitted.rounds, "external_memory": fitted.external_memory}
        params |= run_content.search_params(self.spec)
        self._log(run_id, params, {})
        rows, names = model.booster_rows(registration.example)
        frame = pd.DataFrame(rows, columns=names)
        with mlflow.start_run(run_id=run_id):
            info = mlflow.xgboost.log_model(
                model.booster,
                name="model",
                model_format="ubj",
                input_example=frame,
                signature=infer_signature(frame, model.predict_matrix(registration.example)),
                # Otherwise MLflow infers them in a subprocess, which takes seconds.
                pip_requirements=[f"xgboost=={xgboost.__version__}"],
                metadata=tags,
            )
        # Metrics that a run has before its model, MLflow reads one by one to copy them to the model.
        self._log(run_id, {}, registration.metrics, registration.learning_curve, info.model_id)
        return str(info.model_uri)

    def _log_artifacts(self, artifacts: ModelArtifacts) -> dict[str, str]:
        """Log the files that are stored with the model; returns the SHA-256 of each, by name."""
        # in the content's order: a search draws its parameters in that of the spec
        texts = {name: json.dumps(content, indent=1) for name, content in artifacts.documents.items()}
        return self._log_texts(texts, artifacts.files)

    def _log_texts(self, texts: Mapping[str, str], files: Sequence[Path] = ()) -> dict[str, str]:
        """Log texts by file name, and files; returns the SHA-256 of each, by name."""
        with leftovers.temporary_folder("train-") as folder:
            for name, content in texts.items():
                (folder / name).write_text(content, "utf-8")
            for path in files:
                shutil.copy(path, folder)
            digests = {path.name: object_store.digest(str(path)) for path in sorted(folder.iterdir())}
            if digests:
                self.client.log_artifacts(self.run.info.run_id, str(folder), registry.ARTIFACT_FOLDER)
        return digests


@contextlib.contextmanager
def _without_progress_lines() -> Iterator[None]:
    """Have MLflow write nothing to standard error in the block: Airflow shows each line of it as an error."""
    from mlflow.utils import logging_utils

    logging_utils.disable_logging()
    try:
        yield
    finally:
        logging_utils.enable_logging()


def _remedy(error: Exception) -> str:
    """What to do about an error of MLflow's client."""
    code = getattr(error, "error_code", "")
    if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_STATE") or "deleted" in str(error):
        return "restore what was deleted in MLflow (mlflow experiments restore, mlflow runs restore)"
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return (
            "give the user of MLFLOW_TRACKING_USERNAME, or the token, access to the experiment and the model"
        )
    if code == "RESOURCE_ALREADY_EXISTS":
        return "check the experiment and the registered model of this name in MLflow: they may be somebody else's"
    if not code or code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
        return f"check that MLflow at {settings().mlflow_uri} runs and can write artifacts; its log says more"
    return "check the experiment and the model in MLflow"


def delete_version(version: ModelVersion) -> bool:
    """Delete a version, and its run; ``mlflow gc`` then frees the space of its files.

    Returns:
        Whether MLflow did: it may let administrators only.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    body = {"name": version.name, "version": version.version}
    try:
        if version.run_id:  # first: without the version nothing would name the run after an interruption
            run = {"run_id": version.run_id}
            mlflow_api.call("POST", "/api/2.0/mlflow/runs/delete", json=run, missing_ok=True)
        mlflow_api.call("DELETE", "/api/2.0/mlflow/model-versions/delete", json=body, missing_ok=True)
    except RegistryRequestError:
        return False
    return True
