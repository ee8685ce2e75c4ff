"""Deadlines (Airflow's DeadlineAlert): a run that is not over in time, as where data does not come, is an incident.

The model's next success of that stage ends it, as it ends a failure's. (``airflow dags test`` of a DAG with deadlines
ends in an error after its tasks have succeeded, for it looks their records up by what is not their key: airflow 73428.)
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import AsyncCallback, DeadlineAlert, DeadlineReference

from perennial.alerting.incidents import SignalObservation

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

log = logging.getLogger(__name__)
OVER = ("success", "failed")
#: For pauses between tries, light tasks and a full queue, on top of what the heavy task may take.
SLACK = timedelta(hours=2)
WANTS = {
    "data": "is not published",
    "train": "is not trained on",
    "score": "is not scored",
    "monitor": "is not monitored",
}


def alert(spec: ModelSpec, stage: str, limits: dict[str, Any]) -> DeadlineAlert:
    """The deadline of each run of a stage, from the moment it is queued.

    Args:
        limits: retries and timeout of the stage's heavy task (`base.limits`).
    """
    said = spec.limit(stage).deadline_minutes
    longest = limits["execution_timeout"] * (limits["retries"] + 1) + SLACK
    if stage == "data" and spec.data.arrival == "wait":
        longest += timedelta(hours=spec.data.arrival_hours)
    if stage == "train" and spec.retraining.quiet_hours:
        longest += timedelta(days=1)
    interval = timedelta(minutes=said) if said else longest
    asked = {"model": spec.name, "stage": stage, "minutes": int(interval.total_seconds() // 60)}
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, interval, AsyncCallback(missed, asked))


async def missed(model: str, stage: str, minutes: int, context: dict[str, Any]) -> str:
    """Called in the triggerer when a run's deadline has passed; returns what came of it.

    It is called for runs that have failed as well (airflow 60927), so it looks first. The runs of a backfill are queued
    all at once and wait for each other: they have no deadline.
    """
    run = context["dag_run"]
    state = await _state(run)
    if state in OVER:
        return f"the run is over: {state}"
    if run["run_type"] == "backfill":
        return "a run of a backfill has no deadline"
    if await _waits_for_a_person(run):
        return "the run waits for a person's answer, which has a time of its own"
    await asyncio.to_thread(_tell, model, stage, minutes, run, state)
    return f"told: the run is {state}"


async def _state(run: dict[str, Any]) -> str:
    """The run's state now; what it was when the scheduler saw the deadline pass, where Airflow cannot be asked."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    try:
        now = await asyncio.to_thread(RuntimeTaskInstance.get_dagrun_state, run["dag_id"], run["dag_run_id"])
        return str(getattr(now, "value", now))
    except Exception as error:
        log.warning("the state of run %s is not known: %s", run["dag_run_id"], type(error).__name__)
        return str(run["state"])


async def _waits_for_a_person(run: dict[str, Any]) -> bool:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    run_id = run["dag_run_id"]
    try:
        states = await asyncio.to_thread(RuntimeTaskInstance.get_task_states, run["dag_id"], run_ids=[run_id])
    except Exception as error:
        log.warning("the tasks of run %s are not known: %s", run_id, type(error).__name__)
        return False
    return "awaiting_input" in states.get(run_id, {}).values()


def _tell(model: str, stage: str, minutes: int, run: dict[str, Any], state: str) -> None:
    from perennial.spec.catalog import load_model_by_name
    from perennial_airflow import alerts, links

    partition = alerts.partition_of(run["partition_key"], run["conf"] or {})
    what = f"partition {partition}" if partition else "the run"
    reason = (
        f"{what} {WANTS[stage]} {minutes} minutes after its run was queued; the run is {state}\n"
        f"  What to do: look at the run's tasks; nothing was ended"
    )
    details = {
        "stage": stage,
        "run_id": run["dag_run_id"],
        "partition": partition,
        "log": links.page(f"/dags/{run['dag_id']}/runs/{run['dag_run_id']}"),
    }
    bad = SignalObservation("bad", reason, details=details)
    alerts.raise_signals(load_model_by_name(model), alerts.last_day(partition), {f"deadline:{stage}": bad})
