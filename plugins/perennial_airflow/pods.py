"""Steps in pods: the one place that makes a pod operator, and that reads how a pod ended.

A pod's colour proves nothing (airflow 71202, 73006, 73117: tasks that are green though their pod was killed), so the
step's own result, written last to the lake, decides. Imported only where a step runs in a pod: it costs seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import TaskDeferred

from perennial.core import runtime
from perennial.core.errors import PerennialError, StepInterruptedError, StorageError, WorkersUnavailableError
from perennial.core.settings import settings
from perennial.steps import result_file
from perennial.storage import object_store
from perennial_airflow import pod_spec
from perennial_airflow.pod_ending import Ending, told
from perennial_airflow.step_pod import StepPod

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

    from perennial.spec.compute_profile import ComputeProfile
    from perennial.spec.model_spec import ModelSpec

log = logging.getLogger("airflow.task")


def run(
    step: str, spec: ModelSpec, profile: ComputeProfile, arguments: dict[str, Any], context: Context
) -> dict[str, Any]:
    """Run a step in a pod of ``profile``, wait for its end, return its result.

    An OOM kill is tried again with the profile's next larger memory and never with the same; an interruption, such as a
    lost worker, on the profile's own budget. Both cost none of the task's retries.

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
        attempt = _prepare(step, spec, profile, arguments, context, memory, interruptions)
        task.pod = attempt  # for on_kill
        if not event:
            log.info("Step %s of %s in a pod: profile %s, image %s, memory %s", step, spec.name, profile.name,
                     profile.image_name, memory)  # fmt: skip
        failure = _attempt(attempt, context, event)
        event = None
        end = attempt.ending(failure)
        try:
            if (result := result_file.read(place)) is not None:
                return result
        except StepInterruptedError as error:
            end = attempt.crew_ending() or Ending("interrupted", error.cause)
        except WorkersUnavailableError:
            end = attempt.crew_ending() or end
            if end.kind == "failed":  # the trainer did, for want of workers, and their pods do not say why
                raise
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
            raise told(end, profile, step, failure, fields)


def _prepare(
    step: str,
    spec: ModelSpec,
    profile: ComputeProfile,
    arguments: dict[str, Any],
    context: Context,
    memory: str,
    interruptions: int,
) -> StepPod:
    """The operator of the next attempt, and of its workers."""
    task = json.dumps(identity(context))
    described = partial(pod_spec.pod, profile, spec, step, memory=memory, interruptions=interruptions)
    if (crew := profile.crew(step)) == 1:
        wanted = described(
            command(step, spec, arguments, result_uri(context)), annotations={pod_spec.TASK: task}
        )
        return make(profile, context["task"], wanted, memory, interruptions)
    # Each attempt has a place of its own: no worker finds the trainer of another.
    meeting = f"{result_uri(context).removesuffix('.json')}-{uuid.uuid4().hex[:12]}.meeting.json"
    wanted = described(
        command(step, spec, arguments | {"workers": crew, "meeting": meeting}, result_uri(context)),
        annotations={pod_spec.TASK: task, pod_spec.MEETING: meeting},
        role="trainer",
    )

    def worker(rank: int, meeting: str) -> dict[str, Any]:
        told = ["work", "--meeting", meeting, "--rank", str(rank), "--library", runtime.library_digest()]
        return described(told, annotations={pod_spec.TASK: task}, role="worker")

    return make(profile, context["task"], wanted, memory, interruptions, crew=crew, worker=worker)


def _attempt(attempt: StepPod, context: Context, event: dict[str, Any] | None) -> Exception | None:
    """Start a pod and wait for it, or go on after the triggerer saw it end; what the operator raised, if it did."""
    try:
        if event:
            attempt.trigger_reentry(context, event)
        else:
            object_store.remove(result_uri(context))
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


def make(
    profile: ComputeProfile, task: Any, wanted: dict[str, Any], memory: str, interruptions: int, **crew: Any
) -> StepPod:
    """The operator of one attempt; ``crew`` as `StepPod` takes it."""
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
        **crew,
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
    if not object_store.exists(bundle):
        object_store.write_text(bundle, text)
    found = [
        "run",
        step,
        "--spec-file",
        bundle,
        "--result-file",
        place,
        "--library",
        runtime.library_digest(),
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
def client(profile: ComputeProfile) -> Iterator[k8s.CoreV1Api]:
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


def _more(profile: ComputeProfile, memory: str, step: str, fields: dict[str, str]) -> str:
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
