"""The sample's real data, landed as a nightly feed would deliver it, and what the demonstration does with it."""

__all__ = ["landing", "plan"]

__all__ = ["landing", "plan"]
