"""``<model>.train``: fits a challenger and compares it with the champion; the gate decides whether it is promoted."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Context, PartitionedAssetTimetable
from airflow.sdk.exceptions import AirflowSkipException

from perennial.spec.model_spec import ModelSpec
from perennial_airflow import run_request
from perennial_airflow.dag_factory import assets, params
from perennial_airflow.dag_factory.dag_builder import LIGHT, stage_dag, task_limits
from perennial_airflow.execution import runner
from perennial_airflow.execution.operators import StageTask, TrainingTask
from perennial_airflow.sensors.quiet_hours import AwaitQuietHours
from perennial_airflow.timetables import same_key
from perennial_airflow.web import links


def train_dag(spec: ModelSpec) -> DAG:
    """The DAG; it runs when a retraining is requested, one run at a time; a promotion emits ``model/<model>``."""
    schedule = PartitionedAssetTimetable(
        assets=assets.retraining(spec), default_partition_mapper=same_key(spec.cadence)
    )
    profile = runner.profile_of(spec, "train")
    with stage_dag(
        spec,
        "train",
        schedule=schedule,
        params=params.training(spec),
        max_active_runs=1,
        profile=profile,
    ) as dag:
        train_task = TrainingTask(
            task_id="train",
            spec=spec,
            call=train,
            partitions=run_request.as_of,
            kind="training",
            inlets=[assets.data(spec), *assets.feature_tables(spec)],
            **task_limits(spec.step_limits("train"), profile),
        )
        if spec.retraining.quiet_hours:
            AwaitQuietHours(task_id="await_quiet_hours", hours=spec.retraining.quiet_hours) >> train_task
        promote_task = StageTask(
            task_id="promote",
            spec=spec,
            call=promote,
            outlets=[assets.model(spec)],
            # the approval is skipped where there is nothing to approve; a no skips this task
            trigger_rule="none_failed" if spec.gate.approval else "all_success",
            **task_limits(LIGHT),
        )
        if spec.gate.approval:
            # Airflow's operator takes a while to import
            from perennial_airflow.sensors.approval import promotion_approval_task

            train_task >> promotion_approval_task(spec, trained_as_of, **task_limits(LIGHT)) >> promote_task
        else:
            train_task >> promote_task
    return dag


def train(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Train on data up to the run's partition, register the challenger, compare it with the champion."""
    return runner.run_by_profile(
        "train", spec, context,
        as_of=run_request.as_of(context).start, reason=run_request.reason(context),
        actor=run_request.requested_by(context), force=run_request.forced(context), run_id=context["run_id"],
        run_url=links.run_url(f"{spec.name}.train", context["run_id"]),
    )  # fmt: skip


def trained_as_of(spec: ModelSpec, context: Context) -> str:
    """Partition date of the run's training, whose version may need an approval."""
    return run_request.as_of(context).start


def promote(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Make the challenger champion if the training's manifest says that it passed the gate; skipped if not."""
    as_of = run_request.as_of(context)
    result = runner.run_inline(
        "promote",
        spec,
        as_of=as_of.start,
        actor=run_request.actor(context),
        reason=run_request.reason(context),
    )
    if not result["promoted"]:
        raise AirflowSkipException(f"The champion stays as it was: {result['reason']}")
    assets.emit(context, assets.model(spec), as_of, {"version": result["version"]})
    return result
