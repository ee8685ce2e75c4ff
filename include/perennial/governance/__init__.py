"""Evidence for those who answer for a model: why a row was predicted as it was, and how a version was made."""

__all__ = [
    "prediction_explanation",
    "reproduction",
]
