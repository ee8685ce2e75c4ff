"""Airflow's KubernetesExecutor, as `values-airflow.yaml` sets it up: worker pods of the image, their logs on S3.

The components run in the containers of the compose file; only the workers are pods. Needs what `test_compose.py` needs,
and a cluster (``KUBECONFIG``) that has the Airflow image, whose API server containers reach.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.core.errors import PerennialError
from perennial.core.settings import ROOT
from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.sample import landing
from support import containers, servers, toys
from support.pods import pod_host, wait_for

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(900)]
VALUES = yaml.safe_load((ROOT / "docker" / "kubernetes" / "values-airflow.yaml").read_text("utf-8"))
COMPONENTS = ("airflow", "scheduler", "dag-processor", "triggerer")
DAY = "2013-01-01"


@dataclass(frozen=True)
class Installation:
    """Airflow with worker pods.

    Attributes:
        airflow: its REST API.
        core: the cluster's API.
        namespace: of the worker pods.
        s3: client of the S3 server.
    """

    airflow: Airflow
    core: Any
    namespace: str
    s3: Any

    def workers(self) -> list[Any]:
        """The worker pods of the DAG; others run, too."""
        return list(self.core.list_namespaced_pod(self.namespace, label_selector="dag_id=digits.data").items)


def settings_of_the_chart() -> dict[str, str]:
    """The section `config` of the values, as the environment variables that the chart makes of it."""
    return {
        f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
        for section, options in VALUES["config"].items()
        for name, value in options.items()
    } | {"AIRFLOW__CORE__EXECUTOR": VALUES["executor"], "AIRFLOW_CONN_AWS_DEFAULT": "aws://"}


def template(environ: dict[str, str]) -> dict[str, Any]:
    """The pod of a worker, restricted as the chart does by the values."""
    box = {
        "name": "base",
        "image": containers.image("airflow"),
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": name, "value": value} for name, value in environ.items()],
        "securityContext": VALUES["securityContexts"]["containers"],
        "resources": VALUES["workers"]["resources"],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": VALUES["securityContexts"]["pod"],
        "containers": [box],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, "spec": spec}


def override(folder: Path, namespace: str, ports: dict[str, int], aws: dict[str, str]) -> Path:
    """What the containers need in addition to the compose file, as a second one."""
    host = pod_host()
    common = settings_of_the_chart() | aws
    common["AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION"] = "False"
    worker = common | {
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{host}:{ports['airflow']}/execution/",
        "AWS_ENDPOINT_URL": f"http://{host}:{ports['s3']}",
        "PERENNIAL_LAKE": "s3://perennial-lake",
        "PERENNIAL_LANDING": "s3://perennial-landing",
        "NO_PROXY": host,
    }
    (folder / "worker.yaml").write_text(yaml.safe_dump(template(worker)))
    shutil.copy(os.environ["KUBECONFIG"], folder / "kubeconfig")
    (folder / "kubeconfig").chmod(0o644)  # the containers' user is another
    cluster = {
        "AIRFLOW__KUBERNETES_EXECUTOR__NAMESPACE": namespace,
        "AIRFLOW__KUBERNETES_EXECUTOR__IN_CLUSTER": "False",
        "AIRFLOW__KUBERNETES_EXECUTOR__CONFIG_FILE": "/kubernetes/kubeconfig",
        "AIRFLOW__KUBERNETES_EXECUTOR__POD_TEMPLATE_FILE": "/kubernetes/worker.yaml",
    }
    mounted = [f"{folder / name}:/kubernetes/{name}:ro" for name in ("kubeconfig", "worker.yaml")]
    services: dict[str, Any] = {
        name: {"environment": common | cluster, "volumes": mounted} for name in COMPONENTS
    }
    services["airflow"]["ports"] = [f"{host}:{ports['airflow']}:8080"]
    services["s3"] = {"ports": [f"{host}:{ports['s3']}:9000"]}
    path = folder / "override.yaml"
    path.write_text(yaml.safe_dump({"services": services}))
    return path


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Everything started, a namespace of its own for the workers, and a partition of the digits landed."""
    import boto3
    from kubernetes import client, config

    if not os.environ.get("KUBECONFIG") or not pod_host():
        pytest.skip("KUBECONFIG and PERENNIAL_POD_HOST are not set: no worker pod is tested")
    containers.require("airflow", "mlflow", "s3")
    core = client.CoreV1Api(config.new_client_from_config(os.environ["KUBECONFIG"]))
    namespace = toys.unique("executor-test").replace("_", "-")
    folder, ports = tmp_path_factory.mktemp("executor"), {n: servers.free_port() for n in ("airflow", "s3")}
    keys = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
    # moto's server takes any key; the compose file's own are random
    keys |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    stack = containers.Stack(folder, override(folder, namespace, ports, keys))
    core.create_namespace({"metadata": {"name": namespace}})
    try:
        stack.up("s3")
        stack.call("run", "--rm", "buckets")
        s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{stack.ports['S3_PORT']}", region_name="us-east-1",
                          aws_access_key_id="test", aws_secret_access_key="test")  # fmt: skip
        s3.create_bucket(Bucket=VALUES["config"]["logging"]["remote_base_log_folder"].split("/")[2])
        _land(s3)
        stack.up("scheduler", "dag-processor")
        url = f"http://127.0.0.1:{stack.ports['AIRFLOW_PORT']}"
        airflow = Airflow(url, "admin", stack.passwords["AIRFLOW_PASSWORD"])
        wait_for(lambda: _knows(airflow), "Airflow to know the DAG", 180)
        yield Installation(airflow, core, namespace, s3)
        airflow.close()
    finally:
        stack.down()
        core.delete_namespace(namespace, grace_period_seconds=0)


def _knows(airflow: Airflow) -> bool:
    """Whether the DAG can be triggered, which takes longer than to be listed."""
    try:
        airflow.call("GET", "/dags/digits.data/details")
    except PerennialError:
        return False
    return True


def _land(s3: Any) -> None:
    import pyarrow.parquet as pq

    name = f"digits/{DAY}.parquet"
    file = io.BytesIO()
    pq.write_table(landing._digits()[name], file)
    s3.put_object(Bucket="perennial-landing", Key=name, Body=file.getvalue())


def test_a_task_whose_worker_pod_is_deleted_is_tried_again_and_its_log_is_on_s3(
    installation: Installation,
) -> None:
    airflow, core = installation.airflow, installation.core
    run = airflow.trigger("digits.data", conf={"start": DAY})

    def task() -> dict[str, Any]:
        return next(t for t in airflow.tasks("digits.data", run) if t["task_id"] == "data")

    # before the worker has taken its task, the scheduler would only queue it again
    wait_for(lambda: task()["state"] == "running", "a worker to take the task", 240)
    (first,) = installation.workers()
    assert not first.spec.automount_service_account_token
    core.delete_namespaced_pod(first.metadata.name, installation.namespace, grace_period_seconds=0)
    state = airflow.wait("digits.data", run)
    assert state == "success", airflow.failure_reason("digits.data", run)
    assert task()["try_number"] == 2, airflow.log("digits.data", run, "data", 1)
    wait_for(lambda: not installation.workers(), "the worker pods to be removed", 60)
    prefix = f"airflow/dag_id=digits.data/run_id={run}/task_id=data/"
    bucket = VALUES["config"]["logging"]["remote_base_log_folder"].split("/")[2]
    listed = installation.s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    assert f"{prefix}attempt=2.log" in [item["Key"] for item in listed]
    # the pod is gone and nothing of it is on a disk of the server's: what the UI shows is from there
    shown = "\n".join(airflow.log("digits.data", run, "data", 2))
    assert f"s3://{bucket}/{prefix}attempt=2.log" in shown and "Pushing xcom" in shown, shown
