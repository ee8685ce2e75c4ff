"""What the DAGs of the bundle that belong to no model have in common: how they are made, and go through all models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Param

from perennial.core import unexpected_errors
from perennial.core.errors import PerennialError
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial_airflow import retries as retry_rules
from perennial_airflow import run_request

__all__ = ["bundle_dag", "for_each_model"]


def bundle_dag(
    name: str,
    *,
    description: str,
    doc: str,
    schedule: str | None,
    tag: str,
    params: Mapping[str, Param] | None = None,
    retries: int = 1,
    retry_delay: timedelta = timedelta(minutes=5),
) -> DAG:
    """Make the DAG ``perennial.<name>``, which runs once at a time and does not catch up.

    Args:
        name: what it does, with underscores.
        description: one line for the list of DAGs.
        doc: its page, in Markdown.
        schedule: a cron expression; None for a DAG that is started by hand only.
        tag: tag beside ``perennial``.
        params: fields of its trigger form.
        retries: how often a task is tried again.
        retry_delay: time between two tries.
    """
    return DAG(
        f"perennial.{name}",
        dag_display_name=f"perennial · {name.replace('_', ' ')}",
        description=description,
        doc_md=doc,
        schedule=schedule,
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        tags=["perennial", tag],
        params=dict(params or {}),
        default_args={
            "owner": "perennial",
            "retries": retries,
            "retry_delay": retry_delay,
            "pre_execute": run_request.check_conf,
        },
    )


def for_each_model(do: Callable[[ModelSpec], Any], failed: str) -> dict[str, Any]:
    """Call a function for each model; where it fails for one, whatever the error, the others still have their turn.

    Args:
        do: takes a model's spec.
        failed: begins the message of the error.

    Returns:
        What the function returned, by model.

    Raises:
        AirflowException: it failed for a model, or a model's folder is invalid. The task is tried again if time may
            heal that.
    """
    specs, errors = catalog.load_models()
    results: dict[str, Any] = {}
    failures: list[PerennialError] = list(errors)
    for spec in specs.values():
        try:
            results[spec.name] = do(spec)
        except Exception as failure:
            error = unexpected_errors.translate(
                failure, "a task for all models", hide=spec.hides_values, model=spec.name
            )
            error.model = error.model or spec.name
            failures.append(error)
    if failures:
        raise retry_rules.airflow_error(failures, f"{failed}: ")
    return results
