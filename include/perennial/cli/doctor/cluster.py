"""The checks of `perennial doctor` whether a Kubernetes cluster accepts the pods of a profile.

The API server validates a pod without starting it (dry run). Its manifest is that of `pod_manifest`, which the plugin's
operator submits, too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from perennial.cli.doctor import finding
from perennial.cli.doctor import nodes as node_checks
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
#: What to do about an object that may not be read, where the dry run does not tell, either.
_UNSEEN = {
    "secrets": "the dry run below does not look at secrets: a pod without one of them waits and then fails. Run this "
    "with an account that may get secrets, or look: kubectl --namespace {namespace} get secret",
    "nodes": "the dry run below does not look for a node: whether one has room shows when the first pod starts. Run "
    "this with an account that may list nodes",
}
_SEEN_BELOW = "harmless if the pod is accepted below, where the API server looks at it itself"


def examine(profiles: list[ComputeProfile]) -> list[Finding]:
    """Check image and cluster of each profile whose steps run in pods."""
    findings: list[Finding] = []
    # On a busy machine the import takes longer than the checks, whose time limit is for servers that do not answer.
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("kubernetes")
    for profile in profiles:
        findings += finding.run_with_time_limit(f"{profile.name}: image", partial(_image, profile))
        if profile.kind == "eks":
            findings += finding.run_with_time_limit(f"{profile.name}: EKS", partial(_eks, profile))
        findings += finding.run_with_time_limit(f"{profile.name}: cluster", Cluster(profile).check)
    return findings


def dry_run_pod(profile: ComputeProfile, step: str = "") -> dict[str, Any]:
    """The pod for the dry run: that of a step, with another name, command and owner.

    Args:
        profile: its compute profile.
        step: name of the step, where the pod depends on it.
    """
    owner = "perennial-doctor"
    pod = pod_manifest.pod(
        profile, ["--help"], model=owner, step=step or owner, team=owner, memory=profile.memory
    )
    pod["metadata"]["generateName"] = f"{owner}-"
    return pod


def _image(profile: ComputeProfile) -> Iterator[Finding]:
    """Check that the image's name says which image it is, and where nodes get it; in ECR, that it is there."""
    name, what = profile.image_name, f"{profile.name}: image"
    pinned = re.search(r"@sha256:[0-9a-f]{64}$", name)
    tag = name.rpartition("/")[2].partition(":")[2]
    if not pinned and tag in ("", "latest"):
        yield Finding(
            what, "missing", f"{name} is not pinned: its content may change from run to run",
            f"name a version, or a digest (@sha256:…), in {_image_setting(profile)}",
        )  # fmt: skip
    elif not node_checks.names_registry(name):
        yield Finding(what, "warning", f"{name} names no registry: every node must have it already",
                      f"push it to a registry (ECR) and name that in {_image_setting(profile)}")  # fmt: skip
    elif ecr := re.match(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com/(.+)$", name):
        yield _ecr_image(what, name, *ecr.groups())
    else:
        yield Finding(what, "ok", f"{name} (the registry was not asked)")


def _image_setting(profile: ComputeProfile) -> str:
    """Where the image of a profile is named: PERENNIAL_TRAINER_IMAGE replaces the default only."""
    if profile.image == ComputeProfile.model_fields["image"].default:
        return "PERENNIAL_TRAINER_IMAGE, or in the profile's image"
    return f"image of the profile {profile.name} (PERENNIAL_TRAINER_IMAGE replaces only the default image)"


def _ecr_image(what: str, name: str, registry: str, region: str, path: str) -> Finding:
    """Look an image up in Amazon's registry."""
    repository, at, digest = path.partition("@")
    if not at:
        repository, _, tag = path.partition(":")
    image = {"imageDigest": digest} if at else {"imageTag": tag}
    try:
        ecr = object_store.client("ecr", timeout=finding.REQUEST_SECONDS, max_attempts=2, region=region)
        ecr.describe_images(registryId=registry, repositoryName=repository, imageIds=[image])
    except Exception as error:
        code = str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))
        if code in ("ImageNotFoundException", "RepositoryNotFoundException"):
            return Finding(what, "missing", f"{name} is not in the registry: {code}",
                           "build and push it (make images), or correct the name")  # fmt: skip
        return Finding(what, "warning", f"{name} was not looked up in the registry: {brief(error)}",
                       "allow ecr:DescribeImages to see it here; the nodes pull it with their own role")  # fmt: skip
    return Finding(what, "ok", f"{name} is in the registry")


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
            "nodes": self._nodes,
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
                    _UNSEEN.get(what, _SEEN_BELOW).format(namespace=self.profile.namespace),
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
                if amount > node_checks.number(limit):
                    impossible.append(
                        f"{name}: the pod needs {amount:g}, {quota.metadata.name} allows {limit}"
                    )
                elif amount > node_checks.number(limit) - node_checks.number(used.get(name, "0")):
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

    def _nodes(self) -> Iterator[Finding]:
        """Compare the pod with the nodes, as the scheduler will."""
        nodes = self._as_json(self._ask(self.core.list_node))["items"]
        manifest = dry_run_pod(self.profile)
        try:
            active = "status.phase!=Succeeded,status.phase!=Failed"
            pods = self._ask(self.core.list_pod_for_all_namespaces, field_selector=active)
            others, known = self._as_json(pods)["items"], ""
        except Exception as error:  # a right is missing, or there are very many pods
            others, known = [], f"; what other pods use of them was not read: {_api_message(error)}"
        results = node_checks.fits(manifest["spec"], nodes, others)
        yield self._room(results, known)
        for memory in self.profile.more_memory:
            larger = pod_manifest.pod(
                self.profile, [], model="doctor", step="doctor", team="doctor", memory=memory
            )
            if any(r.big_enough for r in results) and not any(
                r.big_enough for r in node_checks.fits(larger["spec"], nodes)
            ):
                yield self._finding("nodes", "warning", f"none has {memory}, to which more_memory raises the limit",
                                    "add such nodes, or lower more_memory")  # fmt: skip
        if not node_checks.names_registry(self.profile.image_name):
            suitable = {result.node for result in results if not result.excluded}
            yield from self._image_on_nodes([n for n in nodes if n["metadata"]["name"] in suitable])

    def _room(self, results: list[node_checks.NodeFit], known: str) -> Finding:
        """Whether one of the nodes has room for the pod."""
        free = [r for r in results if r.big_enough and not r.occupied]
        if free:
            return self._finding("nodes", "ok", f"{len(free)} of {len(results)} have room for the pod{known}")
        big_enough = [r for r in results if r.big_enough]
        listed = "; ".join(f"{r.node}: {r.reason}" for r in (big_enough or results)[:3])
        more = f"; and {len(big_enough or results) - 3} more" if len(big_enough or results) > 3 else ""
        if big_enough:
            wait = f"pods wait up to {self.profile.wait_minutes:g} minutes (wait_minutes)"
            return self._finding("nodes", "warning", f"all are occupied at present: {listed}{more}",
                                 f"{wait}; add nodes if that is usual")  # fmt: skip
        gpu = self.profile.gpu
        device = (
            f" For {gpu.resource} that takes a GPU node group and the vendor's device plugin." if gpu else ""
        )
        return self._finding(
            "nodes", "missing", f"the pod fits none of {len(results)}: {listed}{more}",
            "request less in the profile, correct its node_selector and tolerations, or add such nodes. If nodes are "
            f"created on demand this is usual while there are none: the first pod shows whether one comes.{device}",
        )  # fmt: skip

    def _image_on_nodes(self, nodes: list[dict[str, Any]]) -> Iterator[Finding]:
        """Whether the nodes have an image that no registry has."""
        image = self.profile.image_name
        has = {node["metadata"]["name"]: node_checks.has_image(node, image) for node in nodes}
        lacking = sorted(name for name, known in has.items() if known is False)
        if lacking:
            yield self._finding(
                "image on nodes", "missing", f"{image} is not on {', '.join(lacking[:5])}",
                f"load it into each node (kind load docker-image, ctr images import), or push it to a registry and "
                f"name that in {_image_setting(self.profile)}",
            )  # fmt: skip
        elif has:
            complete = all(has.values())
            yield self._finding("image on nodes", "ok" if complete else "warning",
                                f"{image} is on {sum(map(bool, has.values()))} of {len(has)}"
                                + ("" if complete else "; the others do not list all of theirs"))  # fmt: skip

    def _as_json(self, answer: Any) -> Any:
        return self.client.sanitize_for_serialization(answer)

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
        yield self._finding(
            "pod",
            "ok",
            "accepted by the API server (dry run, which looks at neither secrets, image nor nodes)",
        )

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
        "pods": 1.0, "count/pods": 1.0, "requests.cpu": node_checks.number(profile.cpu),
        "requests.memory": memory, "limits.memory": memory,
        "requests.ephemeral-storage": scratch, "limits.ephemeral-storage": scratch,
    }  # fmt: skip
    if profile.gpu:
        resource, count = profile.gpu.resource, float(profile.gpu.count)
        needs |= {f"requests.{resource}": count, f"limits.{resource}": count}
    return needs


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
