"""Incidents, from the first bad signal to the recovery, and the daily summary of all models.

Nothing here sends anything: the Airflow plugin, or the caller's own function, delivers the messages.
"""

__all__ = ["daily_summary", "decisions", "incidents", "mutes"]
