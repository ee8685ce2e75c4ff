"""What every DAG must have, whichever models there are: the expected DAGs are computed from the specs."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.definitions.assets import SerializedAssetAll
from airflow.serialization.serialized_objects import DagSerialization

from perennial.spec.catalog import TABLE_FILE, find_folders, load_feature_table, load_models
from perennial.spec.model_spec import ModelSpec
from perennial_airflow import run_request
from perennial_airflow.alerting import daily_summary
from perennial_airflow.dag_factory.factory import STAGES, dags
from perennial_airflow.execution import drills, erasure, maintenance, retention, verification
from support import toys
from support.feeds import history_table

SPECS, _ = load_models()
DAGS = dags()
MODEL_DAGS = {name: dag for name, dag in DAGS.items() if not name.startswith("features.")}
TABLES = {name: load_feature_table(name) for name in find_folders(TABLE_FILE)}
TASKS = {f"{dag.dag_id}/{task.task_id}": task for dag in DAGS.values() for task in dag.tasks}
each_dag = pytest.mark.parametrize("dag", DAGS.values(), ids=DAGS)
each_model_dag = pytest.mark.parametrize("dag", MODEL_DAGS.values(), ids=MODEL_DAGS)
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def spec_of(dag: DAG) -> ModelSpec:
    """The model of a DAG; of a feature table's, its first source."""
    model, _, stage = dag.dag_id.rpartition(".")
    return SPECS[model if dag.dag_id in MODEL_DAGS else TABLES[stage].sources[0].model]


def deserialised(dag: DAG) -> Any:
    """The DAG as Airflow's scheduler and API server see it."""
    return DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))


def test_five_dags_for_every_model() -> None:
    assert SPECS, "there are no models"
    stages = ("data", "train", "score", "monitor", "rollback")
    assert set(MODEL_DAGS) == {f"{m}.{s}" for m in SPECS for s in stages}
    assert TABLES and set(DAGS) - set(MODEL_DAGS) == {f"features.{table}" for table in TABLES}


@each_model_dag
def test_a_dag_says_whose_it_is(dag: DAG) -> None:
    spec, stage = spec_of(dag), dag.dag_id.rpartition(".")[2]
    assert dag.owner == spec.owner
    assert {spec.name, stage, *spec.tags} < set(dag.tags)
    assert dag.dag_display_name == f"{spec.name} · {stage}"
    assert dag.catchup is False
    assert 1 <= dag.max_active_runs <= 4


@each_dag
def test_a_dag_explains_itself(dag: DAG) -> None:
    page = dag.doc_md or ""
    of_table = None if dag.dag_id in MODEL_DAGS else TABLES[dag.dag_id.rpartition(".")[2]]
    for part in (
        (of_table or spec_of(dag)).description,
        "**Runs**",
        "**Reads**",
        "**Emits**",
        "**When it fails.**",
        "**Alerts**",
        "**Owner.**",
    ):
        assert part in page
    if not of_table:
        assert f"/perennial/models/{spec_of(dag).name})" in page
    for task in dag.tasks:
        for asset in task.outlets:
            assert f"`{asset.name}`" in page
    assert dag.description


@each_dag
def test_every_field_of_a_form_is_explained(dag: DAG) -> None:
    for name in dag.params:
        field = dag.params.get_param(name)
        assert field.schema["title"], name
        assert field.schema["description_md"], name


@each_dag
def test_a_form_that_nobody_fills_in_holds_valid_values(dag: DAG) -> None:
    """Airflow checks them when they are handed to a DAG's constructor, which ours are not."""
    if dag.schedule is not None:
        dag.params.validate()
        assert not [
            n
            for n in run_request.DATE_FIELDS
            if n in dag.params and dag.params.get_param(n).schema.get("section")
        ]
    else:
        with pytest.raises(ParamValidationError, match="reason"):
            dag.params.validate()


@each_dag
def test_a_text_that_must_not_be_empty_is_more_than_spaces(dag: DAG) -> None:
    for name in dag.params:
        field = dag.params.get_param(name)
        if field.schema.get("minLength"):
            with pytest.raises(ParamValidationError):
                field.resolve(" " * 10)


@each_dag
def test_a_form_that_nobody_fills_in_allows_a_backfill(dag: DAG) -> None:
    if deserialised(dag).timetable.periodic:
        conf = dag.params.validate()
        assert run_request.conf_problem(dag.dag_id, conf, list(dag.params), backfill=True) is None


@each_task
def test_a_task_checks_the_configuration_of_its_run(task: Any) -> None:
    hook = task.partial_kwargs["pre_execute"] if task.is_mapped else task._pre_execute_hook
    assert hook is run_request.check_conf


def test_so_do_the_tasks_of_the_dags_for_all_models() -> None:
    modules = (daily_summary, drills, erasure, maintenance, retention, verification)
    for dag in (dag for module in modules for dag in module.dags().values()):
        assert dag.catchup is False and dag.max_active_runs == 1 and dag.dag_id.startswith("perennial.")
        assert all(task._pre_execute_hook is run_request.check_conf for task in dag.tasks)


@each_task
def test_a_task_is_bounded_and_reports_failure(task: object) -> None:
    assert 0 <= task.retries <= 10
    assert task.retry_delay == timedelta(seconds=30)
    assert task.retry_exponential_backoff == 2.0
    assert timedelta(0) < task.execution_timeout <= timedelta(days=2)
    assert len(task.on_failure_callback) == len(task.on_success_callback) == 1
    assert task.depends_on_past is False


@each_model_dag
def test_limits_come_from_the_spec(dag: DAG) -> None:
    spec, stage = spec_of(dag), dag.dag_id.rpartition(".")[2]
    if stage != "rollback":
        task = dag.get_task(stage)
        assert task.retries == spec.step_limits(stage).retries
        assert task.execution_timeout == timedelta(minutes=spec.step_limits(stage).timeout_minutes)


@pytest.mark.parametrize("model", SPECS)
def test_wiring(model: str) -> None:
    def wires(stage: str) -> dict[str, set[str]]:
        return {t.task_id: t.downstream_task_ids for t in DAGS[f"{model}.{stage}"].tasks}

    assert wires("data") == {"data": set()}
    assert wires("score") == {"score": set()}
    assert wires("train") == {"train": {"promote"}, "promote": set()}
    assert wires("monitor") == {
        "monitor": {"decide", "notify"}, "decide": {"request_retraining"}, "request_retraining": set(), "notify": set(),
    }  # fmt: skip
    assert wires("rollback") == {"rollback": {"find_scores"}, "find_scores": {"rescore"}, "rescore": set()}


@pytest.mark.parametrize("model", SPECS)
def test_the_loop_closes_over_assets(model: str) -> None:
    emits = {stage: {a.name for t in DAGS[f"{model}.{stage}"].tasks for a in t.outlets} for stage in STAGES}
    assert emits == {
        "data": {f"data/{model}"},
        "score": {f"predictions/{model}"},
        "train": {f"model/{model}"},
        "monitor": {f"retraining/{model}"},
        "rollback": {f"model/{model}"},
    }

    def waits_for(stage: str) -> set[str]:
        return {
            key.name
            for key, _ in deserialised(DAGS[f"{model}.{stage}"]).timetable.asset_condition.iter_assets()
        }

    assert waits_for("score") == {f"data/{model}"}
    assert waits_for("train") == {f"retraining/{model}"}


@pytest.mark.parametrize("name", TABLES)
def test_a_feature_table_is_computed_when_its_sources_are_published(name: str) -> None:
    table, dag = TABLES[name], DAGS[f"features.{name}"]
    assert dag.owner == table.owner and dag.dag_display_name == f"features · {name}"
    assert {"features", name, *(source.model for source in table.sources)} == set(dag.tags)
    (task,) = dag.tasks
    sources = {f"data/{source.model}" for source in table.sources}
    assert {a.name for a in task.outlets} == {f"features/{name}"}
    assert {a.name for a in task.inlets} == sources
    condition = deserialised(dag).timetable.asset_condition
    assert {key.name for key, _ in condition.iter_assets()} <= sources
    using = {m for m, spec in SPECS.items() if name in {t.name for _, t in spec.feature_tables}}
    assert using
    for model in SPECS:
        for stage in ("score", "train", "monitor"):
            inlets = {a.name for a in DAGS[f"{model}.{stage}"].get_task(stage).inlets}
            assert (f"features/{name}" in inlets) is (model in using)


def test_a_feature_table_waits_for_all_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path))
    for name in ("toy", "other"):
        toys.model(tmp_path, name)
    sources = [{"model": "toy"}, {"model": "other"}]
    history_table.write(tmp_path, sql=history_table.SQL.replace("avg(y)", "avg(x)"), sources=sources)
    timetable = deserialised(dags()["features.place_history"]).timetable
    assert isinstance(timetable.asset_condition, SerializedAssetAll)
    names = {"data/toy", "data/other"}
    assert {key.name for key, _ in timetable.asset_condition.iter_assets()} == names
    for name in names:
        assert timetable.get_partition_mapper(name=name).to_downstream("2024-01-02") == "2024-01-02"


@each_dag
def test_serialization_is_stable_and_comes_back(dag: DAG) -> None:
    """A DAG whose serialized form changed from parse to parse would get a new version at each."""
    stage = dag.dag_id.rpartition(".")[2]
    first = json.dumps(DagSerialization.to_dict(dag), sort_keys=True, default=str)
    again = json.dumps(DagSerialization.to_dict(dags()[dag.dag_id]), sort_keys=True, default=str)
    assert first == again
    back = deserialised(dag)
    assert back.timetable.partitioned is (stage != "rollback")
    # the DAGs that can be backfilled
    assert back.timetable.periodic is (stage in ("data", "score", "monitor", *TABLES))
