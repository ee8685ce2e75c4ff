"""Runs steps in pods: the only module that makes pod operators and reads how a pod ended.

The reported success of a pod cannot be trusted (airflow 71202, 73006, 73117: tasks that succeeded although their pod
was killed). What counts is the result that the step writes to the lake last. This module takes seconds to import; only
a task whose step runs in a pod imports it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import TaskDeferred

from perennial.core import runtime
from perennial.core.errors import (
    OutOfMemoryError,
    PerennialError,
    StepInterruptedError,
    WorkersUnavailableError,
)
from perennial.core.settings import settings
from perennial.spec import pod_manifest
from perennial.steps import result_file
from perennial.storage import object_store
from perennial_airflow.execution.pod_outcome import PodOutcome, outcome_error
from perennial_airflow.execution.step_pod import StepPod

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

    from perennial.spec.compute_profile import ComputeProfile
    from perennial.spec.model_spec import ModelSpec
    from perennial_airflow.execution.operators import StageTask

log = logging.getLogger("airflow.task")


@dataclass(frozen=True)
class Attempt:
    """What changes from one attempt at a step to the next; the triggerer hands it back with its event.

    Attributes:
        memory: memory limit of the pod.
        interruptions: how often the step was interrupted before.
    """

    memory: str
    interruptions: int = 0


def run(
    step: str, spec: ModelSpec, profile: ComputeProfile, arguments: dict[str, Any], context: Context
) -> dict[str, Any]:
    """Run a step in a pod of ``profile``, wait for its end, return its result.

    After running out of memory, the step is tried again with the profile's next larger limit, never with the same one.
    After an interruption or the loss of a worker, it is tried again up to ``interruptions`` times. Neither uses the
    task's retries.

    Args:
        step: name of the step.
        spec: the model.
        profile: where it runs.
        arguments: of the step.
        context: Airflow's context of the task.

    Raises:
        PerennialError: what the step raised; or that the pod did not start, did not end or left no result.
        TaskDeferred: the profile is deferrable; the task's ``resume`` continues with it.
    """
    task = cast("StageTask", context["task"])
    event = task.event
    attempt = Attempt(profile.memory)
    if event:
        attempt = Attempt(event.get("memory", profile.memory), int(event.get("interruptions", 0)))
    fields = {"model": spec.name, "partition": str(arguments.get("start") or arguments.get("as_of") or "")}
    while True:
        operator = _attempt_operator(step, spec, profile, arguments, context, attempt)
        task.pod = operator  # for on_kill
        if not event:
            log.info("Step %s of %s in a pod: profile %s, image %s, memory %s", step, spec.name, profile.name,
                     profile.image_name, attempt.memory)  # fmt: skip
        failure = _run_attempt(operator, context, event)
        event = None
        result, outcome = _result_or_outcome(operator, failure, result_uri(context))
        if result is not None:
            return result
        log.warning("The pod left no result: %s (%s)", outcome.kind, outcome.detail or "no detail")
        if task.killed:
            # A killed task continues after on_kill (airflow 73006); it must not start another pod.
            raise StepInterruptedError(
                f"step {step} was stopped with its task", "clear the task to run it again", **fields
            )
        if outcome.kind == "memory":
            attempt = replace(attempt, memory=_next_memory(profile, attempt.memory, step, fields))
        elif outcome.kind == "interrupted" and attempt.interruptions < profile.interruptions:
            attempt = replace(attempt, interruptions=attempt.interruptions + 1)
            log.warning(
                "Interrupted: attempt %d of %d begins", attempt.interruptions + 1, profile.interruptions + 1
            )
        else:
            raise outcome_error(outcome, profile, step, failure, fields)


def _result_or_outcome(
    operator: StepPod, failure: Exception | None, uri: str
) -> tuple[dict[str, Any] | None, PodOutcome]:
    """The result that the step left, if it did, and how its pod ended.

    Raises:
        PerennialError: the step left an error that another attempt would not overcome.
    """
    outcome = operator.outcome(failure)
    try:
        return result_file.read_result(uri), outcome
    except StepInterruptedError as error:
        return None, operator.worker_outcome() or PodOutcome("interrupted", error.cause)
    except OutOfMemoryError as error:
        return None, PodOutcome("memory", error.cause)
    except WorkersUnavailableError:
        outcome = operator.worker_outcome() or outcome
        if outcome.kind in ("failed", "refused"):
            # The trainer gave up for lack of workers, and their pods do not say why.
            raise
        return None, outcome


def _attempt_operator(
    step: str,
    spec: ModelSpec,
    profile: ComputeProfile,
    arguments: dict[str, Any],
    context: Context,
    attempt: Attempt,
) -> StepPod:
    """The operator of one attempt, and of its workers' pods."""
    uri = result_uri(context)
    annotations = {pod_manifest.TASK_ANNOTATION: json.dumps(task_identity(context))}
    manifest = partial(
        pod_manifest.step_pod, profile, spec, step,
        memory=attempt.memory, interruptions=attempt.interruptions,
    )  # fmt: skip
    workers = profile.worker_count(step)
    if workers == 1:
        alone = manifest(command(step, spec, arguments, uri), annotations=annotations)
        return make_operator(profile, context["task"], alone, attempt)
    # Each attempt has its own rendezvous, so that no worker finds the trainer of another attempt.
    rendezvous = f"{uri.removesuffix('.json')}-{uuid.uuid4().hex[:12]}.rendezvous.json"
    trainer = manifest(
        command(step, spec, arguments | {"workers": workers, "rendezvous": rendezvous}, uri),
        annotations=annotations | {pod_manifest.RENDEZVOUS_ANNOTATION: rendezvous},
        role="trainer",
    )

    def worker_manifest(rank: int, rendezvous: str) -> dict[str, Any]:
        command_line = ["worker", "--rendezvous", rendezvous, "--rank", str(rank)]
        return manifest(
            [*command_line, "--library-digest", runtime.library_digest()],
            annotations=annotations,
            role="worker",
        )

    return make_operator(
        profile, context["task"], trainer, attempt, worker_count=workers, worker_manifest=worker_manifest
    )


def _run_attempt(operator: StepPod, context: Context, event: dict[str, Any] | None) -> Exception | None:
    """Start a pod and wait for its end, or continue after the triggerer saw it end.

    Returns:
        What the operator raised, if it did.
    """
    try:
        if event:
            operator.trigger_reentry(context, event)
        else:
            object_store.delete_file(result_uri(context))
            # Airflow warns of operators that are not executed by the task runner; it marks its own like this.
            copy_context().run(_execute_as_task, operator, context)
    except TaskDeferred as deferred:
        deferred.method_name = "resume"
        raise
    except Exception as error:
        return error
    return None


def _execute_as_task(operator: StepPod, context: Context) -> None:
    ExecutorSafeguard.tracker.set(operator)
    operator.execute(context)


def make_operator(
    profile: ComputeProfile, task: Any, manifest: dict[str, Any], attempt: Attempt, **workers: Any
) -> StepPod:
    """The operator of one attempt.

    Args:
        profile: where the pod runs.
        task: the task that runs the step; gives its id and its timeout.
        manifest: of the pod.
        attempt: what the triggerer hands back.
        workers: ``worker_count`` and ``worker_manifest`` of `StepPod`.
    """
    labels = manifest["metadata"]["labels"]
    name = f"{labels['perennial/model']}-{labels['perennial/step']}".replace("_", "-").lower()
    operator_class: type[StepPod] = StepPod
    options: dict[str, Any] = {"name": name, "kubernetes_conn_id": profile.connection}
    if profile.kind == "eks":
        from airflow.providers.amazon.aws.operators.eks import EksPodOperator

        from perennial_airflow.execution.pod_trigger_eks import EksStepPodTrigger

        # Amazon's operator makes the cluster's configuration from AWS credentials, and the rest as ours does.
        operator_class = type("EksStepPod", (StepPod, EksPodOperator), {"trigger_class": EksStepPodTrigger})
        options = {"pod_name": name, "kubernetes_conn_id": None, "cluster_name": profile.cluster,
                   "region": profile.region, "aws_conn_id": profile.aws_connection}  # fmt: skip
    operator = operator_class(
        task_id=task.task_id,
        namespace=profile.namespace,
        wait_seconds=profile.wait_minutes * 60,
        startup_timeout_seconds=int(profile.start_minutes * 60),
        pod_template_dict=manifest,
        automount_service_account_token=False,
        deferrable=profile.deferrable,
        execution_timeout=task.execution_timeout,
        **workers,
        **options,
    )
    # The triggerer returns these with its event, in addition to what the operator adds.
    state = {"memory": attempt.memory, "interruptions": attempt.interruptions}
    operator.trigger_kwargs = (operator.trigger_kwargs or {}) | state
    return operator


def command(step: str, spec: ModelSpec, arguments: dict[str, Any], result: str) -> list[str]:
    """Arguments of ``perennial`` that run a step in a pod. The spec is written to the lake for it.

    Args:
        step: name of the step.
        spec: the model.
        arguments: of the step.
        result: URI of the result file.
    """
    # in the spec's order, in which a search draws its parameters
    text = json.dumps(spec.bundle())
    bundle = f"{settings().lake}/specs/{spec.name}/{hashlib.sha256(text.encode()).hexdigest()}.json"
    if not object_store.exists(bundle):
        object_store.write_text(bundle, text)
    words = [
        "run",
        step,
        "--spec-file",
        bundle,
        "--result-file",
        result,
        "--library-digest",
        runtime.library_digest(),
    ]
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value not in (None, False, ""):  # the command refuses an empty text
            words += [flag, str(value)]
    return words


def task_identity(context: Context) -> dict[str, Any]:
    """Which task instance this is. (Airflow labels its pods, too, but shortens the names.)"""
    ti = context["ti"]
    return {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": ti.map_index}


def result_uri(context: Context) -> str:
    """URI of the result of this task's step: the same for all tries, since a retry may find the same pod."""
    task = task_identity(context)
    name = "/".join(map(str, task.values()))
    return f"{settings().lake}/results/{task['dag_id']}/{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


@contextmanager
def kubernetes_client(profile: ComputeProfile) -> Iterator[k8s.CoreV1Api]:
    """A client of Kubernetes' API, connected as the operator of the profile's pods is."""
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

    if profile.kind != "eks":
        yield KubernetesHook(conn_id=profile.connection).core_v1_client
        return
    from airflow.providers.amazon.aws.hooks.eks import EksHook

    hook = EksHook(aws_conn_id=profile.aws_connection, region_name=profile.region)
    with hook.generate_config_file_with_credentials(
        eks_cluster_name=profile.cluster or "", pod_namespace=profile.namespace
    ) as (file, _):
        yield KubernetesHook(conn_id=None, config_file=file).core_v1_client


def _next_memory(profile: ComputeProfile, memory: str, step: str, fields: dict[str, str]) -> str:
    """The profile's next larger memory limit.

    Raises:
        PerennialError: there is none.
    """
    limits = profile.memory_limits()
    larger = limits[limits.index(memory) + 1 :] if memory in limits else []
    if not larger:
        raise PerennialError(
            f"step {step} ran out of memory at its limit of {memory}, the largest of profile {profile.name}",
            f"add a larger one to more_memory of the profile, which allows {', '.join(limits)}",
            **fields,
        )
    log.warning("Out of memory at its limit of %s: it is tried again with %s", memory, larger[0])
    return larger[0]
