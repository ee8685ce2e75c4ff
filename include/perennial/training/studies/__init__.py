"""Studies of a challenger by models that are fitted to be compared with it and are never registered."""

__all__ = ["schedule", "staleness", "usefulness"]
