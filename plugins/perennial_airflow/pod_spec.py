"""The pod of a step, as Kubernetes reads it: template, then profile, then step; lists merge by name.

Every pod meets the Pod Security Standard "restricted"
(https://kubernetes.io/docs/concepts/security/pod-security-standards/), and can write to its scratch volume alone.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.spec import compute_profile

if TYPE_CHECKING:
    from perennial.spec.compute_profile import ComputeProfile
    from perennial.spec.model_spec import ModelSpec

CONTAINER = "base"
SCRATCH = "/scratch"
USER = 10001
#: What a pod is told of the place that starts it, besides the lake, the landing area and MLflow.
FORWARDED = (
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "PERENNIAL_COMMIT",
)
#: Label by which maintenance finds pods.
MANAGED = {"app.kubernetes.io/managed-by": "perennial"}
#: Annotation that says which task instance a pod belongs to.
TASK = "perennial/task"
#: Annotation that says where a trainer and its workers meet, and label of a worker that names its trainer's pod.
MEETING, TRAINER = "perennial/meeting", "perennial/trainer"
#: Share of the memory limit that a step plans with; the rest is for what no library counts.
PLANNED = 0.75
_SPOT = ("karpenter.sh/capacity-type", "eks.amazonaws.com/capacityType", "cloud.google.com/gke-spot")


def pod(
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
    """The pod, without its name.

    Args:
        arguments: of the image's entry point.
        memory: the limit of this attempt. interruptions: how often it was interrupted before.
        role: ``trainer`` or ``worker``, where several pods do the step together; the trainer gets no GPU.

    Raises:
        PerennialError: the lake is a folder, which pods do not see.
    """
    here = settings()
    for name, place in (("PERENNIAL_LAKE", here.lake), ("PERENNIAL_LANDING", here.landing)):
        if not place.startswith("s3://") and not compute_profile.template(profile):
            raise PerennialError(
                f"{name} is {place}, a folder of this machine: a pod of profile {profile.name} cannot see it",
                f"set {name} to an s3:// URI, or run the step with profile local",
                model=spec.name,
            )
    if role == "trainer":
        profile = profile.model_copy(update={"gpu": None})
    return merge(merge(compute_profile.template(profile), _of_profile(profile, memory)), {
        "metadata": {
            "labels": {
                "perennial/model": label(spec.name), "perennial/step": label(step), "perennial/team": label(spec.owner),
            } | ({"perennial/role": role} if role else {}),
            "annotations": {
                "perennial/memory": memory, "perennial/interruptions": str(interruptions), **(annotations or {})
            },
        },
        "spec": {"containers": [{"name": CONTAINER, "args": arguments}]},
    })  # fmt: skip


def _of_profile(profile: ComputeProfile, memory: str) -> dict[str, Any]:
    amounts = {"cpu": profile.cpu, "memory": memory, "ephemeral-storage": profile.scratch}
    if profile.gpu:
        amounts[profile.gpu.resource] = str(profile.gpu.count)
    requests = dict(amounts)
    limits = {k: v for k, v in amounts.items() if k != "cpu"}  # a CPU limit only throttles
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": profile.image_name,
                "imagePullPolicy": "IfNotPresent",
                "env": _environment(profile),
                "envFrom": [{"secretRef": {"name": name}} for name in profile.secret_env],
                "resources": {"requests": requests, "limits": limits},
                "securityContext": {
                    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH},
                                 {"name": "scratch", "mountPath": "/tmp", "subPath": "tmp"}],
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": profile.scratch}}],
        "nodeSelector": dict(profile.node_selector),
        "tolerations": [dict(t) for t in profile.tolerations],
        "imagePullSecrets": [{"name": name} for name in profile.pull_secrets],
    }  # fmt: skip
    if profile.gpu and profile.gpu.kind:
        spec["nodeSelector"]["nvidia.com/gpu.product"] = profile.gpu.kind
    if profile.priority_class:
        spec["priorityClassName"] = profile.priority_class
    if profile.service_account:
        spec["serviceAccountName"] = profile.service_account
    if profile.run_minutes:
        spec["activeDeadlineSeconds"] = int(profile.run_minutes * 60)
    if profile.spot:
        terms = [{"weight": 100, "preference": {"matchExpressions": [
            {"key": key, "operator": "In", "values": ["spot", "SPOT", "true"]}]}} for key in _SPOT]  # fmt: skip
        spec["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}
    labels = MANAGED | {"perennial/profile": profile.name} | {k: label(v) for k, v in profile.labels.items()}
    if profile.queue:
        labels["kueue.x-k8s.io/queue-name"] = profile.queue
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": profile.namespace,
            "labels": labels,
            "annotations": dict(profile.annotations),
        },
        "spec": spec,
    }


def _environment(profile: ComputeProfile) -> list[dict[str, Any]]:
    here = settings()
    # The plan stays that of the profile's first memory: a second attempt with more has air, and gives the same content.
    planned = int(compute_profile.to_bytes(profile.memory) * PLANNED / 2**20)
    cores = float(profile.cpu[:-1]) / 1000 if profile.cpu.endswith("m") else float(profile.cpu)
    values = {
        "PERENNIAL_LAKE": here.lake,
        "PERENNIAL_LANDING": here.landing,
        "MLFLOW_TRACKING_URI": here.mlflow_uri,
        "PERENNIAL_HOME": SCRATCH,
        "PERENNIAL_MEMORY_MB": str(max(256, planned)),
        "PERENNIAL_THREADS": str(max(1, int(cores))),
        # As long as each of them may take to start.
        "PERENNIAL_WORKERS_MINUTES": f"{profile.wait_minutes + profile.start_minutes:g}",
        "HOME": SCRATCH,
        "TMPDIR": "/tmp",
    }
    values |= {name: os.environ[name] for name in FORWARDED if os.environ.get(name)}
    values |= profile.env
    secrets = [
        {"name": s.env, "valueFrom": {"secretKeyRef": {"name": s.secret, "key": s.key}}}
        for s in profile.secrets
    ]
    return [{"name": k, "value": v} for k, v in sorted(values.items())] + secrets


def merge(low: Any, high: Any) -> Any:
    """``high`` laid over ``low``: mappings by key, lists of named things by name, anything else replaced.

    Things without a name (tolerations, mounts of one volume) are added, once each.
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
        at = next((i for i, old in enumerate(merged) if keys and old.get(keys[0]) == item[keys[0]]), None)
        if at is not None:
            merged[at] = merge(merged[at], item)
        elif item not in merged:
            merged.append(item)
    return merged


def label(text: str) -> str:
    """``text`` as a Kubernetes label's value: at most 63 letters, digits, ``-``, ``_`` and ``.``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("-_.")
