"""Batch scoring: the predictions of whole partitions, in units that fit into memory.

numpy and pyarrow are imported at the top of modules. xgboost is imported when a model is loaded, without
scikit-learn, which would need 100 MiB in every scoring process.
"""

__all__ = ["column_origins", "planning", "scorer"]
