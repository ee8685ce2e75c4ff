"""How a pod ended, and the error for a pod that left no result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kubernetes.client.exceptions import ApiException

from perennial.core.errors import FAILED, PerennialError, StepInterruptedError
from perennial.spec import pod_manifest

if TYPE_CHECKING:
    from kubernetes.client import models as k8s

    from perennial.spec.compute_profile import ComputeProfile

OutcomeKind = Literal[
    "done", "failed", "refused", "memory", "interrupted", "unschedulable", "image", "secret", "deadline"
]
#: Whether time heals what ended a pod without a result: whether its task is tried again.
TIME_HEALS: Mapping[OutcomeKind, bool] = {
    "done": True,
    "failed": True,
    "refused": False,
    "memory": True,
    "interrupted": True,
    "unschedulable": False,  # it has waited as long as the profile allows
    "image": False,
    "secret": False,  # nosec B105: an outcome, not a password
    "deadline": False,
}
#: Exit statuses of `perennial` for an error that needs a person and for a wrong command line, and of a container
#: runtime that cannot run the command. A process that was killed, or that time may heal, ends with another one.
REFUSED_STATUSES = (FAILED, 2, 125, 126, 127)
#: What the API server answers to a request that is wrong or not allowed.
REFUSED_REQUESTS = (400, 401, 403, 404, 405, 422)
#: Reasons of a pod's status for which Kubernetes, and not the step, ended it.
INTERRUPTIONS = ("Evicted", "Preempting", "NodeLost", "Shutdown", "Terminated")
#: Reasons for which a container waits while Kubernetes pulls its image again.
PULL_FAILURES = ("ErrImagePull", "ImagePullBackOff")


@dataclass(frozen=True)
class PodOutcome:
    """How a pod ended.

    Attributes:
        kind: ``done``, ``failed`` (its process exited), ``refused`` (its process exited, or could not be started, for
            a reason that needs a person), ``memory`` (killed at its limit), ``interrupted`` (evicted,
            preempted, deleted, node lost), ``unschedulable``, ``image``, ``secret`` or ``deadline``.
        detail: what Kubernetes says about it.
    """

    kind: OutcomeKind
    detail: str = ""


def outcome_of(pod: k8s.V1Pod) -> PodOutcome:
    """How a pod ended, from its status."""
    for outcome in _container_outcomes(pod):
        return outcome
    status = pod.status
    if status.reason == "DeadlineExceeded":
        return PodOutcome("deadline", status.message or "")
    if status.phase == "Failed" or pod.metadata.deletion_timestamp is not None:
        return PodOutcome("interrupted", _joined(status.reason or "the pod was stopped", status.message))
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return PodOutcome("unschedulable", condition.message or condition.reason or "")
    return PodOutcome("done" if status.phase == "Succeeded" else "failed", f"phase {status.phase}")


def _container_outcomes(pod: k8s.V1Pod) -> Iterator[PodOutcome]:
    """What the states of the containers say, in order; nothing where none has ended or waits for a reason."""
    for item in pod.status.container_statuses or []:
        if item.state.terminated and item.name == pod_manifest.CONTAINER:
            yield _terminated_outcome(pod, item.state.terminated)
        waiting = item.state.waiting
        if waiting and waiting.reason == "CreateContainerConfigError":
            yield PodOutcome("secret", (waiting.message or "").strip()[:500])
        elif waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            yield PodOutcome("image", _waiting_text(waiting))


def _waiting_text(waiting: k8s.V1ContainerStateWaiting) -> str:
    return f"{waiting.reason}: {(waiting.message or '').strip()[:500]}"


def image_problem(pod: k8s.V1Pod) -> str:
    """Why an image of a pod could not be pulled at the last attempt; empty if Kubernetes is not about to try again."""
    states = [
        s.state for s in (*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or []))
    ]
    waiting = [s.waiting for s in states if s and s.waiting and s.waiting.reason in PULL_FAILURES]
    return _waiting_text(waiting[0]) if waiting else ""


def _terminated_outcome(pod: k8s.V1Pod, state: k8s.V1ContainerStateTerminated) -> PodOutcome:
    if state.reason == "OOMKilled":
        return PodOutcome("memory", f"exit code {state.exit_code}")
    if pod.status.reason in INTERRUPTIONS:
        return PodOutcome("interrupted", _joined(pod.status.reason, pod.status.message))
    if state.exit_code == 0:
        return PodOutcome("done")
    # SIGKILL or SIGTERM from outside: a preemption, a drain, a deletion that has not ended yet.
    if pod.metadata.deletion_timestamp is not None or state.exit_code == 143:
        return PodOutcome("interrupted", f"the pod was stopped (exit code {state.exit_code})")
    kind: OutcomeKind = "refused" if state.exit_code in REFUSED_STATUSES else "failed"
    return PodOutcome(kind, f"exit code {state.exit_code}: {(state.message or '').strip()[-1500:]}")


def failure_outcome(failure: BaseException) -> PodOutcome:
    """The outcome of a pod that was never seen, from what the operator raised."""
    refused = any(isinstance(e, ApiException) and e.status in REFUSED_REQUESTS for e in _causes(failure))
    return PodOutcome("refused" if refused else "failed", error_message(failure))


def _joined(reason: str, message: str | None) -> str:
    return f"{reason}: {message or ''}".strip(": ")


def outcome_error(
    outcome: PodOutcome,
    profile: ComputeProfile,
    step: str,
    failure: Exception | None,
    fields: dict[str, str],
) -> PerennialError:
    """The error of a pod that left no result.

    Args:
        outcome: how the pod ended.
        profile: where it ran.
        step: name of the step.
        failure: what the operator raised, if it did.
        fields: model and partition of the error.
    """
    pod, minutes = f"the pod of step {step} (profile {profile.name})", f"{profile.wait_minutes:g} minutes"
    if failure is not None and "exceeded quota" in error_message(failure):
        return PerennialError(f"{pod} got no quota within {minutes}: {error_message(failure)}",
                              "raise the quota, or let it wait longer (wait_minutes)", **fields)  # fmt: skip
    detail = outcome.detail or (error_message(failure) if failure else "nothing")
    cause, remedy = _cause_and_remedy(outcome.kind, profile, detail)
    kind = StepInterruptedError if TIME_HEALS[outcome.kind] else PerennialError
    return kind(f"{pod} {cause}", remedy, **fields)


def _cause_and_remedy(kind: OutcomeKind, profile: ComputeProfile, detail: str) -> tuple[str, str]:
    match kind:
        case "unschedulable":
            return (
                f"found no node within {profile.wait_minutes:g} minutes: {detail}",
                "add such nodes, ask for less in the profile, or let it wait longer (wait_minutes)",
            )
        case "image":
            waited = f" within {profile.start_minutes:g} minutes" if detail.startswith(PULL_FAILURES) else ""
            return (
                f"cannot start image {profile.image_name}{waited}: {detail}",
                "build and push the image (make images), correct the profile's image and pull_secrets, or, if the "
                "image only comes later, let the pod wait longer for it (start_minutes)",
            )
        case "secret":
            return (
                f"lacks a secret of its environment: {detail}",
                f"create it in namespace {profile.namespace} (kubectl create secret generic), or correct the "
                "profile's secrets and secret_env",
            )
        case "interrupted":
            return (
                f"was interrupted {profile.interruptions + 1} times, the last time: {detail}",
                "check the nodes, or allow more interruptions in the profile",
            )
        case "deadline":
            allowed = (
                f"run_minutes allows ({profile.run_minutes:g} minutes)" if profile.run_minutes else "it may"
            )
            return (
                f"ran longer than {allowed}: {detail}",
                "allow more time in the profile, or give it more CPU and memory",
            )
        case "done":
            return (
                "succeeded but left no result",
                "it was probably stopped from outside: read its log above, then clear the task",
            )
    return f"failed: {detail}", "read its log above, then clear the task"


def error_message(error: BaseException | None) -> str:
    """The message of an error; what the API server says, where it is one of Kubernetes' API."""
    if isinstance(error, ApiException):
        try:
            return str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):
            return f"{error.status} {error.reason}"
    return str(error).strip()[:1500] if error else ""


def is_pod_missing(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that the pod does not exist."""
    return any(
        # the status of either client's error: the triggerer's is another one
        type(e).__name__ == "PodNotFoundException" or getattr(e, "status", None) == 404
        for e in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
