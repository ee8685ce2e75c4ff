"""Trainings in MLflow: runs, versions, and trainings that MLflow's failure or a kill ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from perennial.core import dates, runtime, signing_keys
from perennial.core.errors import ArtifactError, RegistryError
from perennial.modeling import evaluation_charts, registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.train import train
from perennial.storage import delta_tables, manifests
from perennial.training import search
from perennial.training.runs.run_content import DatasetVersion
from perennial.training.tracking import TrainingRun
from perennial.training.training_report import TrainingReport
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
    assert description.startswith(f"Passed the gate. Trained as of {toys.LAST}: first\n\n- ok: evaluated on ")
    assert "\n- ok: log_loss" in description
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


def test_mlflow_lists_the_table_versions_that_were_read(world: Any) -> None:
    name = world.spec.name
    listed = {d.dataset.name: d for d in client().get_run(world.result["run_id"]).inputs.dataset_inputs}
    assert set(listed) == {f"{name}.published", f"{name}.labels", "places"}
    versions = world.result["dataset_version"]
    expected = {f"{name}.published": versions["published"], f"{name}.labels": versions["labels"]}
    for dataset, version in (expected | versions["references"]).items():
        source = json.loads(listed[dataset].dataset.source)
        assert source["delta_table_version"] == version and "lake/" in source["path"]
        assert listed[dataset].dataset.source_type == "delta_table"
        assert [(t.key, t.value) for t in listed[dataset].tags] == [("mlflow.data.context", "training")]
    published = listed[f"{name}.published"].dataset
    digest = manifests.read(name, "train", toys.LAST).inputs["rows"]
    assert digest.startswith(published.digest) and len(published.digest) == 36
    assert json.loads(published.profile)["partitions"] == f"{toys.FIRST}..{dates.add_days(toys.FIRST, 18)}"


def test_another_training_may_log_the_same_table_at_the_same_moment(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    spec, tables = make_model(), [DatasetVersion("rows", "lake/published/toy", 3, "0123")]
    log, refused = mlflow.MlflowClient.log_inputs, []

    def log_inputs(self: Any, *arguments: Any) -> None:
        if not refused:
            refused.append(arguments)
            raise mlflow.MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name")
        log(self, *arguments)

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", log_inputs)
    run = TrainingRun(spec, toys.LAST, "later", tables)
    run.finish()
    (listed,) = client().get_run(run.run.info.run_id).inputs.dataset_inputs
    assert refused and listed.dataset.name == "rows"


def test_mlflow_has_learning_curves_with_the_round_as_step(world: Any) -> None:
    run = client().get_run(world.result["run_id"])
    nested = client().search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )
    for one in (run, *nested):
        for name in ("train-logloss", "valid-logloss"):
            points = sorted(client().get_metric_history(one.info.run_id, name), key=lambda p: p.step)
            assert [p.step for p in points] == list(range(1, len(points) + 1))
            assert points[-1].value < points[0].value
    best = min(nested, key=lambda trial: trial.data.metrics["loss"])
    curves = [client().get_metric_history(r.info.run_id, "valid-logloss") for r in (run, best)]
    assert [p.value for p in curves[0]] == [p.value for p in curves[1]]


def test_mlflow_shows_the_metrics_of_the_logged_model(world: Any) -> None:
    version = registry.get_version(world.spec.name, world.result["version"])
    logged = {m.key: m.value for m in client().get_logged_model(version.model_id).metrics}
    metrics = world.result["metrics"]
    assert {name: logged.get(name) for name in metrics} == pytest.approx(metrics)
    assert "valid-logloss" not in logged, "a curve by rounds is the run's"


def test_a_training_signs_its_version_and_reads_no_metric_back(
    make_model: Make, mlflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow asks for the history of each metric that a run has before its model: one request each."""
    import mlflow

    spec = make_model(training={"rounds": 3})
    toys.publish(spec)
    monkeypatch.delattr(mlflow.MlflowClient, "get_metric_history")
    assert signing_keys.make_local_keys(mlflow_home)
    result = train(spec, as_of=toys.LAST)
    assert result["metrics"]
    version = registry.get_recorded_version(spec.name, result["version"])
    bundle = mlflow_home / "cache" / "runs" / version.run_id / "model.sig"
    assert "dsseEnvelope" in json.loads(bundle.read_text())
    registry.check_signature(version, again=True)
    # Another key pair, which did not sign it.
    shutil.rmtree(mlflow_home / "signing")
    assert signing_keys.make_local_keys(mlflow_home)
    with pytest.raises(
        ArtifactError, match="signature of version 1 is refused: it was made with another key"
    ):
        registry.load_model(version)


def test_mlflow_has_plots_use_of_the_machine_and_the_search(world: Any) -> None:
    run_id = world.result["run_id"]
    plots = {Path(f.path).name for f in client().list_artifacts(run_id, "plots")}
    assert plots == {
        "roc.svg", "precision_recall.svg", "calibration.svg", "confusion.svg", "importance.svg", "learning_curve.svg",
    }  # fmt: skip
    for name in plots:
        content = Path(client().download_artifacts(run_id, f"plots/{name}")).read_text()
        assert ElementTree.fromstring(content).get("viewBox") and "<style>" in content
    data = client().get_run(run_id).data
    assert "system/cpu_utilization_percentage" in data.metrics
    assert data.params["search.trials"] == "2"
    assert data.params["search.max_depth"] == "2, 3"
    assert data.params["search.learning_rate"] == "0.1 to 0.4"


def test_mlflow_links_to_the_run_in_airflow(world: Any) -> None:
    tags = client().get_run(world.result["run_id"]).data.tags
    page = "https://airflow.example.com/dags/toy.train/runs/run-1"
    assert tags["perennial.airflow_run_url"] == page
    assert tags["perennial.airflow_run_id"] == "run-1"
    assert f"]({page})" in tags["mlflow.note.content"] and "because: first" in tags["mlflow.note.content"]


def test_the_report_of_a_training_shows_charts_gate_and_where_it_ran(world: Any) -> None:
    assert world.result["report"].endswith(f"/reports/{world.spec.name}/training/{toys.LAST}.html")
    page = next((world.home / "lake" / "reports").rglob("training/*.html")).read_text()
    assert page.index("<svg") < page.index("Gate: passed") < page.index("Metrics on 300 held-out rows")
    for text in (
        "ROC curve",
        "Calibration",
        "Confusion matrix",
        "Feature importance",
        "Learning curve: logloss",
    ):
        assert text in page
    assert f"/#/runs/{world.result['run_id']}" in page
    assert "<script" not in page


def test_plots_that_cannot_be_drawn_or_stored_change_nothing_else(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_model(training={"rounds": 3})
    toys.publish(spec)

    def fail(*_: Any) -> Any:
        raise ValueError("a test")

    monkeypatch.setattr(evaluation_charts, "performance_charts", fail)
    monkeypatch.setattr(TrainingReport, "charts", fail)
    result = train(spec, as_of=toys.LAST)
    assert registry.get_version(spec.name, result["version"])
    assert caplog.text.count("could not be drawn, which changes nothing else") >= 3
    assert "could not be drawn" in Path(result["report"]).read_text()


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
