"""Training: reproducible, judged on later rows than it learned from, registered with all that names it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perennial import dataset, files, fit, lake, ledger, manifest, registry
from perennial.errors import DataError, PerennialError, RegistryError
from perennial.labelled import choices, windows
from perennial.monitor import monitor
from perennial.promote import promote
from perennial.register import Recorder
from perennial.score import score
from perennial.spec import ModelSpec
from perennial.train import train
from support import processes, toys

Make = Callable[..., ModelSpec]


def client() -> Any:
    import mlflow

    from perennial.settings import settings

    return mlflow.MlflowClient(settings().mlflow_uri)


def test_the_result_says_what_happened(trained: Any) -> None:
    result = trained.result
    assert result["status"] == "trained"
    assert result["as_of"] == toys.LAST
    assert result["device"] == "cpu"
    assert result["trials"] == 2
    assert result["gate"]["passed"] is True
    assert result["gate"]["champion"] is None
    # labels come a day late: nineteen days are known, five of them judge
    assert result["rows"] == {"fit": 12 * toys.ROWS, "valid": 2 * toys.ROWS, "holdout": 5 * toys.ROWS}
    assert result["metrics"]["log_loss"] < 0.6
    assert result["metrics"]["auc"] > 0.8
    assert json.loads(json.dumps(result)) == result


def test_the_version_carries_what_made_it(world: Any) -> None:
    champion = registry.champion(world.spec)
    assert champion is not None
    tags, result = champion.tags, world.result
    assert champion.version == result["version"]
    assert tags["digest"] == result["digest"]
    assert tags["spec_digest"] == world.spec.digest
    assert tags["code_version"] == manifest.code_version()
    assert tags["dataset_version"] == f"published@{lake.version(lake.table('published', world.spec.name))} labels@" \
        f"{lake.version(lake.table('labels', world.spec.name))}"  # fmt: skip
    assert tags["trained_on"] == f"{toys.FIRST}..{files.shift(toys.FIRST, 13)}"
    assert tags["judged_on"] == f"{files.shift(toys.FIRST, 14)}..{files.shift(toys.FIRST, 18)}"
    assert tags["device"] == "cpu"
    assert tags["reason"] == "first"
    said = client().get_model_version(world.spec.name, champion.version).description
    assert said.startswith(f"Passed its gate. Trained as of {toys.LAST}: first\n\n- ok: log_loss")
    assert client().get_registered_model(world.spec.name).description == world.spec.description


def test_mlflow_holds_signature_example_trials_and_companions(world: Any) -> None:
    import mlflow

    mlflow.set_tracking_uri(client().tracking_uri)
    info = mlflow.models.get_model_info(f"models:/{world.spec.name}/{world.result['version']}")
    assert [c.name for c in info.signature.inputs.inputs] == ["x", "z", "k", "hour", "size"]
    assert info.signature.outputs is not None
    assert info.saved_input_example_info is not None
    run = client().get_run(world.result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["code_version"] == manifest.code_version()
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
    kept = {Path(f.path).name for f in client().list_artifacts(run.info.run_id, registry.FOLDER)}
    assert {"spec.json", "importance.json", "reference.json", "reference.parquet", "evaluation.json"} <= kept
    again = registry.spec(registry.version(world.spec.name, world.result["version"]))
    assert again.digest == world.spec.digest


def test_no_pickle_is_written(world: Any) -> None:
    version = registry.version(world.spec.name, world.result["version"])
    names = [a.path for a in client().list_logged_model_artifacts(version.model_id)] if hasattr(
        client(), "list_logged_model_artifacts") else ["model.ubj"]  # fmt: skip
    assert "model.ubj" in names
    assert not [n for n in names if n.endswith((".pkl", ".pickle", ".joblib"))]


def test_manifest_and_ledger_agree(world: Any) -> None:
    done = manifest.read(world.spec.name, "train", toys.LAST)
    assert done is not None
    assert done.result == world.result
    assert done.outputs["digest"] == world.result["digest"]
    assert done.device == "cpu"
    assert done.run_id == "run-1"
    kinds = [(r["kind"], r["decision"]) for r in ledger.records(world.spec.name)]
    assert kinds == [("training", "trained"), ("promotion", "promoted")]
    assert ledger.verify(world.spec.name) == 2


def test_a_rerun_is_unchanged_and_a_forced_one_gives_the_same_bytes(make_model: Make) -> None:
    spec = make_model()
    toys.publish(spec)
    first = train(spec, as_of=toys.LAST)
    assert train(spec, as_of=toys.LAST) == first | {"status": "unchanged"}
    second = train(spec, as_of=toys.LAST, force=True)
    assert second["version"] != first["version"]
    assert second["digest"] == first["digest"]
    assert second["metrics"] == first["metrics"]


def test_threads_and_external_memory_change_no_byte(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_model()
    toys.publish(spec)
    one = train(spec, as_of=toys.LAST)
    assert one["external_memory"] is False
    monkeypatch.setenv("PERENNIAL_THREADS", "2")
    two = train(spec, as_of=toys.LAST, force=True)
    monkeypatch.setattr(dataset, "BYTES_A_CELL", 1 << 40)
    disk = train(spec, as_of=toys.LAST, force=True)
    assert disk["external_memory"] is True
    assert one["digest"] == two["digest"] == disk["digest"]


def test_how_the_lake_lies_changes_no_byte(make_model: Make) -> None:
    """Rows written night by night, in another order, train the same model."""
    spec = make_model()
    toys.publish(spec)
    one = train(spec, as_of=toys.LAST)
    uri = lake.table("published", spec.name)
    for day in lake.partitions(uri):
        stream = lake.stream(uri, start=day, end=day)
        assert stream is not None
        lake.replace(uri, stream.read_all().sort_by([("x", "ascending")]), day)
    two = train(spec, as_of=toys.LAST)
    assert two["status"] == "trained"
    assert two["digest"] == one["digest"]


def test_a_pinned_version_trains_although_rows_change_meanwhile(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_model()
    toys.publish(spec)
    one = train(spec, as_of=toys.LAST)
    real = fit.fit

    def slow(*args: Any, **kwargs: Any) -> Any:
        toys.publish(spec, shuffled=True)
        return real(*args, **kwargs)

    monkeypatch.setattr(fit, "fit", slow)
    two = train(spec, as_of=toys.LAST, force=True)
    assert two["digest"] == one["digest"]
    assert two["metrics"] == one["metrics"]


def test_cuda_is_a_failure_where_there_is_none(make_model: Make) -> None:
    if fit.device("auto") == "cuda":
        pytest.skip("this machine has a GPU")
    spec = make_model(training={"device": "cuda"})
    toys.publish(spec)
    with pytest.raises(PerennialError, match=r"training\.device is cuda"):
        train(spec, as_of=toys.LAST)
    assert registry.champion(spec) is None
    assert manifest.read(spec.name, "train", toys.LAST) is None
    experiment = client().get_experiment_by_name(spec.name)
    assert [r.info.status for r in client().search_runs([experiment.experiment_id])] == ["FAILED"]


def test_the_run_of_a_killed_training_is_closed_by_the_next_one(make_model: Make) -> None:
    """Killed in the midst of a trial; two other trainings of the same model are alive meanwhile, one ends."""
    spec = make_model(training={"rounds": 3})
    toys.publish(spec)
    alive, ending = (Recorder(spec, toys.LAST, name) for name in ("alive", "ending"))
    place = "perennial.register.Recorder._log"
    killed = processes.start(
        processes.killed_step,
        str(spec.folder),
        "train",
        {"as_of": toys.LAST, "reason": "killed"},
        place,
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


def test_the_gate_draws_whole_days_where_it_is_told_to(make_model: Make) -> None:
    spec = make_model(gate={"resample": "days"}, training={"rounds": 3, "holdout_days": 10})
    toys.publish(spec, days=9)
    toys.publish(spec, files.shift(toys.LAST, -5), 6)
    with pytest.raises(DataError, match=r"fewer than 10 of the days .* have labels"):
        train(spec, as_of=toys.LAST)
    toys.publish(spec)
    days = train(spec, as_of=toys.LAST)["gate"]["against_baselines"]["constant"]
    by_rows = spec.model_copy(update={"gate": spec.gate.model_copy(update={"resample": "rows"})})
    rows = train(by_rows, as_of=toys.LAST)["gate"]["against_baselines"]["constant"]
    assert days["improvement"] == rows["improvement"]
    assert (days["low"], days["high"]) != (rows["low"], rows["high"])


def test_auto_records_the_device_that_ran() -> None:
    assert fit.device("auto") in ("cpu", "cuda")
    assert fit.device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("task", "metric", "good"),
    [
        ("multiclass", "error_rate", 0.35),
        ("regression", "squared_error", 15.0),
        ("regression", "absolute_error", 3.5),
        ("ranking", "ndcg_loss", 0.35),
    ],
)
def test_every_task_trains_promotes_and_scores(make_model: Make, task: str, metric: str, good: float) -> None:
    spec = make_model(task, gate={"resamples": 200, "metric": metric})
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    assert result["metrics"][metric] < good
    assert result["gate"]["passed"], result["gate"]["reasons"]
    assert promote(spec, as_of=toys.LAST, actor="test")["promoted"]
    assert score(spec, start=toys.LAST)["rows_out"] == toys.ROWS
    found = toys.content_of("predictions", spec.name)
    if task == "multiclass":
        assert {r["prediction"] for r in found} <= {"red", "green", "blue"}
        for row in found:
            assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
            # classes are in alphabetical order
            best = max(range(3), key=lambda i, p=row["probabilities"]: p[i])
            assert row["prediction"] == ["blue", "green", "red"][best]
    else:
        assert len({r["prediction"] for r in found}) > 5
    again = train(spec, as_of=toys.LAST, force=True)
    assert again["digest"] == result["digest"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "ranking"])
def test_a_champion_of_every_task_can_be_watched(make_model: Make, task: str) -> None:
    spec = make_model(task, training={"rounds": 10, "holdout_days": 8}, gate={"beat_baseline": False})
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    assert promote(spec, as_of=toys.LAST, actor="test")["promoted"]
    end = files.shift(toys.LAST, 7)
    toys.publish(spec, toys.LAST, 8)
    score(spec, start=toys.LAST, end=end)
    found = monitor(spec, as_of=end)
    states = {name: signal["state"] for name, signal in found["signals"].items()}
    assert found["model_version"] == result["version"] and states["skew"] == "ok"
    known = {"performance", "attributions", "volume", "freshness", "labels", "nulls", "categories"}
    known |= set() if task == "ranking" else {"calibration", "value", "estimated"}
    assert {n for n in known if states.get(n, "undetermined") == "undetermined"} == set(), found["signals"]


def test_a_retraining_learns_from_the_better_of_the_usual_window_and_the_time_since_the_change(
    make_model: Make,
) -> None:
    spec = make_model(training={"rounds": 10, "holdout_days": 5})
    toys.publish(spec)
    change = files.shift(toys.LAST, -8)
    ledger.append(
        spec.name, kind="retraining", decision="requested", reason="value", actor="test", partition=toys.LAST,
        evidence={"since": change},
    )  # fmt: skip
    result = train(spec, as_of=toys.LAST)
    assert result["since"] == change and result["window"] in ("sliding", "since_change")
    version = registry.version(spec.name, result["version"])
    # Eight labelled days since the change: a third of them judges.
    assert version.tags["judged_on"] == f"{files.shift(toys.LAST, -2)}..{files.shift(toys.LAST, -1)}"
    first = change if result["window"] == "since_change" else toys.FIRST
    assert version.tags["trained_on"].startswith(first)


def test_the_windows_of_a_retraining(make_model: Make) -> None:
    spec = make_model(
        training={"window_days": 6, "holdout_days": 3},
        retraining={"windows": ["sliding", "expanding", "since_change"]},
    )
    days = files.dates("2024-01-01", "2024-01-20")
    first = choices(spec, "2024-01-20", days, "")
    assert {k: (w.fit[0], w.holdout[0]) for k, w in first.items()} == {
        "sliding": ("2024-01-11", "2024-01-17"), "expanding": ("2024-01-01", "2024-01-17"),
    }  # fmt: skip
    later = choices(spec, "2024-01-20", days, "2024-01-15")
    assert {k: (w.fit[0], w.holdout[0]) for k, w in later.items()} == {
        "sliding": ("2024-01-13", "2024-01-19"), "expanding": ("2024-01-01", "2024-01-19"),
        "since_change": ("2024-01-15", "2024-01-19"),
    }  # fmt: skip
    young = choices(spec, "2024-01-20", days, "2024-01-18")
    assert set(young) == {"sliding", "expanding"}, "one day to learn from is none"


def test_a_label_in_the_rows_needs_no_feed(make_model: Make) -> None:
    own = {"source": None, "columns": {}, "expression": "z", "arrives_after_days": 0}
    spec = make_model("regression", label=own, sql="SELECT id, x, k FROM rows", features={"references": []})
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    assert result["dataset_version"]["labels"] is None
    assert result["rows"]["holdout"] == 5 * toys.ROWS


def test_judged_rows_are_later_than_all_that_was_learned_from(make_model: Make) -> None:
    spec = make_model()
    days = files.dates(toys.FIRST, toys.LAST)
    split = windows(spec, toys.LAST, days)
    assert max(split.fit) < min(split.valid) <= max(split.valid) < min(split.holdout)
    assert max(split.holdout) == files.shift(toys.LAST, -1)  # the last day's labels are not there yet
    with pytest.raises(DataError, match="0 to judge on"):
        windows(spec, files.shift(toys.LAST, 30), days)
    short = windows(make_model(training={"window_days": 4, "holdout_days": 2}), toys.LAST, days)
    assert (len(short.fit) + len(short.valid), len(short.holdout)) == (4, 2)


@pytest.mark.parametrize("days", [1, 5, 6])
def test_too_few_days_are_told(make_model: Make, days: int) -> None:
    spec = make_model()
    toys.publish(spec, days=days)
    with pytest.raises(DataError, match="too few"):
        train(spec, as_of=files.shift(toys.FIRST, days - 1))


def test_nothing_published_and_no_label_are_told(make_model: Make) -> None:
    spec = make_model()
    with pytest.raises(DataError, match="nothing was published"):
        train(spec, as_of=toys.LAST)
    table = toys.rows("binary", toys.FIRST)
    lake.replace(
        lake.table("published", spec.name),
        table.append_column(lake.PARTITION, [[toys.FIRST] * len(table)]),
        toys.FIRST,
    )
    with pytest.raises(DataError, match="no label"):
        train(spec, as_of=toys.LAST)


def test_as_of_is_a_date(make_model: Make) -> None:
    spec = make_model()
    toys.publish(spec)
    with pytest.raises(PerennialError, match="not a date"):
        train(spec, as_of="../../2024-01-20")


def relabel(spec: ModelSpec, values: Any) -> None:
    import pyarrow as pa

    uri = lake.table("labels", spec.name)
    table = lake.stream(uri).read_all()  # type: ignore[union-attr]
    new = table.set_column(table.column_names.index("label"), "label", pa.array(values(table)))
    days = lake.partitions(uri)
    lake.replace(uri, new, days[0], days[-1])


@pytest.mark.parametrize(
    ("task", "value", "message"),
    [
        ("binary", 2, "a binary label is 2"),
        ("binary", 1, "have the same label"),
        ("ranking", 40, "not a whole number from 0 to 31"),
    ],
)
def test_labels_that_the_task_has_no_use_for(make_model: Make, task: str, value: int, message: str) -> None:
    spec = make_model(task)
    toys.publish(spec)
    relabel(spec, lambda table: [value] * len(table))
    with pytest.raises(DataError, match=message) as error:
        train(spec, as_of=toys.LAST)
    assert error.value.model == spec.name
    experiment = client().get_experiment_by_name(spec.name)
    assert [r.info.status for r in client().search_runs([experiment.experiment_id])] == ["FAILED"]


def test_infinite_labels_are_refused(make_model: Make) -> None:
    spec = make_model("regression")
    toys.publish(spec)
    relabel(spec, lambda table: [float("inf"), *[1.0] * (len(table) - 1)])
    with pytest.raises(DataError, match="NaN or infinite"):
        train(spec, as_of=toys.LAST)


def test_features_that_look_at_other_rows_stop_the_training(make_model: Make) -> None:
    spec = make_model(sql="SELECT id, x, avg(z) OVER () AS z, k FROM rows")
    toys.publish(spec)
    with pytest.raises(PerennialError, match="depends on the other rows"):
        train(spec, as_of=toys.LAST)


def test_mlflow_down_is_told_quickly(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    spec = make_model()
    toys.publish(spec)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(RegistryError, match=r"127.0.0.1:9 does not answer(.|\n)*What to do"):
        train(spec, as_of=toys.LAST)
    assert time.monotonic() - began < 5


def test_mlflow_that_dies_in_the_midst_of_a_training_is_told(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_model()
    toys.publish(spec)
    real = fit.fit

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
    monkeypatch.setattr(fit, "fit", fit_then_lose)
    with pytest.raises(RegistryError, match="MLflow"):
        train(spec, as_of=toys.LAST)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)  # MLflow's client writes the variable
    assert manifest.read(spec.name, "train", toys.LAST) is None
    assert registry.champion(spec) is None


def test_nothing_is_left_in_the_working_folder(world: Any) -> None:
    assert [p.name for p in (world.home / "tmp").iterdir() if p.name.startswith("train-")] == []
