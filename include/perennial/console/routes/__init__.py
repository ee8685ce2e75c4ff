"""Addresses of the pages about parts of a model: versions and their documents, features, quarantine, ledger, cost."""

__all__ = ["exports", "model_parts", "version_documents"]
