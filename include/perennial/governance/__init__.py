"""Evidence for those who answer for a model: who decided what, why a row was predicted as it was, and from what."""

__all__ = [
    "champion_history",
    "ledger_export",
    "prediction_explanation",
    "prediction_origin",
    "reproduction",
]
