"""``<model>.data``: fetch, validate, quarantine and publish the rows of a partition."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowSkipException

from perennial.spec.model_spec import ModelSpec
from perennial_airflow import run_request
from perennial_airflow.dag_factory import assets, params
from perennial_airflow.dag_factory.dag_builder import LIGHT, stage_dag, task_limits
from perennial_airflow.execution import runner
from perennial_airflow.execution.operators import ReportingTask
from perennial_airflow.sensors.partition_arrival import AwaitPartition
from perennial_airflow.timetables import EndedPartitions


def data_dag(spec: ModelSpec) -> DAG:
    """The DAG; each published partition is an event of the asset ``data/<model>``."""
    schedule = EndedPartitions.of(spec.schedule.data, spec.cadence)
    profile = runner.profile_of(spec, "data")
    with stage_dag(
        spec,
        "data",
        schedule=schedule,
        params=params.partitions(spec),
        max_active_runs=4,
        profile=profile,
    ) as dag:
        data_task = ReportingTask(
            task_id="data",
            spec=spec,
            call=publish,
            partitions=run_request.partitions,
            kind="validation",
            outlets=[assets.data(spec)],
            **task_limits(spec.step_limits("data"), profile),
        )
        if spec.data.arrival == "wait":
            AwaitPartition(task_id="await_partition", spec=spec, **task_limits(LIGHT)) >> data_task
    return dag


def publish(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Validate and publish the partition, or the range."""
    partitions = run_request.partitions(context)
    result = runner.run_by_profile(
        "data", spec, context,
        start=partitions.start, end=partitions.end, force=run_request.forced(context), run_id=context["run_id"],
        catch_up=run_request.is_scheduled(context),
    )  # fmt: skip
    if result.get("status") == "not begun":
        late = f" It published what had landed: {', '.join(result['late'])}." if result.get("late") else ""
        raise AirflowSkipException(
            f"{partitions.start} has not landed, and nothing of {spec.name} was published before.{late} Once something "
            "is, a missing partition is a failure."
        )
    facts = {name: result.get(name) for name in ("rows_out", "quarantined", "version")}
    assets.emit(context, assets.data(spec), partitions, facts, result.get("late", ()))
    return result | {"docs": result["docs"][-1:]}  # a range has one page per day: the manifests name them all
