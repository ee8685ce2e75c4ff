"""Makes the DAGs of all models and feature tables: one DAG per stage of a model, one per table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from airflow.sdk import DAG, get_parsing_context

from perennial.core.errors import SpecError
from perennial.spec.catalog import (
    TABLE_FILE,
    find_folders,
    load_feature_table,
    load_model_by_name,
    load_models,
)
from perennial.spec.feature_table import FeatureTable
from perennial.spec.model_spec import ModelSpec
from perennial_airflow.dag_factory.stages.data import data_dag
from perennial_airflow.dag_factory.stages.features import features_dag
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
#: What the ids of the DAGs of feature tables begin with.
FEATURES = "features"


class BrokenModelsError(Exception):
    """Model folders that cannot be used."""


def dags() -> dict[str, DAG]:
    """The DAGs of all models and feature tables, by id. Broken ones have none: `check_models` reports them.

    A task parses its DAG file again when it starts; then only the DAG of that task is made.
    """
    specs: Iterable[ModelSpec]
    tables: dict[str, DAG] = {}
    if running := get_parsing_context().dag_id:
        model, _, stage = running.rpartition(".")
        if model == FEATURES and stage not in STAGES and stage in find_folders(TABLE_FILE):
            return {running: _features_dag(stage)}
        specs, stages = ([_model_of_task(model)] if stage in STAGES else []), [stage]
    else:
        models = load_models()[0]
        specs, stages = models.values(), list(STAGES)
        made = (features_dag(table, models[table.sources[0].model]) for table in _load_tables(models)[0])
        tables = {dag.dag_id: dag for dag in made}
    return tables | {dag.dag_id: dag for spec in specs for dag in (STAGES[stage](spec) for stage in stages)}


def _features_dag(name: str) -> DAG:
    table = load_feature_table(name)
    return features_dag(table, load_model_by_name(table.sources[0].model))


def _load_tables(models: Mapping[str, ModelSpec]) -> tuple[list[FeatureTable], list[SpecError]]:
    """The feature tables whose first source is one of these models; and an error for each that is invalid."""
    loaded = {table.name: table for spec in models.values() for _, table in spec.feature_tables}
    tables, errors = [], []
    for name in sorted(find_folders(TABLE_FILE)):
        try:
            if name in STAGES:
                raise SpecError(
                    f"a feature table is called {name!r}: features.{name} would be the DAG of a model called features",
                    f"give it another name than {', '.join(STAGES)}",
                )
            table = loaded.get(name) or load_feature_table(name)
        except SpecError as error:
            errors.append(error)
            continue
        if table.sources[0].model in models:
            tables.append(table)
    return tables, errors


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
    """Raise one readable error for all broken folders of models and of feature tables.

    Raises:
        BrokenModelsError: one section per folder.
    """
    models, broken = load_models()
    tables = [e for e in _load_tables(models)[1] if not any(e.cause in error.cause for error in broken)]
    counts = [
        f"{len(errors)} {kind} folder{'s' * (len(errors) > 1)}"
        for kind, errors in (("model", broken), ("feature table", tables))
        if errors
    ]
    if counts:
        raise BrokenModelsError(
            f"{' and '.join(counts)} cannot be used; all other models run as usual.\n\n"
            + "\n\n".join(str(error) for error in (*broken, *tables))
        )
