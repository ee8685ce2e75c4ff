"""Makes the DAGs of all models from their specs: for each model, one DAG per stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from airflow.sdk import DAG, get_parsing_context

from perennial.core.errors import SpecError
from perennial.spec.catalog import find_folders, load_model_by_name, load_models
from perennial.spec.model_spec import ModelSpec
from perennial_airflow.dag_factory.stages.data import data_dag
from perennial_airflow.dag_factory.stages.monitor import monitor_dag
from perennial_airflow.dag_factory.stages.rollback import rollback_dag
from perennial_airflow.dag_factory.stages.score import score_dag
from perennial_airflow.dag_factory.stages.train import train_dag

STAGES: dict[str, Callable[[ModelSpec], DAG]] = {
    "data": data_dag,
    "train": train_dag,
    "score": score_dag,
    "monitor": monitor_dag,
    "rollback": rollback_dag,
}


class BrokenModelsError(Exception):
    """Model folders that cannot be used."""


def dags() -> dict[str, DAG]:
    """The DAGs of all models, by id. Broken models have none: `check_models` reports them.

    A task parses its DAG file again when it starts; then only the DAG of that task is made.
    """
    specs: Iterable[ModelSpec]
    if running := get_parsing_context().dag_id:
        model, _, stage = running.rpartition(".")
        specs, stages = ([_model_of_task(model)] if stage in STAGES else []), [stage]
    else:
        specs, stages = load_models()[0].values(), list(STAGES)
    return {dag.dag_id: dag for spec in specs for dag in (STAGES[stage](spec) for stage in stages)}


def _model_of_task(model: str) -> ModelSpec:
    """Read the model of the task that is starting.

    Raises:
        SpecError: its folder is invalid, or was removed or renamed while the task waited.
    """
    if model in find_folders():
        return load_model_by_name(model)
    raise SpecError(
        "the folder of this model was removed or renamed while the task waited",
        f"restore the folder and clear the task, or delete the DAGs {model}.* in Airflow. A renamed folder is a new "
        f"model: it begins without tables and versions, and those of {model} stay under their name",
        model=model,
    )


def check_models() -> None:
    """Raise one readable error for all broken model folders.

    Raises:
        BrokenModelsError: one section per folder.
    """
    broken: list[SpecError] = load_models()[1]
    if broken:
        raise BrokenModelsError(
            f"{len(broken)} model folder{'s' * (len(broken) > 1)} cannot be used; all other models run as usual.\n\n"
            + "\n\n".join(str(error) for error in broken)
        )
