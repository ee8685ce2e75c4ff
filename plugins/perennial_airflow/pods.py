"""Steps in pods: the one place that makes a pod operator, and that reads how a pod ended.

A pod's colour proves nothing (airflow 71202, 73006, 73117: tasks that are green though their pod was killed), so the
step's own result, written last to the lake, decides. Imported only where a step runs in a pod: it costs seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import TaskDeferred
from kubernetes.client.exceptions import ApiException

from perennial import files, manifest, results
from perennial.errors import PerennialError, StorageError
from perennial.settings import settings
from perennial_airflow import pod_spec

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

    from perennial.compute import Profile
    from perennial.spec import ModelSpec

log = logging.getLogger("airflow.task")
QUOTA_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Ending:
    """How a pod ended.

    Attributes:
        kind: ``done``, ``failed`` (by itself), ``memory``, ``interrupted`` (evicted, preempted, deleted, node lost),
            ``unschedulable``, ``image`` or ``deadline``.
        detail: what Kubernetes says.
    """

    kind: str
    detail: str = ""


class StepPod(KubernetesPodOperator):
    """One pod for one attempt at a step; `ending` tells how it went."""

    def __init__(self, *, wait_seconds: float, **kwargs: Any) -> None:
        super().__init__(
            # What the cluster says about a waiting pod is shown in the task's log.
            log_events_on_startup=True,
            # The result comes through the lake: no sidecar, no XCom.
            do_xcom_push=False,
            log_pod_spec_on_failure=False,
            on_finish_action="delete_pod",
            # A retry of a task that was killed finds its pod again. Found by name and not by uid (airflow 71743): the
            # random suffix keeps names apart.
            durable=True,
            random_name_suffix=True,
            schedule_timeout_seconds=max(1, int(wait_seconds)),
            startup_check_interval_seconds=1,
            base_container_status_polling_interval=0.5,
            base_container_name=pod_spec.CONTAINER,
            **kwargs,
        )
        self.wait_seconds = wait_seconds
        self.last_seen: k8s.V1Pod | None = None
        self.gone = False

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Context) -> k8s.V1Pod:
        """As the operator's, but a full quota is waited for."""
        deadline = time.monotonic() + self.wait_seconds
        told = ""
        while True:
            try:
                return super().get_or_create_pod(pod_request_obj, context)
            except ApiException as error:
                reason = _message(error)
                if error.status != 403 or "exceeded quota" not in reason or time.monotonic() > deadline:
                    raise
                if reason != told:
                    log.info("Waiting for quota: %s", reason)
                    told = reason
                time.sleep(QUOTA_POLL_SECONDS)

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """Look at the pod once more before it is deleted."""
        try:
            self.last_seen = self.pod_manager.read_pod(pod)
        except ApiException as error:
            self.gone = error.status == 404
        super().cleanup(pod, remote_pod, *args, **kwargs)

    def ending(self, error: BaseException | None) -> Ending:
        """How the pod ended, after the operator returned or raised ``error``."""
        if self.gone or (self.last_seen is None and _lost(error)):
            return Ending("interrupted", "the pod is gone: deleted, or its node was lost")
        if self.last_seen is None:
            return Ending("done") if error is None else Ending("failed", _message(error))
        return ending(self.last_seen)


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


def run(
    step: str, spec: ModelSpec, profile: Profile, arguments: dict[str, Any], context: Context
) -> dict[str, Any]:
    """Run a step in a pod of ``profile``, wait for its end, return its result.

    An OOM kill is tried again with the profile's next larger memory and never with the same; an interruption on the
    profile's own budget. Both cost none of the task's retries.

    Raises:
        PerennialError: what the step raised; or that the pod did not start, did not end or left no result.
        TaskDeferred: the profile is deferrable; the task's ``resume`` goes on with it.
    """
    task = context["task"]
    place = result_uri(context)
    event = getattr(task, "event", None)
    memory, interruptions = profile.memory, 0
    if event:
        memory, interruptions = event.get("memory", memory), int(event.get("interruptions", 0))
    while True:
        wanted = pod_spec.pod(
            profile,
            spec,
            step,
            command(step, spec, arguments, place),
            memory=memory,
            interruptions=interruptions,
        )
        wanted["metadata"]["annotations"][pod_spec.TASK] = json.dumps(identity(context))
        attempt = make(profile, task, wanted, memory, interruptions)
        task.pod = attempt  # for on_kill
        if not event:
            log.info("Step %s of %s in a pod: profile %s, image %s, memory %s", step, spec.name, profile.name,
                     profile.image_name, memory)  # fmt: skip
        failure = _attempt(attempt, context, event)
        event = None
        end = attempt.ending(failure)
        if (result := results.read(place)) is not None:
            return result
        fields = {
            "model": spec.name,
            "partition": str(arguments.get("start") or arguments.get("as_of") or ""),
        }
        log.warning("The pod left no result: %s (%s)", end.kind, end.detail or "nothing said")
        if (
            task.killed
        ):  # a task that was told to end goes on after on_kill (airflow 73006): no other pod for it
            raise StorageError(
                f"step {step} was stopped with its task", "clear the task to run it again", **fields
            )
        if end.kind == "memory":
            memory = _more(profile, memory, step, fields)
        elif end.kind == "interrupted" and interruptions < profile.interruptions:
            interruptions += 1
            log.warning("Interrupted: attempt %d of %d begins", interruptions + 1, profile.interruptions + 1)
        else:
            raise _told(end, profile, step, failure, fields)


def _attempt(attempt: StepPod, context: Context, event: dict[str, Any] | None) -> Exception | None:
    """Start a pod and wait for it, or go on after the triggerer saw it end; what the operator raised, if it did."""
    try:
        if event:
            attempt.trigger_reentry(context, event)
        else:
            files.remove(result_uri(context))
            # Airflow warns of operators that others run; the task runner marks its own so.
            copy_context().run(_marked, attempt, context)
    except TaskDeferred as deferred:
        deferred.method_name = "resume"
        raise
    except Exception as error:
        return error
    return None


def _marked(attempt: StepPod, context: Context) -> None:
    ExecutorSafeguard.tracker.set(attempt)
    attempt.execute(context)


def make(profile: Profile, task: Any, wanted: dict[str, Any], memory: str, interruptions: int) -> StepPod:
    """The operator of one attempt."""
    labels = wanted["metadata"]["labels"]
    name = f"{labels['perennial/model']}-{labels['perennial/step']}".replace("_", "-").lower()
    made: type[StepPod] = StepPod
    more: dict[str, Any] = {"name": name, "kubernetes_conn_id": profile.connection}
    if profile.kind == "eks":
        from airflow.providers.amazon.aws.operators.eks import EksPodOperator

        # Amazon's operator makes the cluster's configuration from AWS credentials, and the rest as ours does.
        made = type("EksStepPod", (StepPod, EksPodOperator), {})
        more = {"pod_name": name, "kubernetes_conn_id": None, "cluster_name": profile.cluster,
                "region": profile.region, "aws_conn_id": profile.aws_connection}  # fmt: skip
    attempt = made(
        task_id=task.task_id,
        namespace=profile.namespace,
        wait_seconds=profile.wait_minutes * 60,
        startup_timeout_seconds=int(profile.start_minutes * 60),
        pod_template_dict=wanted,
        automount_service_account_token=False,
        deferrable=profile.deferrable,
        execution_timeout=task.execution_timeout,
        **more,
    )
    # What the triggerer hands back with its event, beside what the operator gives it itself.
    told = {"memory": memory, "interruptions": interruptions}
    attempt.trigger_kwargs = (attempt.trigger_kwargs or {}) | told
    return attempt


def command(step: str, spec: ModelSpec, arguments: dict[str, Any], place: str) -> list[str]:
    """Arguments of ``perennial`` that run the step in the pod; the spec is put into the lake for it."""
    text = json.dumps(spec.bundle(), sort_keys=True)
    bundle = f"{settings().lake}/specs/{spec.name}/{hashlib.sha256(text.encode()).hexdigest()}.json"
    if not files.exists(bundle):
        files.write_text(bundle, text)
    found = [
        "run",
        step,
        "--spec-file",
        bundle,
        "--result-file",
        place,
        "--library",
        manifest.library_digest(),
    ]
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        found += [] if value is None or value is False else [flag] if value is True else [flag, str(value)]
    return found


def identity(context: Context) -> dict[str, Any]:
    """Which task instance this is; labels, which Airflow gives pods too, hold shortened names."""
    ti = context["ti"]
    return {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": ti.map_index}


def result_uri(context: Context) -> str:
    """Where the step of this task leaves its result: one place for all tries, since a retry may find the same pod."""
    task = identity(context)
    name = "/".join(map(str, task.values()))
    return f"{settings().lake}/results/{task['dag_id']}/{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


@contextmanager
def client(profile: Profile) -> Iterator[k8s.CoreV1Api]:
    """Kubernetes' API as the profile's pods are made by."""
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

    if profile.kind != "eks":
        yield KubernetesHook(conn_id=profile.connection).core_v1_client
        return
    from airflow.providers.amazon.aws.hooks.eks import EksHook

    hook = EksHook(aws_conn_id=profile.aws_connection, region_name=profile.region)
    with hook.generate_config_file_with_credentials(
        eks_cluster_name=profile.cluster, pod_namespace=profile.namespace
    ) as (file, _):
        yield KubernetesHook(conn_id=None, config_file=file).core_v1_client


def _more(profile: Profile, memory: str, step: str, fields: dict[str, str]) -> str:
    ladder = profile.memories()
    larger = ladder[ladder.index(memory) + 1 :] if memory in ladder else []
    if not larger:
        raise PerennialError(
            f"step {step} was killed at its memory limit of {memory}, the largest of profile {profile.name}",
            f"add a larger one to more_memory of the profile, which allows {', '.join(ladder)}",
            **fields,
        )
    log.warning("Killed at its memory limit of %s: it is tried again with %s", memory, larger[0])
    return larger[0]


def _told(
    end: Ending, profile: Profile, step: str, failure: Exception | None, fields: dict[str, str]
) -> PerennialError:
    """The error of a pod that left no result."""
    said = end.detail or (_message(failure) if failure else "nothing")
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
    if failure is not None and "exceeded quota" in _message(failure):
        return PerennialError(f"{pod} got no quota within {minutes}: {_message(failure)}",
                              "raise the quota, or let it wait longer (wait_minutes)", **fields)  # fmt: skip
    kind, cause, remedy = words.get(
        end.kind, (StorageError, f"{pod} failed: {said}", "read its log above, then clear the task")
    )
    return kind(cause, remedy, **fields)


def _message(error: BaseException | None) -> str:
    if isinstance(error, ApiException):
        try:
            return str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):
            return f"{error.status} {error.reason}"
    return str(error).strip()[:1500] if error else ""


def _lost(error: BaseException | None) -> bool:
    found = error
    while found is not None:
        if isinstance(found, ApiException) and found.status == 404:
            return True
        if type(found).__name__ == "PodNotFoundException":
            return True
        found = found.__cause__ or found.__context__
    return False
