"""OpenLineage events of a real run of the data DAG, by the file transport; and what each task reads and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import ROOT, settings
from perennial.spec.model_spec import ModelSpec
from perennial_airflow.alerting import lineage
from perennial_airflow.dag_factory.factory import STAGES

DAY = "2024-01-01"
RUN = """
import sys
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.utils.db import initdb
initdb()
DagBundlesManager().sync_bundles_to_db()
bag = DagBag(sys.argv[1], bundle_name="dags-folder")
sync_bag_to_db(bag, "dags-folder", None)
dag = bag.dags["toy.data"]
dag.deadline = None  # Airflow 3.3.2 looks for the deadlines of a DAG under test by what is not their key
run = dag.test(run_conf={"start": sys.argv[2]})
print("state", run.state)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    from support import toys

    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    spec = toys.model(tmp_path / "models", "toy")
    toys.land(spec, DAY, 1)
    return spec


def run(tmp_path: Path, **environment: str) -> str:
    """The data DAG for one day, in a process and an Airflow of its own."""
    env = os.environ | {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "PYTHONPATH": f"{ROOT}/include:{ROOT}/plugins",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT / "dags" / "models.py"), DAY],
        env=env | environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "state success" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_reports_what_it_read_and_wrote(toy: ModelSpec, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    transport = json.dumps({"type": "file", "log_file_path": str(events), "append": True})
    run(tmp_path, AIRFLOW__OPENLINEAGE__TRANSPORT=transport, AIRFLOW__OPENLINEAGE__NAMESPACE="test")
    emitted = [json.loads(line) for line in events.read_text().splitlines()]
    (complete,) = [e for e in emitted if e["job"]["name"] == "toy.data.data" and e["eventType"] == "COMPLETE"]
    paths = settings()
    assert {(d["namespace"], d["name"]) for d in complete["inputs"]} == {
        ("file", f"{paths.landing}/toy/{{date}}.parquet"), ("file", f"{paths.landing}/toy_labels/{{date}}.parquet"),
    }  # fmt: skip
    outputs = {d["name"]: d for d in complete["outputs"]}
    assert set(outputs) == {f"{paths.lake}/{kind}/toy" for kind in ("published", "labels", "quarantine")}
    published = outputs[f"{paths.lake}/published/toy"]
    assert published["outputFacets"]["outputStatistics"]["rowCount"] == 60
    assert published["facets"]["version"]["datasetVersion"].isdigit()
    assert f"{DAY}-00001" not in events.read_text(), "a value of the data"


def test_nothing_is_listened_to_unless_configured() -> None:
    from airflow.providers.openlineage.plugins.openlineage import OpenLineageProviderPlugin

    assert OpenLineageProviderPlugin.listeners == []


def test_every_heavy_task_has_its_datasets(spec: ModelSpec) -> None:
    tasks = {t.task_id for dag in (make(spec) for make in STAGES.values()) for t in dag.tasks}
    assert set(lineage.READS) <= set(lineage.WRITES) <= tasks
    assert tasks - set(lineage.WRITES) == {"decide", "request_retraining", "notify"}


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
