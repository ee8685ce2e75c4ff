"""Makes the DAG of a stage, without its tasks: what the DAGs of all stages have in common."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param

from perennial.spec.model_spec import StepLimits
from perennial_airflow import deadlines, run_request
from perennial_airflow.alerting import alerts
from perennial_airflow.dag_factory import dag_docs

if TYPE_CHECKING:
    from perennial.spec.compute_profile import ComputeProfile
    from perennial.spec.feature_table import FeatureTable
    from perennial.spec.model_spec import ModelSpec

TASK_NAMES = {
    "binary": "binary classification",
    "multiclass": "multiclass classification",
    "regression": "regression",
    "ranking": "ranking",
}
#: Limits of light tasks.
LIGHT = StepLimits(retries=3, timeout_minutes=5)


class StageDag(DAG):
    """A DAG that ``airflow dags test`` can run although it has a deadline."""

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """As Airflow's, without the deadline.

        Airflow would search the deadline's record by its definition instead of by its id, and end in an error after
        all tasks have succeeded (airflow 73428). And a trial run must not open an incident for being late.
        """
        deadline, self.deadline = self.deadline, None
        try:
            return super().test(*args, **kwargs)
        finally:
            self.deadline = deadline


def stage_dag(
    spec: ModelSpec, stage: str, *, schedule: Any, params: dict[str, Param], max_active_runs: int,
    profile: ComputeProfile | None = None,
) -> DAG:  # fmt: skip
    """The DAG ``<model>.<stage>``, without tasks.

    A partition is handled while the one after it lasts, so the DAG starts and ends one partition later than the spec.

    Args:
        spec: the model.
        stage: name of the stage.
        schedule: the DAG's timetable.
        params: its trigger form.
        max_active_runs: maximum number of active runs.
        profile: compute profile of the stage's heavy step; without one, runs have no deadline.
    """
    limits = task_limits(spec.step_limits(stage), profile)
    return _dag(
        spec,
        f"{spec.name}.{stage}",
        spec.owner,
        params,
        dag_display_name=f"{spec.name} · {stage}",
        description=dag_docs.SUMMARY[stage],
        doc_md=dag_docs.page(spec, stage),
        schedule=schedule,
        max_active_runs=max_active_runs,
        deadline=deadlines.stage_deadline(spec, stage, limits) if profile else None,
        tags=sorted({spec.name, stage, TASK_NAMES[spec.task], *spec.tags}),
    )


def feature_table_dag(
    table: FeatureTable, spec: ModelSpec, *, schedule: Any, params: dict[str, Param], max_active_runs: int,
    limits: dict[str, Any],
) -> DAG:  # fmt: skip
    """The DAG ``features.<table>``, without tasks.

    Args:
        table: the feature table.
        spec: the model that is its first source, whose partitions it has, and whose channels its alerts go to.
        schedule: the DAG's timetable.
        params: its trigger form.
        max_active_runs: maximum number of active runs.
        limits: retries and timeout of its task, from which its deadline follows.
    """
    dag_id = f"features.{table.name}"
    return _dag(
        spec,
        dag_id,
        table.owner,
        params,
        dag_display_name=f"features · {table.name}",
        description=dag_docs.FEATURES_SUMMARY,
        doc_md=dag_docs.feature_table_page(table, spec),
        schedule=schedule,
        max_active_runs=max_active_runs,
        deadline=deadlines.stage_deadline(spec, dag_id, limits),
        tags=sorted({"features", table.name, *(source.model for source in table.sources)}),
    )


def _dag(spec: ModelSpec, dag_id: str, owner: str, params: dict[str, Param], **options: Any) -> DAG:
    """A DAG for the partitions of a model, with what all DAGs have in common."""
    dag = StageDag(
        dag_id,
        start_date=spec.cadence.end_of(spec.first_partition),
        end_date=_end_of_runs(spec),
        catchup=False,
        default_args={
            "owner": owner,
            "pre_execute": run_request.check_conf,
            "on_failure_callback": alerts.on_failure(spec),
            "on_success_callback": alerts.on_success(spec),
            "on_skipped_callback": alerts.on_skipped(spec),
        },
        render_template_as_native_obj=False,
        **options,
    )
    # The constructor would validate the default of each field at each parse, which took a quarter of the parsing time.
    # A test validates them instead.
    dag.params.update(params)
    return dag


def _end_of_runs(spec: ModelSpec) -> datetime | None:
    """The last moment at which the last partition can be handled; None without an end."""
    last = spec.last_partition
    return (
        None if last is None else spec.cadence.end_of(spec.cadence.shift(last, 1)) - timedelta(microseconds=1)
    )


def task_limits(limit: StepLimits, profile: ComputeProfile | None = None) -> dict[str, Any]:
    """Retries and timeout of a task, as arguments of an operator; pauses of 30 s, doubled up to half an hour.

    Args:
        limit: retries and timeout of the step.
        profile: compute profile of a heavy step. The time that its pod may wait for a node and start is added to the
            step's own.
    """
    waiting = (
        profile.wait_minutes + profile.start_minutes if profile is not None and profile.runs_in_pods else 0
    )
    return {
        "retries": limit.retries,
        "retry_delay": timedelta(seconds=30),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=30),
        "execution_timeout": timedelta(minutes=limit.timeout_minutes + waiting),
    }
