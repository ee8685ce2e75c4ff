"""Settings of Airflow's processes: loads the heavy libraries once, in the scheduler, before it forks its workers.

Airflow imports this module from the plugins folder when any of its components starts. With the LocalExecutor each task
runs in a process forked from the scheduler, which has the libraries loaded already: an import of a few seconds takes no
time. The forks share the memory. The executor itself freezes the garbage collector around its forks.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import pkgutil
import sys
import time
import types
import warnings
from typing import Any

#: Libraries that steps import inside functions, and what the DAG files import. A task imports what is missing here
#: itself.
PRELOADED = (
    "numpy", "pandas", "pyarrow.parquet", "pyarrow.dataset", "duckdb", "deltalake", "deltalake.fs", "scipy.stats",
    "sklearn.compose", "sklearn.dummy", "sklearn.impute", "sklearn.linear_model", "sklearn.metrics",
    "sklearn.pipeline", "xgboost", "optuna", "git", "mlflow", "mlflow.xgboost", "mlflow.models",
    "mlflow.models.display_utils", "mlflow.pyfunc", "mlflow.pyfunc.scoring_server",
    "mlflow.tracing.processor.base_mlflow", "great_expectations", "great_expectations.render.view", "evidently",
    "evidently.presets", "airflow.dag_processing.dagbag", "perennial_airflow.dag_factory.factory",
)  # fmt: skip
#: Parts of the library that no task runs.
NOT_IN_TASKS = ("perennial.__main__", "perennial.cli", "perennial.console", "perennial.local_stack")
#: No usage reports to the makers of libraries; threads that wait do not spin for long on a machine with few cores.
ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",
}
#: Thresholds of the garbage collector: new objects, and collections of the generation before. A full collection visits
#: every object. With Python's defaults (700, 10, 10) each component spends one to two seconds of its start on them,
#: and the scheduler, which holds the libraries, now and then more than a second in which it schedules nothing.
GC_THRESHOLDS = (50_000, 20, 20)

log = logging.getLogger("perennial")


def forks_tasks(argv: list[str]) -> bool:
    """Whether the process with this command line forks the processes that tasks run in."""
    from airflow.configuration import conf

    command = argv[1:3]
    if command[:1] == ["scheduler"]:
        return "LocalExecutor" in conf.get("core", "executor")
    return command == ["celery", "worker"]


def library_modules() -> list[str]:
    """Every module of the library that a task may import, at the top of a module or inside a function."""
    import perennial

    packages = [m.name for m in pkgutil.iter_modules(perennial.__path__, "perennial.")]
    modules = []
    for name in packages:
        if name not in NOT_IN_TASKS:
            package = importlib.import_module(name)
            modules += [name, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{name}."))]
    return modules


def pod_modules() -> list[str]:
    """The module that runs steps in pods, which takes seconds to import, if some model needs it."""
    try:
        from perennial_airflow.execution import maintenance

        return ["perennial_airflow.execution.pods"] if maintenance.pod_profiles() else []
    except Exception as error:  # the import error of the DAG files reports a broken profile
        log.warning("compute profiles could not be read: %s", error)
        return []


def preload() -> None:
    """Import the libraries; one that cannot be imported is logged, and the task that needs it fails."""
    began = time.monotonic()
    # The library first, because it sets how the allocators of others work.
    for name in ("perennial", *PRELOADED, *library_modules(), *pod_modules()):
        try:
            importlib.import_module(name)
        except Exception as error:
            log.warning("%s could not be loaded ahead of the tasks: %s", name, error)
    list_packages()
    draw_pages()
    log.info("libraries loaded ahead of the tasks in %.1f s", time.monotonic() - began)


def list_packages() -> None:
    """Have MLflow (3.17) list all installed packages, as it does before it logs its first model: more than a second."""
    try:
        from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

        warn_dependency_requirement_mismatches(["xgboost"])
    except Exception as error:
        log.warning("this MLflow lists packages differently: %s", error)


def draw_pages() -> None:
    """Have Evidently draw a page of each kind: it imports two hundred modules of plotly while it draws."""
    try:
        import pandas as pd
        import pyarrow as pa

        from perennial.ingestion import data_profile
        from perennial.monitoring import report
        from perennial.monitoring.drift_verdict import ColumnDrift

        rows: dict[str, list[Any]] = {"number": [0.0, 1.0, 2.0], "text": ["a", "b", "b"]}
        days = {"day": pd.to_datetime(["2000-01-01", "2000-01-02", "2000-01-03"])}
        data_profile.summarise(
            pd.DataFrame(rows | days), {"number": "number", "text": "string", "day": "date"}, ()
        )
        sample = {name: pa.chunked_array([values]) for name, values in rows.items()}
        columns = [ColumnDrift(c, "feature", "stable", "", 0.0, 0.1, 0.0, 0.0, 3, 0.5) for c in rows]
        report.evidently_drift_report(columns, sample, sample, ["text"], 0.5)
    except Exception as error:
        log.warning("this Evidently draws differently: %s", error)


def notice_exits() -> None:
    """Have a worker notice immediately that its task's process is gone.

    Airflow 3.3 sees the process close its sockets, checks whether it is gone, which is a moment too early, and then
    sleeps for ``[workers] min_heartbeat_interval`` (whole seconds) with nothing to wake it. Each skipped or failed task
    lasts that much longer, and each slot stays taken. Once the sockets are closed, 20 ms is long enough to wait.
    Delete this when ``WatchedSubprocess._monitor_subprocess`` waits for the process itself.
    """
    try:
        from airflow.sdk.execution_time.supervisor import WatchedSubprocess

        service = WatchedSubprocess._service_subprocess
    except (ImportError, AttributeError) as error:
        log.warning("this Airflow waits for its tasks differently: %s", error)
        return

    def service_soon(self: Any, max_wait_time: float, *args: Any, **kwargs: Any) -> Any:
        wait = max_wait_time if self._open_sockets else min(max_wait_time, 0.02)
        return service(self, wait, *args, **kwargs)

    WatchedSubprocess._service_subprocess = service_soon  # type: ignore[method-assign]


def serve_logs_on_loopback() -> None:
    """Have the log servers of scheduler and triggerer listen on the loopback address.

    Airflow 3.3 binds them to all addresses of the machine and has no setting for it. In the local stack nothing but
    the API server on the same machine calls them. Delete this when ``serve_logs`` takes a host.
    """
    try:
        from airflow.utils.serve_logs import core

        run = core.uvicorn.run  # type: ignore[attr-defined]
    except (ImportError, AttributeError) as error:
        log.warning(
            "this Airflow serves logs differently; its log servers may listen on all addresses: %s", error
        )
        return

    def run_on_loopback(app: Any, **options: Any) -> None:
        run(app, **(options | {"host": "127.0.0.1"}))

    core.uvicorn = types.SimpleNamespace(run=run_on_loopback)  # type: ignore[assignment,attr-defined]


def hide_deprecations() -> None:
    """Leave a warning out of the log of each task that nobody who reads it can do anything about.

    Airflow 3.3 reads ``.airflowignore`` with a class that pathspec 1.0 renames. Some libraries switch such warnings on.
    Delete this when ``airflow.sdk._shared.module_loading.file_discovery`` uses the new class.
    """
    warnings.filterwarnings("ignore", "GitWildMatchPattern", DeprecationWarning)


for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
gc.set_threshold(*GC_THRESHOLDS)
if "PERENNIAL_STACK" in os.environ and sys.argv[1:2] in (["scheduler"], ["triggerer"]):
    serve_logs_on_loopback()
if forks_tasks(sys.argv):
    preload()
    notice_exits()
hide_deprecations()  # after the libraries, whose filters would come first

__all__: list[str] = []
