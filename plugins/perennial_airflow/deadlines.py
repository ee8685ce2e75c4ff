"""Deadlines (Airflow's DeadlineAlert): a run that does not end in time, such as one without data, is an incident.

The model's next success of that stage closes it, as it closes a failure's. Airflow stores the import path of `missed`
and the names of its arguments: both stay.

Two defects of Airflow 3.3 with deadlines are avoided: a failed run could not be cleared (airflow 70368, see
`stage_deadline`), and ``airflow dags test`` ended in an error (airflow 73428, see `dag_builder.StageDag`).
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from perennial.alerting.incidents import SignalObservation

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

log = logging.getLogger(__name__)
FINISHED_STATES = ("success", "failed")
#: Time for the pauses between tries, light tasks and a full queue, in addition to the heavy task's own time.
SLACK = timedelta(hours=2)
#: What a late run of each stage means for its partition.
_CONSEQUENCES = {
    "data": "is not published",
    "train": "is not trained on",
    "score": "is not scored",
    "monitor": "is not monitored",
}
#: The same of a feature table's DAG, ``features.<table>``.
_NOT_COMPUTED = "is not computed ahead of the models that use it"


def stage_deadline(spec: ModelSpec, stage: str, limits: dict[str, Any]) -> DeadlineAlert:
    """The deadline of each run of a stage, counted from when it is queued.

    Args:
        spec: the model; ``limits.<stage>.deadline_minutes`` replaces what follows from the task's limits.
        stage: name of the stage; ``features.<table>`` for the DAG of a feature table.
        limits: retries and timeout of the stage's heavy task (`dag_builder.task_limits`).

    Returns:
        The deadline. Its interval is a number of seconds: Airflow reads one from before 3.3 that way. It stores a
        `timedelta` as a dictionary, and clearing a run whose deadline has not passed would then hand the dictionary to
        ``timedelta(seconds=…)`` and answer 500 (airflow 70368).
    """
    minutes = spec.step_limits(stage).deadline_minutes
    longest = limits["execution_timeout"] * (limits["retries"] + 1) + SLACK
    if stage == "data" and spec.data.arrival == "wait":
        longest += timedelta(hours=spec.data.arrival_hours)
    if stage == "train" and spec.retraining.quiet_hours:
        longest += timedelta(days=1)
    seconds = int((timedelta(minutes=minutes) if minutes else longest).total_seconds())
    callback = AsyncCallback(missed, {"model": spec.name, "stage": stage, "minutes": seconds // 60})
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, cast("timedelta", seconds), callback)


async def missed(model: str, stage: str, minutes: int, context: dict[str, Any]) -> str:
    """Open an incident for a run whose deadline has passed; the triggerer calls it.

    Airflow calls it for runs that have failed, too (airflow 60927), so it checks the run's state first. The runs of a
    backfill are all queued at the start and wait for each other, so they have no deadline.

    Args:
        model: name of the model.
        stage: name of the stage, or of the DAG of a feature table.
        minutes: length of the deadline.
        context: Airflow's; ``dag_run`` is the run as JSON.

    Returns:
        What was done, for the log.
    """
    run = context["dag_run"]
    state = await _run_state(run)
    if state in FINISHED_STATES:
        return f"the run has ended: {state}"
    if run["run_type"] == "backfill":
        return "a run of a backfill has no deadline"
    if await _waits_for_approval(run):
        return "the run waits for a person's answer, which has its own time limit"
    await asyncio.to_thread(_open_incident, model, stage, minutes, run, state)
    return f"incident opened: the run is {state}"


async def _run_state(run: dict[str, Any]) -> str:
    """The current state of the run, or, if Airflow cannot be reached, its state when the deadline passed."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    try:
        state = await asyncio.to_thread(
            RuntimeTaskInstance.get_dagrun_state, run["dag_id"], run["dag_run_id"]
        )
        return str(getattr(state, "value", state))
    except Exception as error:
        log.warning("the state of run %s is not known: %s", run["dag_run_id"], type(error).__name__)
        return str(run["state"])


async def _waits_for_approval(run: dict[str, Any]) -> bool:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    run_id = run["dag_run_id"]
    try:
        states = await asyncio.to_thread(RuntimeTaskInstance.get_task_states, run["dag_id"], run_ids=[run_id])
    except Exception as error:
        log.warning("the tasks of run %s are not known: %s", run_id, type(error).__name__)
        return False
    return "awaiting_input" in states.get(run_id, {}).values()


def _open_incident(model: str, stage: str, minutes: int, run: dict[str, Any], state: str) -> None:
    from perennial.spec.catalog import load_model_by_name
    from perennial_airflow.alerting import alerts
    from perennial_airflow.web import links

    partition = alerts.partition_of(run["partition_key"], run["conf"] or {})
    subject = f"partition {partition}" if partition else "the run"
    consequence = _CONSEQUENCES.get(stage, _NOT_COMPUTED)
    if stage not in _CONSEQUENCES:
        subject = f"{stage}: {subject}"
    reason = (
        f"{subject} {consequence} {minutes} minutes after its run was queued; the run is {state}\n"
        f"  What to do: check the run's tasks; the run continues"
    )
    details = {
        "stage": stage,
        "run_id": run["dag_run_id"],
        "partition": partition,
        "log": links.run_url(run["dag_id"], run["dag_run_id"]),
    }
    late = SignalObservation("bad", reason, details=details)
    alerts.report_signals(
        load_model_by_name(model), alerts.last_partition_date(partition), {f"deadline:{stage}": late}
    )
