"""``<model>.score``: predictions of the champion for a partition."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowSkipException

from perennial.core.dates import dates
from perennial.spec.model_spec import ModelSpec
from perennial_airflow import asked, assets, params, runner
from perennial_airflow.base import LIGHT, limits, stage_dag
from perennial_airflow.operators import StageTask
from perennial_airflow.timetables import PublishedPartitions


def score_dag(spec: ModelSpec) -> DAG:
    """The DAG; it runs for each published partition, and emits ``predictions/<model>``."""
    schedule = PublishedPartitions.of(assets.data(spec))
    place = runner.profile(spec, "score")
    form = params.partitions() | (params.fan_out() if place.pods else {})
    with stage_dag(spec, "score", schedule=schedule, params=form, max_active_runs=4, place=place) as dag:
        options = {"spec": spec, "call": predict, "outlets": [assets.predictions(spec)]}
        options |= limits(spec.limit("score"), place)
        if place.pods:
            parts = StageTask(task_id="split", spec=spec, call=split, **limits(LIGHT))
            StageTask.partial(task_id="score", **options).expand(part=parts.output)
        else:
            StageTask(task_id="score", **options)
    return dag


def split(spec: ModelSpec, context: Context) -> list[dict[str, str | None]]:
    """The range in as many parts as were asked for, of as many partitions each as can be."""
    span = asked.span(context)
    days = dates(span.start, span.end)
    parts = min(len(days), int(asked.wish(context, "tasks") or 1))
    cuts = [len(days) * i // parts for i in range(parts + 1)]
    return [{"start": days[a], "end": days[b - 1]} for a, b in pairwise(cuts)]


def predict(spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Score the partition, or the range; skipped while the model has no champion."""
    span = asked.span(context)
    part = context["task"].part
    if part and (part["start"], part["end"]) != (span.start, span.last):
        span = asked.Span(part["start"], part["end"])
    result = runner.heavy(
        "score", spec, context,
        start=span.start, end=span.end, force=asked.forced(context), run_id=context["run_id"],
        catch_up=asked.by_event(context),
    )  # fmt: skip
    if result["status"] == "no champion":
        raise AirflowSkipException(
            f"{spec.name} has no champion yet: trigger {spec.name}.train, then score again."
        )
    told = {name: result.get(name) for name in ("rows_out", "model_version")}
    assets.emit(context, assets.predictions(spec), span, told, result.get("late", ()))
    return result
