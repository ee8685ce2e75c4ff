"""The gate: whether a challenger passes, and how far apart it treats groups of the held-out rows."""

__all__ = ["decision", "fairness", "fairness_chart", "group_values"]
