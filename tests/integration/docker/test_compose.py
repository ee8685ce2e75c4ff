"""The whole stack in containers: up, healthy, every DAG there, the sample landed, and nothing left afterwards.

Needs an engine with compose, this version's images (`make images`) and one of Postgres in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from perennial.core.settings import ROOT
from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.demo import STAGES
from perennial.spec import catalog
from support import containers
from support.containers import Stack, docker

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, up and healthy."""
    containers.require("airflow", "mlflow", "s3")
    stack = Stack(tmp_path_factory.mktemp("compose"), PERENNIAL_PROFILE="kubernetes")
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture
def airflow(stack: Stack) -> Iterator[Airflow]:
    """Its REST API, as its administrator."""
    url = f"http://127.0.0.1:{stack.ports['AIRFLOW_PORT']}"
    airflow = Airflow(url, "admin", stack.passwords["AIRFLOW_PASSWORD"])
    yield airflow
    airflow.close()


def s3(stack: Stack) -> Any:
    """A client of its S3 server."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{stack.ports['S3_PORT']}", region_name="us-east-1",
        aws_access_key_id=stack.passwords["S3_ACCESS_KEY"], aws_secret_access_key=stack.passwords["S3_SECRET_KEY"],
    )  # fmt: skip


def test_every_dag_is_there_and_every_component_healthy(stack: Stack, airflow: Airflow) -> None:
    models, _ = catalog.load_models()
    expected = {f"{model}.{stage}" for model in models for stage in (*STAGES, "rollback")}
    expected |= {
        "perennial.daily_summary",
        "perennial.erase",
        "perennial.reproduce",
        "perennial.retention",
        "perennial.rollback_drill",
        "perennial.verify",
    }
    expected |= {f"features.{table}" for table in catalog.find_folders(catalog.TABLE_FILE)}
    end = time.monotonic() + 120
    while set(airflow.paused()) != expected and time.monotonic() < end:
        time.sleep(1)
    assert set(airflow.paused()) == expected
    assert airflow.import_errors() == []
    assert set(airflow.health().values()) == {"healthy"}


def test_no_profile_is_offered_whose_pods_could_not_work(stack: Stack) -> None:
    """The fixture's shell sets ``PERENNIAL_PROFILE``: pods of a cluster would reach neither MLflow nor S3."""
    services = json.loads(stack.call("config", "--format", "json"))["services"]
    assert "PERENNIAL_LAKE" in services["scheduler"]["environment"]
    assert not [n for n, s in services.items() if "PERENNIAL_PROFILE" in (s.get("environment") or {})]


def test_one_command_lands_the_sample_and_airflow_publishes_it(stack: Stack, airflow: Airflow) -> None:
    own = {"ENV_FILE": str(stack.env_file), "S3_PORT": stack.ports["S3_PORT"], "VENV": str(ROOT / ".venv")}
    for expected in (
        r"s3://perennial-landing: [34]\d\d,\d{3} rows in \d+ files\n",
        r".* had landed before\n",
    ):
        done = subprocess.run(
            ["make", "sample"], cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | own
        )
        assert done.returncode == 0, done.stderr
        assert re.search(expected, done.stdout), done.stdout
    run = airflow.trigger("digits.data", conf={"start": "2013-01-01", "end": "2013-01-03"})
    state = airflow.wait("digits.data", run)
    assert state == "success", airflow.failure_reason("digits.data", run)
    keys = [item["Key"] for item in s3(stack).list_objects_v2(Bucket="perennial-lake")["Contents"]]
    assert {f"manifests/digits/data/2013-01-0{day}.json" for day in (1, 2, 3)} <= set(keys), keys


def test_the_password_is_asked_for(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.ports['AIRFLOW_PORT']}"
    assert httpx.get(f"{url}/api/v2/dags", trust_env=False).status_code == 401
    wrong = {"username": "admin", "password": "admin"}
    assert httpx.post(f"{url}/auth/token", json=wrong, trust_env=False).status_code == 401


def test_mlflow_keeps_runs_in_postgres_and_artifacts_on_s3(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "steps")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", stack.passwords["MLFLOW_STEPS_PASSWORD"])
    client = mlflow.MlflowClient(f"http://127.0.0.1:{stack.ports['MLFLOW_PORT']}")
    run = client.create_run(client.create_experiment("compose")).info
    note = tmp_path / "note.txt"
    note.write_text("kept")
    client.log_artifact(run.run_id, str(note))
    assert {b["Name"] for b in s3(stack).list_buckets()["Buckets"]} == {
        "perennial-lake", "perennial-landing", "perennial-artifacts",
    }  # fmt: skip
    keys = [item["Key"] for item in s3(stack).list_objects_v2(Bucket="perennial-artifacts")["Contents"]]
    assert len(keys) == 1 and re.search(rf"{run.run_id}/artifacts/note.txt$", keys[0])
    query = f"SELECT count(*) FROM runs WHERE run_uuid = '{run.run_id}'"
    told = stack.call("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "mlflow", "-tAc", query)
    assert told.strip() == "1"


def test_only_a_promotion_of_airflow_moves_the_champion(stack: Stack, airflow: Airflow) -> None:
    url = f"http://127.0.0.1:{stack.ports['MLFLOW_PORT']}/api/2.0/mlflow"

    def call(user: str, method: str, path: str, body: dict[str, str] | None = None) -> httpx.Response:
        password = stack.passwords[f"MLFLOW_{user.upper()}_PASSWORD"]
        return httpx.request(method, f"{url}{path}", json=body, auth=(user, password), trust_env=False)

    assert httpx.get(f"{url}/registered-models/search", trust_env=False).status_code == 401
    run = call("steps", "POST", "/runs/create", {"experiment_id": "0"}).json()["run"]["info"]
    assert call("steps", "POST", "/registered-models/create", {"name": "compose"}).status_code == 200
    version = {"name": "compose", "source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]}
    assert call("steps", "POST", "/model-versions/create", version).status_code == 200
    body = {"name": "compose", "alias": "champion", "version": "1"}
    for user in ("steps", "console"):
        assert call(user, "POST", "/registered-models/alias", body).status_code == 403
    assert call("promotion", "POST", "/registered-models/alias", body).status_code == 200
    for service, user in (("scheduler", "steps"), ("airflow", "console")):
        shown = stack.call("exec", "-T", service, "printenv", "MLFLOW_TRACKING_USERNAME")
        assert shown.strip() == user
    secret = stack.passwords["MLFLOW_PROMOTION_PASSWORD"]
    for service in ("scheduler", "triggerer", "dag-processor"):
        assert secret not in stack.call("exec", "-T", service, "printenv")


def test_a_training_registers_as_one_user_and_its_promotion_moves_the_champion_as_another(
    stack: Stack, airflow: Airflow
) -> None:
    """The sample has landed; the task that promotes gets its user from the API server."""
    for dag, conf in (
        ("digits.data", {"start": "2013-01-01", "end": "2013-01-20"}),
        ("digits.train", {"as_of": "2013-01-20", "reason": "a test"}),
    ):
        run = airflow.trigger(dag, conf=conf)
        assert airflow.wait(dag, run) == "success", airflow.failure_reason(dag, run)
    url = f"http://127.0.0.1:{stack.ports['MLFLOW_PORT']}/api/2.0/mlflow/registered-models/alias"
    console = ("console", stack.passwords["MLFLOW_CONSOLE_PASSWORD"])
    champion = {"name": "digits", "alias": "champion"}
    answer = httpx.get(url, params=champion, auth=console, trust_env=False).raise_for_status()
    assert answer.json()["model_version"]["version"] == "1"


def test_nothing_is_left(stack: Stack) -> None:
    """The last: it ends the stack."""
    ours = ("--filter", f"label=com.docker.compose.project={stack.name}", "--quiet")
    kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
    assert all(docker(*kind, *ours).split() for kind in kinds)
    stack.call("down", "--volumes", "--remove-orphans", "--timeout", "10")
    assert not [line for kind in kinds for line in docker(*kind, *ours).split()]
