"""The assets that join the stages of one model. They are partitioned by date, and carry no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec
    from perennial_airflow.asked import Span


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
    """The wish for a new champion; its events carry ``reason`` and ``as_of``."""
    return _asset(spec, "retraining")


def _asset(spec: ModelSpec, kind: str) -> Asset:
    return Asset(name=f"{kind}/{spec.name}", group=spec.name)


def emit(context: Context, asset: Asset, span: Span, extra: dict[str, Any], late: Sequence[str] = ()) -> None:
    """Say what this run publishes, and ``late``: earlier partitions that it publishes beside its own.

    A run of one partition wakes the DAGs that wait for that partition. A range does not: it was asked for as one task,
    and must not start one run a day behind the back of the person who asked.
    """
    event = context["outlet_events"][asset]
    event.extra = {"start": span.start, "end": span.last, **extra}
    if span.single and (late or not span.scheduled):  # without any, Airflow takes the run's own
        event.add_partitions([span.start, *late])
