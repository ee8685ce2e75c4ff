"""The manifests, taken by a real API server, in namespaces of their own that are removed again. Needs KUBECONFIG."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from perennial.core.settings import ROOT
from support import toys
from support.pods import wait_for

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]
FOLDER = ROOT / "docker" / "kubernetes"
FILES = ("namespaces", "rbac", "quota", "network", "mlflow", "gpu")
#: Kinds that belong to no namespace.
CLUSTER_WIDE = ("Namespace", "PriorityClass")


@dataclass
class Applied:
    """The manifests in a cluster.

    Attributes:
        names: the manifests' namespaces, and the ones that took their place.
        kinds: the objects that the server took, by kind.
    """

    names: dict[str, str]
    kinds: dict[str, list[Any]]
    core: Any
    client: Any


def moved(document: dict[str, Any], suffix: str) -> dict[str, Any]:
    """The object in a namespace of its own, and out of the way of whatever is there."""
    meta = document["metadata"]
    if document["kind"] in CLUSTER_WIDE:
        meta["name"] += suffix
    if "namespace" in meta:
        meta["namespace"] += suffix
    for subject in document.get("subjects", ()):
        subject["namespace"] += suffix
    spec = document.get("spec", {}).get("template", {}).get("spec", {})
    if "priorityClassName" in spec:
        spec["priorityClassName"] += suffix
    if document["kind"] == "Deployment":
        document["spec"]["replicas"] = 0  # its image and its secret are not there
    if document["kind"] == "Job":
        document["spec"]["parallelism"] = 0  # nor is a GPU
    return document


@pytest.fixture(scope="module")
def applied() -> Iterator[Applied]:
    """Everything applied, as `kubectl apply` would."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set: no API server has judged the manifests")
    from kubernetes import client, config, utils

    api = config.new_client_from_config(os.environ["KUBECONFIG"])
    suffix = toys.unique("-test").replace("_", "-")
    kinds: dict[str, list[Any]] = {}
    core, classes = client.CoreV1Api(api), client.SchedulingV1Api(api)
    try:
        for name in FILES:
            for document in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text("utf-8")):
                found = utils.create_from_dict(api, moved(document, suffix))
                kinds.setdefault(document["kind"], []).extend(found)
        names = {item.metadata.name.removesuffix(suffix): item.metadata.name for item in kinds["Namespace"]}
        yield Applied(names, kinds, core, client)
    finally:
        for item in kinds.get("Namespace", ()):
            core.delete_namespace(item.metadata.name, grace_period_seconds=0)
        for item in kinds.get("PriorityClass", ()):
            classes.delete_priority_class(item.metadata.name)


def test_a_real_server_takes_every_object(applied: Applied) -> None:
    counted = {kind: len(found) for kind, found in applied.kinds.items()}
    assert counted == {
        "Namespace": 3, "ServiceAccount": 2, "Role": 1, "RoleBinding": 1, "ResourceQuota": 1, "LimitRange": 1,
        "NetworkPolicy": 8, "ConfigMap": 1, "Deployment": 1, "Service": 1, "PriorityClass": 2, "Job": 1,
    }  # fmt: skip


def may(applied: Applied, account: str, verb: str, resource: str, namespace: str) -> bool:
    """Whether the server lets a service account of Airflow do something."""
    resource, _, sub = resource.partition("/")
    api = applied.client.AuthorizationV1Api(applied.core.api_client)
    user = f"system:serviceaccount:{applied.names['airflow']}:{account}"
    asked = {"verb": verb, "resource": resource, "subresource": sub, "namespace": namespace}
    review = api.create_subject_access_review({"spec": {"user": user, "resourceAttributes": asked}})
    return bool(review.status.allowed)


@pytest.mark.parametrize("account", ["airflow-worker", "airflow-triggerer"])
def test_airflow_may_do_what_it_needs_and_no_more(applied: Applied, account: str) -> None:
    here = applied.names["perennial"]
    for verb in ("create", "get", "list", "watch", "patch", "delete"):
        assert may(applied, account, verb, "pods", here), verb
        for elsewhere in ("default", "kube-system", applied.names["mlflow"]):
            assert not may(applied, account, verb, "pods", elsewhere), (verb, elsewhere)
    assert may(applied, account, "get", "pods/log", here)
    assert may(applied, account, "list", "events", here)
    refused = [("create", "pods/exec"), ("get", "secrets"), ("create", "deployments"), ("delete", "resourcequotas"),
               ("create", "rolebindings"), ("impersonate", "users")]  # fmt: skip
    for verb, resource in refused:
        assert not may(applied, account, verb, resource, here), (verb, resource)
    assert not may(applied, "default", "create", "pods", here), "only the accounts that are named"


def pod(name: str, **resources: Any) -> dict[str, Any]:
    container = {"name": "base", "image": "perennial/nothing:0", "resources": resources}
    spec = {"containers": [container], "serviceAccountName": "perennial-step", "restartPolicy": "Never"}
    return {"metadata": {"name": name}, "spec": spec}


def test_a_pod_that_asks_for_nothing_gets_little_and_no_token(applied: Applied) -> None:
    here = applied.names["perennial"]
    made = applied.core.create_namespaced_pod(here, pod("asks-for-nothing"))
    (container,) = made.spec.containers
    assert container.resources.requests == {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "256Mi"}
    assert container.resources.limits == {"memory": "256Mi", "ephemeral-storage": "1Gi"}
    assert not container.volume_mounts, "the service account's token is mounted"


def test_nobody_takes_more_than_the_quota(applied: Applied) -> None:
    here, refused = applied.names["perennial"], applied.client.ApiException
    with pytest.raises(refused) as told:
        applied.core.create_namespaced_pod(here, pod("huge", limits={"memory": "129Gi"}))
    assert told.value.status == 403 and "maximum memory usage per Container is 128Gi" in told.value.body
    wants = {"cpu": "65", "memory": "1Gi"}
    wait_for(
        lambda: applied.core.read_namespaced_resource_quota("steps", here).status.hard,
        "the quota to be counted",
    )
    with pytest.raises(refused) as told:
        applied.core.create_namespaced_pod(here, pod("wide", requests=wants, limits={"memory": "1Gi"}))
    assert told.value.status == 403 and "exceeded quota: steps" in told.value.body
