"""Addresses of the pages about parts of a model: versions, features, quarantine, ledger, cost."""

__all__ = ["exports", "model_parts"]
