"""Batch scoring: the predictions of whole partitions, in units that fit into memory.

numpy and pyarrow are imported at the top of modules. xgboost is not: loading a model imports it, without scikit-learn,
which would take 100 MiB of every scoring process.
"""

__all__ = ["planning", "scorer"]
