"""``perennial.digest``: each morning one message on all models.

It lists open incidents and those that ended, retrainings asked for with their reasons, changes of champions, and what
is muted, since the digest before. It goes to every channel of a spec that says `digest: true`, and to
`PERENNIAL_ALERT_URL`; the task's log has it too. Notices that a channel did not take earlier are tried again.
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
    """The DAG; one for all models."""
    with DAG(
        "perennial.digest",
        dag_display_name="perennial · digest",
        description="Each morning one message on all models.",
        doc_md=__doc__,
        schedule="0 7 * * *",
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        tags=["perennial", "digest"],
        default_args={"owner": "perennial", "retries": 2, "retry_delay": timedelta(minutes=1)},
    ) as dag:
        SendDigest(task_id="send", execution_timeout=timedelta(minutes=30))
    return {dag.dag_id: dag}


class SendDigest(BaseOperator):
    """Composes the digest, writes it to the log, and tells the channels."""

    ui_color = "#f2f2f2"

    def execute(self, context: Context) -> dict[str, Any]:
        """Returns the title, and the channels that took it and did not."""
        from perennial_airflow import alerts, notifiers

        specs = load_models()[0]
        for spec in specs.values():
            if incidents.read(spec.name).outbox:
                alerts.send(spec)
        found = daily_summary.compose(specs)
        log.info("%s", found.text)
        message = notifiers.Message(found.title, found.text, found.facts)
        took = {c.name: notifiers.deliver(c, message) for c in daily_summary.channels(specs.values())}
        if all(took.values()):  # else tomorrow's tells of today, too
            daily_summary.mark_sent(found)
        return {"title": found.title, "told": sorted(n for n, ok in took.items() if ok),
                "undelivered": sorted(n for n, ok in took.items() if not ok)}  # fmt: skip
