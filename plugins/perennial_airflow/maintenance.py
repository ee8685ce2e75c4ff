"""``perennial.maintenance``: deletes pods whose task is gone.

A task that is marked failed or cleared while its worker is away leaves its pod (airflow 62398) and its GPU busy.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

from airflow.sdk import DAG, Context, Param
from airflow.sdk.bases.operator import BaseOperator

from perennial.spec import compute_profile
from perennial.spec.catalog import load_models
from perennial.spec.sections import Step
from perennial_airflow import pod_spec, runner

if TYPE_CHECKING:
    from perennial.spec.compute_profile import ComputeProfile

log = logging.getLogger("airflow.task")
#: States of a task that has, or will find, its pod.
ALIVE = {"running", "deferred", "queued", "scheduled", "restarting", "up_for_retry", "up_for_reschedule"}


def dags() -> dict[str, DAG]:
    """The DAG, where a model has a step that runs in pods; nothing else needs it."""
    profiles = used()
    if not profiles:
        return {}
    with DAG(
        "perennial.maintenance",
        dag_display_name="perennial · maintenance",
        description="Deletes pods whose task is gone.",
        doc_md=f"{__doc__}\nProfiles: {', '.join(sorted(p.name for p in profiles))}. A pod is deleted when the task "
        "instance that its annotation names is neither running nor about to be tried again.",
        schedule="*/15 * * * *",
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        tags=["perennial", "maintenance"],
        params={
            "minutes": Param(
                2,
                type="integer",
                minimum=0,
                title="Minutes",
                description_md="Younger pods are left alone: their task's state may not be written yet.",
            )
        },
        default_args={"owner": "perennial", "retries": 1},
    ) as dag:
        Sweep(task_id="delete_orphaned_pods", profiles=profiles)
    return {dag.dag_id: dag}


def used() -> list[ComputeProfile]:
    """The pod profiles that some model's step runs by, one for each cluster and namespace."""
    named = [runner.profile(spec, step) for spec in load_models()[0].values() for step in get_args(Step)]
    named.append(compute_profile.load(compute_profile.default()))
    return list({(p.kind, p.connection, p.cluster, p.namespace): p for p in named if p.pods}.values())


class Sweep(BaseOperator):
    """Looks at every pod of these profiles, and deletes those whose task is gone."""

    ui_color = "#f2f2f2"

    def __init__(self, *, profiles: list[ComputeProfile], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.profiles = profiles

    def execute(self, context: Context) -> dict[str, Any]:
        """Returns names of the pods deleted, and how many were looked at."""
        from perennial_airflow import pods

        deleted: list[str] = []
        born_before = datetime.now(UTC) - timedelta(minutes=context["params"]["minutes"])
        seen = 0
        chosen = ",".join(f"{k}={v}" for k, v in pod_spec.MANAGED.items())
        for profile in self.profiles:
            with pods.client(profile) as api:
                items = api.list_namespaced_pod(profile.namespace, label_selector=chosen).items
                seen += len(items)
                for pod in orphans(items, context["ti"].get_task_states, born_before):
                    log.warning("Deleting pod %s: its task %s is gone", pod.metadata.name,
                                pod.metadata.annotations[pod_spec.TASK])  # fmt: skip
                    api.delete_namespaced_pod(pod.metadata.name, profile.namespace)
                    deleted.append(pod.metadata.name)
        return {"pods": seen, "deleted": deleted}


def orphans(items: Iterable[Any], states: Any, born_before: datetime) -> list[Any]:
    """The pods whose task instance is not alive.

    Args:
        states: ``RuntimeTaskInstance.get_task_states``: state by run and task, mapped tasks as ``task_<map index>``.
    """
    found = []
    for pod in items:
        if pod.metadata.creation_timestamp > born_before or pod.metadata.deletion_timestamp:
            continue
        try:
            task = json.loads((pod.metadata.annotations or {})[pod_spec.TASK])
            told = states(
                dag_id=task["dag_id"],
                run_ids=[task["run_id"]],
                task_ids=[task["task_id"]],
                map_index=task["map_index"],
            )
        except (KeyError, ValueError):
            continue  # not one that a task of ours made
        mine = told.get(task["run_id"], {})
        state = mine.get(task["task_id"], mine.get(f"{task['task_id']}_{task['map_index']}"))
        if str(state) not in ALIVE:
            found.append(pod)
    return found
