"""``<model>.rollback``: makes an earlier version champion again, by hand only."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import DAG, Context

from perennial.spec.model_spec import ModelSpec
from perennial_airflow import run_request
from perennial_airflow.dag_factory import assets, params
from perennial_airflow.dag_factory.dag_builder import LIGHT, stage_dag, task_limits
from perennial_airflow.execution import runner
from perennial_airflow.execution.operators import StageTask

log = logging.getLogger("perennial")


def rollback_dag(spec: ModelSpec) -> DAG:
    """The DAG; it emits ``model/<model>``, and starts runs of ``<model>.score`` if it is asked to."""
    # Airflow's operator takes a while to import
    from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator

    with stage_dag(spec, "rollback", schedule=None, params=params.rollback(), max_active_runs=1) as dag:
        rollback = StageTask(
            task_id="rollback", spec=spec, call=roll_back, outlets=[assets.model(spec)], **task_limits(LIGHT)
        )
        to_rescore = StageTask(task_id="find_scores", spec=spec, call=find_scores, **task_limits(LIGHT))
        rollback >> to_rescore
        TriggerDagRunOperator.partial(
            task_id="rescore",
            trigger_dag_id=f"{spec.name}.score",
            # one of today would be after the schedule's end, where it has one: Airflow would then run no task
            logical_date=None,
            # a retry starts no second run
            trigger_run_id="{{ run_id }}__rescore_{{ ti.map_index }}",
            skip_when_already_exists=True,
            **task_limits(LIGHT),
        ).expand(conf=to_rescore.output)
    return dag


def roll_back(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Load and check the earlier version, then make it champion."""
    version = run_request.param(context, "to_version")
    result = runner.run_inline(
        "rollback",
        spec,
        actor=run_request.actor(context),
        reason=str(run_request.param(context, "reason") or ""),
        to_version=str(version) if version else None,
        run_id=context["run_id"],
    )
    context["outlet_events"][assets.model(spec)].extra = {"version": result["version"]}
    return result


def find_scores(spec: ModelSpec, context: Context) -> list[dict[str, str]]:
    """The ranges that the replaced version scored, as configurations of `score`; none if they are not wanted."""
    from perennial.status import rescoring  # DAG files import this module

    replaced = context["ti"].xcom_pull(task_ids="rollback")["previous"]
    if not run_request.param(context, "rescore") or not replaced:
        log.info(
            "Nothing is scored again: %s.",
            "Rescore was not chosen" if replaced else "no version was replaced",
        )
        return []
    reason = f"version {replaced} was rolled back: {run_request.param(context, 'reason')}"
    ranges = rescoring.ranges(spec, replaced)
    log.info(
        "Scored by version %s, and scored again: %s.",
        replaced,
        ", ".join(s.compact for s in ranges) or "nothing",
    )
    return [{"start": span.start, "end": span.end, "reason": reason} for span in ranges]
