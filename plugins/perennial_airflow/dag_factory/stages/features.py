"""``features.<table>``: the partitions of a feature table, computed when its sources have published them."""

from __future__ import annotations

import logging
from functools import partial, reduce
from operator import and_
from typing import Any

from airflow.sdk import DAG, Context

from perennial.spec.feature_table import FeatureTable
from perennial.spec.model_spec import ModelSpec, source_specs
from perennial_airflow import run_request
from perennial_airflow.dag_factory import assets, params
from perennial_airflow.dag_factory.dag_builder import feature_table_dag, task_limits
from perennial_airflow.execution.operators import FeatureTableTask
from perennial_airflow.timetables import PublishedPartitions

log = logging.getLogger("perennial")


def features_dag(table: FeatureTable, spec: ModelSpec) -> DAG:
    """The DAG; it runs for each partition that all sources of the table's cadence have published.

    Args:
        table: the feature table.
        spec: the model that is its first source.
    """
    sources = [assets.data(source) for source in source_specs(table) if source.cadence == table.cadence]
    schedule = PublishedPartitions.of(reduce(and_, sources), spec.cadence)
    limits = task_limits(spec.step_limits("score"))
    with feature_table_dag(
        table, spec, schedule=schedule, params=params.partitions(spec), max_active_runs=1, limits=limits
    ) as dag:
        FeatureTableTask(
            task_id="compute",
            spec=spec,
            table=table,
            call=partial(compute, table),
            inlets=[assets.data(source) for source in source_specs(table)],
            outlets=[assets.feature_table(table)],
            **limits,
        )
    return dag


def compute(table: FeatureTable, spec: ModelSpec, context: Context) -> dict[str, Any]:
    """Compute the partition, or those of the range, where they are missing or outdated; in the worker."""
    from perennial.features import feature_tables  # imports DuckDB

    partitions = run_request.partitions(context)
    result = feature_tables.build(table, partitions.start, partitions.end, force=run_request.forced(context))
    log.info(
        "Feature table %s: %d partitions computed, %d were up to date, %d rows.",
        table.name, len(result.rows), result.unchanged, sum(result.rows.values()),
    )  # fmt: skip
    facts = {
        "partitions": list(result.rows),
        "unchanged": result.unchanged,
        "rows": sum(result.rows.values()),
    }
    assets.emit(context, assets.feature_table(table), partitions, {"rows": facts["rows"]})
    return facts
