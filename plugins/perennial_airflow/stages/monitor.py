"""``<model>.monitor``: drift and performance, a verdict, the decision whether to retrain, and who is told."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowSkipException

from perennial.lifecycle import retraining
from perennial.spec.model_spec import ModelSpec
from perennial_airflow import alerts, asked, assets, params, runner
from perennial_airflow.base import LIGHT, limits, stage_dag
from perennial_airflow.operators import ReportingTask, StageTask
from perennial_airflow.timetables import DailyPartitions


def monitor_dag(spec: ModelSpec) -> DAG:
    """The DAG; an event of ``retraining/<model>``, with the reason, starts the training."""
    schedule = DailyPartitions.of(spec.schedule.monitor)
    place = runner.profile(spec, "monitor")
    asks = spec.retraining.mode == "ask"
    # A run that waits for a person must not keep the nights after it from being monitored.
    waiting = -(-spec.retraining.answer_hours // 24) if asks else 0
    with stage_dag(
        spec,
        "monitor",
        schedule=schedule,
        params=params.looking_back(),
        max_active_runs=1 + waiting,
        place=place,
    ) as dag:
        monitor = ReportingTask(
            task_id="monitor",
            spec=spec,
            call=look,
            inlets=[assets.predictions(spec), assets.model(spec)],
            max_active_tis_per_dag=1 if asks else None,
            **limits(spec.limit("monitor"), place),
        )
        decided = StageTask(task_id="decide", spec=spec, call=weigh, **limits(LIGHT))
        ask = StageTask(
            task_id="ask_retraining",
            spec=spec,
            call=ask_retraining,
            outlets=[assets.retraining(spec)],
            trigger_rule="none_failed",  # the question is skipped where there is nothing to ask
            **limits(LIGHT),
        )
        notify = StageTask(task_id="notify", spec=spec, call=alerts.notify, **limits(LIGHT))
        if asks:
            from perennial_airflow.approval import approval  # which takes a while to import

            monitor >> decided >> approval(spec, weigh) >> ask
        else:
            monitor >> decided >> ask
        monitor >> notify
        if spec.retraining.shadow_nights:
            monitor >> StageTask(
                task_id="conclude_shadow",
                spec=spec,
                call=conclude,
                outlets=[assets.model(spec)],
                **limits(LIGHT),
            )
    return dag


def look(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Compute the verdict and draw the report."""
    as_of = asked.as_of(context).start
    return runner.heavy(
        "monitor", spec, context, as_of=as_of, force=asked.forced(context), run_id=context["run_id"]
    )


def weigh(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Decide whether to retrain; a backfill never does. The ledger gets the decision either way.

    Asked again it is what the ledger says, a person's answer included.
    """
    return runner.light(
        "decide",
        spec,
        as_of=asked.as_of(context).start,
        actor=asked.actor(context),
        backfill=asked.is_backfill(context),
        run_id=context["run_id"],
    )


def conclude(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Promote the challenger on trial, or give it up, once its nights have an answer; skipped until then."""
    span = asked.as_of(context)
    if asked.is_backfill(context):
        raise AirflowSkipException("A backfill promotes nothing.")
    result = runner.light("conclude", spec, as_of=span.start, actor=asked.actor(context))
    if not result["promoted"]:
        raise AirflowSkipException(f"The champion stays as it was: {result['reason']}")
    assets.emit(context, assets.model(spec), span, {"version": result["version"]})
    return result


def ask_retraining(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Start the training by an event that says why; skipped if the decision was no.

    Airflow drops the events for a DAG that is paused (airflow 38891). So an earlier request of which no training came
    is asked for again, for its own date.
    """
    span = asked.as_of(context)
    decision = weigh(spec, context)
    reason = decision["reason"]
    if decision["proposed"]:
        raise AirflowSkipException(f"No retraining: a person has not answered ({reason})")
    if not decision["retrain"]:
        lost = None if asked.is_backfill(context) else retraining.in_flight(spec, span.start)
        if lost is None or context["ti"].get_dr_count(f"{spec.name}.train", states=["queued", "running"]):
            raise AirflowSkipException(f"No retraining: {reason}")
        span, reason = asked.Span(lost["partition"]), lost["reason"]
    told = {"reason": reason, "as_of": span.start}
    assets.emit(context, assets.retraining(spec), span, told)
    return told
