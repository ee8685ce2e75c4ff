"""MLflow's image and the database of an older version: the script alone, in the compose file, and in a pod."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.core.settings import ROOT
from support import containers, toys
from support.pods import wait_for

MIGRATE = ROOT / "docker" / "mlflow" / "migrate.py"
MAKE_OLDER = ROOT / "tests" / "support" / "containers" / "older_mlflow.py"


def run(script: Path, database: Path) -> subprocess.CompletedProcess[str]:
    """Run a script on a database of SQLite."""
    environ = os.environ | {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{database}"}
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=180, env=environ)


def test_an_older_database_is_migrated_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    older, current = run(MAKE_OLDER, database).stdout.split()
    assert older != current
    done = run(MIGRATE, database)
    assert done.stdout == f"MLflow's database: schema {current}, was {older}\n", done.stderr
    assert run(MIGRATE, database).stdout == f"MLflow's database: schema {current}, as before\n"
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT name FROM experiments").fetchall() == [("kept",)]
        connection.execute("UPDATE alembic_version SET version_num = 'of_tomorrow'")
    connection.close()
    newer = run(MIGRATE, database)
    assert newer.returncode == 1
    assert "has schema of_tomorrow, which this image's MLflow does not know" in newer.stderr
    assert "What to do" in newer.stderr


def test_an_empty_database_gets_its_tables(tmp_path: Path) -> None:
    done = run(MIGRATE, tmp_path / "mlflow.db")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM registered_models").fetchall() == [(0,)]
    connection.close()


@pytest.mark.kubernetes
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compose_migrates_an_older_database_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    import httpx

    containers.require("mlflow", "s3")
    stack = containers.Stack(tmp_path)
    try:
        stack.up("postgres")
        stack.call("run", "--rm", "databases")
        mounted = f"{MAKE_OLDER}:/tmp/older_mlflow.py:ro"
        printed = stack.call(
            "run", "--rm", "--no-deps", "--volume", mounted, "--entrypoint", "python",
            "migrate-mlflow", "/tmp/older_mlflow.py",
        )  # fmt: skip
        older, current = printed.split()[-2:]
        stack.up("mlflow")
        assert f"schema {current}, was {older}" in stack.call("logs", "migrate-mlflow")
        url = f"http://127.0.0.1:{stack.ports['MLFLOW_PORT']}/api/2.0/mlflow/experiments/get"
        query = {"params": {"experiment_id": "7"}, "trust_env": False}
        assert httpx.get(url, **query).status_code == 401
        admin = ("admin", stack.passwords["MLFLOW_ADMIN_PASSWORD"])
        answer = httpx.get(url, auth=admin, **query).raise_for_status()
        assert answer.json()["experiment"]["name"] == "kept"
    finally:
        stack.down()


@pytest.fixture
def namespace() -> Iterator[tuple[Any, str]]:
    """A namespace of its own in the cluster of ``KUBECONFIG``, and the API's client."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set: MLflow is not run in a pod")
    from kubernetes import client, config

    api = config.new_client_from_config(os.environ["KUBECONFIG"])
    core, name = client.CoreV1Api(api), toys.unique("mlflow-test").replace("_", "-")
    core.create_namespace({"metadata": {"name": name}})
    try:
        yield client, name
    finally:
        core.delete_namespace(name, grace_period_seconds=0)


def deployment(name: str) -> dict[str, Any]:
    """The Deployment of ``mlflow.yaml``, with a container before all others that makes an older database."""
    path = ROOT / "docker" / "kubernetes" / "mlflow.yaml"
    documents = [d for d in yaml.safe_load_all(path.read_text("utf-8")) if d["kind"] == "Deployment"]
    (made,) = documents
    made["metadata"]["namespace"] = name
    spec = made["spec"]["template"]["spec"]
    (migrate,) = spec["initContainers"]
    older = migrate | {"name": "older", "command": ["python", "-c", MAKE_OLDER.read_text("utf-8")]}
    spec["initContainers"] = [older, migrate]
    return dict(made)


@pytest.mark.kubernetes
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pod_migrates_an_older_database_before_its_server_starts(namespace: tuple[Any, str]) -> None:
    """The manifest itself; its database is a file in the pod's own folder, since the cluster has no Postgres."""
    from kubernetes import config, utils
    from kubernetes.stream import stream

    client, name = namespace
    api = config.new_client_from_config(os.environ["KUBECONFIG"])
    core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
    path = ROOT / "docker" / "kubernetes" / "mlflow.yaml"
    for document in yaml.safe_load_all(path.read_text("utf-8")):
        if document["kind"] in ("ServiceAccount", "ConfigMap"):
            document["metadata"]["namespace"] = name
            utils.create_from_dict(api, document)
    secrets = {
        "mlflow": {
            "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db",
            "MLFLOW_AUTH_DATABASE_URI": "sqlite:////tmp/users.db",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the tests",
        },
        "mlflow-users": {
            f"MLFLOW_{user}_PASSWORD": f"{user.lower()}-{name}"
            for user in ("ADMIN", "STEPS", "PROMOTION", "CONSOLE")
        },
    }
    for secret, content in secrets.items():
        core.create_namespaced_secret(name, {"metadata": {"name": secret}, "stringData": content})
    apps.create_namespaced_deployment(name, deployment(name))
    wait_for(
        lambda: apps.read_namespaced_deployment("mlflow", name).status.available_replicas,
        "MLflow to be ready",
        240,
    )
    (pod,) = core.list_namespaced_pod(name).items

    def printed(container: str) -> str:
        answer = core.read_namespaced_pod_log(
            pod.metadata.name, name, container=container, _preload_content=False
        )
        return str(answer.data.decode())

    older, current = printed("older").split()[-2:]
    assert f"schema {current}, was {older}" in printed("migrate")
    assert "MLflow's user promotion: created" in printed("migrate")
    code = (
        "import requests; url = 'http://localhost:5000/api/2.0/mlflow/experiments/get?experiment_id=7'; "
        f"print([requests.get(url, auth=a).text for a in (None, ('console', 'console-{name}'))])"
    )
    answer = stream(
        core.connect_get_namespaced_pod_exec, pod.metadata.name, name, command=["python", "-c", code],
        container="mlflow", stdout=True, stderr=True,
    )  # fmt: skip
    assert "You are not authenticated" in answer, answer
    assert "'kept'" in answer.replace('"', "'"), answer
