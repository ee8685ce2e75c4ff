"""How a pod ended, and the words in which that is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubernetes.client.exceptions import ApiException

from perennial.core.errors import PerennialError, StorageError
from perennial_airflow import pod_spec

if TYPE_CHECKING:
    from kubernetes.client import models as k8s

    from perennial.spec.compute_profile import ComputeProfile


@dataclass(frozen=True)
class Ending:
    """How a pod ended.

    Attributes:
        kind: ``done``, ``failed`` (by itself), ``memory``, ``interrupted`` (evicted, preempted, deleted, node lost),
            ``unschedulable``, ``image``, ``secret`` or ``deadline``.
        detail: what Kubernetes says.
    """

    kind: str
    detail: str = ""


def ending(pod: k8s.V1Pod) -> Ending:
    """How a pod ended, from its status."""
    status = pod.status
    for item in status.container_statuses or []:
        if (ended := item.state.terminated) and item.name == pod_spec.CONTAINER:
            if ended.reason == "OOMKilled":
                return Ending("memory", f"exit code {ended.exit_code}")
            if status.reason in ("Evicted", "Preempting", "NodeLost", "Shutdown", "Terminated"):
                return Ending("interrupted", f"{status.reason}: {status.message or ''}".strip(": "))
            if ended.exit_code == 0:
                return Ending("done")
            # SIGKILL or SIGTERM from outside: a preemption, a drain, a deletion that has not ended yet.
            if pod.metadata.deletion_timestamp is not None or ended.exit_code == 143:
                return Ending("interrupted", f"the pod was stopped (exit code {ended.exit_code})")
            return Ending("failed", f"exit code {ended.exit_code}: {(ended.message or '').strip()[-1500:]}")
        waiting = item.state.waiting
        if waiting and waiting.reason == "CreateContainerConfigError":
            return Ending("secret", (waiting.message or "").strip()[:500])
        if waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return Ending("image", f"{waiting.reason}: {(waiting.message or '').strip()[:500]}")
    if status.reason == "DeadlineExceeded":
        return Ending("deadline", status.message or "")
    if status.phase == "Failed" or pod.metadata.deletion_timestamp is not None:
        return Ending(
            "interrupted", f"{status.reason or 'the pod was stopped'}: {status.message or ''}".strip(": ")
        )
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return Ending("unschedulable", condition.message or condition.reason or "")
    return Ending("done" if status.phase == "Succeeded" else "failed", f"phase {status.phase}")


def told(
    end: Ending, profile: ComputeProfile, step: str, failure: Exception | None, fields: dict[str, str]
) -> PerennialError:
    """The error of a pod that left no result."""
    said = end.detail or (message(failure) if failure else "nothing")
    pod, minutes = f"the pod of step {step} (profile {profile.name})", f"{profile.wait_minutes:g} minutes"
    words: dict[str, tuple[Callable[..., PerennialError], str, str]] = {
        "unschedulable": (
            PerennialError, f"{pod} found no node within {minutes}: {said}",
            "add such nodes, ask for less in the profile, or let it wait longer (wait_minutes)",
        ),
        "image": (
            PerennialError, f"{pod} cannot start image {profile.image_name}: {said}",
            "build and push the image (make images), or mend the profile's image and pull_secrets",
        ),
        "secret": (
            PerennialError, f"{pod} lacks what its environment comes from: {said}",
            f"make it in namespace {profile.namespace} (kubectl create secret generic), or mend the profile's "
            "secrets and secret_env",
        ),
        "interrupted": (
            StorageError, f"{pod} was interrupted {profile.interruptions + 1} times, the last time: {said}",
            "look at the nodes; more interruptions can be allowed in the profile",
        ),
        "deadline": (
            PerennialError, f"{pod} ran longer than run_minutes allows ({profile.run_minutes:g} minutes): {said}"
            if profile.run_minutes else f"{pod} ran longer than it may: {said}",
            "allow more time in the profile, or give it more to compute with",
        ),
        "done": (
            StorageError, f"{pod} ended without a result, although it is green",
            "it was probably stopped from outside: read its log above, then clear the task",
        ),
    }  # fmt: skip
    if failure is not None and "exceeded quota" in message(failure):
        return PerennialError(f"{pod} got no quota within {minutes}: {message(failure)}",
                              "raise the quota, or let it wait longer (wait_minutes)", **fields)  # fmt: skip
    kind, cause, remedy = words.get(
        end.kind, (StorageError, f"{pod} failed: {said}", "read its log above, then clear the task")
    )
    return kind(cause, remedy, **fields)


def message(error: BaseException | None) -> str:
    if isinstance(error, ApiException):
        try:
            return str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):
            return f"{error.status} {error.reason}"
    return str(error).strip()[:1500] if error else ""


def lost(error: BaseException | None) -> bool:
    found = error
    while found is not None:
        if isinstance(found, ApiException) and found.status == 404:
            return True
        if type(found).__name__ == "PodNotFoundException":
            return True
        found = found.__cause__ or found.__context__
    return False
