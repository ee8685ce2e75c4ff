"""OpenLineage events of a real run of the data DAG, by the file transport; and of each DAG's tasks."""

from __future__ import annotations

import copy
import json
import subprocess
import threading
import uuid
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from airflow.providers.openlineage import conf
from airflow.sdk.exceptions import AirflowTaskTimeout

from conftest import Trained
from perennial.core import runtime
from perennial.core.errors import PerennialError
from perennial.features import feature_tables
from perennial.scoring import column_origins
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.storage import delta_tables, landing
from perennial.storage.ledger_table import table_files
from perennial_airflow.alerting import lineage
from perennial_airflow.dag_factory.factory import STAGES
from perennial_airflow.dag_factory.stages.features import features_dag
from perennial_airflow.execution.operators import StageTask
from support import canary, openlineage, toys
from support.feeds import history_table


@pytest.mark.slow
def test_a_run_reports_what_it_read_and_wrote(tried: Any) -> None:
    emitted = [json.loads(line) for line in tried.events.splitlines()]
    (complete,) = [e for e in emitted if e["job"]["name"] == "toy.data.data" and e["eventType"] == "COMPLETE"]
    assert {(d["namespace"], d["name"]) for d in complete["inputs"]} == {
        ("file", f"{tried.landing}/toy/{{date}}.parquet"), ("file", f"{tried.landing}/toy_labels/{{date}}.parquet"),
    }  # fmt: skip
    outputs = {d["name"]: d for d in complete["outputs"]}
    assert set(outputs) == {f"{tried.lake}/{kind}/toy" for kind in ("published", "labels", "quarantine")}
    published = outputs[f"{tried.lake}/published/toy"]
    assert published["outputFacets"]["outputStatistics"]["rowCount"] == 60
    assert published["facets"]["version"]["datasetVersion"].isdigit()
    assert f"{tried.day}-00001" not in tried.events, "a value of the data"
    checked = openlineage.check(complete)
    assert {
        "schema",
        "columnLineage",
        "version",
        "dataQualityAssertions",
        "ownership",
        "perennial_model",
    } <= {*checked}
    assert complete["job"]["facets"]["ownership"]["owners"][0]["name"] == "tests"
    for event in emitted:
        openlineage.check(event)


def test_nothing_is_listened_to_unless_configured() -> None:
    from airflow.providers.openlineage.plugins.openlineage import OpenLineageProviderPlugin

    assert OpenLineageProviderPlugin.listeners == []


def test_every_heavy_task_has_its_datasets(spec: ModelSpec) -> None:
    tasks = {t.task_id for dag in (make(spec) for make in STAGES.values()) for t in dag.tasks}
    where_declared = {"conclude_trial", "promote_after_trial", "publish_predictions"}
    assert set(lineage.READS) <= set(lineage.WRITES) <= tasks | where_declared
    assert tasks - set(lineage.WRITES) == {
        "decide", "request_retraining", "notify", "find_scores", "rescore",
    }  # fmt: skip


def test_models_and_tables_on_s3(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_LAKE", "s3://bucket/some/lake")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example.com:5000")
    facts = lineage.task_lineage(spec, "score", {"rows_out": 9, "model_version": "3"})
    named: dict[str, Any] = {d.name: d for d in facts.inputs}
    model = named["flight_late"]
    assert (model.namespace, model.facets["version"].datasetVersion) == (
        "mlflow://mlflow.example.com:5000",
        "3",
    )
    output, log = facts.outputs
    assert (output.namespace, output.name) == ("s3://bucket", "some/lake/predictions/flight_late")
    assert log.name == "some/lake/served/flight_late"
    (trained,) = lineage.task_lineage(spec, "train", {"version": "4"}).outputs
    assert (trained.name, trained.facets["version"].datasetVersion) == ("flight_late", "4")
    assert lineage.task_lineage(spec, "decide", {}).outputs == []


@pytest.fixture
def emit(tmp_path: Path) -> Any:
    """Send what a task's operator reports by Airflow's adapter and the file transport; returns the event."""
    from airflow.providers.openlineage.plugins.adapter import OpenLineageAdapter
    from openlineage.client import OpenLineageClient

    file = tmp_path / "events.jsonl"
    client = OpenLineageClient(
        config={"transport": {"type": "file", "log_file_path": str(file), "append": True}}
    )
    adapter = OpenLineageAdapter(client)

    def emit(task: Any, result: Any, *, failed: bool = False) -> dict[str, Any]:
        task.result = {} if failed else result
        if failed:
            task.failed_partitions = result
        facts = task._lineage(failed=failed)
        common: dict[str, Any] = {
            "run_id": str(uuid.uuid4()), "job_name": f"{task.dag_id}.{task.task_id}", "tags": [], "task": facts,
            "end_time": "2024-02-01T00:00:00+00:00", "nominal_start_time": None, "nominal_end_time": None,
            "owners": [task.owner], "job_description": None,
        }  # fmt: skip
        (adapter.fail_task if failed else adapter.complete_task)(**common)
        event: dict[str, Any] = json.loads(file.read_text().splitlines()[-1])
        return event

    return emit


def task_of(spec: ModelSpec, stage: str, task_id: str) -> Any:
    """A task of one of the model's DAGs."""
    return STAGES[stage](spec).get_task(task_id)


def datasets(event: dict[str, Any], side: str) -> dict[str, Any]:
    """The inputs or outputs of an event, by the end of their names: the kind of the table."""
    return {Path(d["name"]).parent.name: d for d in event[side]}


def sources(dataset: dict[str, Any], column: str) -> set[tuple[str, str]]:
    """Table and column that a column of a dataset comes from."""
    fields = dataset["facets"]["columnLineage"]["fields"][column]["inputFields"]
    return {(Path(f["name"]).parent.name, f["field"]) for f in fields}


@pytest.mark.usefixtures("without_drift_report")
def test_events_of_each_dag(world: Trained, emit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, trained = world.spec, world.result
    scored = dispatch.run("score", spec, start=toys.LAST)
    monitored = dispatch.run("monitor", spec, as_of=toys.LAST)
    decided = dispatch.run("decide", spec, as_of=toys.LAST, actor="test", backfill=False)
    promoted = {"promoted": True, "version": trained["version"], "previous": None, "reason": "passed"}
    rolled_back = {"version": trained["version"], "previous": "9"}
    reads, of_model = list[str](), table_files.of_model
    monkeypatch.setattr(table_files, "of_model", lambda *of: (reads.append(of[0]), of_model(*of))[1])
    emit(task_of(spec, "monitor", "monitor"), monitored)
    emit(task_of(spec, "score", "score"), scored)
    assert reads == [spec.name] * 2, "an event reads the training of its version once"
    monkeypatch.setattr(table_files, "of_model", of_model)
    events = {
        task: emit(task_of(spec, stage, task), result)
        for stage, task, result in (
            ("train", "train", trained), ("train", "promote", promoted), ("score", "score", scored),
            ("monitor", "monitor", monitored), ("monitor", "decide", decided), ("rollback", "rollback", rolled_back),
        )
    }  # fmt: skip
    for task, event in events.items():
        assert {"ownership", "perennial_model"} <= {*openlineage.check(event)}, task
    facets = {task: event["run"]["facets"]["perennial_model"] for task, event in events.items()}
    assert facets["train"]["digest"] == trained["digest"] and facets["train"]["version"] == trained["version"]
    assert facets["train"]["gate"] == {"passed": True}, "there was no champion"
    assert facets["promote"]["promoted"] and facets["rollback"]["previous_version"] == "9"
    assert facets["score"]["partitions"] == {"first": toys.LAST, "last": toys.LAST, "count": 1}
    assert facets["monitor"]["verdict"] == monitored["verdict"] and facets["decide"]["retrain"] is False

    published_again = {"partitions": [toys.LAST], "version": trained["dataset_version"]["published"]}
    labels = datasets(emit(task_of(spec, "data", "data"), published_again), "outputs")["labels"]
    assert {f["field"] for f in labels["facets"]["columnLineage"]["fields"]["label"]["inputFields"]} == {"y"}
    (model,) = events["train"]["outputs"]
    columns = [f["name"] for f in model["facets"]["schema"]["fields"]]
    assert columns == ["x", "z", "k", "hour", "size"]
    assert sources(model, "x") == {("published", "x")} and ("published", "seen_at") in sources(model, "hour")
    reference = next(d for d in events["train"]["inputs"] if "places" in d["name"])
    lineage_of_size = model["facets"]["columnLineage"]["fields"]["size"]["inputFields"]
    assert (reference["name"], "size") in {(f["name"], f["field"]) for f in lineage_of_size}
    published = datasets(events["train"], "inputs")["published"]["facets"]
    assert published["version"]["datasetVersion"] == str(trained["dataset_version"]["published"])

    predictions = datasets(events["score"], "outputs")["predictions"]
    types = {f["name"]: f["type"] for f in predictions["facets"]["schema"]["fields"]}
    assert types["prediction"] == "float" and types["id"] == "string"
    assert sources(predictions, "id") == {("published", "id")}
    assert {("published", "x"), ("published", "k")} <= sources(predictions, "prediction")
    assert predictions["outputFacets"]["outputStatistics"]["rowCount"] == toys.ROWS
    monitoring = datasets(events["monitor"], "outputs")["monitoring"]["facets"]
    assert "x" in {f["field"] for f in monitoring["columnLineage"]["dataset"]}


def test_the_event_of_a_feature_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emit: Any) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    spec = toys.model(tmp_path / "models", "toy")
    toys.publish(spec, days=2)
    table = history_table.load(tmp_path / "models")
    built = feature_tables.build(table, toys.FIRST)
    task = features_dag(table, spec).get_task("compute")
    event = emit(task, {"partitions": [*built.rows], "rows": sum(built.rows.values())})
    assert {"schema", "version", "columnLineage", "ownership", "outputStatistics"} <= {
        *openlineage.check(event)
    }
    (output,) = event["outputs"]
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == toys.ROWS
    assert sources(output, "mean_x") == {("published", c) for c in ("x", "place", "seen_at")}
    assert ("labels", "label") in sources(output, "share_y")
    assert sources(output, "place") == {("published", "place")}
    reads_file = table.from_parts(table, "SELECT * FROM read_text('/nowhere')", table._sources)
    with pytest.raises(duckdb.PermissionException):
        column_origins.table_origins(reads_file)


PLANTED = {
    "event.run lacks runId": ("run", "runId"),
    "event.job lacks namespace": ("job", "namespace"),
    "lacks datasetVersion": ("inputs", 0, "facets", "version", "datasetVersion"),
    "lacks fields": ("outputs", 0, "facets", "columnLineage", "fields"),
    "has no address of its schema": ("outputs", 0, "facets", "schema", "_schemaURL"),
    "lacks name": ("job", "facets", "ownership", "owners", 0, "name"),
    "'model' is a required property": ("run", "facets", "perennial_model", "model"),
}


def test_a_missing_field_is_an_invalid_event(world: Trained, emit: Any) -> None:
    event = emit(task_of(world.spec, "train", "train"), world.result)
    openlineage.check(event)
    for message, (*path, field) in PLANTED.items():
        broken = copy.deepcopy(event)
        inner = broken
        for step in path:
            inner = inner[step]
        del inner[field]
        with pytest.raises(openlineage.InvalidEventError, match=message):
            openlineage.check(broken)


@pytest.mark.usefixtures("without_data_docs", "without_data_profile")
def test_no_personal_value_is_in_an_event(tmp_path: Path, home: Path, monkeypatch: Any, emit: Any) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    columns = toys.content("toy")["data"]["columns"] | {"mail": "string", "salary": "number"}
    spec = toys.model(tmp_path / "models", "toy", data={"columns": columns, "personal": ["mail", "salary"]})
    suite = {"name": "toy", "expectations": [
        {"type": "expect_column_values_to_not_match_regex", "kwargs": {"column": "mail", "regex": "^canary"}},
        {"type": "expect_column_max_to_be_between", "kwargs": {"column": "salary", "max_value": 5000}},
        {"type": "expect_column_values_to_be_between", "severity": "warning",
         "kwargs": {"column": "salary", "max_value": 1010}},
    ]}  # fmt: skip
    (spec.folder / "expectations.json").write_text(json.dumps(suite))
    spec = toys.load_model(spec.folder)
    toys.land(spec, days=1)
    rows = toys.rows("binary", toys.FIRST)
    extra = canary.table(len(rows))
    for column in extra.column_names:
        rows = rows.append_column(column, extra.column(column))
    toys.write(landing.source_uri(spec.data.source, toys.FIRST), rows)
    with pytest.raises(PerennialError):
        dispatch.run("data", spec, start=toys.FIRST)
    event = emit(task_of(spec, "data", "data"), (toys.FIRST,), failed=True)
    checked = openlineage.check(event)
    assert "dataQualityAssertions" in checked and event["outputs"] == []
    (feed,) = [d for d in event["inputs"] if d.get("inputFacets")]
    results = {a["assertion"]: a for a in feed["inputFacets"]["dataQualityAssertions"]["assertions"]}
    expected = {"partitions": 1, "failed_partitions": 1, "unexpected_rows": 1}
    failed = results["expect_column_values_to_not_match_regex"]
    assert (failed["success"], failed["column"], failed["severity"]) == (False, "mail", "error")
    assert failed["params"] == expected
    assert results["expect_column_values_to_be_between"]["severity"] == "warn"
    assert results["expect_column_max_to_be_between"]["success"] is False
    fixed = rows.set_column(rows.column_names.index("salary"), "salary", pa.array([1.0] * len(rows)))
    toys.write(landing.source_uri(spec.data.source, toys.FIRST), fixed)
    done = dispatch.run("data", spec, start=toys.FIRST)
    complete = emit(task_of(spec, "data", "data"), done)
    assert "columnLineage" in openlineage.check(complete)
    assert sources(datasets(complete, "outputs")["published"], "mail") == {("toy", "mail")}
    assert canary.find(json.dumps([event, complete], ensure_ascii=False).encode()) == []


def test_where_the_source_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perennial_airflow.alerting import _lineage_facets

    folder = tmp_path / "include" / "models" / "toy"
    folder.mkdir(parents=True)
    monkeypatch.delenv("PERENNIAL_COMMIT", raising=False)
    assert _lineage_facets.source_location(folder) is None
    monkeypatch.setenv("PERENNIAL_COMMIT", "a" * 40)
    image = _lineage_facets.source_location(folder)
    assert image is not None and (image.version, image.url) == ("a" * 40, folder.as_uri())

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-b", "main")
    git("commit", "--allow-empty", "-m", "First")
    git("remote", "add", "origin", "https://user:secret@git.example.com:8443/team/repo.git")
    with (tmp_path / ".git" / "config").open("a") as config:
        config.write("[alias]\n\tname-without-value\n")
    head = git("rev-parse", "HEAD")
    location = _lineage_facets.source_location(folder)
    assert location is not None and (location.version, location.path) == (head, "include/models/toy")
    assert location.url == f"https://git.example.com:8443/team/repo/tree/{head}/include/models/toy"
    git("worktree", "add", "-b", "other", str(tmp_path / "linked"))
    linked = tmp_path / "linked" / "toy"
    linked.mkdir()
    of_linked = _lineage_facets.source_location(linked)
    assert of_linked is not None and (of_linked.version, of_linked.path) == (head, "toy")
    git("pack-refs", "--all")
    assert _lineage_facets.source_location(linked) == of_linked
    git("checkout", "--detach")
    assert _lineage_facets.source_location(folder) == location
    monkeypatch.delenv("PERENNIAL_COMMIT")
    for checkout, version in ((tmp_path, head), (linked.parent, head), (folder, "")):
        monkeypatch.setattr(runtime, "CHECKOUT", checkout)
        commit = runtime.code_version.__wrapped__().partition("+")[2]
        assert commit == version[:12], "the copy within another repository has no commit"
    (linked.parent / ".git").write_bytes(b"\xff")
    assert _lineage_facets.source_location(linked) is None


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:team/repo.git", "https://github.com/team/repo"),
        ("ssh://git@host:22/team/repo", "https://host/team/repo"),
        ("/srv/git/repo.git", ""),
        ("file:///srv/git/repo.git", ""),
        ("", ""),
    ],
)
def test_web_addresses_of_remotes(remote: str, address: str) -> None:
    from perennial_airflow.alerting import _lineage_facets

    assert _lineage_facets.web_address(remote) == address


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (lineage, "task_lineage", ValueError),
        (lineage, "task_lineage", AirflowTaskTimeout),
        (conf, "is_disabled", OSError),
    ],
)
def test_a_task_ends_as_it_does_whatever_its_lineage(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: type[BaseException]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(conf, "is_disabled", lambda: False)
    monkeypatch.setattr(module, name, broken)
    task = StageTask(task_id="decide", spec=spec, call=lambda *_: {"retrain": False})
    assert task.execute({}) == {"retrain": False}
    assert task.get_openlineage_facets_on_complete(None) is None


def test_a_lake_that_does_not_answer_is_asked_once(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked, answer = list[str](), threading.Event()

    def hangs(uri: str, version: object = None) -> None:
        asked.append(uri)
        answer.wait(60)

    monkeypatch.setattr(delta_tables, "open_table", hangs)
    monkeypatch.setattr(lineage, "LOOKUP_SECONDS", 0.1)
    facts = lineage.task_lineage(spec, "score", {"rows_out": 9})
    answer.set()
    assert len(asked) == 1 and len(facts.outputs) == 2
    assert "0.1 seconds were over" in caplog.text


def test_what_a_failed_task_would_have_written_is_not_looked_up(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = list[str]()
    monkeypatch.setattr(delta_tables, "open_table", lambda uri, version=None: opened.append(uri))
    facts = lineage.failure_lineage(spec, "data")
    assert (len(facts.inputs), facts.outputs, opened) == (2, [], [])
