"""The whole stack in containers: up, healthy, every DAG there, and nothing left afterwards.

Needs an engine with compose, this version's images (`make images`) and one of Postgres in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from perennial import __version__
from perennial.core.settings import ROOT
from perennial.local_stack.airflow_client import Airflow
from perennial.spec import catalog
from support import servers, toys

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(900)]
DOCKER = os.environ.get("DOCKER", "docker")
COMPOSE = ROOT / "docker" / "compose.yaml"


def docker(*arguments: str, **environ: str) -> str:
    """What the client prints; fails with what it complains of."""
    command = [DOCKER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | environ)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-3000:]}"
    return done.stdout


def postgres(there: set[str]) -> str | None:
    """An image of Postgres that is there: the one asked for, or any."""
    asked = os.environ.get("POSTGRES_IMAGE")
    found = sorted(name for name in there if name.startswith("postgres:"))
    return asked if asked in there else next(iter(found), None)


class Stack:
    """The containers, under a name of their own and on free ports."""

    def __init__(self, folder: Path, image: str) -> None:
        self.name = toys.unique("perennial-test").replace("_", "-")
        self.ports = {f"{name}_PORT": str(servers.free_port()) for name in ("AIRFLOW", "MLFLOW", "S3")}
        self.environ = {"PERENNIAL_VERSION": __version__, "POSTGRES_IMAGE": image, **self.ports}
        subprocess.run(
            [sys.executable, "-I", shutil.copy(ROOT / "docker" / "passwords.py", folder)], check=True
        )
        self.file = folder / ".env"
        self.passwords = dict(line.split("=", 1) for line in self.file.read_text().splitlines())

    def call(self, *arguments: str) -> str:
        start = ("compose", "--project-name", self.name, "--file", str(COMPOSE), "--env-file", str(self.file))
        return docker(*start, *arguments, **self.environ)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, up and healthy."""
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        pytest.skip("there is no container engine (DOCKER_HOST): nothing is tested of the compose file")
    there = set(docker("images", "--format", "{{.Repository}}:{{.Tag}}").split())
    missing = {f"perennial/{name}:{__version__}" for name in ("airflow", "mlflow", "s3")} - there
    image = postgres(there)
    if missing or image is None:
        pytest.skip(
            f"no image {', '.join(sorted(missing)) or 'of Postgres'}: nothing is tested of the compose file"
        )
    found = Stack(tmp_path_factory.mktemp("compose"), image)
    try:
        found.call("up", "--detach", "--wait", "--wait-timeout", "500")
        yield found
    finally:
        found.call("down", "--volumes", "--remove-orphans", "--timeout", "5")


def test_every_dag_is_there_and_every_component_healthy(stack: Stack) -> None:
    airflow = Airflow(
        f"http://127.0.0.1:{stack.ports['AIRFLOW_PORT']}", "admin", stack.passwords["AIRFLOW_PASSWORD"]
    )
    try:
        models, _ = catalog.load_models()
        end = time.monotonic() + 120
        number = 5 * len(models) + 1  # and the digest of them all
        while len(airflow.paused()) < number and time.monotonic() < end:
            time.sleep(1)
        assert {name.split(".")[0] for name in airflow.paused()} == {*models, "perennial"}
        assert len(airflow.paused()) == number
        assert airflow.import_errors() == []
        assert set(airflow.health().values()) == {"healthy"}
    finally:
        airflow.close()


def test_the_password_is_asked_for(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.ports['AIRFLOW_PORT']}"
    assert httpx.get(f"{url}/api/v2/dags", trust_env=False).status_code == 401
    wrong = {"username": "admin", "password": "admin"}
    assert httpx.post(f"{url}/auth/token", json=wrong, trust_env=False).status_code == 401


def test_mlflow_keeps_runs_in_postgres_and_artifacts_on_s3(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    import mlflow

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = mlflow.MlflowClient(f"http://127.0.0.1:{stack.ports['MLFLOW_PORT']}")
    run = client.create_run(client.create_experiment("compose")).info
    note = tmp_path / "note.txt"
    note.write_text("kept")
    client.log_artifact(run.run_id, str(note))
    s3 = boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{stack.ports['S3_PORT']}", region_name="us-east-1",
        aws_access_key_id=stack.passwords["S3_ACCESS_KEY"], aws_secret_access_key=stack.passwords["S3_SECRET_KEY"],
    )  # fmt: skip
    assert {b["Name"] for b in s3.list_buckets()["Buckets"]} == {
        "perennial-lake", "perennial-landing", "perennial-artifacts",
    }  # fmt: skip
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket="perennial-artifacts")["Contents"]]
    assert len(keys) == 1 and re.search(rf"{run.run_id}/artifacts/note.txt$", keys[0])
    query = f"SELECT count(*) FROM runs WHERE run_uuid = '{run.run_id}'"
    told = stack.call("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "mlflow", "-tAc", query)
    assert told.strip() == "1"


def test_nothing_is_left(stack: Stack) -> None:
    """The last: it ends the stack."""
    ours = ("--filter", f"label=com.docker.compose.project={stack.name}", "--quiet")
    kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
    assert all(docker(*kind, *ours).split() for kind in kinds)
    stack.call("down", "--volumes", "--remove-orphans", "--timeout", "10")
    assert not [line for kind in kinds for line in docker(*kind, *ours).split()]
