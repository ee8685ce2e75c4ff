"""Records a training run in MLflow and registers its model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core import runtime
from perennial.core.errors import ArtifactError, LockHeldError, RegistryError
from perennial.core.settings import settings
from perennial.modeling import registry
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.model_spec import ModelSpec
from perennial.training import liveness
from perennial.training.checkpoint import Trial
from perennial.training.search import FitResult

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import Run


class TrainingRun:
    """One training run in MLflow: its trials as nested runs while they happen, everything else at its end.

    Runs of the model that say RUNNING, and of which the training was killed, are closed first.

    Raises:
        RegistryError: MLflow cannot be reached.
    """

    def __init__(self, spec: ModelSpec, as_of: str, reason: str) -> None:
        os.environ.setdefault("DO_NOT_TRACK", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the task has retries of its own
        registry.by_alias(spec.name)  # a server that is down is told in a second, not after a whole training
        import mlflow

        mlflow.set_tracking_uri(settings().mlflow_uri)
        self.spec, self.client = spec, mlflow.MlflowClient()
        with contextlib.ExitStack() as held, self._told():
            own = liveness.hold_liveness_lock(spec.name, held)
            self._experiment = self._open_experiment()
            liveness.close_stale_runs(self.client, self._experiment, own)
            self.run: Run = self.client.create_run(
                self._experiment,
                run_name=f"{spec.name} {as_of}",
                tags={
                    "model": spec.name,
                    "as_of": as_of,
                    "reason": reason,
                    "spec_digest": spec.digest,
                    "code_version": runtime.code_version(),
                    liveness.TAG: own,
                },
            )
            self._alive = held.pop_all()

    def _open_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.spec.name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(self.spec.name))
        except MlflowException:  # another run of this model was first
            found = self.client.get_experiment_by_name(self.spec.name)
            if found is None:
                raise
            return str(found.experiment_id)

    def trial(self, trial: Trial) -> None:
        """Record one trial of the search as a nested run."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        with self._told():
            nested = self.client.create_run(
                self._experiment,
                run_name=f"trial {trial.number}",
                tags={MLFLOW_PARENT_RUN_ID: self.run.info.run_id},
            )
            self._log(
                nested.info.run_id,
                dict(trial.params),
                {"loss": trial.loss, "rounds": trial.rounds, "seconds": trial.seconds},
            )
            self.client.set_terminated(nested.info.run_id)

    def _log(self, run_id: str, params: dict[str, Any], metrics: dict[str, float]) -> None:
        import time

        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self.client.log_batch(
            run_id,
            [Metric(k, float(v), now, 0) for k, v in metrics.items()],
            [Param(k, str(v)) for k, v in params.items()],
        )

    def finish(self) -> None:
        """Mark the run finished."""
        with self._told():
            self.client.set_terminated(self.run.info.run_id)
        self._end()

    def fail(self) -> None:
        """Mark the run failed, where MLflow still answers: what it failed of is already on its way."""
        import requests
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException, requests.RequestException):
            self.client.set_terminated(self.run.info.run_id, "FAILED")
        self._end()

    def _end(self) -> None:
        """No longer count as alive; after the run's status is written, or another training would write it."""
        with contextlib.suppress(
            LockHeldError
        ):  # on S3 it may have been lost: the training is done all the same
            self._alive.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn MLflow's exceptions into ours."""
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

    def register(
        self,
        model: TrainedModel,
        fitted: FitResult,
        example: np.ndarray,
        metrics: dict[str, float],
        tags: dict[str, str],
        description: str,
        companions: Callable[[], tuple[dict[str, Any], list[Path]]],
    ) -> registry.ModelVersion:
        """Log everything and register the version, alias ``challenger``.

        Args:
            example: a few encoded rows, shape (rows, columns).
            description: of the version, Markdown.
            companions: gives JSON artifacts by name, and files to keep beside them; called once the model is logged,
                for they may still be made meanwhile.

        Raises:
            ArtifactError: what MLflow kept is not what was written.
            RegistryError: MLflow refused or could not be reached.
        """
        with self._told():
            return self._register(model, fitted, example, metrics, tags, description, companions)

    def _register(
        self,
        model: TrainedModel,
        fitted: FitResult,
        example: np.ndarray,
        metrics: dict[str, float],
        tags: dict[str, str],
        description: str,
        companions: Callable[[], tuple[dict[str, Any], list[Path]]],
    ) -> registry.ModelVersion:
        import mlflow
        import pandas as pd
        import xgboost
        from mlflow.models import infer_signature

        run_id = self.run.info.run_id
        with tempfile.TemporaryDirectory(prefix="perennial-") as folder:
            digest = model.save(Path(folder, "model.ubj"))
        tags = tags | {"digest": digest}
        params = {k: v for k, v in fitted.params.items() if k not in ("verbosity", "nthread")}
        self._log(run_id, params | {"rounds": fitted.rounds, "external_memory": fitted.external}, metrics)
        frame = pd.DataFrame(example, columns=list(model.encoding.columns))
        with mlflow.start_run(run_id=run_id):
            info = mlflow.xgboost.log_model(
                model.booster,
                name="model",
                model_format="ubj",
                input_example=frame,
                signature=infer_signature(frame, model.predict_matrix(example)),
                # Given, or MLflow would spend seconds in a subprocess to find them out.
                pip_requirements=[f"xgboost=={xgboost.__version__}"],
                metadata=tags,
            )
        texts, extra = companions()
        with tempfile.TemporaryDirectory(prefix="perennial-") as folder:
            for name, content in texts.items():
                Path(folder, name).write_text(json.dumps(content, indent=1, sort_keys=True))
            for path in extra:
                shutil.copy(path, folder)
            self.client.log_artifacts(run_id, folder, registry.ARTIFACT_FOLDER)
        found = mlflow.register_model(info.model_uri, self.spec.name, tags=tags)
        version = registry.version(self.spec.name, str(found.version))
        if registry.load(version, fresh=True).booster.num_boosted_rounds() != fitted.rounds:
            raise ArtifactError(
                f"version {version.version} came back from MLflow changed",
                "check its artifact store",
                model=self.spec.name,
            )
        registry.set_alias(self.spec.name, version.version, "challenger")
        self.client.update_registered_model(self.spec.name, self.spec.description)
        self.client.update_model_version(self.spec.name, version.version, description)
        return version
