"""What steps import, loaded once in the process that the processes of `support.processes` are forked from.

The library's modules build hundreds of data classes and schemas, and MLflow lists all installed packages before it logs
its first model: each takes a process half a second and more.
"""

from __future__ import annotations

import contextlib
import gc
import importlib

from perennial.steps import dispatch

LIBRARIES = (
    "pyarrow.parquet", "deltalake", "duckdb", "pandas", "xgboost", "sklearn.linear_model", "sklearn.pipeline",
    "scipy.stats", "mlflow.xgboost", "mlflow.models.display_utils", "mlflow.pyfunc.scoring_server",
    "mlflow.utils.requirements_utils", "requests", "great_expectations", "support.processes",
)  # fmt: skip


def load() -> None:
    """Import everything; what has no such module, or another function, is left to the processes."""
    gc.set_threshold(50_000, 20, 20)
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for step in dispatch.STEPS:
        dispatch.load_step(step)
    with contextlib.suppress(ImportError, AttributeError):
        from mlflow.utils import requirements_utils

        requirements_utils.warn_dependency_requirement_mismatches(["xgboost"])
    gc.collect()
    gc.freeze()


load()
