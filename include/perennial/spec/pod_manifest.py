"""The manifest of a step's pod, merged from the profile's template, the profile and the step.

The plugin's operator submits it, and `perennial doctor` submits the same manifest as a dry run. Every pod meets the
Pod Security Standard "restricted"
(https://kubernetes.io/docs/concepts/security/pod-security-standards/) and can write to its scratch volume only.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from perennial.core import signing_keys
from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.spec import compute_profile

if TYPE_CHECKING:
    from perennial.spec.compute_profile import ComputeProfile
    from perennial.spec.model_spec import ModelSpec

#: Name of the container that runs the step: the operator's own default.
CONTAINER = "base"
#: Where the scratch volume is mounted.
SCRATCH = "/scratch"
#: User and group id of the processes.
USER_ID = 10001
#: Variables that are copied from the submitting process to the pod, as are the lake, the landing area and MLflow's URL.
FORWARDED_VARIABLES = (
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "PERENNIAL_COMMIT",
    "PERENNIAL_LEDGER_ANCHORS",
    "PERENNIAL_MLFLOW_UI",
    "PERENNIAL_QUERY_SECONDS",
)
#: What the names of variables with the URIs of databases begin with.
CONNECTION_PREFIX = "PERENNIAL_CONNECTION_"
#: Label by which the maintenance DAG finds pods.
MANAGED_BY_LABEL = {"app.kubernetes.io/managed-by": "perennial"}
#: Annotation that names the task instance a pod belongs to.
TASK_ANNOTATION = "perennial/task"
#: Annotation with the URI at which a trainer and its workers find each other.
RENDEZVOUS_ANNOTATION = "perennial/rendezvous"
#: Label of a worker's pod that names its trainer's pod.
TRAINER_LABEL = "perennial/trainer"
#: Fraction of the memory limit that a step may plan with; the rest is a reserve for memory that is not accounted for.
PLANNED_MEMORY_FRACTION = 0.75
#: Host names that always mean the machine or the pod itself, as do all that end in ``.localhost``.
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_SPOT_LABELS = ("karpenter.sh/capacity-type", "eks.amazonaws.com/capacityType", "cloud.google.com/gke-spot")


def step_pod(
    profile: ComputeProfile,
    spec: ModelSpec,
    step: str,
    arguments: list[str],
    *,
    memory: str,
    interruptions: int,
    role: str | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Build the pod of a model's step, without its name; the other arguments are those of `pod`.

    Raises:
        PerennialError: the pod could not reach the lake, the landing area or a server (see `unreachable_values`), or
            gets no connection that the step uses.
    """
    manifest = pod(
        profile, arguments, model=spec.name, step=step, team=spec.owner,
        memory=memory, interruptions=interruptions, role=role, annotations=annotations,
    )  # fmt: skip
    if items := [item for item in unreachable_values(profile, manifest) if item.certain]:
        causes = "; ".join(f"{item.variable} is {item.value}, {item.reason}" for item in items)
        raise PerennialError(
            f"{causes}: a pod of profile {profile.name} cannot reach {'it' if len(items) == 1 else 'them'}",
            f"{'; '.join(item.remedy for item in items)}; or run the step with profile local",
            model=spec.name,
        )
    if missing := missing_connections(manifest, spec.connections(step)):
        variable = f"{CONNECTION_PREFIX}{missing[0].upper()}"
        raise PerennialError(
            f"a pod of profile {profile.name} does not get connection {missing[0]}, which step {step} uses",
            f"create a Kubernetes secret with the URI of the database, and name it in secrets of the profile: "
            f"{{env: {variable}, secret: NAME, key: KEY}}; or run the step with profile local",
            model=spec.name,
        )
    return manifest


def missing_connections(manifest: dict[str, Any], names: Iterable[str]) -> list[str]:
    """The connections that a pod's environment does not have.

    Args:
        manifest: the pod; each key of a secret or config map may be a variable of it.
        names: names of the connections.
    """
    container = manifest["spec"]["containers"][0]
    if container.get("envFrom"):
        return []
    variables = {item["name"] for item in container["env"]}
    return [name for name in names if CONNECTION_PREFIX + name.upper() not in variables]


@dataclass(frozen=True)
class UnreachableValue:
    """A value in a pod's environment that names something of the machine that submits the pod.

    Attributes:
        variable: name of the environment variable.
        value: its value.
        reason: why the pod cannot reach it.
        remedy: what to do.
        certain: whether nothing in the profile's template could make it reachable after all.
    """

    variable: str
    value: str
    reason: str
    remedy: str
    certain: bool


def unreachable_values(profile: ComputeProfile, manifest: dict[str, Any]) -> Iterator[UnreachableValue]:
    """Find folders and loopback addresses among the values that a pod's environment hands to the step.

    Args:
        profile: the profile of the pod; its template may mount a folder.
        manifest: the pod; a container beside the step's, or the node's network, may serve a loopback address.
    """
    spec = manifest["spec"]
    alone = len(spec["containers"]) + len(spec.get("initContainers", [])) == 1
    own_network = alone and not spec.get("hostNetwork")
    for item in spec["containers"][0]["env"]:
        name, value = item["name"], item.get("value") or ""
        if name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING") and not value.startswith("s3://"):
            remedy = f"set {name} to an s3:// URI"
            yield UnreachableValue(name, value, "a folder of this machine", remedy, not profile.template)
        elif is_loopback(value):
            remedy = f"set {name} to an address that pods can reach"
            if name == "MLFLOW_TRACKING_URI":
                remedy += (
                    " (with the MLflow of `make start`, set PERENNIAL_MLFLOW_HOST to one of this machine)"
                )
            yield UnreachableValue(name, value, "the loopback address of this machine", remedy, own_network)


def is_loopback(url: str) -> bool:
    """Whether the host of a URL is a loopback address, by name or in any spelling of the address.

    The unspecified address (``0.0.0.0``) counts, too: a client that connects to it reaches its own machine.
    """
    try:
        host = (urlsplit(url).hostname or "").rstrip(".") if "://" in url else ""
    except ValueError:
        return False
    if host in _LOOPBACK_NAMES or host.endswith(".localhost"):
        return True
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))  # 127.1, 0x7f.1, 2130706433
        except (OSError, UnicodeError):
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def pod(
    profile: ComputeProfile,
    arguments: list[str],
    *,
    model: str,
    step: str,
    team: str,
    memory: str,
    interruptions: int = 0,
    role: str | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Build a pod of a profile, without its name.

    Args:
        profile: where it runs, and with which resources.
        arguments: of the image's entry point.
        model: name of the model, for a label.
        step: name of the step, for a label.
        team: owner of the model, for a label.
        memory: memory limit of this attempt.
        interruptions: how often the step was interrupted before.
        role: ``trainer`` or ``worker``, where several pods train together; the trainer gets no GPU.
        annotations: further annotations.
    """
    if role == "trainer":
        profile = profile.model_copy(update={"gpu": None})
    labels = {
        "perennial/model": label_value(model),
        "perennial/step": label_value(step),
        "perennial/team": label_value(team),
    }
    step_part = {
        "metadata": {
            "labels": labels | ({"perennial/role": role} if role else {}),
            "annotations": {
                "perennial/memory": memory, "perennial/interruptions": str(interruptions), **(annotations or {})
            },
        },
        "spec": {"containers": [{"name": CONTAINER, "args": arguments}]},
    }  # fmt: skip
    signs = step == "train" and role != "worker"
    manifest: dict[str, Any] = merge(
        merge(compute_profile.load_template(profile), _profile_part(profile, memory, signs)), step_part
    )
    # The operator sets its own fields on the first container, whatever its name.
    manifest["spec"]["containers"].sort(key=lambda container: container["name"] != CONTAINER)
    if not signs:
        for container in manifest["spec"]["containers"]:
            container["env"] = [
                e
                for e in container.get("env", [])
                if e["name"] not in (signing_keys.SIGNING_KEY, signing_keys.SIGNING_CERTIFICATE)
            ]
    return manifest


def _profile_part(profile: ComputeProfile, memory: str, signs: bool) -> dict[str, Any]:
    """The part of the manifest that the profile decides; ``signs``: whether the pod signs a version."""
    labels = MANAGED_BY_LABEL | {"perennial/profile": profile.name}
    labels |= {k: label_value(v) for k, v in profile.labels.items()}
    if profile.queue:
        labels["kueue.x-k8s.io/queue-name"] = profile.queue
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(profile, memory, signs)],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": profile.scratch}}],
        "imagePullSecrets": [{"name": name} for name in profile.pull_secrets],
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": profile.namespace,
            "labels": labels,
            "annotations": dict(profile.annotations),
        },
        "spec": spec | _scheduling(profile),
    }


def _container(profile: ComputeProfile, memory: str, signs: bool) -> dict[str, Any]:
    amounts = {"cpu": profile.cpu, "memory": memory, "ephemeral-storage": profile.scratch}
    if profile.gpu:
        amounts[profile.gpu.resource] = str(profile.gpu.count)
    limits = {k: v for k, v in amounts.items() if k != "cpu"}  # a CPU limit only throttles
    return {
        "name": CONTAINER,
        "image": profile.image_name,
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(profile, signs),
        "envFrom": [{"secretRef": {"name": name}} for name in profile.secret_env],
        "resources": {"requests": dict(amounts), "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH},
                         {"name": "scratch", "mountPath": "/tmp", "subPath": "tmp"}],  # nosec B108
    }  # fmt: skip


def _scheduling(profile: ComputeProfile) -> dict[str, Any]:
    """The fields that decide on which node the pod runs, as whom and for how long."""
    fields: dict[str, Any] = {
        "nodeSelector": dict(profile.node_selector),
        "tolerations": [dict(t) for t in profile.tolerations],
    }
    if profile.gpu and profile.gpu.kind:
        fields["nodeSelector"]["nvidia.com/gpu.product"] = profile.gpu.kind
    if profile.priority_class:
        fields["priorityClassName"] = profile.priority_class
    if profile.service_account:
        fields["serviceAccountName"] = profile.service_account
    if profile.run_minutes:
        fields["activeDeadlineSeconds"] = int(profile.run_minutes * 60)
    if profile.spot:
        terms = [{"weight": 100, "preference": {"matchExpressions": [
            {"key": key, "operator": "In", "values": ["spot", "SPOT", "true"]}]}} for key in _SPOT_LABELS]  # fmt: skip
        fields["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}
    return fields


def _environment(profile: ComputeProfile, signs: bool) -> list[dict[str, Any]]:
    paths = settings()
    # Based on the profile's first memory limit, so that an attempt with more memory works in the same way.
    planned = int(compute_profile.quantity_bytes(profile.memory) * PLANNED_MEMORY_FRACTION / 2**20)
    cores = float(profile.cpu[:-1]) / 1000 if profile.cpu.endswith("m") else float(profile.cpu)
    values = {
        "PERENNIAL_LAKE": paths.lake,
        "PERENNIAL_LANDING": paths.landing,
        "MLFLOW_TRACKING_URI": paths.mlflow_uri,
        "PERENNIAL_HOME": SCRATCH,
        "PERENNIAL_MEMORY_MB": str(max(256, planned)),
        "PERENNIAL_THREADS": str(max(1, int(cores))),
        # The longest time until a pod of this profile has started.
        "PERENNIAL_WORKERS_MINUTES": f"{profile.wait_minutes + profile.start_minutes:g}",
        "HOME": SCRATCH,
        "TMPDIR": "/tmp",  # nosec B108: an empty volume of the pod's own
    }
    values |= {name: os.environ[name] for name in FORWARDED_VARIABLES if os.environ.get(name)}
    if trusted := signing_keys.trusted_keys():
        # The files that the variable names are not in the pod.
        values[signing_keys.TRUSTED_KEYS] = trusted.pem
        if trusted.since:
            values[signing_keys.SIGNED_SINCE] = trusted.since
    if signs and (certificates := signing_keys.signing_certificates()):
        values[signing_keys.SIGNING_CERTIFICATE] = "\n".join(certificates)  # of the key that is a secret
    values |= profile.env
    secrets = [
        {"name": s.env, "valueFrom": {"secretKeyRef": {"name": s.secret, "key": s.key}}}
        for s in profile.secrets
    ]
    by_secret = {s.env for s in profile.secrets}
    plain = [{"name": k, "value": v} for k, v in sorted(values.items()) if k not in by_secret]
    return plain + secrets


def merge(low: Any, high: Any) -> Any:
    """Merge two manifests; where both have a value, ``high`` overrides ``low``.

    Mappings are merged by key, and lists of named items by name (volume mounts by path). Unnamed items (tolerations)
    are added, once each. Anything else is replaced.
    """
    if isinstance(low, dict) and isinstance(high, dict):
        return low | {k: merge(low[k], v) if k in low else v for k, v in high.items()}
    if not (isinstance(low, list) and isinstance(high, list)):
        return high
    if not all(isinstance(item, dict) for item in (*low, *high)):
        return high
    merged = list(low)
    for item in high:
        keys = [k for k in ("mountPath", "name") if k in item]
        index = next((i for i, old in enumerate(merged) if keys and old.get(keys[0]) == item[keys[0]]), None)
        if index is not None:
            merged[index] = merge(merged[index], item)
        elif item not in merged:
            merged.append(item)
    return merged


def label_value(text: str) -> str:
    """Convert text to a Kubernetes label value: at most 63 letters, digits, ``-``, ``_`` and ``.``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("-_.")
