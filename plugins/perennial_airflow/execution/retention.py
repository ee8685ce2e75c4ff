"""``perennial.retention``: deletes what is older than each model's spec keeps (`retention`), once a day.

Nothing is deleted of a model that is held (`perennial hold`), and nothing that a version in use needs: champion, the
version that a rollback returns to, a challenger on trial, and each with an alias in MLflow. `perennial retention MODEL`
prints what would be deleted. The log has the disk use of each table.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context

from perennial.spec.model_spec import ModelSpec
from perennial_airflow.alerting import metrics
from perennial_airflow.bundle_dags import bundle_dag, for_each_model

log = logging.getLogger("airflow.task")


def dags() -> dict[str, DAG]:
    """The DAG, by its id; one for all models."""
    with bundle_dag(
        "retention",
        description="Deletes what is older than the models' specs keep, once a day.",
        doc=__doc__,
        schedule="30 4 * * *",
        tag="maintenance",
    ) as dag:
        DeleteOld(task_id="delete_old", execution_timeout=timedelta(hours=12))
    return {dag.dag_id: dag}


class DeleteOld(BaseOperator):
    """Applies the retention of every model."""

    ui_color = "#f2f2f2"

    def execute(self, context: Context) -> dict[str, Any]:
        """Delete what is older than the specs keep.

        Returns:
            By model: what was deleted, and bytes by table.

        Raises:
            AirflowException: the retention of a model failed; that of the others was applied.
        """
        from perennial.governance import retention

        moment = context["dag_run"].run_after or datetime.now(UTC)

        def apply(spec: ModelSpec) -> dict[str, Any]:
            result = retention.apply(spec, as_of=spec.cadence.key_of(moment), actor="perennial.retention")
            disk = {use["name"]: use["bytes"] for use in result["disk"]}
            listed = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in disk.items())
            log.info("%s: %s. Stored: %s.", spec.name, retention.summarise(result), listed or "nothing")
            metrics.record_disk_use(spec, disk)
            return {**result, "disk": disk}

        return for_each_model(apply, "retention not applied")
