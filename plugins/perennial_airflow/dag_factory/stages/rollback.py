"""``<model>.rollback``: makes an earlier version champion again, by hand only."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Context

from perennial.spec.model_spec import ModelSpec
from perennial_airflow import run_request
from perennial_airflow.dag_factory import assets, params
from perennial_airflow.dag_factory.dag_builder import LIGHT, stage_dag, task_limits
from perennial_airflow.execution import runner
from perennial_airflow.execution.operators import StageTask


def rollback_dag(spec: ModelSpec) -> DAG:
    """The DAG; it emits ``model/<model>``."""
    with stage_dag(spec, "rollback", schedule=None, params=params.rollback(), max_active_runs=1) as dag:
        StageTask(
            task_id="rollback", spec=spec, call=roll_back, outlets=[assets.model(spec)], **task_limits(LIGHT)
        )
    return dag


def roll_back(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Load and check the earlier version, then make it champion."""
    version = run_request.param(context, "to_version")
    result = runner.run_inline(
        "rollback",
        spec,
        actor=run_request.actor(context),
        reason=str(run_request.param(context, "reason")),
        to_version=str(version) if version else None,
    )
    context["outlet_events"][assets.model(spec)].extra = {"version": result["version"]}
    return result
