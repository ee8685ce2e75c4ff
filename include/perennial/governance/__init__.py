"""Evidence for those who answer for a model, and what the law asks of its data.

Who decided what, the card of a version, what it does in general, why a row was predicted as it was, and from what;
erasure, retention, holds.
"""

__all__ = [
    "champion_history",
    "disk_usage",
    "erased_rows",
    "erasure",
    "erasure_keys",
    "holds",
    "ledger_export",
    "model_card",
    "model_explanation",
    "prediction_explanation",
    "prediction_origin",
    "reproduction",
    "retention",
    "version_documents",
]
