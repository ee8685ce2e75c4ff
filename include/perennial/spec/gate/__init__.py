"""Sections of ``model.yaml`` about what a version must show before it decides: fairness, and the demands of risk."""

__all__ = ["fairness", "risk"]
