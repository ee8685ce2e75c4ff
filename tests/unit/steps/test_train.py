"""The step ``train``: reproducible, evaluated on later rows than it was fitted on, recorded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perennial.core import dates
from perennial.core.errors import DataError, PerennialError, RegistryError, SpecError, StorageError
from perennial.core.partitions import PartitionRange
from perennial.core.settings import settings
from perennial.lifecycle import retraining
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.steps.monitor import monitor
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import delta_tables, landing, ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind
from perennial.training import _boosting, _dataset, search
from support import lake, toys

pytestmark = pytest.mark.usefixtures("without_drift_report")

Make = Callable[..., ModelSpec]


def client() -> Any:
    import mlflow

    return mlflow.MlflowClient(settings().mlflow_uri)


def test_the_result_says_what_happened(trained: Any) -> None:
    result = trained.result
    assert result["status"] == "trained"
    assert result["as_of"] == toys.LAST
    assert result["device"] == device_of_this_machine()
    assert result["trials"] == 2
    assert result["gate"]["passed"] is True
    assert result["gate"]["champion"] is None
    # labels come a day late: nineteen days are known, five of them judge
    assert result["rows"] == {"fit": 12 * toys.ROWS, "valid": 2 * toys.ROWS, "holdout": 5 * toys.ROWS}
    assert result["metrics"]["log_loss"] < 0.6
    assert result["metrics"]["auc"] > 0.8
    assert json.loads(json.dumps(result)) == result


def test_manifest_and_ledger_agree(world: Any) -> None:
    done = manifests.read(world.spec.name, "train", toys.LAST)
    assert done is not None
    assert done.result == world.result
    assert done.outputs["digest"] == world.result["digest"]
    assert done.device == "cpu"
    assert done.run_id == "run-1"
    kinds = [(r["kind"], r["decision"]) for r in ledger.records(world.spec.name)]
    assert kinds == [("training", "accepted"), ("promotion", "promoted")]
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
    monkeypatch.setattr(_dataset, "BYTES_PER_CELL", 1 << 40)
    disk = train(spec, as_of=toys.LAST, force=True)
    assert disk["external_memory"] is True
    assert one["digest"] == two["digest"] == disk["digest"]


def test_how_the_lake_lies_changes_no_byte(make_model: Make) -> None:
    """Rows written night by night, in another order, train the same model."""
    spec = make_model()
    toys.publish(spec)
    one = train(spec, as_of=toys.LAST)
    uri = delta_tables.table_uri("published", spec.name)
    for day in delta_tables.partitions(uri):
        rows = lake.read_table(uri, start=day, end=day)
        delta_tables.replace(uri, rows.sort_by([("x", "ascending")]), day)
    two = train(spec, as_of=toys.LAST)
    assert two["status"] == "trained"
    assert two["digest"] == one["digest"]


def test_a_pinned_version_trains_although_rows_change_meanwhile(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_model()
    toys.publish(spec)
    one = train(spec, as_of=toys.LAST)
    real = search.search_and_fit

    def slow(*args: Any, **kwargs: Any) -> Any:
        toys.publish(spec, shuffled=True)
        return real(*args, **kwargs)

    monkeypatch.setattr(search, "search_and_fit", slow)
    two = train(spec, as_of=toys.LAST, force=True)
    assert two["digest"] == one["digest"]
    assert two["metrics"] == one["metrics"]


def test_cuda_is_a_failure_where_there_is_none(make_model: Make) -> None:
    if _boosting.resolve_device("auto") == "cuda":
        pytest.skip("this machine has a GPU")
    spec = make_model(training={"device": "cuda"})
    toys.publish(spec)
    with pytest.raises(PerennialError, match=r"training\.device is cuda"):
        train(spec, as_of=toys.LAST)
    assert registry.get_champion(spec) is None
    assert manifests.read(spec.name, "train", toys.LAST) is None
    experiment = client().get_experiment_by_name(spec.name)
    assert [r.info.status for r in client().search_runs([experiment.experiment_id])] == ["FAILED"]


def test_the_gate_draws_whole_days_where_it_is_told_to(make_model: Make) -> None:
    spec = make_model(gate={"bootstrap_unit": "partitions"}, training={"rounds": 3, "holdout": "10 days"})
    toys.publish(spec)
    toys.publish_without_labels(spec, dates.add_days(toys.LAST, -3))
    with pytest.raises(DataError, match=r"fewer than 10 of the partitions .* have labels"):
        train(spec, as_of=toys.LAST)
    toys.publish(spec)
    days = train(spec, as_of=toys.LAST)["gate"]["against_baselines"]["constant"]
    by_rows = spec.model_copy(update={"gate": spec.gate.model_copy(update={"bootstrap_unit": "rows"})})
    rows = train(by_rows, as_of=toys.LAST)["gate"]["against_baselines"]["constant"]
    assert days["improvement"] == rows["improvement"]
    assert (days["low"], days["high"]) != (rows["low"], rows["high"])


def device_of_this_machine() -> str:
    """``cuda`` where NVIDIA's own tool lists a GPU, else ``cpu``."""
    tool = shutil.which("nvidia-smi")
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=60).stdout if tool else ""
    return "cuda" if "GPU 0" in listed else "cpu"


def test_auto_records_the_device_that_ran(make_model: Make) -> None:
    assert _boosting.resolve_device("auto") == device_of_this_machine()
    assert _boosting.resolve_device("cpu") == "cpu"
    spec = make_model(training={"device": "auto"})
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    tags = client().get_model_version(spec.name, result["version"]).tags
    manifest = manifests.read(spec.name, "train", toys.LAST)
    assert manifest is not None
    recorded = (result["device"], tags["device"], manifest.result["device"])
    assert recorded == (device_of_this_machine(),) * 3


@pytest.mark.parametrize(
    ("task", "metric", "good"),
    [
        ("binary", "log_loss", 0.5),
        ("multiclass", "error_rate", 0.35),
        ("regression", "squared_error", 15.0),
        ("ranking", "ndcg_loss", 0.35),
    ],
)
def test_every_task_trains_promotes_scores_and_is_watched(
    make_model: Make, task: str, metric: str, good: float
) -> None:
    spec = make_model(task, training={"holdout": "8 days"}, gate={"bootstrap_samples": 200, "metric": metric})
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    assert result["metrics"][metric] < good
    assert result["gate"]["passed"], result["gate"]["reasons"]
    again = train(spec, as_of=toys.LAST, force=True)
    assert again["digest"] == result["digest"]
    assert promote(spec, as_of=toys.LAST, actor="test")["promoted"]
    end = dates.add_days(toys.LAST, 7)
    toys.publish(spec, toys.LAST, 8)
    assert score(spec, start=toys.LAST, end=end)["rows_out"] == 8 * toys.ROWS
    rows = toys.content_of("predictions", spec.name)
    if task == "multiclass":
        assert {r["prediction"] for r in rows} <= {"red", "green", "blue"}
        for row in rows:
            assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
            # classes are in alphabetical order
            best = max(range(3), key=lambda i, p=row["probabilities"]: p[i])
            assert row["prediction"] == ["blue", "green", "red"][best]
    else:
        assert len({r["prediction"] for r in rows}) > 5
    verdict = monitor(spec, as_of=end)
    states = {name: signal["state"] for name, signal in verdict["signals"].items()}
    assert verdict["model_version"] == again["version"] and states["skew"] == "ok"
    known = {"performance", "attributions", "volume", "freshness", "labels", "nulls", "categories"}
    known |= set() if task == "ranking" else {"calibration", "gain", "estimated"}
    assert {n for n in known if states.get(n, "undetermined") == "undetermined"} == set(), verdict["signals"]


def test_a_class_that_the_champion_never_saw_counts_as_wrong(make_model: Make) -> None:
    """Half of the labels get a new class: monitoring says so, and the gate of the next training counts them."""
    spec = make_model(
        "multiclass", training={"rounds": 10, "holdout": "8 days"}, gate={"beat_baseline": False}
    )
    toys.publish(spec)
    train(spec, as_of=toys.LAST)
    assert promote(spec, as_of=toys.LAST, actor="test")["promoted"]
    end = dates.add_days(toys.LAST, 7)
    toys.publish(spec, toys.LAST, 8)
    relabel(
        spec,
        lambda table: [
            "black" if day > toys.LAST and i % 2 else label
            for i, (day, label) in enumerate(
                zip(table["partition_date"].to_pylist(), table["label"].to_pylist(), strict=True)
            )
        ],
    )
    score(spec, start=dates.add_days(toys.LAST, 1), end=end)
    result = monitor(spec, as_of=end)
    new = result["performance"]["coverage"]["counted_wrong"]["of a class unseen at training"]
    judged = result["performance"]["coverage"]["evaluated"]
    assert new == judged / 2 == 3 * toys.ROWS  # of the last day, labels are not due yet
    labels = {row["id"]: row["label"] for row in toys.content_of("labels", spec.name)}
    scored = [r for r in toys.content_of("predictions", spec.name) if r["partition_date"] < end]
    right = [row["prediction"] == labels[row["id"]] for row in scored]
    assert len(right) == judged
    assert result["performance"]["metrics"]["accuracy"] == pytest.approx(sum(right) / judged, abs=1e-6)
    assert 0.3 * judged < sum(right) < 0.5 * judged  # half of the labels have a class that it cannot predict
    states = {name: signal["state"] for name, signal in result["signals"].items()}
    assert states["labels"] == states["performance"] == states["gain"] == "bad", result["signals"]
    again = train(spec, as_of=end)
    assert again["gate"]["coverage"]["counted_wrong"] == {"of a class unseen at training": new}
    assert again["metrics"]["accuracy"] < 0.7


def test_a_label_in_the_rows_needs_no_feed(make_model: Make) -> None:
    label = {"source": None, "columns": {}, "expression": "z", "arrives_after": "0 days"}
    spec = make_model("regression", label=label, sql="SELECT id, x, k FROM rows", features={"references": []})
    toys.publish(spec)
    result = train(spec, as_of=toys.LAST)
    assert result["dataset_version"]["labels"] is None
    assert result["rows"]["holdout"] == 5 * toys.ROWS


def test_nothing_published_and_no_label_are_told(make_model: Make) -> None:
    spec = make_model()
    with pytest.raises(DataError, match="nothing was published"):
        train(spec, as_of=toys.LAST)
    table = toys.rows("binary", toys.FIRST)
    delta_tables.replace(
        delta_tables.table_uri("published", spec.name),
        table.append_column(delta_tables.PARTITION, [[toys.FIRST] * len(table)]),
        toys.FIRST,
    )
    with pytest.raises(DataError, match="no label"):
        train(spec, as_of=toys.LAST)


def stop_mlflow(spec: ModelSpec, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def delete_experiment(spec: ModelSpec, patch: pytest.MonkeyPatch) -> None:
    client().delete_experiment(client().create_experiment(spec.name))


def remove_reference(spec: ModelSpec, patch: pytest.MonkeyPatch) -> None:
    Path(landing.source_uri(spec.references[0].source)).unlink()


def break_sql(spec: ModelSpec, patch: pytest.MonkeyPatch) -> None:
    spec._sql = "SELECT id, nonsense FROM rows"


def remove_rows(spec: ModelSpec, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(delta_tables.table_uri("published", spec.name))


def damage_rows(spec: ModelSpec, patch: pytest.MonkeyPatch) -> None:
    for file in Path(delta_tables.table_uri("published", spec.name)).rglob("*.parquet"):
        file.write_bytes(b"PAR1" + bytes(100))


def fill_working_folder(spec: ModelSpec, patch: pytest.MonkeyPatch) -> None:
    folder = settings().home / "tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("a file in its place")


@pytest.mark.parametrize(
    ("damage", "kind", "cause", "remedy"),
    [
        (stop_mlflow, RegistryError, "MLflow at http://127.0.0.1:9 does not answer", "start it"),
        (delete_experiment, RegistryError, "experiment .* is deleted", "mlflow experiments restore --experiment-id"),
        (remove_reference, DataError, "reference table places: .* is missing", "land the file"),
        (break_sql, SpecError, "features.sql: .*nonsense", "data.columns|correct"),
        (remove_rows, DataError, "nothing was published yet", "run the data DAG"),
        (damage_rows, StorageError, "published/toy_.*parquet", "run the data step .* with --force"),
        (fill_working_folder, StorageError, "tmp", "PERENNIAL_HOME|has access"),
    ],
)  # fmt: skip
def test_a_training_that_fails_at_any_point_is_recorded_and_leaves_no_open_request(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, damage: Callable[..., None], kind: type[PerennialError],
    cause: str, remedy: str,
) -> None:  # fmt: skip
    spec = make_model()
    toys.publish(spec)
    ledger.append(
        spec.name, kind=LedgerKind.RETRAINING, decision=Decision.REQUESTED, reason="drift", actor="test",
        partition=toys.LAST,
    )  # fmt: skip
    later = dates.add_days(toys.LAST, 1)
    assert retraining.request_in_flight(spec, later) is not None
    damage(spec, monkeypatch)
    with pytest.raises(kind, match=f"(?s){cause}") as error:
        dispatch.run("train", spec, as_of=toys.LAST, reason="drift", actor="test")
    assert re.search(remedy, error.value.remedy), error.value.remedy
    record = ledger.records(spec.name, LedgerKind.TRAINING)[-1]
    assert (record["decision"], record["partition"]) == ("failed", toys.LAST)
    assert record["reason"] in str(error.value), "the ledger gives the cause"
    assert record["evidence"]["request"] == {"actor": "test", "reason": "drift"}
    assert retraining.request_in_flight(spec, later) is None


def test_as_of_is_a_date(make_model: Make) -> None:
    spec = make_model()
    toys.publish(spec)
    with pytest.raises(PerennialError, match="not a date"):
        train(spec, as_of="../../2024-01-20")


def relabel(spec: ModelSpec, values: Any) -> None:
    import pyarrow as pa

    uri = delta_tables.table_uri("labels", spec.name)
    table = lake.read_table(uri)
    new = table.set_column(table.column_names.index("label"), "label", pa.array(values(table)))
    days = delta_tables.partitions(uri)
    delta_tables.replace(uri, new, days[0], days[-1])


@pytest.mark.parametrize(
    ("task", "value", "message"),
    [
        ("binary", 2, "labels are not 0 or 1, as task binary needs"),
        ("binary", 1, "have the same label"),
        ("ranking", 40, "are not a grade, a whole number from 0 to 31"),
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
    with pytest.raises(
        DataError, match=r"1 of .* labels are not a finite number of at most single precision"
    ):
        train(spec, as_of=toys.LAST)


def test_features_that_look_at_other_rows_stop_the_training(make_model: Make) -> None:
    spec = make_model(sql="SELECT id, x, avg(z) OVER () AS z, k FROM rows")
    toys.publish(spec)
    with pytest.raises(PerennialError, match="depends on the other rows"):
        train(spec, as_of=toys.LAST)


def test_nothing_is_registered_where_what_belongs_to_the_model_cannot_be_made(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_model()
    toys.publish(spec)

    def fail(*_: Any, **__: Any) -> Any:
        raise DataError("the reference cannot be counted", "mend it", model=spec.name)

    monkeypatch.setattr("perennial.monitoring.histograms.make_reference", fail)
    with pytest.raises(DataError, match="the reference cannot be counted"):
        train(spec, as_of=toys.LAST)
    assert not client().search_model_versions(f"name = '{spec.name}'")
    experiment = client().get_experiment_by_name(spec.name)
    parents = [r for r in client().search_runs([experiment.experiment_id]) if "reason" in r.data.tags]
    assert [r.info.status for r in parents] == ["FAILED"]
    assert ledger.records(spec.name, LedgerKind.TRAINING)[-1]["decision"] == "failed"


def test_nothing_is_left_in_the_working_folder(world: Any) -> None:
    assert [p.name for p in (world.home / "tmp").iterdir() if p.name.startswith("train-")] == []


def test_a_retraining_learns_from_the_better_of_the_usual_window_and_the_time_since_the_change(
    make_model: Make,
) -> None:
    windows = {"windows": ["sliding", "since_change"]}
    spec = make_model(training={"rounds": 10, "holdout": "5 days"}, retraining=windows)
    toys.publish(spec)
    change = dates.add_days(toys.LAST, -8)
    ledger.append(
        spec.name, kind=LedgerKind.RETRAINING, decision=Decision.REQUESTED, reason="gain", actor="test",
        partition=toys.LAST, evidence={"since": change},
    )  # fmt: skip
    result = train(spec, as_of=toys.LAST)
    assert result["since"] == change and result["window"] in ("sliding", "since_change")
    version = registry.get_version(spec.name, result["version"])
    # Eight labelled days since the change: a third of them judges.
    assert version.holdout_range == PartitionRange(
        dates.add_days(toys.LAST, -2), dates.add_days(toys.LAST, -1)
    )
    losses = registry.load_json_artifact(version, "evaluation.json")["window_losses"]
    assert set(losses) == {"sliding", "since_change"} and result["window"] == min(losses, key=losses.get)
    assert (
        "best of several models, so the intervals have a confidence of 97.50%" in result["gate"]["reasons"][0]
    )
    first = change if result["window"] == "since_change" else toys.FIRST
    assert version.trained_range.start == first


def test_no_model_is_fitted_with_the_held_out_rows(make_model: Make) -> None:
    """Other labels of the held-out rows change no window's search, early stopping or model, only the evaluation."""
    search_space = {"trials": 3, "space": {"max_depth": {"low": 1, "high": 6}}}
    results, losses, models = [], [], []
    spec = make_model(
        training={"rounds": 10, "holdout": "5 days", "search": search_space},
        retraining={"windows": ["sliding"]},
    )
    toys.publish(spec)
    ledger.append(
        spec.name, kind=LedgerKind.RETRAINING, decision=Decision.REQUESTED, reason="gain", actor="test",
        partition=toys.LAST, evidence={"since": dates.add_days(toys.LAST, -12)},
    )  # fmt: skip
    for shuffled in (False, True):
        if shuffled:
            toys.publish(spec, dates.add_days(toys.LAST, -4), 4, shuffled=True)
        results.append(train(spec, as_of=toys.LAST))
        version = registry.get_version(spec.name, results[-1]["version"])
        assert version.holdout_range.start == dates.add_days(toys.LAST, -4)
        evaluation = registry.load_json_artifact(version, "evaluation.json")
        losses.append(evaluation["loss"])
        model = registry.load_model(version)
        models.append((model.encoding.categories, model.booster.get_dump(with_stats=True)))
    assert losses[0] < losses[1]
    assert models[0] == models[1]
    assert results[0]["metrics"] != results[1]["metrics"]


@pytest.mark.parametrize("days", [1, 5, 6])
def test_too_few_days_are_told(make_model: Make, days: int) -> None:
    spec = make_model()
    toys.publish(spec, days=days)
    with pytest.raises(DataError, match="too few"):
        train(spec, as_of=dates.add_days(toys.FIRST, days - 1))


def test_the_result_says_how_many_workers_ran(make_model: Make) -> None:
    spec = make_model(training={"refit": True})
    toys.publish(spec)
    alone = train(spec, as_of=toys.LAST)
    done = train(spec, as_of=toys.LAST, force=True, workers=2)
    assert "Fitted again on" in done["refit"]
    assert (alone["workers"], done["workers"]) == (1, 2)
    assert alone["rows"] == done["rows"] and done["gate"]["passed"]
    for name, value in alone["metrics"].items():
        assert done["metrics"][name] == pytest.approx(value, rel=0.1, abs=0.02), name
    manifest = manifests.read(spec.name, "train", toys.LAST)
    assert manifest is not None and manifest.result["workers"] == 2
    assert registry.get_version(spec.name, done["version"]).digest == done["digest"]
