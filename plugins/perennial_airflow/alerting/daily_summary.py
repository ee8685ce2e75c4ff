"""``perennial.daily_summary``: each morning one message on all models.

It lists open incidents and those that ended, decisions on retraining with their reasons, changes of champions, and
what is muted, since the summary before. It goes to every channel of a spec that says `daily_summary: true`, and to
`PERENNIAL_ALERT_URL`; the task's log shows it too. Notices that a channel did not accept earlier are sent again.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context

from perennial.alerting import daily_summary, incidents
from perennial.spec.catalog import load_models

log = logging.getLogger("airflow.task")


def dags() -> dict[str, DAG]:
    """The DAG, by its id; one for all models."""
    with DAG(
        "perennial.daily_summary",
        dag_display_name="perennial · daily summary",
        description="Each morning one message on all models.",
        doc_md=__doc__,
        schedule="0 7 * * *",
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        tags=["perennial", "daily summary"],
        default_args={"owner": "perennial", "retries": 2, "retry_delay": timedelta(minutes=1)},
    ) as dag:
        SendDailySummary(task_id="send_summary", execution_timeout=timedelta(minutes=30))
    return {dag.dag_id: dag}


class SendDailySummary(BaseOperator):
    """Composes the summary, logs it, and sends it to the channels that subscribe to it."""

    ui_color = "#f2f2f2"

    def execute(self, context: Context) -> dict[str, Any]:
        """Send the summary.

        Returns:
            title: the summary's first line. delivered, undelivered: names of channels.
        """
        from perennial_airflow.alerting import alerts, notifiers

        specs = load_models()[0]
        for spec in specs.values():
            if incidents.read_log(spec.name).outbox:
                alerts.deliver_outbox(spec)
        summary = daily_summary.compose(specs)
        log.info("%s", summary.text)
        message = notifiers.Message(summary.title, summary.text, summary.facts)
        delivered = {c.name: notifiers.deliver(c, message) for c in daily_summary.channels(specs.values())}
        if all(delivered.values()):  # otherwise the next summary covers this period again
            daily_summary.mark_sent(summary)
        return {
            "title": summary.title,
            "delivered": sorted(name for name, ok in delivered.items() if ok),
            "undelivered": sorted(name for name, ok in delivered.items() if not ok),
        }
