"""``<model>.score``: predictions of the champion for a partition."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowSkipException

from perennial.spec import ModelSpec
from perennial_airflow import asked, assets, params, runner
from perennial_airflow.base import limits, stage_dag
from perennial_airflow.operators import StageTask
from perennial_airflow.timetables import PublishedPartitions


def score_dag(spec: ModelSpec) -> DAG:
    """The DAG; it runs for each published partition, and emits ``predictions/<model>``."""
    schedule = PublishedPartitions.of(assets.data(spec))
    with stage_dag(spec, "score", schedule=schedule, params=params.partitions(), max_active_runs=4) as dag:
        StageTask(
            task_id="score",
            spec=spec,
            call=predict,
            outlets=[assets.predictions(spec)],
            **limits(spec.limit("score")),
        )
    return dag


def predict(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Score the partition, or the range; skipped while the model has no champion."""
    span = asked.span(context)
    result = runner.heavy(
        "score", spec, context,
        start=span.start, end=span.end, force=asked.forced(context), run_id=context["run_id"],
    )  # fmt: skip
    if result["status"] == "no champion":
        raise AirflowSkipException(
            f"{spec.name} has no champion yet: trigger {spec.name}.train, then score again."
        )
    told = {name: result.get(name) for name in ("rows_out", "model_version")}
    assets.emit(context, assets.predictions(spec), span, told)
    return result
