"""What the pages about parts of a model show: a version, two versions compared, the ledger, features, cost.

Everything is read from the lake: ledger, manifests, status records and reports. Only the comparison of two versions
asks MLflow, for the specs that they were trained with. Each part is read on its own (`parts.Parts`), so that one that
cannot be read hides no other.
"""

__all__ = ["comparison", "cost", "features", "ledger_records", "parts", "version"]
