"""From pinned rows to a registered challenger: windows, search, boosting, evaluation, MLflow.

A model is fitted in one process (`_dataset`, `_boosting`) or by several Dask workers (`dask_cluster`,
`_distributed_dataset`). XGBoost, scikit-learn, Optuna, Dask and MLflow take seconds to import, and a training that has
already finished, or a worker that waits for its trainer, does not need them: they are imported inside the functions
that use them.
"""

__all__ = [
    "artifacts",
    "candidates",
    "challenger_evaluation",
    "checkpoint",
    "dask_cluster",
    "gate",
    "runs",
    "search",
    "studies",
    "tracking",
    "training_report",
    "windows",
]
