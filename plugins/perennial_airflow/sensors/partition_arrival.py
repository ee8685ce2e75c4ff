"""Waits for the partition of a scheduled run to land, without holding a worker (``data.arrival: wait``).

On S3 it waits with the trigger of Amazon's own sensor, in a folder with `arrival.LandedTrigger`. It uses the
credentials of the environment, as the step does.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferralTimeout

from perennial.core.errors import DataError, PerennialError
from perennial.storage import landing, object_store
from perennial_airflow import run_request
from perennial_airflow.arrival import LandedTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from perennial.spec.model_spec import ModelSpec

#: Seconds between two checks: on S3, where each is a request, and in a folder.
S3_POLL_SECONDS, FOLDER_POLL_SECONDS = 60.0, 10.0


class AwaitPartition(BaseOperator):
    """Waits for the partition of a scheduled run. Runs by hand and runs of a backfill do not wait.

    Args:
        spec: the model; ``data.source`` names the file, ``data.arrival_hours`` the longest wait.
    """

    ui_color = "#e8eef4"

    def __init__(self, *, spec: ModelSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def execute(self, context: Context) -> dict[str, Any]:
        """Check once; if the file is missing, wait in the triggerer for the rest of ``arrival_hours``."""
        if not run_request.is_scheduled(context):
            self.log.info("Not a scheduled run of one partition: it does not wait.")
            return {"waited": False}
        uri = self._uri(context)
        if self._has_landed(uri):
            return {"waited": False, "uri": uri}
        began = context["dag_run"].start_date or datetime.now(UTC)
        remaining = began + timedelta(hours=self.spec.data.arrival_hours) - datetime.now(UTC)
        if remaining <= timedelta(0):
            raise self._not_landed(context)
        self.log.info("Waiting for %s, for at most %s.", uri, remaining)
        self.defer(trigger=arrival_trigger(uri), method_name="landed", timeout=remaining)
        raise AssertionError("unreachable")

    def landed(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Continue after the trigger fired. (Airflow stores this method's name while the task is deferred.)"""
        return {"waited": True, "uri": self._uri(context)}

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> dict[str, Any]:
        """As Airflow's, with our message for a partition that did not land in time."""
        try:
            result: dict[str, Any] = super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            uri = self._uri(context)
            if self._has_landed(uri):
                return {"waited": True, "uri": uri}
            raise self._not_landed(context) from None
        return result

    def _uri(self, context: Context) -> str:
        return landing.source_uri(self.spec.data.source, run_request.partitions(context).start)

    def _has_landed(self, uri: str) -> bool:
        try:
            return object_store.exists(uri)
        except PerennialError as error:
            error.model = error.model or self.spec.name
            raise AirflowException(str(error)) from None

    def _not_landed(self, context: Context) -> AirflowFailException:
        error = DataError(
            f"{self._uri(context)} did not land within {self.spec.data.arrival_hours:g} hours",
            "have the feed deliver it, then clear this task; it then waits again, for the same time",
            model=self.spec.name,
            partition=run_request.partitions(context).start,
        )
        return AirflowFailException(str(error))


def arrival_trigger(uri: str) -> BaseTrigger:
    """The trigger that fires when the file ``uri`` exists, in a folder or on S3."""
    if not object_store.is_remote(uri):
        return LandedTrigger(uri, FOLDER_POLL_SECONDS)
    from perennial_airflow.arrival_s3 import LandedOnS3  # Amazon's provider takes a second to import

    return LandedOnS3.at(uri, S3_POLL_SECONDS)
