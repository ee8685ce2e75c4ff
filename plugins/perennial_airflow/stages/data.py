"""``<model>.data``: fetch, validate, quarantine and publish the rows of a partition."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Context

from perennial.spec.model_spec import ModelSpec
from perennial_airflow import asked, assets, params, runner
from perennial_airflow.arrival import AwaitPartition
from perennial_airflow.base import LIGHT, limits, stage_dag
from perennial_airflow.operators import ReportingTask
from perennial_airflow.timetables import DailyPartitions


def data_dag(spec: ModelSpec) -> DAG:
    """The DAG; each published partition is an event of the asset ``data/<model>``."""
    schedule = DailyPartitions.of(spec.schedule.data)
    place = runner.profile(spec, "data")
    with stage_dag(
        spec, "data", schedule=schedule, params=params.partitions(), max_active_runs=4, place=place
    ) as dag:
        publishing = ReportingTask(
            task_id="data",
            spec=spec,
            call=publish,
            outlets=[assets.data(spec)],
            **limits(spec.limit("data"), place),
        )
        if spec.data.arrival == "wait":
            AwaitPartition(task_id="arrival", spec=spec, **limits(LIGHT)) >> publishing
    return dag


def publish(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Validate and publish the partition, or the range."""
    span = asked.span(context)
    result = runner.heavy(
        "data", spec, context,
        start=span.start, end=span.end, force=asked.forced(context), run_id=context["run_id"],
    )  # fmt: skip
    told = {name: result.get(name) for name in ("rows_out", "quarantined", "version")}
    assets.emit(context, assets.data(spec), span, told)
    return result | {"docs": result["docs"][-1:]}  # a range has one page a day: the manifests keep them all
