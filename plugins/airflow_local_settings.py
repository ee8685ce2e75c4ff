"""Makes tasks start and end quickly: loads the heavy libraries once, in the scheduler, before it forks its workers.

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
from typing import Any

#: What the steps and the DAG files import. What is missing here costs its import in every task, nothing more.
HEAVY = (
    "numpy", "pandas", "pyarrow.parquet", "pyarrow.dataset", "duckdb", "deltalake", "scipy.stats", "sklearn.compose",
    "sklearn.dummy", "sklearn.impute", "sklearn.linear_model", "sklearn.metrics", "sklearn.pipeline", "xgboost",
    "optuna", "git", "mlflow", "mlflow.xgboost", "mlflow.models", "mlflow.pyfunc", "great_expectations",
    "great_expectations.render.view", "evidently", "evidently.presets", "perennial.data", "perennial.datadocs",
    "perennial.publish", "perennial.train", "perennial.fit", "perennial.register", "perennial.candidates",
    "perennial.watch", "perennial.score", "perennial.monitor", "perennial.observe", "perennial.report",
    "perennial.decide", "perennial.promote", "airflow.dag_processing.dagbag", "perennial_airflow.factory",
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


def in_pods() -> tuple[str, ...]:
    """The module that runs steps in pods, which takes seconds to import, where a model needs it."""
    try:
        from perennial_airflow import maintenance

        return ("perennial_airflow.pods",) if maintenance.used() else ()
    except Exception as error:  # a broken profile is told where it is used
        logging.getLogger("perennial").warning("compute profiles could not be read: %s", error)
        return ()


def preload() -> None:
    """Import the heavy libraries; one that cannot be imported is reported and left to the task that needs it."""
    began = time.monotonic()
    for name in (*HEAVY, *in_pods()):
        try:
            importlib.import_module(name)
        except Exception as error:
            logging.getLogger("perennial").warning(
                "%s could not be loaded ahead of the tasks: %s", name, error
            )
    list_packages()
    logging.getLogger("perennial").info(
        "libraries loaded ahead of the tasks in %.1f s", time.monotonic() - began
    )


def list_packages() -> None:
    """Have MLflow (3.17) list all installed packages, as it does before it logs its first model: more than a second."""
    try:
        from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

        warn_dependency_requirement_mismatches(["xgboost"])
    except Exception as error:
        logging.getLogger("perennial").warning("MLflow lists packages in another way: %s", error)


def notice_exits() -> None:
    """Have a worker notice at once that its task's process is gone.

    Airflow 3.3 hears the process close its sockets, looks whether it is gone, which is a moment too early, and then
    sleeps for ``[workers] min_heartbeat_interval`` (whole seconds) with nothing left to wake it. Each skipped or failed
    task lasts that much longer, and each slot stays taken. Once the sockets are closed, 20 ms is long enough to wait.
    Delete this when ``WatchedSubprocess._monitor_subprocess`` waits for the process itself.
    """
    try:
        from airflow.sdk.execution_time.supervisor import WatchedSubprocess

        service = WatchedSubprocess._service_subprocess
    except (ImportError, AttributeError) as error:
        logging.getLogger("perennial").warning("this Airflow waits for its tasks in another way: %s", error)
        return

    def service_soon(self: Any, max_wait_time: float, *args: Any, **kwargs: Any) -> Any:
        wait = max_wait_time if self._open_sockets else min(max_wait_time, 0.02)
        return service(self, wait, *args, **kwargs)

    WatchedSubprocess._service_subprocess = service_soon  # type: ignore[method-assign]


for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
if forks_tasks(sys.argv):
    preload()
    notice_exits()

__all__: list[str] = []
