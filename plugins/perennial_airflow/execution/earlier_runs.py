"""Runs in the order of their partitions and stages, where the result of one depends on those before it.

A backfill starts as many runs at once as its own `max_active_runs` says, whatever that of the DAG is, and
`depends_on_past` knows no partitions. After a downtime, Airflow starts the scheduled runs of all DAGs at once, whatever
the time between their schedules is. So the task itself waits, without holding a worker.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowRescheduleException

from perennial.core.partitions import KEY_PATTERN
from perennial.storage import manifests, object_store
from perennial_airflow import run_request

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec

log = logging.getLogger("airflow.task")
POLL = timedelta(seconds=5)
#: States of a task that has ended.
ENDED_STATES = {"success", "failed", "skipped", "upstream_failed", "removed"}
#: States of `await_partition` while the file has not landed.
WAITING_STATES = {"deferred", "up_for_reschedule", "up_for_retry"}
#: Slower than `POLL`: right after a downtime the scheduler is busy, and takes a task that is due again before it has
#: noticed that its process ended for a killed one (airflow 72716).
STAGE_POLL = timedelta(seconds=15)
#: How long a run waits for the stages before its own; then it does without them.
MAX_WAIT = timedelta(minutes=30)
#: Within this time of its publication, the event of a partition has started its scoring.
EVENT_DELAY = timedelta(minutes=1)
#: Earlier runs whose state is asked for. In the order of a backfill the closest ones run first.
MAX_ASKED = 20
#: The partition key in the id of a scheduled run or a run of a backfill (``backfill__<time>__<key>__<random>``).
_KEY = re.compile(rf"__({KEY_PATTERN})(?:__|$)")


def await_earlier_runs(context: Context, tasks: Collection[str]) -> None:
    """Reschedule the task while a run of the DAG for an earlier partition is active and has not ended some tasks.

    Runs that are still queued are not waited for: in a backfill that goes backwards they start only after this one.
    Nor are runs by hand, whose id does not name their partition.

    Args:
        context: Airflow's context of the task.
        tasks: ids of the tasks of the earlier run that must have ended.

    Raises:
        AirflowRescheduleException: an earlier run is active.
    """
    ti = context["ti"]
    if ti.get_dr_count(ti.dag_id, states=["running"]) < 2:
        return
    key = run_request.as_of(context).start
    states = ti.get_task_states(ti.dag_id, task_ids=sorted(tasks))
    earlier = {
        run: match[1]
        for run, of_tasks in states.items()
        if (match := _KEY.search(run))
        and match[1] < key
        and not {str(state) for state in of_tasks.values()} <= ENDED_STATES
    }
    for run in sorted(earlier, key=lambda run: earlier[run], reverse=True)[:MAX_ASKED]:
        if ti.get_dagrun_state(ti.dag_id, run) == "running":
            log.info("Waiting for run %s: its partition %s comes before %s.", run, earlier[run], key)
            raise AirflowRescheduleException(datetime.now(UTC) + POLL)


def await_earlier_stages(context: Context, spec: ModelSpec) -> None:
    """Reschedule the task while its partition is being published or scored, for `MAX_WAIT` at most.

    Args:
        context: Airflow's context of the task.
        spec: the model.

    Raises:
        AirflowRescheduleException: a run of the model's `data` or `score` is active.
    """
    began = context["dag_run"].start_date
    if began is None or datetime.now(UTC) - began > MAX_WAIT:
        return
    key = run_request.as_of(context).start
    if active := _publication(context, spec, key) or _scoring(context, spec, key):
        log.info("Waiting for %s.", active)
        raise AirflowRescheduleException(datetime.now(UTC) + STAGE_POLL)


def _publication(context: Context, spec: ModelSpec, key: str) -> str:
    """The active run that publishes a partition or an earlier one; empty if there is none, or it waits for its file."""
    ti, dag = context["ti"], f"{spec.name}.data"
    if not ti.get_dr_count(dag, states=["queued", "running"]):
        return ""
    for run, states in ti.get_task_states(dag, task_ids=["await_partition", "data"]).items():
        match = _KEY.search(run)
        if match is None or match[1] > key or str(states.get("data")) in ENDED_STATES:
            continue
        # a step in a pod defers its task, too
        waits = str(states.get("await_partition")) in WAITING_STATES or states.get("data") == "up_for_retry"
        if not waits and ti.get_dagrun_state(dag, run) in ("queued", "running"):
            return f"run {run} of {dag}"
    return ""


def _scoring(context: Context, spec: ModelSpec, key: str) -> str:
    """What says that a published partition is being scored; empty if it is not."""
    published = object_store.stat(manifests.uri(spec.name, "data", key))
    if published is None:
        return ""
    dag = f"{spec.name}.score"
    if context["ti"].get_dr_count(dag, states=["queued", "running"]):
        return f"the active runs of {dag}"
    scored = object_store.stat(manifests.uri(spec.name, "score", key))
    recent = time.time() - published.modified_ns / 1e9 < EVENT_DELAY.total_seconds()
    if recent and (scored is None or scored.modified_ns < published.modified_ns):
        return f"the run of {dag} for {key}, published just now"
    return ""
