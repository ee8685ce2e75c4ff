"""``<model>.score``: predictions of the champion for a partition."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any, cast

from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowSkipException

from perennial.spec.model_spec import ModelSpec
from perennial_airflow import run_request
from perennial_airflow.dag_factory import assets, params
from perennial_airflow.dag_factory.dag_builder import LIGHT, stage_dag, task_limits
from perennial_airflow.execution import runner
from perennial_airflow.execution.operators import ScoringTask, StageTask
from perennial_airflow.run_request import PartitionRange
from perennial_airflow.timetables import PublishedPartitions

log = logging.getLogger("perennial")


def score_dag(spec: ModelSpec) -> DAG:
    """The DAG; it runs for each published partition, and emits ``predictions/<model>``."""
    schedule = PublishedPartitions.of(assets.data(spec), spec.cadence)
    profile = runner.profile_of(spec, "score")
    form = params.partitions(spec) | (params.parallel_tasks() if profile.runs_in_pods else {})
    with stage_dag(spec, "score", schedule=schedule, params=form, max_active_runs=4, profile=profile) as dag:
        options: dict[str, Any] = {"spec": spec, "call": score, "outlets": [assets.predictions(spec)]}
        options |= {"inlets": assets.feature_tables(spec)}
        options |= task_limits(spec.step_limits("score"), profile)
        if profile.runs_in_pods:
            parts = StageTask(task_id="split_range", spec=spec, call=split_range, **task_limits(LIGHT))
            scored: Any = ScoringTask.partial(task_id="score", **options).expand(part=parts.output)
        else:
            scored = ScoringTask(task_id="score", **options)
        if spec.predictions.table is not None:
            # A task of its own: the predictions are in the lake, whatever becomes of the database.
            scored >> StageTask(
                task_id="publish_predictions", spec=spec, call=publish_predictions,
                **task_limits(spec.step_limits("score")),
            )  # fmt: skip
    return dag


def split_range(spec: ModelSpec, context: Context) -> list[dict[str, str]]:
    """Split the range into as many parts of about equal length as the field *Tasks* says."""
    requested = run_request.partitions(context)
    days = spec.cadence.keys(requested.start, requested.last)
    parts = min(len(days), int(run_request.param(context, "tasks") or 1))
    cuts = [len(days) * i // parts for i in range(parts + 1)]
    log.info("Split %d partitions (%s to %s) into tasks: %d.", len(days), days[0], days[-1], parts)
    return [{"start": days[a], "end": days[b - 1]} for a, b in pairwise(cuts)]


def score(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Score the partition, the range, or this task's part of it; skipped while the model has no champion."""
    partitions = run_request.partitions(context)
    part = cast(StageTask, context["task"]).part
    if part and (part["start"], part["end"]) != (partitions.start, partitions.last):
        partitions = PartitionRange(part["start"], part["end"])
    result = runner.run_by_profile(
        "score", spec, context,
        start=partitions.start, end=partitions.end, force=run_request.forced(context), run_id=context["run_id"],
        catch_up=run_request.is_asset_triggered(context),
    )  # fmt: skip
    if result["status"] == "no champion":
        raise AirflowSkipException(
            f"{spec.name} has no champion yet: trigger {spec.name}.train, then score again."
        )
    facts = {name: result.get(name) for name in ("rows_out", "model_version")}
    assets.emit(context, assets.predictions(spec), partitions, facts, result.get("late", ()))
    return result


def publish_predictions(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Write the predictions of the partition, or the range, to the database that the spec names; in the worker."""
    partitions = run_request.partitions(context)
    return runner.run_inline(
        "publish_predictions", spec,
        start=partitions.start, end=partitions.end, force=run_request.forced(context), run_id=context["run_id"],
        catch_up=run_request.is_asset_triggered(context),
    )  # fmt: skip
