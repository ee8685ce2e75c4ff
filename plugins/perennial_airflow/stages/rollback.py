"""``<model>.rollback``: an earlier champion back, by hand only."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Context

from perennial.spec.model_spec import ModelSpec
from perennial_airflow import asked, assets, params, runner
from perennial_airflow.base import LIGHT, limits, stage_dag
from perennial_airflow.operators import StageTask


def rollback_dag(spec: ModelSpec) -> DAG:
    """The DAG; it emits ``model/<model>``."""
    with stage_dag(spec, "rollback", schedule=None, params=params.rollback(), max_active_runs=1) as dag:
        StageTask(task_id="rollback", spec=spec, call=restore, outlets=[assets.model(spec)], **limits(LIGHT))
    return dag


def restore(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Load and check the earlier version, then make it champion."""
    version = asked.wish(context, "to_version")
    result = runner.light(
        "rollback",
        spec,
        actor=asked.actor(context),
        reason=str(asked.wish(context, "reason")),
        to_version=str(version) if version else None,
    )
    context["outlet_events"][assets.model(spec)].extra = {"version": result["version"]}
    return result
