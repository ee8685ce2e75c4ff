"""Messages and events that Airflow sends: notices of incidents, metrics, lineage, the daily summary.

The providers of Slack, SMTP, HTTP and SNS and the client of OpenLineage are imported inside functions, so
that only a task that sends something imports them.
"""

__all__ = ["alerts", "daily_summary", "lineage", "metrics", "notifiers"]
