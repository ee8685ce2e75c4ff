"""``perennial.erase``: erases the rows of keys from all tables of a model (right to erasure).

Airflow stores what a form was filled with, so the form takes no keys. First make a request on a machine that may read
them, which prints its name:

    perennial erase MODEL --keys FILE --only-request

The request holds hashes of the keys under a secret (`PERENNIAL_ERASURE_SECRET`, or one in the lake), and the task
compares them with hashes of the rows' keys. The ledger says who erased how many rows of which table, not of whom.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context, Param

from perennial.spec import catalog
from perennial_airflow import retries, run_request
from perennial_airflow.bundle_dags import bundle_dag
from perennial_airflow.execution import runner


def dags() -> dict[str, DAG]:
    """The DAG, by its id; one for all models."""
    with bundle_dag(
        "erase",
        description="Erases the rows of keys from all tables of a model.",
        doc=__doc__,
        schedule=None,
        tag="governance",
        params={
            "model": Param(
                type="string",
                minLength=1,
                title="Model",
                examples=sorted(catalog.find_folders()),
                description_md="Name of the model.",
            ),
            "request": Param(
                type="string",
                pattern="^[0-9a-f]{16}$",
                title="Request",
                description_md="Name of the request, which `perennial erase MODEL --keys FILE --only-request` prints. "
                "Not a key: Airflow would keep it.",
            ),
            "hidden": Param(
                False,
                type="boolean",
                title="Hidden records",
                description_md="Also remove the records of quarantine of which is not known whose they are, because "
                "they hide a column of the keys.",
            ),
        },
    ) as dag:
        EraseRows(task_id="erase", execution_timeout=timedelta(hours=12))
    return {dag.dag_id: dag}


class EraseRows(BaseOperator):
    """Erases the rows of a request; a repeated run removes what is left."""

    ui_color = "#f2f2f2"

    def execute(self, context: Context) -> dict[str, Any]:
        """Erase the rows.

        Returns:
            Numbers of rows by table, and what is left to do: as the step ``erase``.

        Raises:
            AirflowException: the model or the request does not exist, or the rows could not be erased.
        """
        with retries.translated(self.task_id):
            spec = catalog.load_model_by_name(str(run_request.param(context, "model")))
            return runner.run_inline(
                "erase",
                spec,
                request=str(run_request.param(context, "request")),
                actor=run_request.actor(context),
                hidden=bool(run_request.param(context, "hidden")),
                run_id=context["run_id"],
            )
