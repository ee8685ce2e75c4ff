"""What the DAGs of the bundle that belong to no model have in common."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from perennial_airflow import run_request

__all__ = ["bundle_dag"]


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
