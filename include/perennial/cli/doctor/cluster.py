"""The checks of `perennial doctor` whether a Kubernetes cluster accepts the pods of a profile.

The API server validates a pod without starting it (dry run). Its manifest is that of `pod_manifest`, which the plugin's
operator submits, too.
"""

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
from perennial.spec import compute_profile, pod_manifest
from perennial.spec.compute_profile import ComputeProfile
from perennial.storage import object_store

__all__ = ["RIGHTS", "Cluster", "dry_run_pod", "examine"]

#: Permissions that Airflow needs: verb, resource, subresource.
RIGHTS = [
    *((verb, "pods", "") for verb in ("create", "get", "list", "watch", "patch", "delete")),
    ("get", "pods", "log"),
    ("list", "events", ""),
]
_SUFFIXES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
             "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}  # fmt: skip


def examine(profiles: list[ComputeProfile]) -> list[Finding]:
    """Check image and cluster of each profile whose steps run in pods."""
    findings: list[Finding] = []
    for profile in profiles:
        findings.append(_image(profile))
        if profile.kind == "eks":
            findings += finding.run_with_time_limit(f"{profile.name}: EKS", partial(_eks, profile))
        findings += finding.run_with_time_limit(f"{profile.name}: cluster", Cluster(profile).check)
    return findings


def dry_run_pod(profile: ComputeProfile) -> dict[str, Any]:
    """The pod for the dry run: that of a step, with another name, command and owner."""
    owner = "perennial-doctor"
    pod = pod_manifest.pod(profile, ["--help"], model=owner, step=owner, team=owner, memory=profile.memory)
    pod["metadata"]["generateName"] = f"{owner}-"
    return pod


def _image(profile: ComputeProfile) -> Finding:
    name, what = profile.image_name, f"{profile.name}: image"
    if re.search(r"@sha256:[0-9a-f]{64}$", name):
        return Finding(what, "ok", name)
    tag = name.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        return Finding(
            what, "missing", f"{name} is not pinned: its content may change from run to run",
            "name a version, or a digest (@sha256:…), in the profile's image or in PERENNIAL_TRAINER_IMAGE",
        )  # fmt: skip
    if "/" not in name or "." not in name.partition("/")[0]:
        return Finding(what, "warning", f"{name} names no registry: every node must have it already",
                       "push it to a registry (ECR) and name that in PERENNIAL_TRAINER_IMAGE")  # fmt: skip
    return Finding(what, "ok", name)


def _eks(profile: ComputeProfile) -> Iterator[Finding]:
    what = f"{profile.name}: EKS {profile.cluster}"
    try:
        eks = object_store.client(
            "eks", timeout=finding.REQUEST_SECONDS, max_attempts=2, region=profile.region
        )
        status = eks.describe_cluster(name=profile.cluster)["cluster"]["status"]
    except Exception as error:
        remedy = "check the profile's cluster and region; allow eks:DescribeCluster to Airflow's role"
        yield Finding(what, "missing", brief(error), remedy)
        return
    active = status == "ACTIVE"
    yield Finding(
        what, "ok" if active else "missing", f"status {status}", "" if active else "wait until it is ACTIVE"
    )


class Cluster:
    """The cluster and the namespace of one profile.

    Args:
        profile: the profile.
    """

    def __init__(self, profile: ComputeProfile) -> None:
        self.profile = profile
        #: The module ``kubernetes.client``, a connection to the cluster, and its core API: set by `check`.
        self.api: Any = None
        self.client: Any = None
        self.core: Any = None

    def check(self) -> Iterator[Finding]:
        """Run all checks, in order, until the API server or the namespace turns out to be missing."""
        reached = self._reach()
        yield reached
        if reached.state == "missing":
            return
        for what, check in {
            "rights": self._rights,
            "namespace": self._namespace,
            "secrets": self._secrets,
            "service account": self._service_account,
            "quota": self._quota,
            "GPU nodes": self._gpu_nodes,
            "pod": self._dry_run,
        }.items():
            try:
                for item in check():
                    yield item
                    if what == "namespace" and item.state == "missing":
                        return  # the other objects are in the namespace
            except self.api.ApiException as error:
                if error.status != 403:
                    raise
                yield self._finding(
                    what, "warning", f"may not be read: {_api_message(error)}",
                    "harmless if the pod is accepted below; to see it, run this with an account that may",
                )  # fmt: skip

    def _reach(self) -> Finding:
        """Connect, and get the version of the API server."""
        try:
            origin = self._connect()
        except ModuleNotFoundError:
            return self._finding("API", "missing", "the library kubernetes is not installed here",
                                 "run this where Airflow runs")  # fmt: skip
        except Exception as error:
            return self._finding(
                "API",
                "missing",
                brief(error),
                "set KUBECONFIG (EKS: aws eks update-kubeconfig), or run this in a pod of Airflow",
            )
        try:
            version = self._ask(self.api.VersionApi(self.client).get_code).git_version
        except Exception as error:
            return self._finding("API", "missing", f"{origin}: {_api_message(error)}",
                                 "check the cluster's address, the credentials and the network")  # fmt: skip
        return self._finding("API", "ok", f"Kubernetes {version}, {origin}")

    def _connect(self) -> str:
        """Configure the client as Airflow's connection says; returns where the configuration comes from."""
        import kubernetes

        self.api = kubernetes.client
        configuration = kubernetes.client.Configuration()
        extra = _connection_extra(self.profile.connection)
        path = extra.get("kube_config_path") or os.environ.get("KUBECONFIG")
        in_pod = os.environ.get("KUBERNETES_SERVICE_HOST")
        if extra.get("in_cluster") is True or (in_pod and not path):
            kubernetes.config.load_incluster_config(client_configuration=configuration)
            origin = "from inside the cluster"
        else:
            kubernetes.config.load_kube_config(
                config_file=path, context=extra.get("cluster_context"), client_configuration=configuration
            )
            origin = f"by {path or '~/.kube/config'}"
        configuration.retries = False
        self.client = kubernetes.client.ApiClient(configuration)
        self.core = kubernetes.client.CoreV1Api(self.client)
        return origin

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        limit = finding.REQUEST_SECONDS
        return call(*arguments, _request_timeout=(limit, limit), **options)

    def _finding(self, what: str, state: finding.State, detail: str, remedy: str = "") -> Finding:
        return Finding(f"{self.profile.name}: {what}", state, detail, remedy)

    def _rights(self) -> Iterator[Finding]:
        review = self.api.AuthorizationV1Api(self.client).create_self_subject_access_review
        denied = []
        for verb, resource, sub in RIGHTS:
            attributes = {"namespace": self.profile.namespace, "verb": verb, "resource": resource}
            body = {"spec": {"resourceAttributes": attributes | ({"subresource": sub} if sub else {})}}
            if not self._ask(review, body).status.allowed:
                denied.append(f"{verb} {resource}{f'/{sub}' if sub else ''}")
        if denied:
            yield self._finding("rights", "missing", f"may not {', '.join(denied)} in {self.profile.namespace}",
                                "apply docker/kubernetes/rbac.yaml, for the account that this runs as")  # fmt: skip
        else:
            yield self._finding("rights", "ok", "pods, logs and events")

    def _namespace(self) -> Iterator[Finding]:
        name = self.profile.namespace
        namespace = self._ask_unless_missing(self.core.read_namespace, name)
        if namespace is None:
            yield self._finding("namespace", "missing", f"{name} does not exist",
                                f"kubectl create namespace {name}, or docker/kubernetes/namespaces.yaml")  # fmt: skip
            return
        level = (namespace.metadata.labels or {}).get("pod-security.kubernetes.io/enforce")
        yield self._finding("namespace", "ok", f"{name}, Pod Security {level or 'not enforced'}")

    def _secrets(self) -> Iterator[Finding]:
        profile = self.profile
        needed: dict[str, set[str]] = {name: set() for name in (*profile.pull_secrets, *profile.secret_env)}
        for item in profile.secrets:
            needed.setdefault(item.secret, set()).add(item.key)
        for name, keys in needed.items():
            what = f"secret {name}"
            secret = self._ask_unless_missing(self.core.read_namespaced_secret, name, profile.namespace)
            if secret is None:
                yield self._finding(
                    what,
                    "missing",
                    f"is not in {profile.namespace}",
                    f"kubectl -n {profile.namespace} create secret generic {name} --from-literal …",
                )
            elif missing := sorted(keys - set(secret.data or {})):
                yield self._finding(what, "missing", f"has no key {', '.join(missing)}", "add the key")
            else:
                yield self._finding(what, "ok", f"{len(secret.data or {})} keys")

    def _service_account(self) -> Iterator[Finding]:
        profile = self.profile
        name = profile.service_account or "default"
        what = f"service account {name}"
        account = self._ask_unless_missing(self.core.read_namespaced_service_account, name, profile.namespace)
        if account is None:
            yield self._finding(what, "missing", f"is not in {profile.namespace}",
                                "apply docker/kubernetes/rbac.yaml, or create it with its role")  # fmt: skip
            return
        role = (account.metadata.annotations or {}).get("eks.amazonaws.com/role-arn")
        remote = any(object_store.is_remote(p) for p in (settings().lake, settings().landing))
        if remote and not role and not (profile.secret_env or profile.secrets):
            yield self._finding(
                what, "warning", "has no IAM role, and the profile names no secret",
                "annotate it with eks.amazonaws.com/role-arn, or use EKS Pod Identity",
            )  # fmt: skip
        else:
            yield self._finding(what, "ok", role or "exists")

    def _quota(self) -> Iterator[Finding]:
        quotas = self._ask(self.core.list_namespaced_resource_quota, self.profile.namespace).items
        needs = _quota_needs(self.profile)
        full, impossible = [], []
        for quota in quotas:
            hard, used = (quota.status.hard or {}), (quota.status.used or {})
            for name, limit in hard.items():
                amount = needs.get(name, needs.get(f"requests.{name}", 0.0))
                if amount > _number(limit):
                    impossible.append(
                        f"{name}: the pod needs {amount:g}, {quota.metadata.name} allows {limit}"
                    )
                elif amount > _number(limit) - _number(used.get(name, "0")):
                    full.append(f"{name}: {used.get(name, '0')} of {limit} is used")
        if impossible:
            yield self._finding(
                "quota", "missing", "; ".join(impossible), "raise the quota, or request less in the profile"
            )
        elif full:
            yield self._finding(
                "quota",
                "warning",
                f"is full at present: {'; '.join(full)}",
                f"pods wait up to {self.profile.wait_minutes:g} minutes; raise it if that is usual",
            )
        else:
            yield self._finding("quota", "ok", "leaves room" if quotas else "there is none")

    def _gpu_nodes(self) -> Iterator[Finding]:
        gpu = self.profile.gpu
        if gpu is None:
            return
        nodes = self._ask(self.core.list_node).items
        suitable = [
            n for n in nodes if _number((n.status.allocatable or {}).get(gpu.resource, "0")) >= gpu.count
        ]
        if not suitable:
            yield self._finding(
                "GPU nodes", "missing", f"none of {len(nodes)} nodes offers {gpu.count} {gpu.resource}",
                "add a GPU node group and NVIDIA's device plugin; if nodes are created on demand this is usual, and "
                "the job of docker/kubernetes/gpu.yaml shows whether one is",
            )  # fmt: skip
            return
        kinds = sorted(
            {(n.metadata.labels or {}).get("nvidia.com/gpu.product", "not labelled") for n in suitable}
        )
        if gpu.kind and gpu.kind not in kinds:
            yield self._finding(
                "GPU nodes",
                "missing",
                f"no {gpu.kind}; there are: {', '.join(kinds)}",
                "correct gpu.kind in the profile, or install NVIDIA's feature discovery",
            )
        else:
            yield self._finding("GPU nodes", "ok", f"{len(suitable)} of {len(nodes)}: {', '.join(kinds)}")

    def _dry_run(self) -> Iterator[Finding]:
        create = self.core.create_namespaced_pod
        try:
            self._ask(create, self.profile.namespace, dry_run_pod(self.profile), dry_run="All")
        except self.api.ApiException as error:
            message = _api_message(error)
            if error.status == 403 and "exceeded quota" in message:
                yield self._finding("pod", "warning", f"waits for quota: {message}", "see quota above")
            else:
                yield self._finding("pod", "missing", f"the API server refuses it: {message}",
                                    "correct what it names, in the profile or in the cluster")  # fmt: skip
            return
        yield self._finding("pod", "ok", "accepted by the API server (dry run)")

    def _ask_unless_missing(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return the requested object; None if it does not exist."""
        try:
            return self._ask(call, *arguments)
        except self.api.ApiException as error:
            if error.status != 404:
                raise
            return None


def _quota_needs(profile: ComputeProfile) -> dict[str, float]:
    """The resources of one pod that count towards a quota, by the quota's names."""
    memory = float(compute_profile.quantity_bytes(profile.memory))
    scratch = float(compute_profile.quantity_bytes(profile.scratch))
    needs = {
        "pods": 1.0, "count/pods": 1.0, "requests.cpu": _number(profile.cpu),
        "requests.memory": memory, "limits.memory": memory,
        "requests.ephemeral-storage": scratch, "limits.ephemeral-storage": scratch,
    }  # fmt: skip
    if profile.gpu:
        resource, count = profile.gpu.resource, float(profile.gpu.count)
        needs |= {f"requests.{resource}": count, f"limits.{resource}": count}
    return needs


def _number(quantity: Any) -> float:
    """Convert a Kubernetes quantity, such as ``500m`` or ``2Gi``, to a number; 0 if it is invalid."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", str(quantity))
    return float(match[1]) * _SUFFIXES.get(match[2], 1.0) if match else 0.0


def _connection_extra(name: str) -> dict[str, Any]:
    """Extras of an Airflow connection that is defined as JSON in an environment variable."""
    try:
        connection = json.loads(os.environ.get(f"AIRFLOW_CONN_{name.upper()}", "{}"))
        extra = connection.get("extra", {})
        return dict(json.loads(extra) if isinstance(extra, str) else extra)
    except (ValueError, AttributeError, TypeError):
        return {}


def _api_message(error: Exception) -> str:
    """The message of the API server, or the first line of another error."""
    try:
        return str(json.loads(getattr(error, "body", "") or "")["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return brief(error)
