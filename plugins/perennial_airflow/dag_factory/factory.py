"""Makes the DAGs of all models from their specs: for each model, one DAG per stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from airflow.sdk import DAG, get_parsing_context

from perennial.core.errors import SpecError
from perennial.spec.catalog import load_model_by_name, load_models
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
        specs, stages = ([load_model_by_name(model)] if stage in STAGES else []), [stage]
    else:
        specs, stages = load_models()[0].values(), list(STAGES)
    return {dag.dag_id: dag for spec in specs for dag in (STAGES[stage](spec) for stage in stages)}


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
