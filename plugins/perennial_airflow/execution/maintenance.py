"""``perennial.maintenance``: deletes pods whose task is gone.

A task that is marked failed or cleared while its worker is gone leaves its pod running, with its GPU (airflow 62398).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

from airflow.sdk import DAG, BaseOperator, Context, Param

from perennial.spec import compute_profile, pod_manifest
from perennial.spec.catalog import load_models
from perennial.spec.sections import Step
from perennial_airflow.bundle_dags import bundle_dag
from perennial_airflow.execution import runner

if TYPE_CHECKING:
    from kubernetes.client import models as k8s

    from perennial.spec.compute_profile import ComputeProfile

log = logging.getLogger("airflow.task")
#: States of a task that has its pod, or will find it again.
ACTIVE_STATES = {
    "running", "deferred", "queued", "scheduled", "restarting", "up_for_retry", "up_for_reschedule",
}  # fmt: skip


def dags() -> dict[str, DAG]:
    """The DAG, by its id; none where no model's step runs in pods."""
    profiles = pod_profiles()
    if not profiles:
        return {}
    with bundle_dag(
        "maintenance",
        description="Deletes pods whose task is gone.",
        doc=f"{__doc__}\nProfiles: {', '.join(sorted(p.name for p in profiles))}. A pod is deleted when the task "
        "instance that its annotation names is neither running nor about to be tried again.",
        schedule="*/15 * * * *",
        tag="maintenance",
        params={
            "minutes": Param(
                2,
                type="integer",
                minimum=0,
                title="Minutes",
                description_md="Younger pods are not deleted: the state of their task may not be written yet.",
            )
        },
    ) as dag:
        DeleteOrphanedPods(task_id="delete_orphaned_pods", profiles=profiles)
    return {dag.dag_id: dag}


def pod_profiles() -> list[ComputeProfile]:
    """The profiles by which some model's step runs in pods: one per cluster and namespace."""
    profiles = [
        runner.profile_of(spec, step) for spec in load_models()[0].values() for step in get_args(Step)
    ]
    profiles.append(compute_profile.load_profile(compute_profile.default_profile()))
    return list(
        {(p.kind, p.connection, p.cluster, p.namespace): p for p in profiles if p.runs_in_pods}.values()
    )


class DeleteOrphanedPods(BaseOperator):
    """Deletes the pods of these profiles whose task is gone.

    Args:
        profiles: whose clusters and namespaces are searched.
    """

    ui_color = "#f2f2f2"

    def __init__(self, *, profiles: list[ComputeProfile], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.profiles = profiles

    def execute(self, context: Context) -> dict[str, Any]:
        """Delete them.

        Returns:
            pods: number of pods that were checked. deleted: names of those that were deleted.
        """
        from perennial_airflow.execution import pods

        deleted: list[str] = []
        checked = 0
        created_before = datetime.now(UTC) - timedelta(minutes=context["params"]["minutes"])
        selector = ",".join(f"{k}={v}" for k, v in pod_manifest.MANAGED_BY_LABEL.items())
        for profile in self.profiles:
            with pods.kubernetes_client(profile) as api:
                items = api.list_namespaced_pod(profile.namespace, label_selector=selector).items
                checked += len(items)
                for pod in orphaned_pods(items, context["ti"].get_task_states, created_before):
                    log.warning("Deleting pod %s: its task %s is gone", pod.metadata.name,
                                pod.metadata.annotations[pod_manifest.TASK_ANNOTATION])  # fmt: skip
                    api.delete_namespaced_pod(pod.metadata.name, profile.namespace)
                    deleted.append(pod.metadata.name)
        log.info("Pods of tasks: %d checked, %d deleted because their task is gone.", checked, len(deleted))
        return {"pods": checked, "deleted": deleted}


def orphaned_pods(
    pods: Iterable[k8s.V1Pod], get_task_states: Callable[..., dict[str, Any]], created_before: datetime
) -> list[k8s.V1Pod]:
    """The pods whose task instance is not active.

    Args:
        pods: of one namespace.
        get_task_states: ``RuntimeTaskInstance.get_task_states``: state by run and task, of mapped tasks as
            ``task_<map index>``.
        created_before: younger pods are not among them.
    """
    orphaned = []
    for pod in pods:
        if pod.metadata.creation_timestamp > created_before or pod.metadata.deletion_timestamp:
            continue
        try:
            task = json.loads((pod.metadata.annotations or {})[pod_manifest.TASK_ANNOTATION])
            states = get_task_states(
                dag_id=task["dag_id"],
                run_ids=[task["run_id"]],
                task_ids=[task["task_id"]],
                map_index=task["map_index"],
            )
        except (KeyError, ValueError):
            continue  # not a pod of our tasks
        run = states.get(task["run_id"], {})
        state = run.get(task["task_id"], run.get(f"{task['task_id']}_{task['map_index']}"))
        if str(state) not in ACTIVE_STATES:
            orphaned.append(pod)
    return orphaned
