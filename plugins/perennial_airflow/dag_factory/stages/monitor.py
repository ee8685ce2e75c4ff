"""``<model>.monitor``: evaluates the signals, decides whether to retrain, requests the training, sends notices."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowSkipException

from perennial.core.durations import Duration
from perennial.lifecycle import retraining, trials
from perennial.spec.model_spec import ModelSpec
from perennial.storage import manifests
from perennial_airflow import run_request
from perennial_airflow.alerting import alerts
from perennial_airflow.dag_factory import assets, params
from perennial_airflow.dag_factory.dag_builder import LIGHT, stage_dag, task_limits
from perennial_airflow.execution import earlier_runs, runner
from perennial_airflow.execution.operators import ReportingTask, StageTask
from perennial_airflow.run_request import PartitionRange
from perennial_airflow.timetables import EndedPartitions

log = logging.getLogger("perennial")
#: Tasks of a run whose results the run of the next partition depends on: verdicts, decisions, incidents, trials.
IN_ORDER = ("monitor", "decide", "notify", "conclude_trial")


def monitor_dag(spec: ModelSpec) -> DAG:
    """The DAG; an event of ``retraining/<model>``, with the reason, starts the training."""
    schedule = EndedPartitions.of(spec.schedule.monitor, spec.cadence)
    profile = runner.profile_of(spec, "monitor")
    needs_approval = spec.retraining.mode == "approval"
    # A run that waits for a person must not delay the monitoring of the partitions after it.
    waiting_hours = max(
        spec.retraining.approval_hours if needs_approval else 0,
        spec.gate.approval.hours if spec.gate.approval and spec.retraining.trial else 0,
    )
    waiting_runs = Duration(waiting_hours, "hour").partitions(spec.cadence) if waiting_hours else 0
    with stage_dag(
        spec,
        "monitor",
        schedule=schedule,
        params=params.monitoring(spec),
        max_active_runs=1 + waiting_runs,
        profile=profile,
    ) as dag:
        monitor_task = ReportingTask(
            task_id="monitor",
            spec=spec,
            call=monitor,
            partitions=run_request.as_of,
            kind="monitor",
            await_turn=await_turn,
            inlets=[assets.predictions(spec), assets.model(spec), *assets.feature_tables(spec)],
            max_active_tis_per_dag=1 if waiting_runs else None,
            **task_limits(spec.step_limits("monitor"), profile),
        )
        decide_task = StageTask(task_id="decide", spec=spec, call=decide, **task_limits(LIGHT))
        request_task = StageTask(
            task_id="request_retraining",
            spec=spec,
            call=request_retraining,
            outlets=[assets.retraining(spec)],
            trigger_rule="none_failed",  # the approval is skipped where nothing is proposed
            **task_limits(LIGHT),
        )
        notify_task = StageTask(task_id="notify", spec=spec, call=alerts.notify, **task_limits(LIGHT))
        if needs_approval:
            # Airflow's operator takes a while to import
            from perennial_airflow.sensors.approval import approval_task

            monitor_task >> decide_task >> approval_task(spec, decide, **task_limits(LIGHT)) >> request_task
        else:
            monitor_task >> decide_task >> request_task
        monitor_task >> notify_task
        if spec.retraining.trial:
            _add_conclusion(spec, monitor_task)
    return dag


def _add_conclusion(spec: ModelSpec, monitor_task: StageTask) -> None:
    """Add the tasks that end a trial, and that promote its challenger once a person has approved it."""
    outlets, limits = [assets.model(spec)], task_limits(LIGHT)
    conclude_task = StageTask(
        task_id="conclude_trial", spec=spec, call=conclude_trial, outlets=outlets, **limits
    )
    monitor_task >> conclude_task
    if spec.gate.approval:
        from perennial_airflow.sensors.approval import promotion_approval_task

        approval_task = promotion_approval_task(spec, approvable_as_of, trigger_rule="none_failed", **limits)
        conclude_task >> approval_task
        approval_task >> StageTask(
            task_id="promote_after_trial",
            spec=spec,
            call=conclude_trial,
            outlets=outlets,
            trigger_rule="none_failed",
            **limits,
        )


def await_turn(spec: ModelSpec, context: Context) -> None:
    """Wait for the runs of earlier partitions, and for the partition's own publication and scoring."""
    earlier_runs.await_earlier_runs(context, IN_ORDER)
    if run_request.is_scheduled(context):
        earlier_runs.await_earlier_stages(context, spec)


def monitor(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Compute the verdict and draw the report."""
    return runner.run_by_profile(
        "monitor", spec, context,
        as_of=run_request.as_of(context).start, force=run_request.forced(context), run_id=context["run_id"],
        catch_up=run_request.is_scheduled(context),
    )  # fmt: skip


def decide(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Decide whether to retrain; a backfill never does. The ledger records the decision either way.

    A repeated call returns the recorded decision, a person's answer included.
    """
    return runner.run_inline(
        "decide",
        spec,
        as_of=run_request.as_of(context).start,
        actor=run_request.actor(context),
        backfill=run_request.is_backfill(context),
        run_id=context["run_id"],
    )


def conclude_trial(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Promote or discard the challenger on trial once the trial has a result; skipped until then."""
    as_of = run_request.as_of(context)
    if run_request.is_backfill(context):
        raise AirflowSkipException("A backfill promotes nothing.")
    result = runner.run_inline("conclude", spec, as_of=as_of.start, actor=run_request.actor(context))
    if not result["promoted"]:
        raise AirflowSkipException(f"The champion stays as it was: {result['reason']}")
    assets.emit(context, assets.model(spec), as_of, {"version": result["version"]})
    return result


def approvable_as_of(spec: ModelSpec, context: Context) -> str:
    """Partition date of the training whose version passed its trial by this run's verdict; empty if none did."""
    passed = None if run_request.is_backfill(context) else trials.passed_trial(spec)
    monitoring = manifests.read(spec.name, "monitor", run_request.as_of(context).start) if passed else None
    trial = (monitoring.result.get("trial") or {}) if monitoring else {}
    return passed["partition"] if passed and trial.get("version") == passed["model_version"] else ""


def request_retraining(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Start the training by an asset event with the reason; skipped if the decision was against it.

    Airflow drops the events for a DAG that is paused (airflow 38891). So an earlier request that no training has
    answered is sent again, for its own date.
    """
    as_of = run_request.as_of(context)
    decision = decide(spec, context)
    reason, requested_by = decision["reason"], decision["decided_by"]
    if decision["proposed"]:
        raise AirflowSkipException(f"No retraining: a person has not answered ({reason})")
    if not decision["retrain"]:
        earlier = (
            None if run_request.is_backfill(context) else retraining.request_in_flight(spec, as_of.start)
        )
        if earlier is None or context["ti"].get_dr_count(f"{spec.name}.train", states=["queued", "running"]):
            raise AirflowSkipException(f"No retraining: {reason}")
        as_of = PartitionRange(earlier["partition"])
        reason, requested_by = earlier["reason"], earlier["actor"]
    elif retraining.is_trained(spec, as_of.start):
        raise AirflowSkipException(f"No retraining: that of {as_of.start} has ended ({reason})")
    request = {"reason": reason, "as_of": as_of.start, "requested_by": requested_by}
    assets.emit(context, assets.retraining(spec), as_of, request)
    log.info("Requested a training of %s as of %s. Reason: %s.", spec.name, as_of.start, reason.rstrip("."))
    return request
