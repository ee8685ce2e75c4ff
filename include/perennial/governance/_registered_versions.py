"""Versions of a model: which of them MLflow has, and what their trainings read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from perennial.core.errors import ArtifactError
from perennial.features import feature_tables
from perennial.modeling import registry, training_records
from perennial.modeling.registry import ModelVersion
from perennial.modeling.training_records import TrainingRecord
from perennial.spec.feature_table import FeatureTable
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


def trained_on(spec: ModelSpec, partitions: Sequence[str]) -> list[str]:
    """Numbers of the versions that were fitted or evaluated on some partitions, by the ledger."""
    numbers = [
        record.version
        for record in training_records.all_records(spec.name)
        if any(span.start <= day <= span.end for span in record.ranges for day in partitions)
    ]
    return list(dict.fromkeys(numbers))


def trained_with(spec: ModelSpec, table: FeatureTable, partitions: Collection[str]) -> list[str]:
    """Numbers of the versions that may have been fitted or evaluated on features of some partitions of a table."""
    # A row's features are those that were known last, no older than the age limit.
    rows = [
        (
            spec.cadence.key_of(table.cadence.start_of(day)),
            spec.cadence.key_of(table.cadence.end_of(day) + table.age_limit.length(table.cadence)),
        )
        for day in partitions
    ]
    numbers = [
        record.version
        for record in training_records.all_records(spec.name)
        if any(span.start <= last and first <= span.end for span in record.ranges for first, last in rows)
        and _joined(spec, record, table)
    ]
    return list(dict.fromkeys(numbers))


def _joined(spec: ModelSpec, record: TrainingRecord, table: FeatureTable) -> bool:
    """Whether a version was trained with a feature table; yes, if that is not known any more."""
    version = registry.find_version(spec.name, record.version)
    if version is None or version.run_id != record.run_id:
        return True
    try:
        return any(t.name == table.name for _, t in registry.load_spec(version).feature_tables)
    except ArtifactError:
        return True


def present(model: str) -> list[ModelVersion]:
    """The versions that were trained here and that MLflow has, in order of their trainings."""
    records = {(record.version, record.run_id): record for record in training_records.all_records(model)}
    versions = ((registry.find_version(model, number), run_id) for number, run_id in records)
    # a number is used again if somebody deletes the model in MLflow
    return [version for version, run_id in versions if version is not None and version.run_id == run_id]
