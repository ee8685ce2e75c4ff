"""What the DAGs of all stages have in common."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param

from perennial.spec.model_spec import StepSpec
from perennial_airflow import alerts, deadlines, docs

if TYPE_CHECKING:
    from perennial.spec.compute_profile import ComputeProfile
    from perennial.spec.model_spec import ModelSpec

TASK_NAMES = {
    "binary": "binary classification",
    "multiclass": "multiclass classification",
    "regression": "regression",
    "ranking": "ranking",
}
LIGHT = StepSpec(retries=3, timeout_minutes=5)


def stage_dag(
    spec: ModelSpec, stage: str, *, schedule: Any, params: dict[str, Param], max_active_runs: int,
    place: ComputeProfile | None = None,
) -> DAG:  # fmt: skip
    """The DAG ``<model>.<stage>``, still without tasks.

    Args:
        place: the compute profile of the stage's heavy step, if it has one: its runs then have a deadline.

    A partition is handled on the day after it, so the DAG's first and last day are one later than the spec's.
    """
    end = spec.schedule.end
    dag = DAG(
        f"{spec.name}.{stage}",
        dag_display_name=f"{spec.name} · {stage}",
        description=docs.SUMMARY[stage],
        doc_md=docs.page(spec, stage),
        schedule=schedule,
        start_date=datetime.combine(spec.schedule.start + timedelta(days=1), time.min, UTC),
        end_date=datetime.combine(end + timedelta(days=1), time.max, UTC) if end else None,
        catchup=False,
        max_active_runs=max_active_runs,
        deadline=deadlines.alert(spec, stage, limits(spec.limit(stage), place)) if place else None,
        tags=sorted({spec.name, stage, TASK_NAMES[spec.task], *spec.tags}),
        default_args={
            "owner": spec.owner,
            "on_failure_callback": alerts.on_failure(spec),
            "on_success_callback": alerts.on_success(spec),
        },
        render_template_as_native_obj=False,
    )
    # Handed to the constructor, each field's default would be checked at each parse, which took a quarter of its time.
    # A test checks them instead.
    dag.params.update(params)
    return dag


def limits(limit: StepSpec, place: ComputeProfile | None = None) -> dict[str, Any]:
    """Retries and timeout of a task: waits of 30 s, doubling up to half an hour.

    Args:
        place: the compute profile of a heavy step; how long its pod may wait for a node and start comes on top of the
            step's own time.
    """
    waiting = place.wait_minutes + place.start_minutes if place is not None and place.pods else 0
    return {
        "retries": limit.retries,
        "retry_delay": timedelta(seconds=30),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=30),
        "execution_timeout": timedelta(minutes=limit.timeout_minutes + waiting),
    }
