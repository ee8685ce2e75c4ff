"""Incidents from the first bad signal to the last, and the daily summary."""
