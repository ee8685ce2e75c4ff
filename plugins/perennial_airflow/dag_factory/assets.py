"""The assets that connect the stages of models, and feature tables. They are partitioned by date and carry no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset

from perennial_airflow.web import links

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from perennial.spec.feature_table import FeatureTable
    from perennial.spec.model_spec import ModelSpec
    from perennial_airflow.run_request import PartitionRange


def data(spec: ModelSpec) -> Asset:
    """Published rows and labels."""
    return _asset(spec, "data")


def model(spec: ModelSpec) -> Asset:
    """The champion."""
    return _asset(spec, "model")


def predictions(spec: ModelSpec) -> Asset:
    """Published predictions."""
    return _asset(spec, "predictions")


def retraining(spec: ModelSpec) -> Asset:
    """Requests for a retraining; an event carries ``reason`` and ``as_of``."""
    return _asset(spec, "retraining")


def feature_table(table: FeatureTable) -> Asset:
    """The computed partitions of a feature table."""
    return Asset(name=f"features/{table.name}", group="features")


def feature_tables(spec: ModelSpec) -> list[Asset]:
    """The feature tables that the rows of a model are joined with."""
    tables = {table.name: table for _, table in spec.feature_tables}
    return [feature_table(tables[name]) for name in sorted(tables)]


def _asset(spec: ModelSpec, kind: str) -> Asset:
    page = links.absolute(links.model_url(spec.name))
    return Asset(name=f"{kind}/{spec.name}", group=spec.name, extra={"page": page} if page else {})


def emit(
    context: Context,
    asset: Asset,
    partitions: PartitionRange,
    extra: dict[str, Any],
    late: Sequence[str] = (),
) -> None:
    """Attach this run's partitions to its event of an asset.

    A run of one partition starts the DAGs that wait for that partition. A range does not: it was requested as one
    task, and must not start one more run per day.

    Args:
        context: Airflow's context of the task.
        asset: one of the task's outlets.
        partitions: what the run is for.
        extra: further fields of the event.
        late: earlier partitions that this run published in addition to its own.
    """
    event = context["outlet_events"][asset]
    event.extra = {"start": partitions.start, "end": partitions.last, **extra}
    if partitions.single and (
        late or not partitions.scheduled
    ):  # without any, Airflow takes the run's own key
        event.add_partitions([partitions.start, *late])
