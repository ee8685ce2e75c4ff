"""Waits for a night's partition to land, without holding a worker: ``data.arrival: wait``.

On S3 by the trigger of Amazon's own sensor, in a folder by one of ours; with the credentials of the environment, which
the step itself reads with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferralTimeout
from airflow.triggers.base import BaseTrigger, TriggerEvent

from perennial.core.errors import DataError, PerennialError, StorageError
from perennial.storage import landing, object_store
from perennial_airflow import asked

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec

#: Seconds between two looks: on S3, where each is a request, and in a folder.
PAUSE, FOLDER_PAUSE = 60.0, 10.0


class LandedTrigger(BaseTrigger):
    """Fires once when a file is there. A disk that cannot be asked is asked again at the next look.

    Args:
        uri: the file, in a folder. pause: seconds between two looks.
    """

    def __init__(self, uri: str, pause: float) -> None:
        super().__init__()
        self.uri, self.pause = uri, pause

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What the triggerer makes it from."""
        return f"{__name__}.{type(self).__name__}", {"uri": self.uri, "pause": self.pause}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is there; how long at most is the task's to say."""
        while True:
            try:
                if await asyncio.to_thread(object_store.exists, self.uri):
                    break
            except StorageError as error:
                self.log.warning("%s", error.cause)
            await asyncio.sleep(self.pause)
        yield TriggerEvent({"status": "success"})


def trigger(uri: str) -> BaseTrigger:
    """What sees that a file is there, in a folder or on S3."""
    if not object_store.is_remote(uri):
        return LandedTrigger(uri, FOLDER_PAUSE)
    from perennial_airflow.arrival_s3 import LandedOnS3  # Amazon's provider takes a second to import

    return LandedOnS3.at(uri, PAUSE)


class AwaitPartition(BaseOperator):
    """Waits for the partition of a nightly run. A run asked for by a person, or by a backfill, waits for nothing."""

    ui_color = "#e8eef4"

    def __init__(self, *, spec: ModelSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def execute(self, context: Context) -> dict[str, Any]:
        """Look once; where it is not there yet, wait in the triggerer for what is left of the spec's hours."""
        if not nightly(context):
            self.log.info("Not a nightly run: nothing is waited for.")
            return {"waited": False}
        uri = self._uri(context)
        if self._there(uri):
            return {"waited": False, "uri": uri}
        began = context["dag_run"].start_date or datetime.now(UTC)
        left = began + timedelta(hours=self.spec.data.arrival_hours) - datetime.now(UTC)
        if left <= timedelta(0):
            raise self._missing(context)
        self.log.info("Waiting for %s, %s at most.", uri, left)
        self.defer(trigger=trigger(uri), method_name="landed", timeout=left)
        raise AssertionError("unreachable")

    def landed(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on: the triggerer saw it."""
        return {"waited": True, "uri": self._uri(context)}

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> dict[str, Any]:
        """As Airflow's, with our words for a partition that did not come."""
        try:
            result: dict[str, Any] = super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            uri = self._uri(context)
            if self._there(uri):
                return {"waited": True, "uri": uri}
            raise self._missing(context) from None
        return result

    def _uri(self, context: Context) -> str:
        return landing.source_uri(self.spec.data.source, asked.span(context).start)

    def _there(self, uri: str) -> bool:
        try:
            return object_store.exists(uri)
        except PerennialError as error:
            error.model = error.model or self.spec.name
            raise AirflowException(str(error)) from None

    def _missing(self, context: Context) -> AirflowFailException:
        error = DataError(
            f"{self._uri(context)} did not land within {self.spec.data.arrival_hours:g} hours",
            "ask the feed for it, then clear this task; it waits again, for as long",
            model=self.spec.name,
            partition=asked.span(context).start,
        )
        return AirflowFailException(str(error))


def nightly(context: Context) -> bool:
    """Whether the schedule made this run, for one partition."""
    kind = context["dag_run"].run_type
    return str(getattr(kind, "value", kind)) == "scheduled" and asked.partition_key(context) is not None
