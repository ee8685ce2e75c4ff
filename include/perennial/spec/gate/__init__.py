"""Sections of ``gate`` in `model.yaml` with rules of their own."""

__all__ = ["fairness"]
