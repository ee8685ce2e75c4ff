"""Waits until the quiet hours of the retraining policy are over, without holding a worker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from perennial_airflow import asked

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.policies import QuietHours


class AwaitQuietHours(BaseOperator):
    """Lets a retraining that a verdict asked for begin after the quiet hours; one triggered by a person begins at once.

    The clock is right here: the hours are about who else needs the machines now, whatever the partition.
    """

    ui_color = "#e8eef4"

    def __init__(self, *, hours: QuietHours, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hours = hours

    def execute(self, context: Context) -> dict[str, Any]:
        """Go on, or wait in the triggerer."""
        moment = self.hours.end_of(datetime.now(UTC))
        if moment is None or asked.actor(context) != asked.SCHEDULER:
            return {"waited": False}
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        self.log.info("Quiet hours: the training begins at %s.", moment.isoformat())
        self.defer(trigger=DateTimeTrigger(moment), method_name="go_on")
        raise AssertionError("unreachable")

    def go_on(self, context: Context, event: Any) -> dict[str, Any]:
        """They are over."""
        return {"waited": True}
