"""Loads the heavy libraries once, in the scheduler, before it forks its workers.

Airflow imports this module from the plugins folder when any of its components starts. With the LocalExecutor each task
runs in a process forked from the scheduler, and so finds the libraries loaded: an import of a few seconds becomes none.
Memory is shared between the forks. The executor itself freezes the garbage collector around its forks.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time

#: What the steps import. A library that is missing here costs its import in every task, nothing more.
HEAVY = (
    "numpy", "pandas", "pyarrow.parquet", "duckdb", "deltalake", "scipy.stats", "sklearn", "xgboost", "optuna",
    "mlflow", "great_expectations", "evidently",
)  # fmt: skip
#: Nobody's usage is reported to the makers of libraries; threads that wait must not spin on a machine with few cores.
ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def forks_tasks(argv: list[str]) -> bool:
    """Whether the process with this command line forks the processes that tasks run in."""
    from airflow.configuration import conf

    command = argv[1:3]
    if command[:1] == ["scheduler"]:
        return "LocalExecutor" in conf.get("core", "executor")
    return command == ["celery", "worker"]


def preload() -> None:
    """Import the heavy libraries; one that cannot be imported is reported and left to the task that needs it."""
    began = time.monotonic()
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except Exception as error:
            logging.getLogger("perennial").warning(
                "%s could not be loaded ahead of the tasks: %s", name, error
            )
    logging.getLogger("perennial").info(
        "libraries loaded ahead of the tasks in %.1f s", time.monotonic() - began
    )


for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
if forks_tasks(sys.argv):
    preload()

__all__: list[str] = []
