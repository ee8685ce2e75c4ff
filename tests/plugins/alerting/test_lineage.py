"""OpenLineage events of a real run of the data DAG, by the file transport; and what each task reads and writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perennial.spec.model_spec import ModelSpec
from perennial_airflow.alerting import lineage
from perennial_airflow.dag_factory.factory import STAGES


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


def test_nothing_is_listened_to_unless_configured() -> None:
    from airflow.providers.openlineage.plugins.openlineage import OpenLineageProviderPlugin

    assert OpenLineageProviderPlugin.listeners == []


def test_every_heavy_task_has_its_datasets(spec: ModelSpec) -> None:
    tasks = {t.task_id for dag in (make(spec) for make in STAGES.values()) for t in dag.tasks}
    assert set(lineage.READS) <= set(lineage.WRITES) <= tasks
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
    assert lineage.task_lineage(spec, "decide", {}) is None
