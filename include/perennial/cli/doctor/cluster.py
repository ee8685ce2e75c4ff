"""`perennial doctor`, the part that asks a cluster: may pods of a profile be started there, and would they be taken?"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from perennial.cli.doctor import finding
from perennial.cli.doctor.finding import Finding, brief
from perennial.core.settings import settings
from perennial.spec import compute_profile
from perennial.spec.compute_profile import ComputeProfile
from perennial.storage import object_store

#: What Airflow does with pods: verb, resource, subresource.
RIGHTS = [
    *((verb, "pods", "") for verb in ("create", "get", "list", "watch", "patch", "delete")),
    ("get", "pods", "log"),
    ("list", "events", ""),
]
_NANO = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
         "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}  # fmt: skip


def examine(profiles: list[ComputeProfile]) -> list[Finding]:
    """Check the cluster for each profile whose steps are pods."""
    found: list[Finding] = []
    for profile in profiles:
        found += [_image(profile)]
        if profile.kind == "eks":
            found += finding.bounded(f"{profile.name}: EKS", partial(_eks, profile))
        found += finding.bounded(f"{profile.name}: cluster", Cluster(profile).check)
    return found


def _image(profile: ComputeProfile) -> Finding:
    name, what = profile.image_name, f"{profile.name}: image"
    if re.search(r"@sha256:[0-9a-f]{64}$", name):
        return Finding(what, "ok", name)
    tag = name.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        return Finding(
            what, "missing", f"{name} is not pinned: what it holds may change from night to night",
            "name a version, or a digest (@sha256:…), in the profile's image or in PERENNIAL_TRAINER_IMAGE",
        )  # fmt: skip
    if "/" not in name or "." not in name.partition("/")[0]:
        return Finding(what, "warning", f"{name} names no registry: nodes must hold it already",
                       "push it to a registry (ECR) and name that in PERENNIAL_TRAINER_IMAGE")  # fmt: skip
    return Finding(what, "ok", name)


def _eks(profile: ComputeProfile) -> Iterator[Finding]:
    what = f"{profile.name}: EKS {profile.cluster}"
    try:
        eks = object_store.client("eks", timeout=finding.ANSWER, max_attempts=2, region=profile.region)
        state = eks.describe_cluster(name=profile.cluster)["cluster"]["status"]
    except Exception as error:
        yield Finding(
            what,
            "missing",
            brief(error),
            "check the profile's cluster and region; allow eks:DescribeCluster to Airflow's role",
        )
        return
    good = state == "ACTIVE"
    yield Finding(
        what, "ok" if good else "missing", f"status {state}", "" if good else "wait until it is ACTIVE"
    )


class Cluster:
    """The cluster and the namespace of one profile."""

    def __init__(self, profile: ComputeProfile) -> None:
        self.profile = profile
        self.api: Any = None
        self.core: Any = None

    def check(self) -> Iterator[Finding]:
        """Everything, in order; the end where the API server cannot be asked."""
        try:
            where = self._connect()
        except ModuleNotFoundError:
            yield self._found("API", "missing", "the library kubernetes is not installed here",
                              "run this where Airflow runs")  # fmt: skip
            return
        except Exception as error:
            yield self._found(
                "API",
                "missing",
                brief(error),
                "set KUBECONFIG (EKS: aws eks update-kubeconfig), or run this in a pod of Airflow",
            )
            return
        try:
            version = self._ask(self.api.VersionApi(self.client).get_code).git_version
        except Exception as error:
            yield self._found("API", "missing", f"{where}: {_said(error)}",
                              "check the cluster's address, the credentials and the network")  # fmt: skip
            return
        yield self._found("API", "ok", f"Kubernetes {version}, {where}")
        for check in (
            self._rights,
            self._namespace,
            self._secrets,
            self._account,
            self._quota,
            self._gpus,
            self._dry,
        ):
            try:
                for item in check():
                    yield item
                    if item.what.endswith(": namespace") and item.state == "missing":
                        return  # nothing of it can be there
            except self.api.ApiException as error:
                if error.status != 403:
                    raise
                yield self._found(
                    check.__name__.strip("_"), "warning", f"may not look: {_said(error)}",
                    "harmless where the pod is accepted below; to see it, run this as somebody who may",
                )  # fmt: skip

    def _connect(self) -> str:
        import kubernetes  # type: ignore[import-untyped]

        self.api = kubernetes.client
        configuration = kubernetes.client.Configuration()
        said = _connection(self.profile.connection)
        path = said.get("kube_config_path") or os.environ.get("KUBECONFIG")
        inside = os.environ.get("KUBERNETES_SERVICE_HOST")
        if said.get("in_cluster") is True or (inside and not path):
            kubernetes.config.load_incluster_config(client_configuration=configuration)
            where = "from inside the cluster"
        else:
            kubernetes.config.load_kube_config(
                config_file=path, context=said.get("cluster_context"), client_configuration=configuration
            )
            where = f"by {path or '~/.kube/config'}"
        configuration.retries = False
        self.client = kubernetes.client.ApiClient(configuration)
        self.core = kubernetes.client.CoreV1Api(self.client)
        return where

    def _ask(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return call(*arguments, _request_timeout=(finding.ANSWER, finding.ANSWER), **named)

    def _found(self, what: str, state: finding.State, detail: str, remedy: str = "") -> Finding:
        return Finding(f"{self.profile.name}: {what}", state, detail, remedy)

    def _namespace(self) -> Iterator[Finding]:
        name = self.profile.namespace
        try:
            labels = self._ask(self.core.read_namespace, name).metadata.labels or {}
        except self.api.ApiException as error:
            if error.status != 404:
                raise
            yield self._found(
                "namespace",
                "missing",
                f"{name} is not there",
                f"kubectl create namespace {name}, or docker/kubernetes/namespaces.yaml",
            )
            return
        level = labels.get("pod-security.kubernetes.io/enforce")
        yield self._found("namespace", "ok", f"{name}, Pod Security {level or 'not enforced'}")

    def _rights(self) -> Iterator[Finding]:
        review = self.api.AuthorizationV1Api(self.client).create_self_subject_access_review
        denied = []
        for verb, resource, sub in RIGHTS:
            wanted = {"namespace": self.profile.namespace, "verb": verb, "resource": resource}
            body = {"spec": {"resourceAttributes": wanted | ({"subresource": sub} if sub else {})}}
            if not self._ask(review, body).status.allowed:
                denied.append(f"{verb} {resource}{f'/{sub}' if sub else ''}")
        if denied:
            yield self._found("rights", "missing", f"may not {', '.join(denied)} in {self.profile.namespace}",
                              "apply docker/kubernetes/rbac.yaml, for the account that this runs as")  # fmt: skip
        else:
            yield self._found("rights", "ok", "pods, logs and events")

    def _secrets(self) -> Iterator[Finding]:
        p = self.profile
        wanted: dict[str, set[str]] = {name: set() for name in (*p.pull_secrets, *p.secret_env)}
        for item in p.secrets:
            wanted.setdefault(item.secret, set()).add(item.key)
        for name, keys in wanted.items():
            try:
                held = set(self._ask(self.core.read_namespaced_secret, name, p.namespace).data or {})
            except self.api.ApiException as error:
                if error.status != 404:
                    raise
                yield self._found(
                    f"secret {name}",
                    "missing",
                    f"is not in {p.namespace}",
                    f"kubectl -n {p.namespace} create secret generic {name} --from-literal …",
                )
                continue
            if lost := sorted(keys - held):
                yield self._found(f"secret {name}", "missing", f"has no key {', '.join(lost)}", "add the key")
            else:
                yield self._found(f"secret {name}", "ok", f"{len(held)} keys")

    def _account(self) -> Iterator[Finding]:
        name = self.profile.service_account or "default"
        try:
            account = self._ask(self.core.read_namespaced_service_account, name, self.profile.namespace)
        except self.api.ApiException as error:
            if error.status != 404:
                raise
            yield self._found(f"service account {name}", "missing", f"is not in {self.profile.namespace}",
                              "apply docker/kubernetes/rbac.yaml, or make it with its role")  # fmt: skip
            return
        role = (account.metadata.annotations or {}).get("eks.amazonaws.com/role-arn")
        remote = any(object_store.is_remote(p) for p in (settings().lake, settings().landing))
        keys = self.profile.secret_env or self.profile.secrets
        if remote and not role and not keys:
            yield self._found(
                f"service account {name}", "warning", "has no IAM role, and the profile names no secret",
                "annotate it with eks.amazonaws.com/role-arn, or use EKS Pod Identity",
            )  # fmt: skip
        else:
            yield self._found(f"service account {name}", "ok", role or "there")

    def _quota(self) -> Iterator[Finding]:
        quotas = self._ask(self.core.list_namespaced_resource_quota, self.profile.namespace).items
        need = _needs(self.profile)
        full, never = [], []
        for quota in quotas:
            hard, used = (quota.status.hard or {}), (quota.status.used or {})
            for name, limit in hard.items():
                amount = need.get(name, need.get(f"requests.{name}", 0.0))
                if amount > _number(limit):
                    never.append(f"{name}: the pod needs {amount:g}, {quota.metadata.name} allows {limit}")
                elif amount > _number(limit) - _number(used.get(name, "0")):
                    full.append(f"{name}: {used.get(name, '0')} of {limit} is taken")
        if never:
            yield self._found(
                "quota", "missing", "; ".join(never), "raise the quota, or ask for less in the profile"
            )
        elif full:
            yield self._found(
                "quota",
                "warning",
                f"no room now: {'; '.join(full)}",
                f"pods wait up to {self.profile.wait_minutes:g} minutes; raise it if that is usual",
            )
        else:
            yield self._found("quota", "ok", "leaves room" if quotas else "there is none")

    def _gpus(self) -> Iterator[Finding]:
        gpu = self.profile.gpu
        if gpu is None:
            return
        nodes = self._ask(self.core.list_node).items
        having = [
            n for n in nodes if _number((n.status.allocatable or {}).get(gpu.resource, "0")) >= gpu.count
        ]
        if not having:
            yield self._found(
                "GPU nodes", "missing", f"none of {len(nodes)} nodes offers {gpu.count} {gpu.resource}",
                "add a GPU node group and NVIDIA's device plugin; where nodes are made on demand this is usual, and "
                "docker/kubernetes/gpu.yaml's job tells whether one comes",
            )  # fmt: skip
            return
        kinds = sorted(
            {(n.metadata.labels or {}).get("nvidia.com/gpu.product", "not labelled") for n in having}
        )
        if gpu.kind and gpu.kind not in kinds:
            yield self._found(
                "GPU nodes",
                "missing",
                f"no {gpu.kind}; there are: {', '.join(kinds)}",
                "correct gpu.kind in the profile, or install NVIDIA's feature discovery",
            )
        else:
            yield self._found("GPU nodes", "ok", f"{len(having)} of {len(nodes)}: {', '.join(kinds)}")

    def _dry(self) -> Iterator[Finding]:
        try:
            self._ask(
                self.core.create_namespaced_pod, self.profile.namespace, pod(self.profile), dry_run="All"
            )
        except self.api.ApiException as error:
            if error.status == 403 and "exceeded quota" in _said(error):
                yield self._found("pod", "warning", f"waits for quota: {_said(error)}", "see quota above")
            else:
                yield self._found("pod", "missing", f"the API server refuses it: {_said(error)}",
                                  "correct what it names, in the profile or in the cluster")  # fmt: skip
            return
        yield self._found("pod", "ok", "accepted by the API server (dry run)")


def pod(profile: ComputeProfile) -> dict[str, Any]:
    """A pod with all of a profile that admission looks at, which does nothing."""
    amounts = {"cpu": profile.cpu, "memory": profile.memory, "ephemeral-storage": profile.scratch}
    if profile.gpu:
        amounts[profile.gpu.resource] = str(profile.gpu.count)
    selector = dict(profile.node_selector)
    if profile.gpu and profile.gpu.kind:
        selector["nvidia.com/gpu.product"] = profile.gpu.kind
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [{
            "name": "base",
            "image": profile.image_name,
            "resources": {"requests": amounts, "limits": {k: v for k, v in amounts.items() if k != "cpu"}},
            "securityContext": {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            },
        }],
        "nodeSelector": selector,
        "tolerations": [dict(t) for t in profile.tolerations],
        "imagePullSecrets": [{"name": name} for name in profile.pull_secrets],
    }  # fmt: skip
    if profile.priority_class:
        spec["priorityClassName"] = profile.priority_class
    if profile.service_account:
        spec["serviceAccountName"] = profile.service_account
    labels = {"app.kubernetes.io/managed-by": "perennial-doctor"}
    if profile.queue:
        labels["kueue.x-k8s.io/queue-name"] = profile.queue
    meta = {"generateName": "perennial-doctor-", "namespace": profile.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def _needs(profile: ComputeProfile) -> dict[str, float]:
    """What one pod takes of a quota, by the quota's names."""
    memory, scratch = (
        float(compute_profile.quantity_bytes(profile.memory)),
        float(compute_profile.quantity_bytes(profile.scratch)),
    )
    need = {
        "pods": 1.0, "count/pods": 1.0, "requests.cpu": _number(profile.cpu),
        "requests.memory": memory, "limits.memory": memory,
        "requests.ephemeral-storage": scratch, "limits.ephemeral-storage": scratch,
    }  # fmt: skip
    if profile.gpu:
        need[f"requests.{profile.gpu.resource}"] = need[f"limits.{profile.gpu.resource}"] = float(
            profile.gpu.count
        )
    return need


def _number(quantity: Any) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", str(quantity))
    return float(found[1]) * _NANO.get(found[2], 1.0) if found else 0.0


def _connection(name: str) -> dict[str, Any]:
    """Extras of an Airflow connection that is a variable of this environment, as JSON; Airflow itself is not asked."""
    try:
        said = json.loads(os.environ.get(f"AIRFLOW_CONN_{name.upper()}", "{}"))
        extra = said.get("extra", {})
        return dict(json.loads(extra) if isinstance(extra, str) else extra)
    except (ValueError, AttributeError, TypeError):
        return {}


def _said(error: Exception) -> str:
    """What the API server says, in its own words."""
    try:
        return str(json.loads(getattr(error, "body", "") or "")["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return brief(error)
