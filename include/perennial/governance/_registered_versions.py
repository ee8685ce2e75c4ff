"""Versions of a model: what their trainings read, and the deletion of those that nothing uses."""

from __future__ import annotations

from collections.abc import Iterator

from perennial.core.errors import RegistryRequestError
from perennial.features import feature_tables
from perennial.modeling import mlflow_api, registry, training_records
from perennial.modeling.registry import ModelVersion
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training.runs import recipe as recipes
from perennial.training.runs.recipe import Recipe


def tables_read(spec: ModelSpec, version: ModelVersion) -> Iterator[tuple[str, int]]:
    """The tables that a version's training read, by URI, with their versions; none if it has no recipe.

    Raises:
        ArtifactError: the recipe is not what was recorded.
    """
    if recipes.ARTIFACT not in registry.recorded(version).digests:
        return
    recipe = Recipe.from_dict(registry.load_json_artifact(version, recipes.ARTIFACT))
    yield delta_tables.table_uri("published", spec.name), recipe.published
    if recipe.labels is not None:
        yield delta_tables.table_uri("labels", spec.name), recipe.labels
    for _, table in registry.load_spec(version).feature_tables:
        if table.name in recipe.tables:
            yield feature_tables.uri(table), recipe.tables[table.name]


def present(model: str) -> list[ModelVersion]:
    """The versions that were trained here and that MLflow has, in order of their trainings."""
    records = {(record.version, record.run_id): record for record in training_records.all_records(model)}
    versions = ((registry.find_version(model, number), run_id) for number, run_id in records)
    # a number is used again if somebody deletes the model in MLflow
    return [version for version, run_id in versions if version is not None and version.run_id == run_id]


def delete(version: ModelVersion) -> bool:
    """Delete a version, and its run; ``mlflow gc`` then frees the space of its files.

    Returns:
        Whether MLflow did: it may let administrators only.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    body = {"name": version.name, "version": version.version}
    try:
        if version.run_id:  # first: without the version nothing would name the run after an interruption
            run = {"run_id": version.run_id}
            mlflow_api.call("POST", "/api/2.0/mlflow/runs/delete", json=run, missing_ok=True)
        mlflow_api.call("DELETE", "/api/2.0/mlflow/model-versions/delete", json=body, missing_ok=True)
    except RegistryRequestError:
        return False
    return True
