"""What leaves Airflow for people and their tools: incidents, messages to channels, metrics, lineage, the daily summary.

The providers of Slack, SMTP, HTTP and SNS and the client of OpenLineage are imported inside functions: only a task
that has something to send pays for them.
"""

__all__ = ["alerts", "daily_summary", "lineage", "metrics", "notifiers"]
