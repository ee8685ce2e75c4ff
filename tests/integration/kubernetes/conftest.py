"""A live Airflow whose heavy steps run in pods of a real cluster; MLflow and S3 run here, where pods reach them.

Needs: ``KUBECONFIG``; ``PERENNIAL_POD_HOST``, an address of this machine that pods reach (or ``TESTBED_HOST_IP``); the
trainer image of this checkout in the cluster, by its default name or as ``PERENNIAL_TRAINER_IMAGE``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from perennial.core import signing_keys
from perennial.local_stack import demo, processes, servers
from perennial.local_stack.config import Stack
from perennial.local_stack.progress import ProgressDisplay
from perennial.local_stack.sample.plan import Plan
from perennial.spec.model_spec import ModelSpec
from perennial.storage import landing, object_store
from support import servers as local
from support import toys
from support.pods import (
    FOLLOWED_ROWS,
    MANY_ROWS,
    MODELS,
    SECRET,
    SIGNING_SECRET,
    SLOW,
    SLOW_ROWS,
    Cluster,
    Pods,
    pod_host,
    profiles,
    wait_for,
)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The namespace; the cluster is the one of ``KUBECONFIG``."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set, so nothing is tested of running in pods")
    if not pod_host():
        pytest.skip(
            "PERENNIAL_POD_HOST is not set: an address of this machine that the cluster's pods can reach"
        )
    from kubernetes import client, config

    config.load_kube_config(os.environ["KUBECONFIG"])
    api = client.CoreV1Api()
    name = toys.unique("perennial-test").replace("_", "-")
    api.create_namespace({"metadata": {"name": name}})
    secret = {"AWS_ACCESS_KEY_ID": toys.unique("key"), "AWS_SECRET_ACCESS_KEY": toys.unique("word")}
    api.create_namespaced_secret(name, {"metadata": {"name": SECRET}, "stringData": secret})
    wait_for(
        lambda: [a for a in api.list_namespaced_service_account(name).items if a.metadata.name == "default"],
        "the namespace's service account",
    )
    try:
        yield Cluster(name, api, secret)
    finally:
        api.delete_namespace(name, grace_period_seconds=0)


@pytest.fixture(scope="session")
def pods_stack(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    """Airflow and MLflow, S3 and models whose steps run in pods."""
    import boto3

    root = tmp_path_factory.mktemp("pods")
    home, models, compute = root / "home", root / "models", root / "compute"
    for folder in (home, models, compute):
        folder.mkdir(parents=True)
    for item in profiles(cluster.namespace):
        (compute / f"{item['name']}.yaml").write_text(yaml.safe_dump(item))
    before, host = dict(os.environ), pod_host()
    for name in [n for n in os.environ if n.startswith(("PERENNIAL_", "MLFLOW_", "AIRFLOW", "AWS_"))]:
        if name != "PERENNIAL_TRAINER_IMAGE":
            del os.environ[name]
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        url = stack.enter_context(local.s3(root, host))
        kube = {
            "conn_type": "kubernetes",
            "extra": {"kube_config_path": before["KUBECONFIG"], "in_cluster": False},
        }
        os.environ.update({
            "PERENNIAL_HOME": str(home), "PERENNIAL_MODELS": str(models), "PERENNIAL_COMPUTE": str(compute),
            "PERENNIAL_LAKE": "s3://perennial/lake", "PERENNIAL_LANDING": "s3://perennial/landing",
            "PERENNIAL_PROFILE": "pod", "PERENNIAL_MLFLOW_HOST": host, "PERENNIAL_THREADS": "1",
            "AWS_ENDPOINT_URL": url, **cluster.secret,
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(kube),
        })  # fmt: skip
        for name in ("NO_PROXY", "no_proxy"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name, ""), host]))
        boto3.resource("s3").Bucket("perennial").create()
        free = [local.free_port() for _ in range(5)]
        config = Stack(home, free[0], free[1], (free[2], free[3]), free[4], mlflow_host=host)
        specs = _models(models)
        stack.callback(lambda: processes.stop(home, patience=20))
        assert signing_keys.make_local_keys(home)
        private_key = {"private.pem": (home / "signing" / "private.pem").read_text()}
        cluster.api.create_namespaced_secret(
            cluster.namespace, {"metadata": {"name": SIGNING_SECRET}, "stringData": private_key}
        )
        with ProgressDisplay(Console(file=(root / "board.txt").open("a"), width=200)) as board:
            servers.start_all(config, board)
            airflow = stack.enter_context(contextlib.closing(servers.client(config)))
            plans = tuple(Plan(name, toys.FIRST, toys.LAST, toys.LAST, False) for name in specs)
            demo.await_dags(airflow, plans, board)
        with demo.task_environment(config):
            yield Pods(config, airflow, cluster, specs, models)


def _models(root: Path) -> dict[str, ModelSpec]:
    end = {"schedule": {"end": "2024-01-31"}}  # with an end in the past only the tests start runs
    quick = {"limits": {step: {"retries": 1} for step in ("data", "train", "score", "monitor")}}
    specs = {
        name: toys.model(root, name, compute=compute, **end, **quick) for name, compute in MODELS.items()
    }
    train = {
        "rounds": 4000,
        "early_stopping_rounds": 1000,
        "params": {"max_depth": 8, "learning_rate": 0.001},
    }
    for name, compute in SLOW.items():
        specs[name] = toys.model(root, name, training=train, compute=compute, **end, **quick)
    for name in ("little_memory", "too_little_memory", "workers_nowhere"):
        specs[f"pod_{name}"] = toys.model(
            root,
            f"pod_{name}",
            compute={"data": "local", "train": name},
            limits={"train": {"retries": 0}},
            **end,
        )
    for name in ("no_image", "late_image", "late_image_deferred", "no_secret", "gpu_nowhere", "big"):
        specs[f"pod_{name}"] = toys.model(
            root, f"pod_{name}", compute={"data": name}, limits={"data": {"retries": 0}}, **end
        )
    specs["pod_loopback"] = toys.model(root, "pod_loopback", compute={"data": "loopback"}, **end)
    for spec in specs.values():
        toys.land(spec, n=_rows_of(spec.name))
    assert object_store.is_remote(landing.source_uri(next(iter(specs.values())).data.source))
    return specs


def _rows_of(model: str) -> int:
    """Rows a day of a model."""
    if model.endswith("little_memory"):
        return MANY_ROWS
    if model == "pod_followed":
        return FOLLOWED_ROWS
    return SLOW_ROWS if model in SLOW else toys.ROWS
