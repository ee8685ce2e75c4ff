"""``<model>.train``: a challenger is fitted and judged; the gate decides whether it becomes champion."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Context, PartitionedAssetTimetable, StartOfDayMapper
from airflow.sdk.exceptions import AirflowSkipException

from perennial.spec.model_spec import ModelSpec
from perennial_airflow import asked, assets, params, runner
from perennial_airflow.base import LIGHT, limits, stage_dag
from perennial_airflow.operators import ReportingTask, StageTask
from perennial_airflow.quiet import AwaitQuietHours
from perennial_airflow.timetables import KEY_FORMAT


def train_dag(spec: ModelSpec) -> DAG:
    """The DAG; it runs when a retraining is asked for, one run at a time, and emits ``model/<model>`` on promotion."""
    schedule = PartitionedAssetTimetable(
        assets=assets.retraining(spec), default_partition_mapper=StartOfDayMapper(input_format=KEY_FORMAT)
    )
    place = runner.profile(spec, "train")
    with stage_dag(
        spec, "train", schedule=schedule, params=params.training(), max_active_runs=1, place=place
    ) as dag:
        train = ReportingTask(
            task_id="train",
            spec=spec,
            call=fit,
            inlets=[assets.data(spec)],
            **limits(spec.limit("train"), place),
        )
        if spec.retraining.quiet_hours:
            AwaitQuietHours(task_id="await_quiet_hours", hours=spec.retraining.quiet_hours) >> train
        train >> StageTask(
            task_id="promote", spec=spec, call=promote, outlets=[assets.model(spec)], **limits(LIGHT)
        )
    return dag


def fit(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Train on data up to the run's partition, register the challenger, judge it."""
    as_of = asked.as_of(context).start
    return runner.heavy(
        "train", spec, context,
        as_of=as_of, reason=asked.reason(context), actor=asked.actor(context), force=asked.forced(context),
        run_id=context["run_id"],
    )  # fmt: skip


def promote(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Make the challenger champion if the gate let it pass (the training's manifest says so); skipped if not."""
    span = asked.as_of(context)
    result = runner.light(
        "promote", spec, as_of=span.start, actor=asked.actor(context), reason=asked.reason(context)
    )
    if not result["promoted"]:
        raise AirflowSkipException(f"The champion stays as it was: {result['reason']}")
    assets.emit(context, assets.model(spec), span, {"version": result["version"]})
    return result
