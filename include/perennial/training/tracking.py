"""Trainings as runs in MLflow: their search trials, stale runs, and the registration of models.

Each training holds a lock while it runs, and its MLflow run has a tag with the name of the lock. A killed training
cannot close its run, whose status stays RUNNING; but its lock is free (on S3 once its lease has expired), so that the
next training of the model can close the run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.core import runtime
from perennial.core.errors import ArtifactError, LockHeldError, RegistryError
from perennial.core.settings import settings
from perennial.modeling import registry
from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.model_spec import ModelSpec
from perennial.storage import locks
from perennial.training.artifacts import ModelArtifacts
from perennial.training.checkpoint import SearchTrial
from perennial.training.search import FitResult

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

#: The tag of a run that names its lock.
LOCK_TAG = "lock"


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
    """

    model: TrainedModel
    fitted: FitResult
    example: np.ndarray
    metrics: dict[str, float]
    tags: dict[str, str]
    description: str


class TrainingRun:
    """One training as a run in MLflow; its search trials are nested runs.

    First, runs that are still RUNNING although their training was killed are closed.

    Args:
        spec: the model.
        as_of: partition date of the training.
        reason: why it was requested.

    Raises:
        RegistryError: MLflow cannot be reached.
    """

    def __init__(self, spec: ModelSpec, as_of: str, reason: str) -> None:
        os.environ.setdefault("DO_NOT_TRACK", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the Airflow task is retried, too
        # Fails within a second if the server is down, instead of after the training.
        registry.get_version_by_alias(spec.name)
        import mlflow

        mlflow.set_tracking_uri(settings().mlflow_uri)
        self.spec, self.client = spec, mlflow.MlflowClient()
        with contextlib.ExitStack() as stack, self._translate_errors():
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
                },
            )
            self._liveness_lock = stack.pop_all()

    def _open_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(self.spec.name)
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
                dict(trial.params),
                {"loss": trial.loss, "rounds": trial.rounds, "seconds": trial.seconds},
            )
            self.client.set_terminated(nested.info.run_id)

    def _log(self, run_id: str, params: dict[str, Any], metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric, Param

        timestamp = int(time.time() * 1000)
        self.client.log_batch(
            run_id,
            [Metric(k, float(v), timestamp, 0) for k, v in metrics.items()],
            [Param(k, str(v)) for k, v in params.items()],
        )

    def finish(self) -> None:
        """Mark the run as finished.

        Raises:
            RegistryError: MLflow refused or cannot be reached.
        """
        with self._translate_errors():
            self.client.set_terminated(self.run.info.run_id)
        self._release_lock()

    def fail(self) -> None:
        """Mark the run as failed, if MLflow can be reached; the caller raises the training's error."""
        import requests
        from mlflow.exceptions import MlflowException

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
            raise RegistryError(
                f"MLflow failed: {str(error).splitlines()[0][:300]}",
                "see MLflow's log; then train again: nothing was promoted",
                model=self.spec.name,
            ) from error

    def register(self, registration: Registration, artifacts: Callable[[], ModelArtifacts]) -> ModelVersion:
        """Log everything and register the version, with the alias ``challenger``.

        Args:
            registration: what is registered.
            artifacts: returns the files that are stored with the model; called after the model is logged, because they
                may still be built in another thread.

        Raises:
            ArtifactError: the model that MLflow stored differs from the one that was logged.
            RegistryError: MLflow refused or cannot be reached.
        """
        import mlflow

        name, fitted = self.spec.name, registration.fitted
        with self._translate_errors():
            with tempfile.TemporaryDirectory(prefix="perennial-") as folder:
                digest = registration.model.save(Path(folder, "model.ubj"))
            tags = registration.tags | {"digest": digest}
            model_uri = self._log_model(registration, tags)
            self._log_artifacts(artifacts())
            registered = mlflow.register_model(model_uri, name, tags=tags)
            version = registry.get_version(name, str(registered.version))
            if registry.load_model(version, fresh=True).booster.num_boosted_rounds() != fitted.rounds:
                raise ArtifactError(
                    f"version {version.version} was changed by MLflow's artifact store",
                    "check the artifact store, then train again",
                    model=name,
                )
            registry.set_alias(name, version.version, "challenger")
            self.client.update_registered_model(name, self.spec.description)
            self.client.update_model_version(name, version.version, registration.description)
            return version

    def _log_model(self, registration: Registration, tags: dict[str, str]) -> str:
        """Log parameters, metrics and the model; returns the model's URI."""
        import mlflow
        import pandas as pd
        import xgboost
        from mlflow.models import infer_signature

        model, fitted, run_id = registration.model, registration.fitted, self.run.info.run_id
        params = {k: v for k, v in fitted.params.items() if k not in ("verbosity", "nthread")}
        params |= {"rounds": fitted.rounds, "external_memory": fitted.external_memory}
        self._log(run_id, params, registration.metrics)
        frame = pd.DataFrame(registration.example, columns=list(model.encoding.columns))
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
        return str(info.model_uri)

    def _log_artifacts(self, artifacts: ModelArtifacts) -> None:
        with tempfile.TemporaryDirectory(prefix="perennial-") as folder:
            for name, content in artifacts.documents.items():
                Path(folder, name).write_text(json.dumps(content, indent=1, sort_keys=True))
            for path in artifacts.files:
                shutil.copy(path, folder)
            self.client.log_artifacts(self.run.info.run_id, folder, registry.ARTIFACT_FOLDER)


def hold_liveness_lock(model: str, stack: contextlib.ExitStack) -> str:
    """Hold the first free lock of a model's trainings.

    Args:
        model: name of the model.
        stack: releases the lock when it closes.

    Returns:
        The lock's name.
    """
    for number in itertools.count(1):
        name = f"training-{model}-{number}"
        with contextlib.suppress(LockHeldError):
            stack.enter_context(locks.hold(name, timeout=0))
            return name
    raise AssertionError("unreachable")


def close_stale_runs(client: MlflowClient, experiment: str, held_lock: str) -> None:
    """Mark the RUNNING runs of killed trainings, and their unfinished search trials, as KILLED.

    Args:
        client: MLflow's client.
        experiment: id of the model's experiment.
        held_lock: name of the lock that the caller holds. The caller has no run yet, so that a run with it is stale.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    dead = set()
    for run in running:
        name = run.data.tags.get(LOCK_TAG)
        if name is None:
            continue
        lock = contextlib.nullcontext() if name == held_lock else locks.hold(name, timeout=0)
        with contextlib.suppress(LockHeldError), lock:
            # The run may have ended since the runs were listed.
            if client.get_run(run.info.run_id).info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
                dead.add(run.info.run_id)
    for run in running:
        if run.data.tags.get(MLFLOW_PARENT_RUN_ID) in dead:
            client.set_terminated(run.info.run_id, "KILLED")
