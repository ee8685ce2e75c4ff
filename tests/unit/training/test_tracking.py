"""Trainings in MLflow: runs, versions, and trainings that MLflow's failure or a kill ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perennial.core import dates, runtime
from perennial.core.errors import RegistryError
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.train import train
from perennial.storage import delta_tables, manifests
from perennial.training import search
from perennial.training.tracking import TrainingRun
from support import processes, toys

Make = Callable[..., ModelSpec]


def client() -> Any:
    import mlflow

    from perennial.core.settings import settings

    return mlflow.MlflowClient(settings().mlflow_uri)


def test_the_version_carries_what_made_it(world: Any) -> None:
    champion = registry.get_champion(world.spec)
    assert champion is not None
    tags, result = champion.tags, world.result
    assert champion.version == result["version"]
    assert tags["digest"] == result["digest"]
    assert tags["spec_digest"] == world.spec.digest
    assert tags["code_version"] == runtime.code_version()
    published, labels = (
        delta_tables.version(delta_tables.table_uri(kind, world.spec.name))
        for kind in ("published", "labels")
    )
    assert tags["dataset_version"] == f"published@{published} labels@{labels}"
    assert tags["trained_range"] == f"{toys.FIRST}..{dates.add_days(toys.FIRST, 13)}"
    assert tags["holdout_range"] == f"{dates.add_days(toys.FIRST, 14)}..{dates.add_days(toys.FIRST, 18)}"
    assert tags["device"] == "cpu"
    assert tags["reason"] == "first"
    description = client().get_model_version(world.spec.name, champion.version).description
    assert description.startswith(f"Passed the gate. Trained as of {toys.LAST}: first\n\n- ok: log_loss")
    assert client().get_registered_model(world.spec.name).description == world.spec.description


def test_mlflow_has_signature_example_trials_and_artifacts(world: Any) -> None:
    import mlflow

    mlflow.set_tracking_uri(client().tracking_uri)
    info = mlflow.models.get_model_info(f"models:/{world.spec.name}/{world.result['version']}")
    assert [c.name for c in info.signature.inputs.inputs] == ["x", "z", "k", "hour", "size"]
    assert info.signature.outputs is not None
    assert info.saved_input_example_info is not None
    run = client().get_run(world.result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["code_version"] == runtime.code_version()
    assert float(run.data.metrics["log_loss"]) == pytest.approx(world.result["metrics"]["log_loss"])
    assert run.data.params["seed"] == "0"
    nested = client().search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )
    assert len(nested) == 2
    for trial in nested:
        assert trial.info.status == "FINISHED"
        assert {"loss", "rounds", "seconds"} <= set(trial.data.metrics)
        assert {"max_depth", "learning_rate"} <= set(trial.data.params)
    stored = {Path(f.path).name for f in client().list_artifacts(run.info.run_id, registry.ARTIFACT_FOLDER)}
    assert {
        "spec.json",
        "importance.json",
        "reference.json",
        "reference.parquet",
        "evaluation.json",
    } <= stored
    again = registry.load_spec(registry.get_version(world.spec.name, world.result["version"]))
    assert again.digest == world.spec.digest


def test_no_pickle_is_written(world: Any) -> None:
    version = registry.get_version(world.spec.name, world.result["version"])
    names = [a.path for a in client().list_logged_model_artifacts(version.model_id)] if hasattr(
        client(), "list_logged_model_artifacts") else ["model.ubj"]  # fmt: skip
    assert "model.ubj" in names
    assert not [n for n in names if n.endswith((".pkl", ".pickle", ".joblib"))]


def test_the_run_of_a_killed_training_is_closed_by_the_next_one(make_model: Make) -> None:
    """Killed during a trial; two other trainings of the same model are alive meanwhile, one ends."""
    spec = make_model(training={"rounds": 3})
    toys.publish(spec)
    alive, ending = (TrainingRun(spec, toys.LAST, name) for name in ("alive", "ending"))
    function = "perennial.training.tracking.TrainingRun._log"
    killed = processes.start(
        processes.killed_step,
        str(spec.folder),
        "train",
        {"as_of": toys.LAST, "reason": "killed"},
        function,
        "before",
        1,
    )
    assert processes.wait(killed) == [-signal.SIGKILL]

    def statuses() -> list[tuple[str, str]]:
        experiment = client().get_experiment_by_name(spec.name)
        runs = client().search_runs([experiment.experiment_id])
        return sorted((r.data.tags.get("reason", "a trial"), r.info.status) for r in runs)

    left = [("a trial", "RUNNING"), ("alive", "RUNNING"), ("ending", "RUNNING"), ("killed", "RUNNING")]
    assert statuses() == left
    ending.finish()
    train(spec, as_of=toys.LAST, reason="next")
    trials = [("a trial", "FINISHED")]  # the first was done, its run was not
    others = [("alive", "RUNNING"), ("ending", "FINISHED"), ("killed", "KILLED"), ("next", "FINISHED")]
    assert statuses() == [*trials, ("a trial", "KILLED"), *others]
    alive.fail()
    assert ("alive", "FAILED") in statuses()


def test_mlflow_down_is_reported_quickly(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    spec = make_model()
    toys.publish(spec)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(RegistryError, match=r"127.0.0.1:9 does not answer(.|\n)*What to do"):
        train(spec, as_of=toys.LAST)
    assert time.monotonic() - began < 5


def test_mlflow_that_dies_during_a_training_is_reported(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_model()
    toys.publish(spec)
    real = search.search_and_fit

    def fit_then_lose(*args: Any, **kwargs: Any) -> Any:
        import mlflow

        fitted = real(*args, **kwargs)
        mlflow.set_tracking_uri("http://127.0.0.1:9")
        monkeypatch.setattr(
            "mlflow.tracking.MlflowClient.log_artifact",
            mlflow.MlflowClient("http://127.0.0.1:9").log_artifact,
        )
        return fitted

    url = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(search, "search_and_fit", fit_then_lose)
    with pytest.raises(RegistryError, match="MLflow"):
        train(spec, as_of=toys.LAST)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)  # MLflow's client writes the variable
    assert manifests.read(spec.name, "train", toys.LAST) is None
    assert registry.get_champion(spec) is None
