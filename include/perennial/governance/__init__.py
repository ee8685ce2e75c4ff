"""Evidence for those who answer for a model.

Who decided what, the card of a version, what it does in general, why a row was predicted as it was, and from what.
"""

__all__ = [
    "champion_history",
    "ledger_export",
    "model_card",
    "model_explanation",
    "prediction_explanation",
    "prediction_origin",
    "reproduction",
    "version_documents",
]
