"""Commands for those who answer for a model: `perennial explain`, `perennial verify`."""

__all__ = ["explain", "verification"]
