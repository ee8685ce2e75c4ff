"""``perennial.daily_summary``: each morning one message on all models.

It lists questions that wait for an answer, open incidents and those that ended, decisions with their reasons (changes
of champions, what the gate or a person refused), and what is muted, since the summary before. It goes to every channel
of a spec that says `daily_summary: true`, and to `PERENNIAL_ALERT_URL`; the task's log shows it too. Notices that a
channel did not accept earlier are sent again.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context

from perennial.alerting import daily_summary, decisions
from perennial.core.errors import PerennialError
from perennial.spec.catalog import load_models
from perennial_airflow import retries
from perennial_airflow.bundle_dags import bundle_dag
from perennial_airflow.web import links

log = logging.getLogger("airflow.task")


def dags() -> dict[str, DAG]:
    """The DAG, by its id; one for all models."""
    with bundle_dag(
        "daily_summary",
        description="Each morning one message on all models.",
        doc=__doc__,
        schedule="0 7 * * *",
        tag="daily summary",
        retries=2,
        retry_delay=timedelta(minutes=1),
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
            try:
                if decisions.announce_new(spec):
                    alerts.deliver_outbox(spec)
            except PerennialError as error:
                log.warning("Earlier notices of %s could not be delivered: %s", spec.name, error)
        with retries.translated(self.task_id):
            summary = daily_summary.compose(
                specs, model_page=lambda model: links.absolute(links.model_url(model))
            )
        log.info("%s", summary.text)
        message = notifiers.Message(summary.title, summary.text, summary.facts)
        delivered = {c.name: notifiers.deliver(c, message) for c in daily_summary.channels(specs.values())}
        if all(delivered.values()):  # otherwise the next summary covers this period again
            with retries.translated(self.task_id):
                daily_summary.mark_sent(summary)
        accepted, refused = (
            sorted(n for n, ok in delivered.items() if ok is state) for state in (True, False)
        )
        log.info("Sent to: %s.", ", ".join(accepted) or "no channel" + ", none wants it" * (not delivered))
        if refused:
            log.warning("Not accepted by: %s. The next summary covers this period again.", ", ".join(refused))
        return {"title": summary.title, "delivered": accepted, "undelivered": refused}
