"""Waits for the partition of a scheduled run to land, without holding a worker (``data.arrival: wait``).

On S3 it waits with the trigger of Amazon's own sensor, in a folder with `arrival.LandedTrigger`. It uses the
credentials of the environment, as the step does. For a query it is rescheduled, because drivers of databases would
block the triggerer.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowRescheduleException,
    AirflowSkipException,
    TaskDeferralTimeout,
)

from perennial.core.errors import DatabaseError, DataError, time_heals
from perennial.spec.sources import QuerySource
from perennial.storage import landing, manifests, object_store
from perennial_airflow import airflow_connections, retries, run_request
from perennial_airflow.arrival import LandedTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from perennial.spec.model_spec import ModelSpec

#: Seconds between two checks: on S3, where each is a request, and in a folder.
S3_POLL_SECONDS, FOLDER_POLL_SECONDS = 60.0, 10.0
#: Time between two checks of a query, each of which takes a worker for some seconds.
QUERY_POLL = timedelta(minutes=2)


class AwaitPartition(BaseOperator):
    """Waits for the partition of a scheduled run. Runs by hand and runs of a backfill do not wait.

    Args:
        spec: the model; ``data.source`` names the file or folder, or is a query; ``data.arrival_hours`` is the longest
            wait.
    """

    ui_color = "#e8eef4"

    def __init__(self, *, spec: ModelSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def execute(self, context: Context) -> dict[str, Any]:
        """Check once; if the file is missing, wait in the triggerer for the rest of ``arrival_hours``.

        If a query is not ready, the task is rescheduled.
        """
        if not run_request.is_scheduled(context):
            self.log.info("Not a scheduled run of one partition: it does not wait.")
            return {"waited": False}
        began = context["dag_run"].start_date or datetime.now(UTC)
        remaining = began + timedelta(hours=self.spec.data.arrival_hours) - datetime.now(UTC)
        if isinstance(self.spec.data.source, QuerySource):
            return self._await_query(self.spec.data.source, context, remaining)
        uri = self._uri(context)
        if self._has_landed(uri):
            self.log.info("%s has landed.", uri)
            return {"waited": False, "uri": uri}
        if remaining <= timedelta(0):
            raise self._not_landed(context, f"{uri} did not land")
        self.log.info("Waiting for %s, for at most %s.", uri, remaining)
        self.defer(trigger=arrival_trigger(uri), method_name="landed", timeout=remaining)
        raise AssertionError("unreachable")

    def landed(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Continue after the trigger fired. (Airflow stores this method's name while the task is deferred.)"""
        uri = self._uri(context)
        self.log.info("%s has landed.", uri)
        return {"waited": True, "uri": uri}

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> dict[str, Any]:
        """As Airflow's, with our message for a partition that did not land in time."""
        try:
            result: dict[str, Any] = super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            uri = self._uri(context)
            if self._has_landed(uri):
                self.log.info("%s has landed.", uri)
                return {"waited": True, "uri": uri}
            raise self._not_landed(context, f"{uri} did not land") from None
        return result

    def _await_query(self, source: QuerySource, context: Context, remaining: timedelta) -> dict[str, Any]:
        """Finish if a query is ready; otherwise reschedule the task until the time is up."""
        from perennial.ingestion import query_feed, run  # they import DuckDB

        day, feed = run_request.partitions(context).start, run.rows_feed(self.spec)
        name = query_feed.describe(feed, source, day)
        cause = "is not ready" if source.ready else "has no rows"
        with retries.translated(self.task_id, model=self.spec.name):
            try:
                with airflow_connections.provided(self.spec, "data"):
                    if query_feed.is_ready(feed, source, day):
                        self.log.info("%s: %s is ready.", day, name)
                        return {"query": name}
            except DatabaseError as error:
                if not time_heals(error) or remaining <= timedelta(0):
                    raise
                cause = f"cannot be run: {error.cause}"
        if remaining <= timedelta(0):
            raise self._not_landed(context, f"{name} {cause}")
        self.log.info("%s: %s %s; it is tried again for at most %s.", day, name, cause, remaining)
        raise AirflowRescheduleException(datetime.now(UTC) + min(QUERY_POLL, remaining))

    def _uri(self, context: Context) -> str:
        with retries.translated(self.task_id, model=self.spec.name):
            return landing.source_uri(str(self.spec.data.source), run_request.partitions(context).start)

    def _has_landed(self, uri: str) -> bool:
        with retries.translated(self.task_id, model=self.spec.name):
            return landing.has_landed(uri)

    def _not_landed(self, context: Context, cause: str) -> AirflowException:
        if not manifests.finished(self.spec.name, "data"):
            return AirflowSkipException(f"{cause}, and nothing of {self.spec.name} was published before.")
        error = DataError(
            f"{cause} within {self.spec.data.arrival_hours:g} hours",
            "have the feed deliver it, then clear this task; it then waits again, for the same time",
            model=self.spec.name,
            partition=run_request.partitions(context).start,
        )
        return retries.airflow_error([error])


def arrival_trigger(uri: str) -> BaseTrigger:
    """The trigger that fires when a file has landed, or a complete folder of part files, in a folder or on S3."""
    if not object_store.is_remote(uri):
        return LandedTrigger(uri, FOLDER_POLL_SECONDS)
    from perennial_airflow.arrival_s3 import LandedOnS3  # Amazon's provider takes a second to import

    return LandedOnS3.at(uri, S3_POLL_SECONDS)
