"""Waits until the quiet hours of the retraining policy are over, without holding a worker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from perennial_airflow import run_request

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.policies import QuietHours


class AwaitQuietHours(BaseOperator):
    """Delays a retraining that monitoring requested until the quiet hours are over. Runs by hand start immediately.

    It uses the current time, not the partition date: quiet hours are about who else uses the machines now.

    Args:
        hours: the quiet hours.
    """

    ui_color = "#e8eef4"

    def __init__(self, *, hours: QuietHours, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hours = hours

    def execute(self, context: Context) -> dict[str, Any]:
        """Finish, or wait in the triggerer for the end of the quiet hours."""
        end = self.hours.end_of(datetime.now(UTC))
        if end is None or run_request.actor(context) != run_request.SCHEDULER:
            self.log.info("No wait: these are no quiet hours, or a person started the run.")
            return {"waited": False}
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        self.log.info("Quiet hours: the training starts at %s.", end.isoformat())
        self.defer(trigger=DateTimeTrigger(end), method_name="go_on")
        raise AssertionError("unreachable")

    def go_on(self, context: Context, event: Any) -> dict[str, Any]:
        """Continue after the trigger fired. (Airflow stores this method's name while the task is deferred.)"""
        self.log.info("The quiet hours are over: the training may start.")
        return {"waited": True}
