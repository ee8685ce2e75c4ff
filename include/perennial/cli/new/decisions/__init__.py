"""What a new model is to predict, from which rows: each decision is given, asked about, or suggested by the sample."""

__all__ = ["answers", "key", "label", "personal_data", "time"]
