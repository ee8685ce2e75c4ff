"""A stack whose heavy steps run in pods: its profiles and models, and helpers of its tests."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.local_stack.airflow_client import Airflow
from perennial.local_stack.config import Stack
from perennial.spec import compute_profile
from perennial.spec.model_spec import ModelSpec

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

#: Secrets with the keys of the S3 server, and with the key that versions are signed with.
SECRET, SIGNING_SECRET = "perennial-aws", "perennial-signing"
#: A resource that no cluster offers, whether it has GPUs or not.
NO_GPU = "perennial.test/gpu"
#: Rows a day that cannot be trained on within 256 MiB.
MANY_ROWS = 9_000
#: An image that no node has when its pod starts.
LATE_IMAGE = "perennial/comes-later:0.0.1"
ENDED = ("success", "failed")
#: Models, with the profile of each step that does not use the profile `pod`. Those of `SLOW` train for long enough to
#: be interrupted.
MODELS: dict[str, dict[str, str]] = {
    "pod_loop": {},
    "pod_deferred": dict.fromkeys(("data", "train", "score", "monitor"), "deferred"),
    "pod_many": {"data": "local", "train": "local", "monitor": "local"},
    "pod_workers": {"data": "local", "train": "workers"},
    "pod_workers_here": {"data": "local", "train": "workers_here"},
    "pod_here": dict.fromkeys(("data", "train", "score", "monitor"), "local"),
}
SLOW: dict[str, dict[str, str]] = {
    "pod_killed": {},
    "pod_deleted": {},
    "pod_orphan": {},
    "pod_stopped": {},
    "pod_followed": {"data": "local", "train": "deferred"},
    "pod_lost_worker": {"data": "local", "train": "workers_deferred"},
}


#: Rows a day of those of `SLOW`: their 4,000 rounds take 20 seconds or more. The log of a deferred training is fetched
#: that often, and has to be seen to grow.
SLOW_ROWS, FOLLOWED_ROWS = 2000, 8000


def profile(name: str, namespace: str, **changes: Any) -> dict[str, Any]:
    """A profile for small pods."""
    return {
        "name": name, "kind": "kubernetes", "namespace": namespace, "cpu": "250m", "memory": "1Gi", "scratch": "1Gi",
        "secrets": [{"env": "PERENNIAL_SIGNING_KEY", "secret": SIGNING_SECRET, "key": "private.pem"}],
        "secret_env": [SECRET], "wait_minutes": 5, "start_minutes": 2, "labels": {"cost_centre": "tests"},
        "env": {"PERENNIAL_CHECKPOINT_SECONDS": "1", "PERENNIAL_PROGRESS_SECONDS": "2"},
    } | changes  # fmt: skip


def profiles(namespace: str) -> list[dict[str, Any]]:
    """Every profile of these tests."""
    return [
        profile("pod", namespace),
        profile("deferred", namespace, deferrable=True),
        profile("little_memory", namespace, memory="256Mi", more_memory=["1200Mi"]),
        profile("too_little_memory", namespace, memory="256Mi"),
        profile("no_image", namespace, image="perennial/there-is-no-such-image:0.0.1", start_minutes=0.5),
        profile("late_image", namespace, image=LATE_IMAGE, start_minutes=4),
        profile("late_image_deferred", namespace, image=LATE_IMAGE, start_minutes=4, deferrable=True),
        profile("loopback", namespace, env={"MLFLOW_TRACKING_URI": "http://127.1:5000"}),
        profile("gpu_nowhere", namespace, gpu={"resource": NO_GPU}, wait_minutes=0.3),
        profile("no_secret", namespace, secret_env=[SECRET, "there-is-no-such-secret"], start_minutes=0.3),
        profile("workers", namespace, workers=2),
        {"name": "workers_here", "kind": "local", "workers": 2},
        profile("workers_deferred", namespace, workers=2, deferrable=True),
        profile(
            "workers_nowhere",
            namespace,
            workers=2,
            gpu={"resource": NO_GPU},
            wait_minutes=0.3,
            start_minutes=0.2,
        ),
        profile("big", namespace, cpu="1", wait_minutes=4),
    ]


@dataclass
class Cluster:
    """One namespace of the cluster, made for these tests and removed after them.

    Attributes:
        namespace: its name.
        api: client of the cluster.
        secret: the keys of the S3 server, as the secret of the pods holds them.
    """

    namespace: str
    api: Any
    secret: dict[str, str]
    seen: list[str] = field(default_factory=list)

    def pods(self, **labels: str) -> list[Any]:
        """The pods of the namespace that have these labels."""
        chosen = ",".join(f"{k}={v}" for k, v in labels.items())
        return list(self.api.list_namespaced_pod(self.namespace, label_selector=chosen).items)

    def start(self, name: str, code: str) -> str:
        """Run Python code in a pod of the trainer image, which then ends; returns its name."""
        image = compute_profile.ComputeProfile(name="plain", kind="kubernetes").image_name
        box = {
            "name": "base",
            "image": image,
            "command": ["python", "-c", code],
            "imagePullPolicy": "IfNotPresent",
        }
        self.api.create_namespaced_pod(self.namespace, {
            "metadata": {"name": name}, "spec": {"containers": [box], "restartPolicy": "Never"},
        })  # fmt: skip
        return name

    def running(self, model: str, step: str, patience: float = 120, **labels: str) -> Any:
        """Wait for the running pod of a model's step."""
        return wait_for(
            lambda: next(
                (p for p in self.pods(**{"perennial/model": model, "perennial/step": step}, **labels)
                 if p.status.phase == "Running" and not p.metadata.deletion_timestamp), None),
            f"a running pod of {model}.{step}", patience,
        )  # fmt: skip


@dataclass(frozen=True)
class Pods:
    """The stack, the cluster and the models."""

    config: Stack
    airflow: Airflow
    cluster: Cluster
    specs: dict[str, ModelSpec]
    models: Path

    def run(self, dag: str, *, key: str | None = None, **conf: Any) -> str:
        """Start a run; returns its id."""
        return self.airflow.trigger(dag, key=key, conf=conf)

    def state(self, dag: str, run: str) -> str:
        """State of a run."""
        return str(self.airflow.call("GET", f"/dags/{dag}/dagRuns/{run}")["state"])

    def ended(self, dag: str, run: str, patience: float = 300) -> str:
        """Wait for the end of a run; returns its state."""
        return str(
            wait_for(
                lambda: s if (s := self.state(dag, run)) in ENDED else None, f"{dag} {run} to end", patience
            )
        )

    def succeeds(self, dag: str, run: str, patience: float = 300) -> None:
        """Wait for a run, which must succeed."""
        state = self.ended(dag, run, patience)
        assert state == "success", self.airflow.failure_reason(dag, run)

    def log(self, dag: str, run: str, task: str, attempt: int = 1) -> str:
        """The log of one attempt of a task."""
        return "\n".join(self.airflow.log(dag, run, task, attempt))

    def task(self, dag: str, run: str, task: str) -> dict[str, Any]:
        """A task instance."""
        return next(t for t in self.airflow.tasks(dag, run) if t["task_id"] == task)


def wait_for(condition: Any, what: str, patience: float = 120, every: float = 0.5) -> Any:
    """Wait until ``condition`` returns something true, and return it."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {patience:.0f} s")
        time.sleep(every)
    return value


def pod_host() -> str:
    """An address of this machine that pods can reach."""
    return os.environ.get("PERENNIAL_POD_HOST") or os.environ.get("TESTBED_HOST_IP") or ""


class _Answer:
    def __init__(self, content: Any) -> None:
        self.data = json.dumps(content)


def as_pod(content: dict[str, Any]) -> V1Pod:
    """A pod as the client reads it from the API server."""
    from kubernetes.client import ApiClient

    return ApiClient().deserialize(_Answer(content), "V1Pod")
